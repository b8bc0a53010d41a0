from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import CorpusFile, Portion
from pipeline.stages import spread_order


def portions(sizes):
    file = CorpusFile(url="/a", source="a", bytes=0, version="")
    return [Portion(i, file, 0, size, size) for i, size in enumerate(sizes)]


def test_the_example_of_the_docstring():
    ordered = spread_order(portions([4, 5, 6, 7, 8, 9]), 2)
    assert [portion.bytes for portion in ordered] == [9, 8, 6, 7, 5, 4]


@given(st.lists(st.integers(0, 100), max_size=30), st.integers(1, 5))
def test_every_portion_once_and_balanced(sizes, num_workers):
    ordered = spread_order(portions(sizes), num_workers)
    assert sorted(portion.index for portion in ordered) == list(range(len(sizes)))
    loads = [sum(p.bytes for p in ordered[worker::num_workers]) for worker in range(num_workers)]
    assert max(loads) - min(loads) <= max(sizes, default=0)
