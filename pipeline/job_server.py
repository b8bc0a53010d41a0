"""The Beam version of a job server, where its jar tells it; the job API does not."""

import re
import zipfile
from collections.abc import Sequence

import apache_beam as beam

from pipeline.engine_flags import read_flag

JARS = ("flink_job_server_jar", "spark_job_server_jar")
PROPERTIES = "org/apache/beam/sdk/sdk.properties"
FURTHEST = 9
"""Minor releases: Beam makes as many in a year, for which it supports each. Seven were run."""


def check_job_server(flags: Sequence[str], ours: str = beam.__version__) -> None:
    """Refuse a jar that is too far from this Beam; one that tells no version passes.

    Raises:
        ValueError: it is, or it is no jar.
        FileNotFoundError: there is none.
    """
    for name in JARS:
        path = read_flag(flags, name)
        found = jar_version(path, name) if path and "://" not in path else None
        if found and _apart(found, ours) > FURTHEST:
            raise ValueError(
                f"--{name}={path}: a job server of Beam {found}, too far from the Beam {ours} of "
                f"this Python: {FURTHEST} minor releases at most; without the flag Beam takes the "
                "jar of its own version"
            )


def jar_version(path: str, name: str) -> str | None:
    """What the Beam inside of a jar calls itself, if it is there."""
    try:
        with zipfile.ZipFile(path) as jar:
            text = jar.read(PROPERTIES).decode()
    except KeyError:
        return None
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
