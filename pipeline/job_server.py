"""A job server before it is used: whether what listens at its endpoint is one, and the version of
its Beam, where its jar tells it; the job API does not.
"""

import re
import zipfile
from collections.abc import Sequence

import apache_beam as beam
import grpc  # type: ignore[import-untyped]
from apache_beam.runners.worker.channel_factory import GRPCChannelFactory

from pipeline.engine_flags import read_flag

JARS = ("flink_job_server_jar", "spark_job_server_jar")
PROPERTIES = "org/apache/beam/sdk/sdk.properties"
FURTHEST = 9
"""Minor releases: Beam makes as many in a year, for which it supports each. Seven were run."""
READY_SECONDS = 20.0
"""A job server greets in milliseconds; Beam would wait for one without end."""


def check_job_server(flags: Sequence[str], ours: str = beam.__version__) -> None:
    """Refuse an endpoint that is no job server, and a jar that is too far from this Beam; one that
    tells no version passes.

    Raises:
        ValueError: they are, or there is no such jar.
    """
    endpoint = read_flag(flags, "job_endpoint")
    if endpoint and not is_job_server(endpoint, READY_SECONDS):
        raise ValueError(
            f"--job_endpoint={endpoint}: what listens there does not speak as a job server, or "
            "hangs; the address of an engine itself goes to --flink_master or --spark_master_url"
        )
    for name in JARS:
        path = read_flag(flags, name)
        found = jar_version(path, name) if path and "://" not in path else None
        if found and _apart(found, ours) > FURTHEST:
            raise ValueError(
                f"--{name}={path}: a job server of Beam {found}, too far from the Beam {ours} of "
                f"this Python: {FURTHEST} minor releases at most; without the flag Beam takes the "
                "jar of its own version"
            )


def is_job_server(endpoint: str, seconds: float) -> bool:
    """Whether a server of gRPC, as Beam's job servers are, greets there within so many seconds."""
    with GRPCChannelFactory.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=seconds)
        except grpc.FutureTimeoutError:
            return False
        return True


def jar_version(path: str, name: str) -> str | None:
    """What the Beam inside of a jar calls itself, if it is there."""
    try:
        with zipfile.ZipFile(path) as jar:
            text = jar.read(PROPERTIES).decode()
    except KeyError:
        return None
    except FileNotFoundError:
        raise ValueError(f"--{name}={path}: no such file") from None
    except zipfile.BadZipFile:
        raise ValueError(f"--{name}={path}: no jar") from None
    found = re.search(r"^version=(\d+\.\d+\S*)$", text, re.MULTILINE)
    return found[1] if found else None


def _apart(one: str, other: str) -> float:
    """Minor releases between two versions; of another major version, any number."""
    (major, minor), (other_major, other_minor) = (
        map(int, version.split(".")[:2]) for version in (one, other)
    )
    return abs(minor - other_minor) if major == other_major else float("inf")
