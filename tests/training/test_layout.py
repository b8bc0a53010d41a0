"""Layouts of ranks: every element of a weight goes to its place, whatever the partitions."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from training.layout import Layout, Piece, find_transfers, layout_path, read_layouts


def cut(weights, bounds, flat):
    """Pieces of weights that lie behind one another and are cut at bounds, as of ZeRO 1 and 2."""
    ranks = [[] for _ in range(len(bounds) + 1)]
    edges = [0, *sorted(bounds), sum(weights.values())]
    for rank, (first, last) in enumerate(zip(edges, edges[1:], strict=False)):
        start = 0
        for name, count in weights.items():
            begin, end = max(first, start), min(last, start + count)
            if begin < end:
                ranks[rank].append(Piece(flat, begin - first, name, begin - start, end - begin))
            start += count
    return ranks


def share(weights, world_size, flat):
    """As of ZeRO 3: of each weight the same share for every rank, padded."""
    ranks = [[] for _ in range(world_size)]
    for rank in range(world_size):
        start = 0
        for name, count in weights.items():
            size = -(-count // world_size)
            offset = rank * size
            ranks[rank].append(Piece(flat, start, name, offset, max(0, min(size, count - offset))))
            start += size
    return ranks


def write(pieces, values):
    """The flat tensor of a rank."""
    flat = torch.full((max((p.start + p.count for p in pieces), default=0),), -1)
    for piece in pieces:
        flat[piece.start :][: piece.count] = values[piece.weight][piece.offset :][: piece.count]
    return flat


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@given(sizes, st.data())
def test_every_element_arrives(counts, data):
    weights = {f"w{number}": count for number, count in enumerate(counts)}
    total = sum(counts)
    values = dict(zip(weights, torch.arange(total).split(counts), strict=True))
    bounds = st.lists(st.integers(0, total), max_size=3)
    layouts = [
        cut(weights, data.draw(bounds), "0"),
        share(weights, data.draw(st.integers(1, 4)), "1"),
        cut(weights, data.draw(bounds), "2"),
    ]
    ranks = [write(pieces, values) for pieces in layouts[0]]
    for there, here in zip(layouts, layouts[1:], strict=False):
        moved = [torch.full_like(write(pieces, values), -1) for pieces in here]
        for rank, pieces in enumerate(here):
            for source, flat in zip(there, ranks, strict=True):
                for one in find_transfers(source, pieces):
                    taken = flat[one.source_start :][: one.count]
                    assert (moved[rank][one.target_start :][: one.count] == -1).all()  # once
                    moved[rank][one.target_start :][: one.count] = taken
        ranks = moved
        for pieces, flat in zip(here, ranks, strict=True):
            assert torch.equal(flat, write(pieces, values))


def test_a_layout_comes_back_from_its_file(tmp_path):
    layouts = [
        Layout(2, 2, "ZeRO", [Piece("0", 0, "weight", 3 * rank, 3), Piece("1", 0, "bias", 0, 1)])
        for rank in (0, 1)
    ]
    for rank in (1, 0):
        layout_path(tmp_path, rank).write_text(layouts[rank].to_json())
    assert read_layouts(tmp_path) == layouts
