"""docs/scaling.md says what benchmarks/scaling.py computes."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling

    yield scaling
    del sys.modules["scaling"], sys.modules["measured_costs"]


def test_the_document_has_every_table(scaling):
    page = (ROOT / "docs/scaling.md").read_text()
    for lines in scaling.tables(scaling.Cluster()):
        told = "\n".join(lines)
        assert told in page, f"python benchmarks/scaling.py prints another table:\n{told}"
        page = page.replace(told, "")
    assert "| ---" not in page  # no table is written by hand


def test_bytes_and_seconds(scaling):
    phase = scaling.Phase("shuffle", moved=64 * 150e6, core=128.0, stored=64 * 500e6)
    assert phase.seconds(scaling.Cluster()) == (2.0, 1.0, 5.0)
    alone = scaling.Phase("plan", moved=300e6, core=7.0, alone=True)
    assert alone.seconds(scaling.Cluster()) == (7.0, 2.0, 0.0)


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.42, "0.42 s"), (9, "9 s"), (600, "10 min"), (7200, "2.0 h")]
)
def test_durations(scaling, seconds, told):
    assert scaling.duration(seconds) == told


@pytest.mark.parametrize(
    ("count", "told"), [(50, "50 B"), (1500, "1.5 KB"), (4.75e12, "4.75 TB"), (12e15, "1.2e+04 TB")]
)
def test_sizes(scaling, count, told):
    assert scaling.size(count) == told
