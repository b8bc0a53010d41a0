"""What a build on Flink, Spark or another portable runner needs of Beam's flags: set where one
value suits all, asked for where only the user knows, and refused before anything is started.
"""

import re
import socket
from collections.abc import Mapping, Sequence

from pipeline.beam_flags import check_spelling, runner_name
from pipeline.urls import is_local

PORTABLE = ("FlinkRunner", "SparkRunner", "PortableRunner")
"""Runners that hand stages to workers over Beam's portability API."""
HERE = {"FlinkRunner": r"\[(local|auto)\]", "SparkRunner": r"local(\[.+\])?"}
"""Masters inside of this machine's job server, whose workers Beam starts here (LOOPBACK)."""
MANAGED = re.compile(r"yarn|k8s://.+")
"""Masters of Spark that are no address of its own protocol; the job server finds them."""
SET = {
    "environment_cache_millis": "600000",  # 0 starts the workers anew for each stage
    "sdk_worker_parallelism": "0",  # 1, the default, is one Python process for all slots of a node
}
MASTERS = {"FlinkRunner": "flink_master", "SparkRunner": "spark_master_url"}
MISSING = {
    "flink_master": "HOST:PORT of the cluster, or [local] for a Flink inside this machine",
    "spark_master_url": "spark://HOST:PORT of the cluster, or local[4] for a Spark inside this "
    "machine",
    "job_endpoint": "HOST:PORT of the job server",
}
ENVIRONMENTS = ("DOCKER", "EXTERNAL", "LOOPBACK", "PROCESS")
CONNECT_SECONDS = 5.0
ADDRESS = re.compile(r"(?P<host>[\w.-]+|\[[\w:.%]+\]):(?P<port>\d+)")
"""`host:8081`, or IPv6 as `[::1]:8081`."""


def complete_flags(flags: Sequence[str], *, num_workers: int) -> tuple[str, ...]:
    """The flags with what a portable runner needs beside them; those of others as they are.

    Raises:
        ValueError: a flag that is needed is missing or wrong, or nothing answers at an address.
    """
    check_spelling(flags)
    flags = name_runner(flags)
    runner = read_flag(flags, "runner")
    if runner not in PORTABLE:
        return flags
    added = {name: value for name, value in SET.items() if read_flag(flags, name) is None}
    parallelism = read_flag(flags, "parallelism")
    if parallelism is None:
        if not num_workers:
            raise ValueError(
                f"--parallelism: missing; {runner} would use one worker: give the number of its "
                "slots, here or as num_workers"
            )
        added["parallelism"] = str(num_workers)
    elif not re.fullmatch("[1-9][0-9]*", parallelism):
        raise ValueError(f"--parallelism must be 1 or more, found {parallelism}")
    is_here = _check_master(flags, runner)
    _check_environment(flags, runner, is_here=is_here)
    _check_addresses(flags, runner)
    return (*flags, *(f"--{name}={value}" for name, value in added.items()))


def check_places(flags: Sequence[str], places: Mapping[str, Sequence[str]]) -> None:
    """Refuse places of this machine, by config key, where no machine of the engine can see them.

    Raises:
        ValueError: a place is local.
    """
    if read_flag(flags, "runner") != "DataflowRunner":
        return
    for key, named in places.items():
        for place in filter(is_local, named):
            raise ValueError(
                f"{key}: {place}; workers of Dataflow see no folder of this machine: "
                "gs://BUCKET/PREFIX is needed"
            )


def name_runner(flags: Sequence[str]) -> tuple[str, ...]:
    """The flags with the runner as Beam spells it: `--runner=flink` is FlinkRunner, too.

    Raises:
        ValueError: no runner, or one that would hold the corpus in memory.
    """
    given = read_flag(flags, "runner")
    if given is None or given == (name := runner_name(given)):
        return tuple(flags)
    return (*flags, f"--runner={name}")  # the last one counts


def read_flag(flags: Sequence[str], name: str) -> str | None:
    """The value of `--name=value` or `--name value`, the last one; None if it is not there."""
    found = None
    for place, flag in enumerate(flags):
        if flag.startswith(f"--{name}="):
            found = flag.partition("=")[2]
        elif flag == f"--{name}" and place + 1 < len(flags):
            found = flags[place + 1]
    return found


def _check_master(flags: Sequence[str], runner: str) -> bool:
    """Whether it is inside this machine, which Beam's defaults are: only where a user says so."""
    name = MASTERS.get(runner, "job_endpoint")
    master = read_flag(flags, name)
    elsewhere = read_flag(flags, "job_endpoint") or read_flag(flags, "spark_rest_url")
    if master in (None, "", "[auto]") and not elsewhere:
        raise ValueError(f"--{name}: missing; for {runner} it is {MISSING[name]}")
    return runner in HERE and re.fullmatch(HERE[runner], master or "") is not None


def _check_environment(flags: Sequence[str], runner: str, *, is_here: bool) -> None:
    """Beam's default, a container of its own, has no Millrace in it."""
    kind, config = read_flag(flags, "environment_type"), read_flag(flags, "environment_config")
    if kind is None:
        if is_here:
            return
        raise ValueError(
            f"--environment_type: missing; {runner} needs workers that have Millrace: EXTERNAL "
            "with --environment_config=HOST:PORT of worker pools, DOCKER with an image, or "
            "LOOPBACK, which are processes of this machine"
        )
    if kind not in ENVIRONMENTS:  # Beam knows them in capitals alone
        raise ValueError(f"--environment_type is one of {', '.join(ENVIRONMENTS)}, found {kind}")
    if kind != "LOOPBACK" and not config:
        raise ValueError(
            f"--environment_config: missing; for --environment_type={kind} it is the "
            + {"EXTERNAL": "HOST:PORT of the worker pools", "DOCKER": "image of the workers"}.get(
                kind, 'JSON {"command": "..."} that starts a worker'
            )
        )


def _check_addresses(flags: Sequence[str], runner: str) -> None:
    """Of the master and of the job server, where they are addresses."""
    for name in (MASTERS.get(runner, ""), "job_endpoint"):
        found = read_flag(flags, name)
        is_here = runner in HERE and re.fullmatch(HERE[runner], found or "")
        is_managed = runner == "SparkRunner" and MANAGED.fullmatch(found or "")
        if found and not is_here and not is_managed:
            _check_address(name, found)


def _check_address(name: str, address: str) -> None:
    """Whether somebody listens there: Beam would wait or try for minutes."""
    places = re.sub("^[a-z]+://|/$", "", address)
    # Spark's standby masters: spark://HOST:PORT,HOST:PORT
    several = places.split(",") if name == "spark_master_url" else [places]
    matches = [ADDRESS.fullmatch(place) for place in several]
    if not all(matches):
        raise ValueError(f"--{name}: an address is HOST:PORT, found {address}")
    error = None
    for match in filter(None, matches):
        try:
            where = match["host"].strip("[]"), int(match["port"])
            with socket.create_connection(where, timeout=CONNECT_SECONDS):
                return
        except (OSError, OverflowError) as failed:
            error = failed
    raise ValueError(
        f"--{name}={address}: nothing answers there ({error}); start it, or correct the address"
    )
