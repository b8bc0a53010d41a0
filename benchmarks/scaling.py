"""10 TB of text and 100 million images on 64 workers, on paper: the tables of `docs/scaling.md`.

    python benchmarks/scaling.py

Costs are those that `benchmarks/stage_costs.py` measured, amounts follow from them, and bandwidths
are assumed. A phase takes as long as the slowest of core, network and disk, which overlap.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, comb

from measured_costs import (
    BANDS,
    CHANCE_SECONDS,
    CLOSE_PAIR,
    COMPARE_SECONDS,
    EXCLUDED,
    GROUPS,
    IMAGES,
    MEMORY_BASE,
    MEMORY_FACTOR,
    ORDER,
    PLAN_ROW,
    PORTION,
    SHARD,
    SKETCH,
    TEXT,
    VERIFY_SECONDS,
    Costs,
)

PARTNERS = 0.1
"""Share of images that have a near-duplicate: assumed."""


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the machines."""

    workers: int = 64
    """Processes of one core each, 16 to a machine."""
    network: float = 150e6
    """Bytes per second of a worker in each direction, to its peers, to the store and to the shared
    folder: 25 Gbit/s a machine, three quarters of it."""
    disk: float = 100e6
    """Bytes per second of a worker: an NVMe of 2 GB/s a machine, four fifths of it."""
    memory: float = 4 * 2**30
    """Bytes of a worker."""


@dataclass(frozen=True)
class Phase:
    """A part of a build behind which all workers wait; or what one of them does alone."""

    name: str
    moved: float = 0.0
    """Bytes that cross the network."""
    core: float = 0.0
    """Seconds of one core."""
    stored: float = 0.0
    """Bytes that disks of workers write and read."""
    alone: bool = False
    """Done by one worker."""

    def seconds(self, cluster: Cluster) -> tuple[float, float, float]:
        """Of core, network and disk."""
        wide = 1 if self.alone else cluster.workers
        return (
            self.core / wide,
            self.moved / wide / cluster.network,
            self.stored / wide / cluster.disk,
        )


@dataclass(frozen=True)
class Build:
    """A corpus on its way."""

    name: str
    costs: Costs
    documents: float
    compares: bool = False
    """Near-duplicates are looked for."""

    @property
    def corpus(self) -> float:
        return self.documents * self.costs.document

    @property
    def batches(self) -> int:
        return ceil(self.corpus / self.costs.batch)

    @property
    def portions(self) -> int:
        return ceil(self.corpus / PORTION)

    @property
    def shards(self) -> int:
        return ceil(self.documents * self.costs.shard / SHARD)

    @property
    def chance(self) -> float:
        """Pairs of hashes, of two images or of one and a mirror image, of at most 8 bits apart."""
        return sum(comb(64, bits) for bits in range(9)) / 2**64 * 1.5 * self.documents**2

    def phases(self) -> Iterator[Phase]:
        """In the order in which they happen."""
        costs, records = self.costs, self.portions * self.costs.record
        megabytes = self.corpus / 1e6
        held, rows = self.documents * costs.held, self.documents * costs.row
        reading = sum(megabytes / rate for rate in costs.reading.values())
        yield Phase("read to encode", self.corpus, reading, held)
        sums = self.batches * costs.sums
        yield Phase("finish portions", sums + records, megabytes / costs.finish, 2 * sums)
        if self.compares:
            yield from self._comparison()
        yield Phase("plan, twice", 2 * records, 2 * self.portions * costs.plan_ms / 1e3, alone=True)
        yield Phase("shuffle", rows, megabytes / costs.shuffle, held + 2 * rows)
        yield Phase("write shards", self.documents * costs.shard, megabytes / costs.write)

    def _comparison(self) -> Iterator[Phase]:
        hashes, sketches = 2 * self.documents * BANDS, self.documents * SKETCH
        yield Phase("compare hashes", 8 * hashes + sketches, hashes * COMPARE_SECONDS, 16 * hashes)
        verified = PARTNERS * self.documents * VERIFY_SECONDS + self.chance * CHANCE_SECONDS
        yield Phase("verify near-duplicates", sketches, verified, alone=True)


