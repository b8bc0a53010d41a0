"""Work that is taken in turns: each element once, and none waits for one that is busy."""

from concurrent.futures import ThreadPoolExecutor

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.listing import ListPortions
from pipeline.turns import take_turns


def test_each_element_goes_to_one(tmp_path):
    path = str(tmp_path / "turns")
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda _: list(take_turns(range(300), path)), range(4)))
    assert sorted(one for part in taken for one in part) == list(range(300))
    assert all(part == sorted(part) for part in taken)


def test_who_is_free_takes_what_is_next(tmp_path):
    """Two that begin with one each: while the first is at work, the other does all the rest."""
    path = str(tmp_path / "turns")
    busy, free = (take_turns("abcdef", path) for _ in range(2))
    assert next(busy) == "a"
    assert list(free) == list("bcdef")
    assert list(busy) == []


def test_elements_are_read_as_they_are_taken(tmp_path):
    """Millions of portions are in nobody's memory."""
    read = []
    elements = (read.append(number) or number for number in range(10))
    taken = take_turns(elements, str(tmp_path / "turns"))
    assert [next(taken), next(taken)] == [0, 1]
    assert read == [0, 1]


@pytest.mark.parametrize(
    ("runner", "workers", "takes"),
    [("FnApiRunner", 2, True), ("FnApiRunner", 1, False), ("FlinkRunner", 2, False)],
)
def test_engines_deal_themselves(tmp_path, runner, workers, takes):
    """They run a bundle again whose worker is lost, and its elements are gone if it took them."""
    options = PipelineOptions([f"--direct_num_workers={workers}"])
    pipeline = beam.Pipeline(runner, options=options)
    _ = pipeline | ListPortions(str(tmp_path / "listing"))
    names = [one.unique_name for one in pipeline.to_runner_api().components.transforms.values()]
    assert any("TakePortions" in name for name in names) == takes
    assert any("SpreadPortions" in name for name in names) != takes
