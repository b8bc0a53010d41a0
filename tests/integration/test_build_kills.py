"""Builds killed by SIGKILL, or by a full disk, end with the same bytes when they are run again."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import load
from pipeline import tokenizer_pass
from pipeline.build import build
from pipeline.config import PipelineConfig
from pipeline.runner import StageError
from pipeline.verify import verify

ROOT = Path(__file__).resolve().parents[2]
DIES_AT = """
import os, pathlib, signal, sys
left, before = int(sys.argv.pop(1)), sys.argv.pop(1) == "before"
rename = pathlib.Path.replace
def replace(self, target):
    global left
    left -= 1
    if not left and before:
        os.kill(os.getpid(), signal.SIGKILL)
    done = rename(self, target)
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return done
pathlib.Path.replace = replace
from pipeline.__main__ import main
main(sys.argv[1:])
"""
"""A build that kills itself at its n-th rename: nothing becomes visible in any other way."""

DIES_AT_THE_THIRD = """
import os, signal, sys
from pipeline import sample_files
keep, left = sample_files._keep, 3
def dies(*parts, **named):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return keep(*parts, **named)
sample_files._keep = dies
from pipeline.__main__ import main
main(sys.argv[1:])
"""
"""A build that kills itself when the third portion is read for the tokenizer."""


@pytest.fixture(scope="module")
def yaml_path(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    path = folder / "build.yaml"
    path.write_text(
        f"dataset_dir: {folder}/undisturbed\n"
        f"corpus: {{format: jsonl, path: [{corpus}]}}\n"
        "tokenizer: {vocab_size: 300}\n"
        "split: {documents: 9}\n"
        "shards: {target_mib: 0.02, block_tokens: 2000, chunk_mib: 0.01}\n"
        "num_workers: 1\n"
    )
    return path


@pytest.fixture(scope="module")
def undisturbed(yaml_path, digests):
    """Digests of an undisturbed build, and its number of renames."""
    renames = 0
    rename = Path.replace

    def counting(self, target):
        nonlocal renames
        renames += 1
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", counting)
        dataset_dir = build(load(PipelineConfig, yaml_path))
    return digests(dataset_dir), renames


def killed_at(yaml_path, dataset_dir, rename, when):
    words = [str(rename), when, str(yaml_path), f"dataset_dir={dataset_dir}"]
    command = [sys.executable, "-c", DIES_AT, *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode


def finish(yaml_path, dataset_dir):
    """Run the same command again, in this process."""
    return build(load(PipelineConfig, yaml_path, [f"dataset_dir={dataset_dir}"]))


@pytest.fixture
def check_kill(yaml_path, undisturbed, digests):
    """A build killed at its n-th rename is finished by the same command, to the same bytes."""

    def check(dataset_dir, *, rename, when):
        expected, renames = undisturbed
        assert killed_at(yaml_path, dataset_dir, rename, when) == -signal.SIGKILL
        is_last = rename == renames and when == "after"
        assert (dataset_dir / "manifest.json").exists() == is_last
        assert digests(finish(yaml_path, dataset_dir)) == expected
        assert not (dataset_dir / ".work").exists()
        assert not (dataset_dir / ".lock").exists()
        assert verify(dataset_dir) == []

    return check


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_killed_on_the_way(check_kill, undisturbed, tmp_path, share):
    """Tokenizer, portions, spills, shards, publication: renames come in this order."""
    rename = max(1, round(share * undisturbed[1]))
    check_kill(tmp_path / "d", rename=rename, when="before")


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_the_manifest(check_kill, undisturbed, tmp_path, when):
    check_kill(tmp_path / "d", rename=undisturbed[1], when=when)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_killed_at_every_rename(check_kill, undisturbed, tmp_path):
    for rename in range(1, undisturbed[1] + 1):
        for when in ("before", "after"):
            folder = tmp_path / f"{rename}-{when}"
            check_kill(folder, rename=rename, when=when)


@pytest.mark.parametrize("kind", ["train", "characters"])
def test_a_killed_pass_reads_what_is_left(tmp_path, monkeypatch, kind, digests):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(5):
        lines = [f"Line {number}.{i} of a play, and what is said in it." for i in range(40)]
        (corpus / f"{number}.txt").write_text("\n".join(lines))
    words = [f"corpus.path=[{corpus}]", f"tokenizer.kind={kind}", "quality.enabled=false"]
    words += ["tokenizer.vocab_size=300"] if kind == "train" else []
    config = ROOT / "configs/pipeline/tiny_shakespeare.yaml"
    killed = [*words, "num_workers=1", f"dataset_dir={tmp_path}/killed"]
    command = [sys.executable, "-c", DIES_AT_THE_THIRD, str(config), *killed]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -9
    (folder,) = (tmp_path / "killed/.work/samples").iterdir()
    finished = sorted(path.name for path in folder.iterdir())
    assert len(finished) == 2

    orders = []

    def spread_order(portions, num_workers):
        orders.append(sorted(f"{portion.index:06d}.arrow" for portion in portions))
        return portions

    monkeypatch.setattr(tokenizer_pass, "spread_order", spread_order)
    build(load(PipelineConfig, config, killed))
    assert sorted([*finished, *orders.pop()]) == [f"{number:06d}.arrow" for number in range(5)]
    assert not orders
    whole = [*words, "num_workers=2", f"dataset_dir={tmp_path}/whole"]
    build(load(PipelineConfig, config, whole))
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def kill_two_processes(yaml_path, dataset_dir, seconds):
    """SIGKILL the driver of a build of two processes after a while; its workers must go too."""
    command = [sys.executable, "-m", "pipeline", str(yaml_path)]
    command += [f"dataset_dir={dataset_dir}", "num_workers=2"]
    driver = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + seconds
    workers = []
    while time.monotonic() < deadline and driver.poll() is None:
        workers = below(driver.pid)
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    return workers


def below(pid):
    """All that a process started, and what those did."""
    found = children(pid)
    return [*found, *(one for child in found for one in below(child))]


def workers_of(driver):
    """Forked from the process that has imported; the commands that called for them are none."""
    return [worker for child in children(driver.pid) for worker in children(child)]


def children(pid):
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(word) for word in path.read_text().split()]
    return found


@pytest.mark.slow
def test_killed_driver_takes_its_workers_along(yaml_path, undisturbed, digests, tmp_path):
    workers = []
    for seconds in (8, 16, 32):  # a loaded machine starts workers late
        workers = kill_two_processes(yaml_path, tmp_path / "d", seconds)
        if workers:
            break
    for _ in range(600):  # what is importing looks up behind that only; a loaded machine takes long
        alive = [pid for pid in workers if Path(f"/proc/{pid}/stat").exists()]
        alive = [pid for pid in alive if " Z " not in Path(f"/proc/{pid}/stat").read_text()]
        if not alive:
            break
        time.sleep(0.1)
    assert not alive
    assert digests(finish(yaml_path, tmp_path / "d")) == undisturbed[0]


@pytest.mark.slow
def test_a_killed_worker_fails_the_build_in_one_line(yaml_path, undisturbed, digests, tmp_path):
    command = [sys.executable, "-m", "pipeline", str(yaml_path)]
    command += [f"dataset_dir={tmp_path / 'd'}", "num_workers=2"]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while driver.poll() is None and not (workers := workers_of(driver)):
        time.sleep(0.1)
    os.kill(workers[0], signal.SIGKILL)
    _, errors = driver.communicate(timeout=90)
    lines = [line for line in errors.splitlines() if " MB/s" not in line]
    assert " of disk while it is built, " in lines.pop(0)
    assert driver.returncode == 1
    assert [line.split(",")[0] for line in lines] == ["error: a worker process died"]
    assert digests(finish(yaml_path, tmp_path / "d")) == undisturbed[0]


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_killed_at_random_moments_with_two_processes(yaml_path, undisturbed, digests, tmp_path):
    rng = random.Random(1)
    for turn in range(20):
        for _ in range(3):
            kill_two_processes(yaml_path, tmp_path / f"{turn}", rng.uniform(3, 25))
        assert digests(finish(yaml_path, tmp_path / f"{turn}")) == undisturbed[0]


@pytest.mark.slow
def test_full_disk_is_told_and_a_rerun_finishes(yaml_path, digests, tmp_path):
    """A limit on the size of files stops the build as a full disk does, at its first shard."""
    shard_bytes = 20_480

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (shard_bytes, shard_bytes))

    big = ["shards.target_mib=1"]
    command = [sys.executable, "-m", "pipeline", str(yaml_path), f"dataset_dir={tmp_path / 'd'}"]
    failed = subprocess.run(
        [*command, *big], cwd=ROOT, preexec_fn=limit, capture_output=True, text=True
    )
    assert failed.returncode == 1
    assert "File too large" in failed.stderr.splitlines()[-1]
    assert "free space and run the same command again" in failed.stderr.splitlines()[-1]
    assert "Traceback" not in failed.stderr
    assert not (tmp_path / "d" / "manifest.json").exists()
    finished = build(load(PipelineConfig, yaml_path, [f"dataset_dir={tmp_path / 'd'}", *big]))
    fresh = build(load(PipelineConfig, yaml_path, [f"dataset_dir={tmp_path / 'fresh'}", *big]))
    assert digests(finished) == digests(fresh)


@pytest.fixture
def disk(tmp_path):
    """A disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def resize(disk, size):
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.mark.slow
def test_a_disk_too_small_is_told_at_once_and_fails_with_advice(yaml_path, disk, caplog):
    """Only a warning: the estimate may be too high, and a build that fits must go on."""
    with pytest.raises((StageError, OSError), match="No space left on device.*free space and run"):
        finish(yaml_path, disk / "d")
    assert "MiB are free on its disk, the build probably needs" in caplog.text
    assert not (disk / "d" / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["100k", "200k", "300k", "400k"])
def test_a_disk_that_fills_up(yaml_path, undisturbed, digests, disk, size, monkeypatch):
    """At whatever point: the run is told, and finishes once there is room."""
    monkeypatch.setattr("pipeline.build.check_free_space", lambda *_, **__: None)
    resize(disk, size)
    with pytest.raises((StageError, OSError), match="No space left on device"):
        finish(yaml_path, disk / "d")
    assert not (disk / "d" / "manifest.json").exists()
    resize(disk, "8m")
    assert digests(finish(yaml_path, disk / "d")) == undisturbed[0]
