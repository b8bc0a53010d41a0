"""Machines over ssh: DeepSpeed's launcher with a hostfile, or torchrun's agent on each by pdsh."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.hostfile import Host
from launch.plan import Plan
from launch.ranks import Config as RanksConfig
from launch.ranks import agent, exports, meeting
from launch.run import Run

ALIVE = "-o ServerAliveInterval=15 -o ServerAliveCountMax=3"
"""Without it pdsh would wait a quarter of an hour for a host that is cut off."""
ENVIRONMENT = ".deepspeed_env"
"""DeepSpeed's file of what ranks get of an environment; it looks for it in the start folder."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `hosts`: machines that are reached over ssh, without a password."""

    hostfile: str = "hostfile"
    """A line `HOST slots=N` for each machine."""
    program: Literal["deepspeed", "torchrun"] = "deepspeed"
    """What starts the ranks; torchrun's agent can start them again (launch.restarts)."""
    master_addr: str = ""
    """Address of the first host, as the others reach it; empty: its name in the hostfile."""
    ssh_seconds: int = 10
    """A host that does not answer for so long is not reachable."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.ssh_seconds < 1:
            raise ValueError(f"ssh_seconds must be at least 1, found {self.ssh_seconds}")


def render(run: Run, settings: RanksConfig, hosts: Config, machines: Sequence[Host]) -> Plan:
    """The command that starts the ranks of all hosts from this one.

    Raises:
        ValueError: restarts without torchrun, hosts that differ under torchrun, or ranks that do
            not divide the global batch.
    """
    settings.check_program("hosts.program", hosts.program)
    run.check_ranks(sum(host.slots for host in machines))
    first = hosts.master_addr or machines[0].name
    render_it = _deepspeed if hosts.program == "deepspeed" else _torchrun
    return render_it(run, settings, hosts, machines, first)


def _deepspeed(
    run: Run, settings: RanksConfig, hosts: Config, machines: Sequence[Host], first: str
) -> Plan:
    """DeepSpeed hands arguments by pdsh to a shell of each host, and quotes those with spaces."""
    hostfile = str(Path(hosts.hostfile).absolute()) if settings.folder else hosts.hostfile
    words = [run.program("deepspeed"), "--hostfile", hostfile]
    words += ["--launcher", "pdsh", "--force_multi"] if len(machines) == 1 else []
    words += ["--master_addr", first, "--master_port", str(settings.port)]
    given = [_for_shell(word) for word in run.arguments]
    environment = "".join(f"{setting}\n" for setting in settings.env)
    return Plan(
        command=(*words, "--module", "training", *given),
        files={f"{run.folder}/{ENVIRONMENT}": environment} if environment else {},
        env={"PDSH_SSH_ARGS_APPEND": ALIVE},
        folder=settings.folder,
    )


def _torchrun(
    run: Run, settings: RanksConfig, hosts: Config, machines: Sequence[Host], first: str
) -> Plan:
    """A lost terminal ends the agents and their ranks: ssh gives each a terminal of its own."""
    slots = {host.slots for host in machines}
    if len(slots) > 1:
        raise ValueError(
            f"{hosts.hostfile}: hosts have {', '.join(map(str, sorted(slots)))} slots; with "
            "hosts.program=torchrun all have the same number"
        )
    meet = meeting(len(machines), first, settings, name=run.name)
    command = agent(run, settings, devices=slots.pop(), meet=meet)
    lines = [f"cd {shlex.quote(run.folder)}", *exports(settings), f"exec {shlex.join(command)}"]
    names = ",".join(host.name for host in machines)
    script = "; ".join(lines).replace("%", "%%")  # what pdsh replaces begins with %
    return Plan(
        command=("pdsh", "-b", "-S", "-R", "ssh", "-w", names, script),  # -b: one Ctrl-C is enough
        env={"PDSH_SSH_ARGS_APPEND": f"-tt {ALIVE}"},
    )


def _for_shell(word: str) -> str:
    return (word if " " in word else shlex.quote(word)).replace("%", "%%")
