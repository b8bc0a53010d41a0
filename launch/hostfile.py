"""DeepSpeed's hostfile: a line `HOST slots=N` for each machine, N of its devices."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Host:
    """A machine and how many of its devices take part."""

    name: str
    slots: int


def read_hostfile(path: str) -> list[Host]:
    """The hosts of a hostfile, in their order; the first one's rank is rank 0.

    Raises:
        ValueError: no such file, a line that is none, a host twice, or no host.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"hosts.hostfile: {path} is not readable: {error}; write a line `HOST slots=N` "
            "for each machine"
        ) from None
    hosts: dict[str, Host] = {}
    for number, line in enumerate(lines, 1):
        text = line.split("#")[0].strip()
        if not text:
            continue
        match = re.fullmatch(r"(\w[\w.-]*)\s+slots=(\d+)", text, re.ASCII)
        if not match or int(match[2]) == 0:
            raise ValueError(
                f"{path}:{number}: found {text!r}; a line is `HOST slots=N`, N of its devices"
            )
        if match[1] in hosts:
            raise ValueError(f"{path}:{number}: host {match[1]} is there twice; give it all slots")
        hosts[match[1]] = Host(match[1], int(match[2]))
    if not hosts:
        raise ValueError(f"{path}: holds no host; write a line `HOST slots=N` for each machine")
    return list(hosts.values())
