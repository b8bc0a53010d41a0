"""Two ranks are killed, again and again, and every loss is still that of an unbroken run, bitwise.

The unbroken run is started by the `deepspeed` launcher, the killed ones by torchrun.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.manifest import Manifest, write_manifest
from pipeline.tar import Sample, encode_npy, write_shard
from pipeline.tokenizer import characters_tokenizer, describe_tokenizer, write_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parent.parent.parent
NUM_STEPS = {2: 60, 3: 24}
"""By ZeRO stage; a step of stage 3 takes three times as long."""
CONFIG = """# Two ranks in fp32 with dropout, so that random numbers must be restored.
run_dir: {run_dir}
num_steps: {num_steps}
model: {{name: transformer, vocab_size: 32, d_model: 32, num_layers: 2, num_heads: 2,
  max_positions: 32, dropout: 0.2}}
task: {{name: causal_lm}}
data: {{dataset_dir: {dataset_dir}, sequence_length: 32, num_lanes: 4, window: 4}}
batch: {{global_batch_size: 8, micro_batch_size: 2}}
optimizer: {{peak_learning_rate: 0.003}}
engine: {{zero_stage: {zero_stage}, precision: fp32}}
checkpoints: {{every_steps: 4, keep: 2, asynchronous: {asynchronous}}}
evaluation: {{every_steps: 10}}
logging: {{every_steps: 3}}
"""


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


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Run:
    """A run folder, and the process that trains in it."""

    def __init__(self, folder, dataset_dir, zero_stage, *, asynchronous=False):
        self.dir = folder / "run"
        self.config = folder / "config.yaml"
        self.config.write_text(
            CONFIG.format(
                run_dir=self.dir,
                dataset_dir=dataset_dir,
                zero_stage=zero_stage,
                num_steps=NUM_STEPS[zero_stage],
                asynchronous=asynchronous,
            )
        )
        self.log = folder / "log"
        self.num_steps = NUM_STEPS[zero_stage]

    def start(self, launcher):
        port = _free_port()
        programs = {
            "restarts": ["python", "-m", "training", "--restarts=99", "--nproc-per-node=2"],
            "torchrun": ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "training"],
            "deepspeed": [
                "deepspeed",
                "--num_gpus=2",
                f"--master_port={port}",
                "--module",
                "training",
            ],
        }
        program, *words = programs[launcher]
        launcher_variables = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        kept = {name: text for name, text in os.environ.items() if name not in launcher_variables}
        bin_dir = Path(sys.executable).parent
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [bin_dir / program, *words, self.config],
                env=kept
                | {
                    "DS_ACCELERATOR": "cpu",
                    "OMP_NUM_THREADS": "1",
                    "CUDA_VISIBLE_DEVICES": "",
                    "PATH": f"{bin_dir}:{os.environ['PATH']}",
                    "PYTHONPATH": str(ROOT),
                },
                cwd=self.log.parent,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ranks(self):
        """Process ids of ranks that are alive, in their order."""
        return [pid for pid in descendants(self.process.pid) if is_rank(pid)]

    def finish(self, launcher):
        self.start(launcher)
        assert self.process.wait(timeout=240) == 0, self.log.read_text()

    def kill(self):
        """SIGKILL for the launcher and its ranks, which live in sessions of their own."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def kill_inside(self, condition):
        """Kill while the condition holds: stopped processes cannot leave it in between."""
        while True:
            self.wait_until(condition)
            self.signal(signal.SIGSTOP)
            if condition():
                return self.kill()
            self.signal(signal.SIGCONT)

    def wait_for_moment(self, moment, generator):
        """The start of ranks, some steps further than now, or the middle of a checkpoint."""
        until = time.monotonic() + 300
        passed = lambda: time.monotonic() > until or self.process.poll() is not None  # noqa: E731
        while len(self.ranks()) < 2 and not passed():
            time.sleep(0.01)
        if moment == "start":
            time.sleep(generator.uniform(0, 15))
            return
        goal = self.last_checkpoint() + generator.choice([4, 8])
        while self.last_checkpoint() < goal and not passed():
            time.sleep(0.001)
        temporary = self.dir / "checkpoints"
        while moment == "checkpoint" and not any(temporary.glob(".tmp-*/*")) and not passed():
            time.sleep(0.0001)
        time.sleep(generator.uniform(0, 0.02))

    def strike(self, victim):
        """SIGKILL for ranks or the launcher; whether there was one to kill."""
        ranks = self.ranks() if self.process.poll() is None else []
        if len(ranks) < 2:
            return False
        chosen = {"rank 0": ranks[:1], "rank 1": ranks[1:], "both": ranks}
        for pid in chosen.get(victim, [self.process.pid]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if victim == "launcher":
            self.process.wait()
        return True

    def signal(self, number):
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            os.kill(pid, number)

    def wait_until(self, condition):
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.001)

    def rows(self, name="metrics.jsonl"):
        path = self.dir / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def last_checkpoint(self):
        names = [path.name for path in self.dir.glob("checkpoints/step-*")]
        return int(max(names, default="step-0").removeprefix("step-"))

    def states(self):
        """Everything in DeepSpeed's files of the last checkpoint, by file and place."""
        folder = self.dir / f"checkpoints/step-{self.num_steps:08d}/deepspeed"
        found = {}
        for path in sorted(folder.glob("*.pt")):
            flatten(torch.load(path, weights_only=False), path.name, found)
        return found


def descendants(pid):
    """All processes below one, by Linux' table of children."""
    children = []
    with suppress(FileNotFoundError, ProcessLookupError):  # processes and threads come and go
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return children + [below for child in children for below in descendants(child)]


def flatten(tree, place, found):
    if isinstance(tree, torch.Tensor):
        found[place] = tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            flatten(value, f"{place}/{key}", found)
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            flatten(value, f"{place}/{index}", found)


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


def is_rank(pid):
    """Whether the process is alive and a rank."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    launchers = (b"torchrun", b"deepspeed", b"--restarts")
    return state != "Z" and b"training" in command and not any(w in command for w in launchers)


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
