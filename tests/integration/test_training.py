"""Two ranks are killed, again and again, and every loss is still that of an unbroken run, bitwise.

The unbroken run is started by the `deepspeed` launcher, the killed ones by torchrun.
"""

import json
import os
import random
import signal
import time
from collections import Counter

import numpy as np
import pytest
import torch

from pipeline.manifest import Manifest, write_manifest
from pipeline.tar import Sample, encode_npy, write_shard
from pipeline.tokenizer import characters_tokenizer, describe_tokenizer, write_tokenizer
from tests.integration.killed_run import NUM_STEPS, Run, is_rank

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dataset")
    tokenizer = characters_tokenizer("abcdefghijklmnopqrstuvwxyz", end_of_document="<|end|>")
    write_tokenizer(tokenizer, folder / "tokenizer.json")
    generator = np.random.default_rng(0)
    splits = {}
    for split, length in (("train", 6000), ("validation", 700)):
        tokens = generator.integers(0, 26, length).astype(np.uint16)
        tokens[99::100] = 26
        files = {
            "docs.npy": encode_npy(np.arange(0, length, 100, dtype=np.uint32)),
            "json": json.dumps({"documents": [], "tokens": length}).encode(),
            "tokens.npy": encode_npy(tokens),
        }
        sample = Sample(f"{split}-0", files, tokens=length)
        splits[split] = (write_shard(folder / f"{split}-000000.tar", [sample]),)
    described = describe_tokenizer(tokenizer, end_of_document="<|end|>")
    write_manifest(
        Manifest("text", splits, {}, {}, tokenizer=described, token_dtype="uint16"), folder
    )
    return folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, dataset_dir):
    """Runs without a kill, by ZeRO stage; each is made once."""
    made = {}

    def run(zero_stage):
        if zero_stage not in made:
            made[zero_stage] = Run(tmp_path_factory.mktemp("unbroken"), dataset_dir, zero_stage)
            made[zero_stage].finish("deepspeed")
        return made[zero_stage]

    return run


def assert_same_run(run, expected):
    assert [row["step"] for row in run.rows()] == list(range(1, run.num_steps + 1))
    assert run.rows() == expected.rows()
    assert run.rows("evaluation.jsonl") == expected.rows("evaluation.jsonl")
    states, others = run.states(), expected.states()
    assert states.keys() == others.keys()
    assert sum(tensor.numel() for tensor in states.values()) > 3 * 25_000  # weights, two moments
    for place, tensor in states.items():
        assert torch.equal(tensor, others[place]), place


def test_the_unbroken_run_learns_and_tells(unbroken):
    run = unbroken(2)
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, run.num_steps + 1))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1
    assert [row["samples_seen"] for row in rows] == list(range(8, 8 * run.num_steps + 1, 8))
    assert [row["step"] for row in run.rows("evaluation.jsonl")] == [10, 20, 30, 40, 50, 60]
    assert run.last_checkpoint() == run.num_steps
    log = run.log.read_text()
    assert "2 cpu ranks, ZeRO stage 2, fp32; global batch 8 = 2 x 2 ranks x 2 accumulation" in log
    assert "Traceback" not in log


def test_killed_at_random_and_inside_of_a_checkpoint(unbroken, tmp_path, dataset_dir):
    """Its checkpoints are written in the background, those of the unbroken run at once."""
    run = Run(tmp_path, dataset_dir, 2, asynchronous=True)
    seed = random.randrange(10**6)
    print("seed", seed)  # pytest shows it with a failure
    generator = random.Random(seed)
    first = generator.randrange(5, 20)
    run.start("torchrun")
    run.wait_until(lambda: run.last_checkpoint() >= first)
    time.sleep(generator.uniform(0, 0.05))
    run.kill()
    begun = run.last_checkpoint()
    assert begun < run.num_steps

    run.start("torchrun")
    temporary = run.dir / "checkpoints"
    run.kill_inside(
        lambda: run.last_checkpoint() > begun and any(temporary.glob(".tmp-step-*/deepspeed/*"))
    )
    assert any(temporary.glob(".tmp-step-*"))

    run.finish("torchrun")
    assert run.log.read_text().count("resumed from ") == 2
    assert " of host memory on rank 0; training waited " in run.log.read_text()
    assert not any(temporary.glob(".tmp-step-*"))
    assert_same_run(run, unbroken(2))


