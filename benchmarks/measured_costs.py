"""What a build costs and weighs, as measured: what `benchmarks/scaling.py` multiplies."""

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What `benchmarks/stage_costs.py` printed on 27 November 2026, on a busy machine."""

    reading: dict[str, float]
    """MB of corpus per second and core, of the stages in front of the shuffle."""
    finish: float
    """The same, of what sums the documents of a portion."""
    shuffle: float
    """The same, of what cuts documents by shard, encodes and decodes them."""
    write: float
    """The same, of what sorts documents and writes tars."""
    document: float
    """Bytes of a document, or image, in the corpus."""
    batch: float
    """Bytes of the corpus in an element in front of the shuffle."""
    row: float
    """Bytes of a document in the shuffle."""
    held: float
    """Bytes of a document that the engine holds until the plan is made."""
    shard: float
    """Bytes of a document in the dataset."""
    sums: float
    """Bytes of the sums of a batch."""
    record: float
    """Bytes of the completion record of a portion."""
    plan_ms: float
    """Milliseconds of the plan for each portion."""


TEXT = Costs(
    reading={
        "ReadCorpus": 336,
        "NormaliseText": 660,
        "FilterQuality": 120,
        "KeyDocuments": 3207,
        "EncodeDocuments": 283,
    },
    finish=3295,
    shuffle=549,
    write=286,
    document=4746,
    batch=4.09e6,
    row=2252,
    held=2285,
    shard=2217,
    sums=33_963,
    record=161_758,
    plan_ms=1.0,
)
IMAGES = Costs(
    reading={"ReadCorpus": 404, "ProcessImages": 27.4, "KeyDocuments": 18_878, "PackImages": 7186},
    finish=2778,
    shuffle=782,
    write=443,
    document=108_000,
    batch=3.85e6,
    row=30_882,
    held=32_028,
    shard=32_536,
    sums=40_721,
    record=4404,
    plan_ms=1.5,
)
ORDER = [
    "ReadCorpus",
    "NormaliseText",
    "FilterQuality",
    "ProcessImages",
    "KeyDocuments",
    "EncodeDocuments",
    "PackImages",
    "sums of portions",
    "cut by shard, encode, decode",
    "WriteShards",
]
PLAN_ROW = 201
"""Bytes of a shard in the file of the plan."""
CLOSE_PAIR = 24
"""Bytes that a close pair of hashes takes, at its peak, of the worker that makes clusters."""
SKETCH, EXCLUDED = 1072, 87
"""Bytes that an image leaves to be compared by, and of one that is out."""
COMPARE_SECONDS = 75e-6
"""For each hash of an image or its mirror image and each band, in a group of 400,000."""
VERIFY_SECONDS, CHANCE_SECONDS = 29e-6, 210e-6
"""For each image that has a partner, and for each pair of hashes that are close by chance."""
BANDS, GROUPS = 9, 128
"""Of near-duplicates at a radius of 8 bits, and the groups of each band."""
MEMORY_BASE, MEMORY_FACTOR = 466 * MIB, 3.1
"""A worker's peak: so much, and so many times its shard (`benchmarks/build_memory.py`)."""
PORTION, SHARD = 64 * MIB, 256 * MIB
