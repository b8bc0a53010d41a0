"""Where each weight lies in the flat tensors that a rank's optimizer steps, at every ZeRO stage.

ZeRO packs weights into flat fp32 tensors and cuts these, or at stage 3 each weight, into a part for
every rank. A checkpoint holds the layout of each rank that wrote it, and with its own a rank of
another world size or ZeRO stage knows which elements to read: `training/reshard.py`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

FILES = "layout-*.json"


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive elements of a weight in a flat tensor."""

    flat: str
    """Name of the flat tensor: the number of its group, or at stage 0 the weight's own."""
    start: int
    """Its first element in the flat tensor."""
    weight: str
    """The model's name for the weight."""
    offset: int
    """Its first element in the weight, row by row."""
    count: int
    """Elements."""


@dataclass(frozen=True, slots=True)
class Layout:
    """All pieces of one rank."""

    zero_stage: int
    world_size: int
    """Ranks that divide the same weights among them."""
    optimizer: str
    """DeepSpeed's class around the optimizer, on which the form of its files depends."""
    pieces: Sequence[Piece]

    def to_json(self) -> str:
        """A piece is a list of its five fields: a model has thousands."""
        pieces = [list(asdict(piece).values()) for piece in self.pieces]
        return json.dumps(asdict(self) | {"pieces": pieces}) + "\n"


def read_layouts(checkpoint_dir: Path) -> list[Layout]:
    """The layouts of the ranks whose files a checkpoint holds, by rank; stage 0 has one file."""
    trees = [json.loads(path.read_text()) for path in sorted(checkpoint_dir.glob(FILES))]
    return [
        Layout(**tree | {"pieces": [Piece(*fields) for fields in tree["pieces"]]}) for tree in trees
    ]


def layout_path(checkpoint_dir: Path, rank: int) -> Path:
    """Where the layout of a rank lies in a checkpoint."""
    return checkpoint_dir / FILES.replace("*", f"{rank:05d}")


@dataclass(frozen=True, slots=True)
class Transfer:
    """Elements that go from one flat tensor to another."""

    source: str
    source_start: int
    target: str
    target_start: int
    count: int


def find_transfers(source: Sequence[Piece], target: Sequence[Piece]) -> list[Transfer]:
    """What of the target's pieces lies in those of the source."""
    wanted: dict[str, list[Piece]] = {}
    for piece in target:
        wanted.setdefault(piece.weight, []).append(piece)
    found = []
    for there in source:
        for here in wanted.get(there.weight, ()):
            first = max(there.offset, here.offset)
            count = min(there.offset + there.count, here.offset + here.count) - first
            if count > 0:
                starts = (piece.start + first - piece.offset for piece in (there, here))
                source_start, target_start = starts
                found.append(Transfer(there.flat, source_start, here.flat, target_start, count))
    return found
