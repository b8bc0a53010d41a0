"""How the ranks of one machine are started: by torchrun's agent below `python -m training`."""

import re
import shlex
from dataclasses import dataclass

from configs.redact import redact
from launch.run import Run

SECRET = r"SECRET|PASSWORD|(TOKEN|_KEY|_KEY_ID|CONNECTION_STRING)$"
"""Of names of variables; those of files with credentials end otherwise."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `launch`: what every launcher does."""

    python: str = ""
    """The Python that has Millrace, on every machine; empty: the one that runs this command, in a
    container of Kubernetes `python`.
    """
    folder: str = ""
    """Folder where the ranks start; empty: this one, on Kubernetes `kubernetes.mount`."""
    env: tuple[str, ...] = ()
    """Environment of the ranks, as `NCCL_SOCKET_IFNAME=eth0`."""
    restarts: int = 0
    """Start all ranks again so many times where one crashes, hangs or is killed, not behind a
    mistake; by torchrun's elastic agent alone.
    """
    port: int = 29500
    """Where ranks meet, on the first machine; torchrun's agent of one machine takes a free one."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        for setting in self.env:
            if not re.match(r"[A-Za-z_]\w*=", setting) or not setting.isprintable():
                raise ValueError(f"env holds NAME=VALUE in one line each, found {setting!r}")
            name = setting.split("=")[0]
            if re.search(SECRET, name, re.IGNORECASE) or redact(setting) != setting:
                raise ValueError(
                    f"env would show {name} to whoever reads scripts, manifests or the list of "
                    "processes; docs/object_storage.md has better ways"
                )
        if self.restarts < 0:
            raise ValueError(f"restarts must be 0 or more, found {self.restarts}")
        if not 1 <= self.port < 65536:
            raise ValueError(f"port must be 1 to 65535, found {self.port}")

    def check_program(self, key: str, program: str) -> None:
        """Refuse restarts by a program that has none.

        Raises:
            ValueError: naming the key that chooses the program.
        """
        if self.restarts and program != "torchrun":
            raise ValueError(
                f"launch.restarts={self.restarts} needs {key}=torchrun: {program} has no restarts"
            )


def agent(
    run: Run, settings: Config, *, devices: int | str, meet: tuple[str, ...] = ()
) -> list[str]:
    """The command of one machine: torchrun's agent in `python -m training`, and its ranks."""
    words = [run.python, "-m", "training", "--restarts", str(settings.restarts)]
    return [*words, "--nproc-per-node", str(devices), *meet, *run.arguments]


def meeting(num_nodes: int, host: str, settings: Config, *, name: str) -> tuple[str, ...]:
    """The options by which agents of several machines find each other."""
    if num_nodes == 1:
        return ()
    point = f"{host}:{settings.port}"
    return ("--nnodes", str(num_nodes), "--rdzv-endpoint", point, "--rdzv-id", name)


def exports(settings: Config) -> list[str]:
    """The environment as lines of a shell script."""
    pairs = (setting.split("=", 1) for setting in settings.env)
    return [f"export {name}={shlex.quote(value)}" for name, value in pairs]