BUILDS = (
    Build("10 TB of text", TEXT, 10e12 / TEXT.document),
    Build("100 million images, 10.8 TB", IMAGES, 100e6, compares=True),
)


def main() -> None:
    cluster = Cluster()
    print("\n\n".join("\n".join(table) for table in tables(cluster)))


def tables(cluster: Cluster) -> Iterator[list[str]]:
    """Every table of the document, as lines of Markdown."""
    yield measured()
    yield weights()
    yield near_duplicates()
    for build in BUILDS:
        yield phases(build, cluster)
    yield stragglers(cluster)
    yield hot_keys(cluster)
    yield memory(cluster)
    yield growth()
    yield elements()


def measured() -> list[str]:
    """The cost of every stage, MB of corpus per second and core."""
    rates = [
        {
            **build.costs.reading,
            "sums of portions": build.costs.finish,
            "cut by shard, encode, decode": build.costs.shuffle,
            "WriteShards": build.costs.write,
        }
        for build in BUILDS
    ]
    stages = sorted({*rates[0], *rates[1]}, key=ORDER.index)
    rows = [
        [stage, *(f"{one[stage]:,.0f}" if stage in one else "" for one in rates)]
        for stage in stages
    ]
    return table(["stage, MB of corpus per second and core", "text", "images"], rows)


def weights() -> list[str]:
    """What a document weighs on its way."""
    names = {
        "document": "in the corpus",
        "held": "encoded, held by an engine until the plan is made",
        "row": "in the shuffle, with key, place and origin",
        "shard": "in the dataset",
        "sums": "sums of a batch of 4 MB",
        "record": "completion record of a portion of 64 MiB",
    }
    rows = [
        [told, *(f"{getattr(build.costs, name):,.0f}" for build in BUILDS)]
        for name, told in names.items()
    ]
    return table(["bytes", "a document of text", "an image"], rows)


def near_duplicates() -> list[str]:
    """What comparing images costs."""
    rows = [
        ["what an image leaves to be compared by", f"{SKETCH:,} bytes"],
        ["a hash in one of nine bands, in a group of 400,000", f"{COMPARE_SECONDS * 1e6:.0f} us"],
        ["an image that has a near-duplicate", f"{VERIFY_SECONDS * 1e6:.0f} us"],
        ["two that are close by chance, and different", f"{CHANCE_SECONDS * 1e6:.0f} us"],
    ]
    return table(["near-duplicates", "cost"], rows)


def phases(build: Build, cluster: Cluster) -> list[str]:
    """What each phase moves and takes."""
    rows, total = [], 0.0
    for phase in build.phases():
        took = phase.seconds(cluster)
        total += max(took)
        who = "one worker" if phase.alone else "all"
        cells = (*map(duration, took), f"**{duration(max(took))}**")
        rows.append([phase.name, who, size(phase.moved), *cells])
    rows.append(["in all", "", "", "", "", "", f"**{duration(total)}**"])
    return table([build.name, "done by", "moved", "core", "network", "disk", "takes"], rows)


def stragglers(cluster: Cluster) -> list[str]:
    """Of a worker that is slow, and of one that dies."""
    rows = []
    for build in BUILDS:
        parallel = [max(one.seconds(cluster)) for one in build.phases() if not one.alone]
        whole = sum(max(one.seconds(cluster)) for one in build.phases())
        wide = cluster.workers
        dealt = 1 + sum(parallel) / whole
        taken = 1 + sum(parallel) * (wide / (wide - 0.5) - 1) / whole
        cells = [f"{dealt:.2f}", f"{taken:.3f}", duration(max(parallel) / (wide - 1))]
        rows.append([build.name, *cells, duration(max(parallel))])
    head = [
        "",
        "half as fast, work dealt out before",
        "half as fast, work taken when free",
        "dead, its longest phase shared by the others",
        "dead, done again by one",
    ]
    return table(head, rows)


