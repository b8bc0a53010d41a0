"""SLURM: a batch script with a task for each rank, or with torchrun's agent on each node."""

import re
import shlex
from dataclasses import dataclass
from typing import Literal

from launch.plan import Plan
from launch.ranks import Config as RanksConfig
from launch.ranks import agent, exports
from launch.run import Run, quote

TIME = r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?"
"""SLURM's ways to write a time: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
LONGEST_NOTICE = 65535
"""Seconds that sbatch takes for a signal before the limit."""
UNFINISHED = 3
"""Of `python -m training.progress`: steps of the run are left."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `slurm`: a job of a cluster with SLURM."""

    num_nodes: int = 1
    """Machines of the job."""
    devices_per_node: int = 8
    """GPUs of each, and ranks on each; 0 GPUs are asked for where gpus is false."""
    gpus: bool = True
    """Ask for a GPU for each rank."""
    cpus_per_device: int = 8
    """CPU cores for each rank."""
    time: str = "24:00:00"
    """Limit of the job, as SLURM writes it: D-HH:MM:SS, HH:MM:SS or minutes."""
    stop_seconds: int = 300
    """So long before the limit the run is told to stop, with a checkpoint."""
    program: Literal["srun", "torchrun"] = "srun"
    """What starts the ranks; torchrun's agent can start them again (launch.restarts)."""
    array: int = 0
    """So many jobs one after another, where a site forbids requeues; 0: one job, requeued."""
    partition: str = ""
    """Of the cluster; empty: its default."""
    account: str = ""
    """Who pays; empty: the default."""
    container: str = ""
    """Image that ranks run in, by pyxis and enroot; empty: none."""
    mounts: tuple[str, ...] = ()
    """Folders of the container, as `/data:/data`; the start folder is always one."""
    options: tuple[str, ...] = ()
    """More of sbatch, as `--qos=high`."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for name in ("num_nodes", "devices_per_node", "cpus_per_device", "stop_seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.stop_seconds > LONGEST_NOTICE:
            raise ValueError(
                f"stop_seconds is at most {LONGEST_NOTICE}, sbatch's limit, found "
                f"{self.stop_seconds}"
            )
        if self.array < 0:
            raise ValueError(f"array must be 0 or more, found {self.array}")
        if seconds(self.time) <= self.stop_seconds:
            raise ValueError(
                f"time {self.time} is not above stop_seconds {self.stop_seconds}: the job would be "
                "told to stop as soon as it starts"
            )
        for option in self.options:
            if not option.startswith("--") or not option.isprintable():
                raise ValueError(f"options are sbatch's, as --qos=high; found {option!r}")
        if self.mounts and not self.container:
            raise ValueError("mounts are folders of a container, and container is empty")


def seconds(time: str) -> int:
    """A time limit of SLURM in seconds.

    Raises:
        ValueError: no time.
    """
    match = re.fullmatch(TIME, time, re.ASCII)
    if not match or (match[1] is None and match[2] == "0" and not match[3]):
        raise ValueError(f"time is D-HH:MM:SS, HH:MM:SS or minutes, found {time!r}")
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1]:
        return ((days * 24 + first) * 60 + second) * 60 + third
    if match[4]:
        return (first * 60 + second) * 60 + third
    return first * 60 + second


def render(run: Run, settings: RanksConfig, slurm: Config) -> Plan:
    """The batch script, and the command that submits it.

    Raises:
        ValueError: restarts without torchrun, or ranks that do not divide the global batch.
    """
    settings.check_program("slurm.program", slurm.program)
    run.check_ranks(slurm.num_nodes * slurm.devices_per_node)
    path = f"{run.folder}/{run.name}.sbatch"
    return Plan(command=("sbatch", path), files={path: render_script(run, settings, slurm)})


def render_script(run: Run, settings: RanksConfig, slurm: Config) -> str:
    """The batch script: what is asked for, where ranks meet, and the requeue."""
    start = _srun(run, settings, slurm)
    sections = [
        _options(run, slurm),
        ["set -u", f"cd {shlex.quote(run.folder)} || exit 2", *exports(settings)],
        _meeting(settings),
        [f"{start} &", "ranks=$!"],
        _WAIT,
        [] if slurm.array else _requeue(run, slurm),
        ["exit $code"],
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _options(run: Run, slurm: Config) -> list[str]:
    """What sbatch reads. The signal goes to the script alone, which passes it on."""
    ranks = slurm.devices_per_node
    tasks = ranks if slurm.program == "srun" else 1
    options = {
        "job-name": run.name,
        "nodes": slurm.num_nodes,
        "ntasks-per-node": tasks,
        "cpus-per-task": slurm.cpus_per_device * ranks // tasks,
        "gpus-per-node": ranks if slurm.gpus else "",
        "time": slurm.time,
        "signal": f"B:USR1@{slurm.stop_seconds}",
        "output": f"{run.name}-%A_%a.log" if slurm.array else f"{run.name}-%j.log",
        "array": f"1-{slurm.array}%1" if slurm.array else "",
        "partition": slurm.partition,
        "account": slurm.account,
    }
    lines = [f"--{name}={value}" for name, value in options.items() if value != ""]
    requeue = [] if slurm.array else ["--requeue"]
    words = [*lines, *requeue, "--open-mode=append", *slurm.options]
    return ["#!/bin/bash", *(f"#SBATCH {shlex.quote(word)}" for word in words)]


def _meeting(settings: RanksConfig) -> list[str]:
    return [
        'MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"MASTER_PORT={settings.port}",
        "export MASTER_ADDR MASTER_PORT",
    ]


def _srun(run: Run, settings: RanksConfig, slurm: Config) -> str:
    """A task is a rank, or an agent with the ranks of its node."""
    words = ["srun", "--kill-on-bad-exit=1", *_container(run, slurm)]
    if slurm.program == "torchrun":
        meet: tuple[str, ...] = ("--nnodes", "@NODES@", "--rdzv-endpoint", "@POINT@")
        meet += ("--rdzv-id", "@JOB@")
        meet = meet if slurm.num_nodes > 1 else ()
        text = quote([*words, *agent(run, settings, devices=slurm.devices_per_node, meet=meet)])
        text = text.replace("@NODES@", '"$SLURM_JOB_NUM_NODES"')
        text = text.replace("@POINT@", '"$MASTER_ADDR:$MASTER_PORT"')
        return text.replace("@JOB@", '"$SLURM_JOB_ID"')
    lines = [
        "export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS",
        f"exec {quote([run.python, '-m', 'training', *run.arguments])}",
    ]
    inner = "".join(f"\n  {line}" for line in lines)
    return f"{quote(words)} bash -c {shlex.quote(inner)}"


# A signal interrupts `wait`; the run answers it with a checkpoint and code 0.
_WAIT = [
    "trap 'kill -USR1 $ranks' USR1",
    "wait $ranks; code=$?",
    "while kill -0 $ranks 2> /dev/null; do wait $ranks; code=$?; done",
]


def _requeue(run: Run, slurm: Config) -> list[str]:
    """Behind code 0 the run is at its end, or was told to stop; a cancelled job never comes here.

    SLURM itself requeues a job whose node fails, or that is preempted without a time of grace.
    """
    words = ["srun", "--nodes=1", "--ntasks=1", *_container(run, slurm)] if slurm.container else []
    words += [run.python, "-m", "training.progress", str(run.tree["run_dir"])]
    return [
        "if [ $code -eq 0 ]; then",
        f"  {quote(words, indent='    ')}",
        f'  if [ $? -eq {UNFINISHED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        "fi",
    ]


def _container(run: Run, slurm: Config) -> list[str]:
    """Options of pyxis."""
    if not slurm.container:
        return []
    mounts = ",".join([f"{run.folder}:{run.folder}", *slurm.mounts])
    return [
        f"--container-image={slurm.container}",
        f"--container-mounts={mounts}",
        f"--container-workdir={run.folder}",
    ]
