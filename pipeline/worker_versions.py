"""Before a job is sent to an engine, a small one compares what its workers have with this machine.

Beam's job API tells no versions. Workers of another Beam or Python fail somewhere in the middle,
with an error that says nothing of it; of another library they make other bytes in silence.
"""

import platform
import socket
from collections.abc import Callable, Mapping
from importlib import metadata

import apache_beam as beam

from pipeline.engine_flags import PORTABLE, read_flag
from pipeline.fingerprints import STAGES_VERSION
from pipeline.refused import RefusedError
from pipeline.runner import DOWNLOADED, StageError

ELEMENTS = 256
"""So many that each of tens of workers gets some."""

Run = Callable[[Callable[[beam.Pipeline], None]], object]


def are_elsewhere(flags: tuple[str, ...]) -> bool:
    """Whether workers have a Python of their own; Dataflow's come from an image by version."""
    loopback = (read_flag(flags, "environment_type") or "LOOPBACK").upper() == "LOOPBACK"
    return read_flag(flags, "runner") in PORTABLE and not loopback


def check_workers(run: Run, libraries: Mapping[str, str], flags: tuple[str, ...] = ()) -> None:
    """Compare versions of the workers with those of this machine.

    Args:
        run: runs what constructs a pipeline.
        libraries: versions of what decides bytes, as `library_versions` gives them.
        flags: of the engine, which say where it looks for its workers.

    Raises:
        RefusedError: a worker has others.
        StageError: no worker could run anything.
    """
    wanted = versions([name for name in libraries if name not in ("stages", "unicode")])

    def construct(pipeline: beam.Pipeline) -> None:
        _ = (
            pipeline
            | "Numbers" >> beam.Create(range(ELEMENTS))
            | "Pair" >> beam.Map(_pair).with_output_types(tuple[int, int])
            | "Spread" >> beam.GroupByKey()
            | "CompareVersions" >> beam.Map(_compare, wanted)
        )

    try:
        run(construct)
    except StageError as error:
        if "Millrace" in str(error) or DOWNLOADED in str(error):
            raise
        raise StageError(
            f"workers could not run a first small job: {error}; {_asked_for(flags)}have they this "
            f"machine's Python {wanted['python']} and apache-beam {wanted['apache-beam']}?"
        ) from None


def _asked_for(flags: tuple[str, ...]) -> str:
    """Engines do not name a worker pool that they cannot reach."""
    if (read_flag(flags, "environment_type") or "").upper() != "EXTERNAL":
        return ""
    address = read_flag(flags, "environment_config")
    return f"does a worker pool answer at {address} on each machine of the engine, and "


def versions(libraries: list[str]) -> dict[str, str]:
    """Of this process: Python, Beam, the stages, and libraries by name."""
    found = {"python": ".".join(platform.python_version_tuple()[:2]), "stages": str(STAGES_VERSION)}
    for name in ("apache-beam", *libraries):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def _pair(number: int) -> tuple[int, int]:
    return number, number


def _compare(_: object, wanted: dict[str, str]) -> None:
    found = versions([name for name in wanted if name not in ("python", "stages", "apache-beam")])
    differ = [name for name in wanted if found[name] != wanted[name]]
    if differ:
        told = ", ".join(f"{name} {found[name]} instead of {wanted[name]}" for name in differ)
        raise RefusedError(
            f"a worker on {socket.gethostname()} has {told}: workers need the versions of the "
            "machine that submits"
        )
