"""What a build on Flink, Spark or another portable runner needs of Beam's flags: set where one
value suits all, asked for where only the user knows, and refused before anything is started.
"""

import re
import socket
from collections.abc import Sequence

PORTABLE = ("FlinkRunner", "SparkRunner", "PortableRunner")
"""Runners that hand stages to workers over Beam's portability API."""
HERE = re.compile(r"\[(local|auto)\]|local(\[.*\])?")
"""Masters inside of this machine's job server, whose workers Beam starts here (LOOPBACK)."""
SET = {
    "environment_cache_millis": "600000",  # 0 starts the workers anew for each stage
    "sdk_worker_parallelism": "0",  # 1, the default, is one Python process for all slots of a node
}
MASTERS = {"FlinkRunner": "flink_master", "SparkRunner": "spark_master_url"}
CONNECT_SECONDS = 5.0


def complete_flags(flags: Sequence[str], *, num_workers: int) -> tuple[str, ...]:
    """The flags with what a portable runner needs beside them; those of others as they are.

    Raises:
        ValueError: a flag that is needed is missing or wrong, or nothing answers at an address.
    """
    runner = read_flag(flags, "runner")
    if runner not in PORTABLE:
        return tuple(flags)
    address = read_flag(flags, MASTERS.get(runner, "job_endpoint"))
    is_here = runner != "PortableRunner" and HERE.fullmatch(address or "local") is not None
    added = {name: value for name, value in SET.items() if read_flag(flags, name) is None}
    if read_flag(flags, "parallelism") is None:
        if not num_workers:
            raise ValueError(
                f"--parallelism: missing; {runner} would use one worker: give the number of its "
                "slots, here or as num_workers"
            )
        added["parallelism"] = str(num_workers)
    elif not re.fullmatch("[1-9][0-9]*", read_flag(flags, "parallelism") or ""):
        found = read_flag(flags, "parallelism")
        raise ValueError(f"--parallelism must be 1 or more, found {found}")
    if not is_here:
        _check_environment(flags, runner)
    for name in (MASTERS.get(runner, ""), "job_endpoint"):
        found = read_flag(flags, name)
        if found and not HERE.fullmatch(found):
            _check_address(name, found)
    return (*flags, *(f"--{name}={value}" for name, value in added.items()))


def read_flag(flags: Sequence[str], name: str) -> str | None:
    """The value of `--name=value` or `--name value`, the last one; None if it is not there."""
    found = None
    for place, flag in enumerate(flags):
        if flag.startswith(f"--{name}="):
            found = flag.partition("=")[2]
        elif flag == f"--{name}" and place + 1 < len(flags):
            found = flags[place + 1]
    return found


def _check_environment(flags: Sequence[str], runner: str) -> None:
    """Beam's default, a container of its own, has no Millrace in it."""
    kind, config = read_flag(flags, "environment_type"), read_flag(flags, "environment_config")
    if kind is None:
        raise ValueError(
            f"--environment_type: missing; {runner} needs workers that have Millrace: EXTERNAL "
            "with --environment_config=HOST:PORT of worker pools, DOCKER with an image, or "
            "LOOPBACK, which are processes of this machine"
        )
    if kind.upper() in ("EXTERNAL", "DOCKER", "PROCESS") and not config:
        raise ValueError(
            f"--environment_config: missing; for --environment_type={kind} it is the "
            + {"EXTERNAL": "HOST:PORT of the worker pools", "DOCKER": "image of the workers"}.get(
                kind.upper(), 'JSON {"command": "..."} that starts a worker'
            )
        )


def _check_address(name: str, address: str) -> None:
    """Whether somebody listens there: Beam would wait or try for minutes."""
    match = re.fullmatch(r"(?:[a-z]+://)?([\w.-]+):(\d+)/?", address)
    if not match:
        raise ValueError(f"--{name}: an address is HOST:PORT, found {address}")
    try:
        with socket.create_connection((match[1], int(match[2])), timeout=CONNECT_SECONDS):
            return
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"--{name}={address}: nothing answers there ({error}); start it, or correct the address"
        ) from None
