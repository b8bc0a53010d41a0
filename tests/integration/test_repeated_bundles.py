"""Engines run a bundle again whose worker is lost, or twice at once: the same bytes."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import PIL.Image
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import BundleManager

from configs import load
from pipeline import build as driver
from pipeline.build import build
from pipeline.config import PipelineConfig
from pipeline.tar import Sample, write_shard


@contextmanager
def repeated():
    """Each bundle runs twice, its first output thrown away; counts them."""
    bundles = []
    once = BundleManager.process_bundle

    def twice(self, inputs, outputs, timers, timer_outputs, dry_run=False):
        bundles.append(dry_run)
        once(self, inputs, outputs, timers, timer_outputs, True)
        return once(self, inputs, outputs, timers, timer_outputs, dry_run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BundleManager, "process_bundle", twice)
        yield bundles


@pytest.fixture
def make(corpus, config, tmp_path):
    """The config of a build into a folder."""
    for number in range(24):
        values = np.random.default_rng(number // 2).integers(0, 256, (6, 8, 3), np.uint8)
        path = tmp_path / f"images/{'cat' if number % 3 else 'dog'}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(values).resize((80, 60)).save(path)

    def of(kind, dataset_dir):
        if kind == "text":
            return config(corpus, dataset_dir, "num_workers=1")
        words = [f"corpus.path=[{tmp_path}/images]", f"dataset_dir={dataset_dir}", "num_workers=1"]
        words += ["images.resize.size=48", "shards.target_mib=0.01", "near_duplicates.enabled=true"]
        return load(PipelineConfig, "configs/pipeline/image_folder.yaml", words)

    return of


def hashes(digests, folder):
    (folder / "tokenizer.json").touch()  # images have none
    return digests(folder)


@pytest.mark.slow
@pytest.mark.parametrize("spills", [False, True])
@pytest.mark.parametrize("kind", ["text", "images"])
def test_bundles_that_run_twice(make, digests, tmp_path, kind, spills):
    with repeated() as bundles:
        build(make(kind, tmp_path / "twice"), spills=spills)
    assert len(bundles) > 5
    build(make(kind, tmp_path / "once"), spills=spills)
    assert hashes(digests, tmp_path / "twice") == hashes(digests, tmp_path / "once")


def test_a_shard_that_two_workers_write_at_once(tmp_path):
    samples = [Sample(f"{i:04d}", {"txt": bytes([i % 251]) * 3000}) for i in range(300)]
    expected = write_shard(tmp_path / "alone.tar", samples)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(lambda _: write_shard(tmp_path / "many.tar", samples), range(16)))
    assert {row.sha256 for row in rows} == {expected.sha256}
    assert (tmp_path / "many.tar").read_bytes() == (tmp_path / "alone.tar").read_bytes()
    assert (tmp_path / "many.tar.idx").read_bytes() == (tmp_path / "alone.tar.idx").read_bytes()
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "images"])
def test_a_build_that_begins_on_an_engine_ends_on_this_machine(make, digests, tmp_path, kind):
    """Portions were read, their documents are gone with the engine, and no shard is finished."""

    def stop(building, destination):
        for path in building.work.shards.iterdir():
            path.unlink()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            build(make(kind, tmp_path / "twice"), spills=False)
    assert list((tmp_path / "twice/.work/portions").iterdir())
    build(make(kind, tmp_path / "twice"), spills=True)
    build(make(kind, tmp_path / "once"), spills=True)
    assert hashes(digests, tmp_path / "twice") == hashes(digests, tmp_path / "once")
