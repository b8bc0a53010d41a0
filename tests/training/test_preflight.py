"""Before step 1: nodes that differ are refused, by host and in what; slow pairs are named."""

import json
import platform
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import preflight

DIFFERENT = {
    "dataset": f"dataset of h2 is {'b' * 16}, of h1 {'a' * 16}",
    "folder": "h2 does not see what h1 writes into ",  # each rank names its own
    "clock": "the clock of h2 is 61 s ahead of that of h1",
    "code": f"code of Millrace of h2 is {'c' * 16}, of h1 ",
    "config": "config key optimizer.peak_learning_rate of h2 is 0.5, of h1 0.1",
    "version": f"Python of h2 is 3.99.0, of h1 {platform.python_version()}",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", ["alike", *DIFFERENT])
def test_two_nodes(run_ranks, tmp_path, case):
    run_ranks("preflight_worker.py", tmp_path, case, world_size=2)
    for rank in range(2):
        told, left = json.loads((tmp_path / f"told-{rank}.json").read_text())
        assert left == []
        if case == "alike":
            assert told == ""
        else:
            assert told.startswith(f"nodes differ: {DIFFERENT[case]}")
            assert ";" not in told
    log = (tmp_path / "rank-0.log").read_text()
    assert ("2 nodes with the same code, versions and dataset" in log) == (case == "alike")
    assert ("(median of 1), slowest h1 and h2 " in log) == (case == "alike")


@pytest.mark.parametrize(
    ("limit", "told"),
    [(10, ["the clock of h3 is 11 s behind that of h1"]), (0, []), (11, [])],
)
def test_clocks_may_differ_by_so_much(limit, told):
    assert preflight.compare_clocks(["h1", "h2", "h3"], [100, 105, 89], limit) == told


@given(st.integers(1, 40))
def test_every_pair_of_nodes_once_and_a_node_once_a_round(num_nodes):
    found = preflight.rounds(num_nodes)
    assert sorted(pair for pairs in found for pair in pairs) == list(
        combinations(range(num_nodes), 2)
    )
    for pairs in found:
        nodes = [node for pair in pairs for node in pair]
        assert len(set(nodes)) == len(nodes)


@pytest.mark.parametrize(
    ("local_ranks", "nodes"),
    [
        ([0, 1, 2], [[0, 1, 2]]),
        ([0, 1, 0, 1], [[0, 1], [2, 3]]),
        ([0, 0, 1, 2], [[0], [1, 2, 3]]),
    ],
)
def test_nodes(local_ranks, nodes):
    assert preflight.group_by_node(local_ranks) == nodes


def test_a_slow_pair_is_named(capsys):
    rates = dict.fromkeys(combinations(range(4), 2), 10 * 2**30)
    rates[1, 3] = 2**30
    preflight._tell([[0, 1], [2, 3], [4, 5], [6, 7]], [f"h{n // 2}" for n in range(8)], rates)
    assert capsys.readouterr().out.splitlines() == [
        "4 nodes with the same code, versions and dataset; between two of them 10.00 GiB/s "
        "(median of 6), slowest h1 and h3 1.00 GiB/s",
        "warning: h1 and h3 exchange 1.00 GiB/s, others 10.00 GiB/s",
    ]


def test_a_change_in_any_file_is_another_code(tmp_path):
    package = tmp_path / "package/deep"
    package.mkdir(parents=True)
    (package / "a.py").write_text("x = 1\n")
    (package / "notes.txt").write_text("1")
    before = preflight.hash_code([package.parent])
    (package / "notes.txt").write_text("2")
    assert preflight.hash_code([package.parent]) == before
    (package / "a.py").write_text("x = 2\n")
    changed = preflight.hash_code([package.parent])
    (package / "a.py").rename(package / "b.py")
    assert len({before, changed, preflight.hash_code([package.parent])}) == 3


@pytest.mark.parametrize("name", ["clock_seconds", "bandwidth_mib"])
def test_what_has_no_meaning(name):
    with pytest.raises(ValueError, match=f"{name} must be 0 or more, found -1"):
        preflight.Config(**{name: -1})