def test_ranks_die_with_their_launcher_and_a_run_folder_has_one_writer(tmp_path, dataset_dir):
    """Ranks are sessions of their own, and would write into the folder of the resumed run."""
    run, second = Run(tmp_path, dataset_dir, 2), Run(tmp_path, dataset_dir, 2)
    second.log = tmp_path / "second.log"
    run.start("torchrun")
    run.wait_until(lambda: run.last_checkpoint() > 0)
    ranks = run.ranks()
    assert len(ranks) == 2
    run.signal(signal.SIGSTOP)  # alive, and holding the folder
    second.start("deepspeed")
    assert second.process.wait(timeout=120) != 0
    assert f"{run.dir}: another run (process " in second.log.read_text()
    assert "Traceback" not in second.log.read_text()

    os.kill(run.process.pid, signal.SIGKILL)  # the launcher alone
    run.process.wait()
    deadline = time.monotonic() + 20
    while any(is_rank(pid) for pid in ranks):
        assert time.monotonic() < deadline, "a rank outlives its launcher"
        time.sleep(0.1)


def test_a_damaged_checkpoint_of_zero_3_is_passed_over(unbroken, tmp_path, dataset_dir):
    """And one before it is enough for the same run."""
    run = Run(tmp_path, dataset_dir, 3)
    run.start("torchrun")
    run.wait_until(lambda: len(list(run.dir.glob("checkpoints/step-*"))) == 2)
    run.kill()
    before, newest = sorted(run.dir.glob("checkpoints/step-*"))
    weights = next(newest.glob("deepspeed/*rank_1*optim_states.pt"))
    weights.write_bytes(weights.read_bytes()[:-100])
    run.finish("torchrun")
    log = run.log.read_text()
    assert f"{newest}: damaged, passed over: deepspeed/{weights.name} has " in log
    assert f"resumed from {before}: step " in log
    assert_same_run(run, unbroken(3))


def test_killed_told_to_stop_and_restarted(unbroken, tmp_path, dataset_dir):
    """One rank is killed below each of two launchers, and a third is told to stop."""
    run = Run(tmp_path, dataset_dir, 2)
    run.start("deepspeed")
    run.wait_until(lambda: run.last_checkpoint() > 0)
    os.kill(run.ranks()[1], signal.SIGKILL)
    assert run.process.wait(timeout=60) != 0
    assert "rank 0: ends, since rank 1 is gone: it was killed" in run.log.read_text()

    run.start("restarts")
    run.wait_until(lambda: "resumed from" in run.log.read_text())
    run.process.send_signal(signal.SIGUSR1)
    assert run.process.wait(timeout=60) == 0, run.log.read_text()
    stopped = run.last_checkpoint()
    told = f"stopped by SIGUSR1 behind step {stopped}; the same command goes on\n"
    assert told in run.log.read_text()
    assert stopped < run.num_steps

    run.start("restarts")
    run.wait_until(lambda: run.last_checkpoint() > stopped)
    os.kill(run.ranks()[0], signal.SIGKILL)
    assert run.process.wait(timeout=240) == 0, run.log.read_text()
    log = run.log.read_text()
    assert "rank 1: ends, since rank 0 is gone: it was killed" in log
    assert "frame #" not in log  # nothing of C++ in front of it
    assert log.count("resumed from ") == 3
    assert "Traceback" not in log
    assert_same_run(run, unbroken(2))


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_fifty_kills(tmp_path, dataset_dir, monkeypatch):
    """Of a rank, both, or the launcher: while they start, in steps and in checkpoints, at random.

    The run ends as the unbroken one, in every bit.
    """
    monkeypatch.setitem(NUM_STEPS, 2, 1500)  # more than fifty kills need on a busy machine
    whole = Run(make(tmp_path / "whole"), dataset_dir, 2)
    whole.finish("restarts")
    seed = int(os.environ.get("MILLRACE_SOAK_SEED", random.randrange(10**6)))
    print("seed", seed)
    generator = random.Random(seed)
    run = Run(make(tmp_path / "killed"), dataset_dir, 2)
    run.start("restarts")
    kills = Counter()
    while kills.total() < 50:
        moment = generator.choice(["start", "step", "step", "checkpoint"])
        victim = generator.choice(["rank 0", "rank 1", "both", "launcher"])
        run.wait_for_moment(moment, generator)
        if run.strike(victim):
            kills[f"{victim} in a {moment}"] += 1
        if run.process.poll() is not None:
            assert run.last_checkpoint() < run.num_steps, "it ended too early"
            run.start("restarts")
    assert run.process.wait(timeout=1200) == 0, run.log.read_text()
    print(dict(kills), "resumed", run.log.read_text().count("resumed from "))
    assert_same_run(run, whole)


def make(folder):
    folder.mkdir()
    return folder
