"""A run of two ranks that tests start, kill and compare."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

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


def is_rank(pid):
    """Whether the process is alive and a rank."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    launchers = (b"torchrun", b"deepspeed", b"--restarts")
    return state != "Z" and b"training" in command and not any(w in command for w in launchers)


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
