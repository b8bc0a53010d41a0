"""`FindNearDuplicates`: images that look the same, found by their hashes over the whole corpus.

Only hashes travel through Beam, each once for a band: 8 bytes an image and band. Close pairs and
thumbnails, which decide, are read from files by the one worker that makes the clusters.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import apache_beam as beam
import numpy as np
import xxhash

from pipeline.exclude import read_table, write_table
from pipeline.images.clusters import Config, find_clusters, summary
from pipeline.images.hash_pairs import HashPairs
from pipeline.images.similar import Hashes, band_values, bands, close_pairs
from pipeline.shared_work import Files, at_hand, lies_in
from pipeline.spread import Spread
from pipeline.work import WorkFolder, write_json

GROUP_BITS = 7
"""Of each band so many bits make a group of Beam; the worker that gets it cuts it further."""

Tagged = tuple[Hashes, Hashes]
"""Distinct hashes of images, and of their mirror images."""


@dataclass
class FindNearDuplicates(beam.PTransform):  # type: ignore[misc]
    """Numbers of finished portions -> one element when the excluded images are written."""

    config: Config
    """What counts as the same."""
    work: WorkFolder
    """Of the build; holds the sketches of all portions, those of an earlier run too."""
    num_portions: int
    """Length of the plan of the corpus."""
    records: str = ""
    """Of what the portions were made; noted at the end."""

    def expand(self, portions: beam.PCollection) -> beam.PCollection:
        pairs = (
            portions
            | "CountSketches" >> beam.combiners.Count.Globally()
            | "ListSketches" >> beam.FlatMap(_list, self.num_portions)
            | "SpreadSketches" >> Spread()
            | "CutBands" >> beam.FlatMap(band_groups, config=self.config, work=self.work)
            | "GroupBands" >> beam.GroupByKey()
            | "ComparePairs" >> beam.Map(_compare, radius=self.config.radius, work=self.work)
        )
        # A file for each band and group, so that their names are 9 x 128 at the most.
        start = portions.pipeline | "StartClusters" >> beam.Create([None])
        return start | "MakeClusters" >> beam.Map(
            exclude,
            beam.pvalue.AsIter(pairs),
            config=self.config,
            work=self.work,
            records=self.records,
        )


def band_groups(
    portion: int, config: Config, work: WorkFolder
) -> Iterator[tuple[tuple[int, int], Tagged]]:
    """The distinct hashes of a portion by band and group, so that close ones share one of them."""
    with at_hand(work, work.sketch(portion)) as here:
        if not here.sketch(portion).exists():
            return
        rows = read_table(here.sketch(portion), ("hash", "mirrored_hash"))
    plain = np.unique(np.asarray(rows.column("hash")))
    mirrored = np.unique(np.asarray(rows.column("mirrored_hash")))[: None if config.mirrored else 0]
    for number, band in enumerate(bands(config.radius)):
        own, other = (band_values(one, band[:GROUP_BITS]) for one in (plain, mirrored))
        for value in np.unique(np.concatenate([own, other])):
            yield (number, int(value) >> band[0]), (plain[own == value], mirrored[other == value])


def compare_hashes(
    plain: Hashes, mirrored: Hashes, radius: int, band: int | None = None
) -> HashPairs:
    """The close pairs among distinct hashes of images, and between them and mirror images.

    If a band is given, by its number, those that agree in it and in none before it, so that each
    pair is found in one band alone.
    """
    every = bands(radius)
    shared, before = ((), []) if band is None else (every[band], every[:band])
    both = np.concatenate([plain, mirrored])
    left, right = close_pairs(both, radius, shared).T
    first = np.ones(len(left), np.bool_)
    for earlier in before:
        first &= band_values(both[left] ^ both[right], earlier) != 0
    own = first & (right < len(plain))
    across = first & (right >= len(plain)) & (left < len(plain))
    return HashPairs(
        np.stack([both[left[own]], both[right[own]]], axis=1),
        np.stack([both[left[across]], both[right[across]]], axis=1),
    )


def exclude(_: None, pairs: Iterable[str], config: Config, work: WorkFolder, records: str) -> int:
    """Write the images that are out, and what the report says of them; returns their number.

    Args:
        pairs: names of the files of close pairs.
        config: what counts as the same.
        work: of the build.
        records: of what the portions were made; noted at the end.
    """
    with at_hand(work, work.pairs) as here:
        found = HashPairs.joined([here.pairs / name for name in sorted(pairs)])
        clusters = find_clusters(Files.of(here, here.sketches), found, config)
        rows = clusters.excluded()
        write_table(here.excluded, rows)
        # the last: with it the comparison is finished
        write_json(here.comparison, {"records": records, "summary": summary(clusters)})
    return int(rows.num_rows)


def _list(_: int, num_portions: int) -> Iterator[tuple[int, int]]:
    yield from ((portion, portion) for portion in range(num_portions))


def _compare(group: tuple[tuple[int, int], Iterable[Tagged]], radius: int, work: WorkFolder) -> str:
    """The name of the file of the pairs that are close; one that is there is not made again."""
    (band, value), parts = group
    found = zip(*parts, strict=True)
    plain, mirrored = (np.unique(np.concatenate(hashes)) for hashes in found)
    digest = xxhash.xxh3_128(radius.to_bytes() + len(plain).to_bytes(8))
    digest.update(np.concatenate([plain, mirrored]).tobytes())
    name = f"{band}-{value:03d}-{digest.hexdigest()}.arrow"
    if not lies_in(work, work.pairs / name):
        with at_hand(work) as here:
            compare_hashes(plain, mirrored, radius, band).write(here.pairs / name)
    return name
