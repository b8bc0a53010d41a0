"""This machine: one process for each of its devices."""

from dataclasses import dataclass
from typing import Literal

from launch.plan import Plan
from launch.ranks import Config as RanksConfig
from launch.ranks import agent
from launch.run import Run


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `local`: this machine."""

    program: Literal["deepspeed", "torchrun"] = "deepspeed"
    """What starts the ranks; torchrun's agent can start them again (launch.restarts)."""
    devices: int = 0
    """Ranks, one for each device; 0: all devices that there are."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.devices < 0:
            raise ValueError(f"devices must be 0 or more, found {self.devices}")


def render(run: Run, settings: RanksConfig, local: Config) -> Plan:
    """The command of this machine.

    Raises:
        ValueError: restarts without torchrun, or ranks that do not divide the global batch.
    """
    settings.check_program("local.program", local.program)
    if local.devices:
        run.check_ranks(local.devices)
    env = dict(setting.split("=", 1) for setting in settings.env)
    if local.program == "deepspeed":
        devices = ("--num_gpus", str(local.devices)) if local.devices else ()
        words = [run.program("deepspeed"), *devices, "--master_port", str(settings.port)]
        command = (*words, "--module", "training", *run.arguments)
        return Plan(command=command, env=env, folder=settings.folder)
    words = agent(run, settings, devices=local.devices or "auto")
    return Plan(command=tuple(words), env=env, folder=settings.folder)