def hot_keys(cluster: Cluster) -> list[str]:
    """What one key of 1 % of the records does to the one shard that it belongs to."""
    rows = []
    for build in BUILDS:
        costs = build.costs
        in_batch = build.documents / build.batches
        left = build.batches * (1 - 0.99**in_batch)
        held = left * costs.row
        peak = MEMORY_BASE + MEMORY_FACTOR * (SHARD + held)
        seconds = left * costs.document / 1e6 / costs.write + held / cluster.network
        fits = "yes" if peak < cluster.memory else "no"
        rows.append(
            [
                build.name,
                f"{0.01 * build.documents / 1e6:,.1f} million",
                f"{left / 1e6:,.1f} million",
                size(held),
                size(peak),
                fits,
                duration(seconds),
            ]
        )
    head = ["1 % of the records are one", "copies", "left by batches", "in one shard"]
    return table([*head, "its worker's peak", "fits", "takes"], rows)


def memory(cluster: Cluster) -> list[str]:
    """Of a worker, at its largest."""
    writes = MEMORY_BASE + MEMORY_FACTOR * SHARD
    clusters = MEMORY_BASE + sum(one for _, one in _of_clusters())
    rows = [
        [name, size(peak), "yes" if peak < cluster.memory else "no"]
        for name, peak in (
            ("each worker, while it writes a shard", writes),
            ("the one that makes clusters of near-duplicates, 100 million images", clusters),
        )
    ]
    return table(["memory", "peak", f"fits {size(cluster.memory)}"], rows)


def _of_clusters() -> list[tuple[str, float]]:
    """What the worker that makes clusters of images holds."""
    _, images = BUILDS
    partners = PARTNERS * images.documents
    found = images.chance + partners / 2
    return [
        ("close pairs of hashes, read by one worker", CLOSE_PAIR * found),
        ("hashes of all images, one worker", 24 * images.documents),
        ("images with a partner, one worker", 1100 * partners),
    ]


def growth() -> list[str]:
    """What one process gets whole."""
    text, images = BUILDS
    partners = PARTNERS * images.documents
    rows = [
        [
            "plan of shards, a file read by every worker",
            *(size(one.shards * PLAN_ROW) for one in BUILDS),
        ],
        [
            "completion records, read one at a time",
            *(size(one.portions * one.costs.record) for one in BUILDS),
        ],
        *([name, "", size(held)] for name, held in _of_clusters()),
        ["images that are out, mapped by every worker", "", size(EXCLUDED * partners / 2)],
    ]
    return table(["", text.name, images.name], rows)


def elements() -> list[str]:
    """What an engine carries, and what it holds for a key."""
    rows = []
    for build in BUILDS:
        costs, name = build.costs, build.name
        per_batch = build.documents / build.batches
        in_portion = PORTION / costs.batch
        rows += [
            [
                name,
                "batch",
                size(costs.held * per_batch),
                f"{build.batches / 1e6:,.1f} million",
                "",
            ],
            [
                name,
                "sums of a batch, by portion",
                size(costs.sums),
                f"{build.batches / 1e6:,.1f} million",
                size(in_portion * costs.sums),
            ],
            [
                name,
                "document, by shard",
                size(costs.row),
                f"{build.documents / 1e6:,.0f} million",
                size(SHARD * costs.row / costs.shard),
            ],
        ]
        if build.compares:
            group = 2 * build.documents / GROUPS * 8
            rows.append(
                [
                    name,
                    "hashes of a portion, by band and group",
                    size(group / build.portions),
                    f"{build.portions * BANDS * GROUPS / 1e6:,.0f} million",
                    size(group),
                ]
            )
    return table(["", "element", "bytes", "how many", "state of a key"], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def size(count: float) -> str:
    """1500 -> 1.5 KB."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """600 -> 10 min."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    main()
