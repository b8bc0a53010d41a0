"""What `--submit` looks at before it starts anything: the config, the hosts, the time limit."""

import contextlib
import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from launch.hostfile import Host
from launch.hosts import ENVIRONMENT
from launch.run import Run
from launch.settings import Settings

SSH_FAILED = 255
"""The exit code of ssh itself; others are those of what it ran."""
PROBE = """
import json, os, shutil, socket, subprocess, sys
port, run_dir = int(sys.argv[1]), sys.argv[2]
found = {"port": True, "devices": 0, "missing": []}
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
elif len(sys.argv[3]):
    import torch
    found["devices"] = torch.accelerator.device_count()
found["missing"] = [path for path in [run_dir, *sys.argv[4:]] if not os.path.exists(path)]
print("found " + json.dumps(found))
"""
"""Runs on each host: PORT FOLDER COUNTS PATH ...; it imports torch where COUNTS is not empty and
there is no nvidia-smi, which takes seconds less.
"""


def check_config(run: Run) -> dict[str, Any]:
    """Let the training stage read the config, as each rank will; here, where ranks run in an image.

    Returns what it makes of it, with every default.

    Raises:
        ValueError: with its own message.
    """
    here = Path(run.python).exists()
    words = [run.python if here else sys.executable, "-m", "training", *run.arguments, "--dry-run"]
    folder = run.folder if Path(run.folder).is_dir() else None
    answer = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ValueError((answer.stderr.strip().splitlines() or ["no answer"])[-1])
    tree: dict[str, Any] = yaml.safe_load(answer.stdout) or {}
    return tree


def check_folder(run: Run) -> None:
    """Refuse to start ranks in a folder that is not there.

    Raises:
        ValueError: naming it.
    """
    if not Path(run.folder).is_dir():
        raise ValueError(f"launch.folder: {run.folder} is no folder on this machine")


def check_port(settings: Settings) -> None:
    """Refuse a port of this machine that another program has.

    Raises:
        ValueError: naming it.
    """
    port = settings.launch.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            raise ValueError(f"launch.port: {port} is taken; choose another") from None


def check_time(run: Run, resolved: dict[str, Any], seconds: int) -> None:
    """Refuse a time limit in which the run, as fast as it was so far, takes no checkpoint.

    `resolved` is the config with its defaults.

    Raises:
        ValueError: with the interval that was measured.
    """
    path = Path(run.folder, str(run.tree["run_dir"]), "metrics.jsonl")
    every = resolved.get("checkpoints", {}).get("every_steps", 0)
    if not every or not path.exists():
        return
    lines = path.read_text().splitlines()[-100:]
    whole = [line for line in lines if line.endswith("}")]  # a kill may have cut the last one
    times = [json.loads(line)["step_seconds"] for line in whole]
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
    check_same(machines)
    with ThreadPoolExecutor(min(64, len(machines))) as pool:
        numbers = range(len(machines))
        faults = list(pool.map(lambda n: _fault(run, settings, machines[n], first=n == 0), numbers))
    told = [fault for fault in faults if fault]
    if told:
        raise ValueError("; ".join(told))


def check_same(machines: Sequence[Host]) -> None:
    """Refuse one machine under two names, where ranks would share devices.

    Raises:
        ValueError: naming both.
    """
    names: dict[str, str] = {}
    for host in machines:
        with contextlib.suppress(OSError):  # one without an address is told with the others
            for address in {row[4][0] for row in socket.getaddrinfo(host.name, 22)}:
                if address in names:
                    raise ValueError(
                        f"hosts {names[address]} and {host.name} are one machine, {address}; give "
                        "it all slots in one line"
                    )
                names[str(address)] = host.name


def check_environment(settings: Settings, folders: Sequence[Path]) -> None:
    """Refuse what DeepSpeed would hand to ranks unseen: its files of an environment, in the home
    and in the folder where ranks start.

    Raises:
        ValueError: naming the file and its variables that `launch.env` does not set.
    """
    ours = {setting.split("=")[0] for setting in settings.launch.env}
    for path in (folder / ENVIRONMENT for folder in folders):
        if path.exists():
            names = {line.split("=")[0].strip() for line in path.read_text().splitlines() if line}
            if names - ours:
                raise ValueError(
                    f"{path} would set {', '.join(sorted(names - ours))} in the ranks, unseen; "
                    "name them in launch.env, or remove the file"
                )


def _fault(run: Run, settings: Settings, host: Host, *, first: bool) -> str:
    """What is wrong with one host, or nothing."""
    port = str(settings.launch.port if first else 0)
    on_cpu = "DS_ACCELERATOR=cpu" in settings.launch.env
    words = [run.python, "-c", PROBE, port, run.folder, "" if on_cpu else "devices", *_files(run)]
    found = _ask(words, host, seconds=settings.hosts.ssh_seconds)
    if isinstance(found, str):
        return f"host {host.name}{found}"
    if not found["port"]:
        return f"host {host.name}: port {port} is taken; choose another by launch.port"
    if found["missing"]:
        return f"host {host.name} does not see {', '.join(found['missing'])}; share the folder"
    devices = found["devices"]
    if on_cpu or devices >= host.slots:
        return ""
    cpus = "" if devices else "; for ranks on CPUs set launch.env=[DS_ACCELERATOR=cpu]"
    return f"host {host.name} has {devices} devices, but slots={host.slots} in the hostfile{cpus}"


def _ask(words: Sequence[str], host: Host, *, seconds: int) -> dict[str, Any] | str:
    """What the probe finds on a host, or what is wrong with it."""
    ssh = ["ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={seconds}", host.name]
    try:
        answer = subprocess.run(
            [*ssh, shlex.join(words)],
            capture_output=True,
            text=True,
            timeout=seconds + 20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f" does not answer within {seconds + 20} s"
    for line in answer.stdout.splitlines():
        if line.startswith("found "):
            found: dict[str, Any] = json.loads(line.removeprefix("found "))
            return found
    why = " ".join(answer.stderr.split()) or f"it ended with code {answer.returncode}"
    if answer.returncode != SSH_FAILED:
        return f": {words[0]} does not run there: {why}"
    return f": {_explain(host.name)}{why}"


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
