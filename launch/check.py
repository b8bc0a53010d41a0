"""What `--submit` looks at before it starts anything: the config, the hosts, the time limit."""

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launch.hostfile import Host
from launch.run import Run
from launch.settings import Settings

PROBE = """
import json, os, shutil, socket, subprocess, sys
port, run_dir = int(sys.argv[1]), sys.argv[2]
found = {"port": True, "devices": None, "missing": []}
if port:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError:
        found["port"] = False
if shutil.which("nvidia-smi"):
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    found["devices"] = sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
found["missing"] = [path for path in [run_dir, *sys.argv[3:]] if not os.path.exists(path)]
print("found " + json.dumps(found))
"""
"""Runs on each host: standard library alone."""


def check_config(run: Run) -> None:
    """Let the training stage read the config, as each rank will; here, where ranks run in an image.

    Raises:
        ValueError: with its own message.
    """
    here = Path(run.python).exists()
    words = [run.python if here else sys.executable, "-m", "training", *run.arguments, "--dry-run"]
    folder = run.folder if Path(run.folder).is_dir() else None
    answer = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ValueError((answer.stderr.strip().splitlines() or ["no answer"])[-1])


def check_time(run: Run, seconds: int) -> None:
    """Refuse a time limit in which the run, as fast as it was so far, takes no checkpoint.

    Raises:
        ValueError: with the interval that was measured.
    """
    path = Path(run.folder, str(run.tree["run_dir"]), "metrics.jsonl")
    section = run.tree.get("checkpoints")
    every = section.get("every_steps", 0) if isinstance(section, dict) else 0
    if not every or not path.exists():
        return
    times = [json.loads(line)["step_seconds"] for line in path.read_text().splitlines()[-100:]]
    interval = every * sorted(times)[len(times) // 2] if times else 0
    if interval > seconds:
        raise ValueError(
            f"slurm.time is {seconds:,} s, but a checkpoint comes every {every:,} steps, which is "
            f"every {interval:,.0f} s by {path}; raise the one or lower checkpoints.every_steps"
        )


def check_hosts(run: Run, settings: Settings, machines: Sequence[Host]) -> None:
    """Look at every host over ssh, all at once.

    Raises:
        ValueError: naming each host that is unknown, does not answer, has no such Python or
            folder, has fewer devices than slots, or whose port is taken.
    """
    with ThreadPoolExecutor(min(64, len(machines))) as pool:
        numbers = range(len(machines))
        faults = list(pool.map(lambda n: _fault(run, settings, machines[n], first=n == 0), numbers))
    told = [fault for fault in faults if fault]
    if told:
        raise ValueError("; ".join(told))


def _fault(run: Run, settings: Settings, host: Host, *, first: bool) -> str:
    """What is wrong with one host, or nothing."""
    limit = settings.hosts.ssh_seconds
    port = str(settings.launch.port if first else 0)
    folders = [run.folder, *_files(run)]
    words = [run.python, "-c", PROBE, port, *folders]
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={limit}", host.name]
    try:
        answer = subprocess.run(
            [*ssh, shlex.join(words)],
            capture_output=True,
            text=True,
            timeout=limit + 20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"host {host.name} does not answer within {limit + 20} s"
    lines = [line for line in answer.stdout.splitlines() if line.startswith("found ")]
    if not lines:
        why = " ".join(answer.stderr.split()) or f"ssh ended with code {answer.returncode}"
        return f"host {host.name}: {_explain(host.name)}{why}"
    found = json.loads(lines[0].removeprefix("found "))
    if not found["port"]:
        return f"host {host.name}: port {port} is taken; choose another by launch.port"
    if found["missing"]:
        return f"host {host.name} does not see {', '.join(found['missing'])}; share the folder"
    devices = found["devices"]
    if devices is not None and devices < host.slots:
        return f"host {host.name} has {devices} GPUs, but slots={host.slots} in the hostfile"
    return ""


def _explain(name: str) -> str:
    """Whether a name means nothing; ssh's own words are many."""
    try:
        socket.getaddrinfo(name, 22)
    except OSError:
        return "no address of that name is known here; "
    return "is not reachable by ssh without a password; "


def _files(run: Run) -> list[str]:
    """Local paths that every host must see: the config, and the dataset."""
    data = run.tree.get("data")
    dataset_dir = str(data.get("dataset_dir", "")) if isinstance(data, dict) else ""
    local = dataset_dir and "://" not in dataset_dir
    names = [run.config, *([f"{dataset_dir}/manifest.json"] if local else [])]
    return [str(Path(run.folder, name)) for name in names]
