"""The schema of what launchers are told, beside the training config."""

from dataclasses import dataclass, field

from launch.hosts import Config as HostsConfig
from launch.kubernetes import Config as KubernetesConfig
from launch.local import Config as LocalConfig
from launch.ranks import Config as RanksConfig
from launch.slurm import Config as SlurmConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Machines; one file may describe several ways to them."""

    launch: RanksConfig = field(default_factory=RanksConfig)
    """What every launcher does."""
    local: LocalConfig = field(default_factory=LocalConfig)
    """This machine."""
    hosts: HostsConfig = field(default_factory=HostsConfig)
    """Machines that are reached over ssh."""
    slurm: SlurmConfig = field(default_factory=SlurmConfig)
    """A cluster with SLURM."""
    kubernetes: KubernetesConfig = field(default_factory=KubernetesConfig)
    """A cluster with Kubernetes; no operator is needed."""
