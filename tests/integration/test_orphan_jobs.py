"""A job that an engine goes on with, though its build was stopped, spoils no later build."""

import shutil

import pytest

from pipeline import build as driver
from pipeline.build import build
from pipeline.refused import RefusedError


def _stop(building, destination):
    raise KeyboardInterrupt


@pytest.fixture
def stopped(config, corpus, tmp_path, monkeypatch):
    """The work folder of a build of other bytes that was stopped behind its last shard."""
    with monkeypatch.context() as patch:
        patch.setattr(driver, "publish", _stop)
        with pytest.raises(KeyboardInterrupt):
            build(config(corpus, tmp_path / "dataset", "shuffle_seed=3"))
    return tmp_path / "dataset/.work"


def test_its_shards_do_not_come_into_another_dataset(
    config, digests, built, corpus, tmp_path, stopped, monkeypatch
):
    (folder,) = (stopped / "shards").iterdir()
    shutil.copytree(folder, tmp_path / "late")
    publish = driver.publish

    def late(building, destination):
        shutil.copytree(tmp_path / "late", folder, dirs_exist_ok=True)
        publish(building, destination)

    monkeypatch.setattr(driver, "publish", late)
    build(config(corpus, tmp_path / "dataset"))
    assert digests(tmp_path / "dataset") == digests(built)
    assert not stopped.exists()


def test_its_records_are_refused(config, digests, built, corpus, tmp_path, stopped, monkeypatch):
    late = {path: path.read_bytes() for path in (stopped / "portions").iterdir()}
    decide = driver.decide

    def interfere(terms):
        path, content = next(iter(late.items()))
        path.write_bytes(content)
        return decide(terms)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "decide", interfere)
        with pytest.raises(RefusedError, match=r"\.work: another build writes there too, perhaps"):
            build(config(corpus, tmp_path / "dataset"))
    build(config(corpus, tmp_path / "dataset"))
    assert digests(tmp_path / "dataset") == digests(built)
