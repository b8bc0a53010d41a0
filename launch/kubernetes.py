"""Kubernetes: an Indexed Job with a pod for each machine, and a Service by whose names they meet.

Plain objects of `batch/v1` and `v1`; no operator is needed. Each pod runs torchrun's agent.
"""

import re
import shlex
from dataclasses import dataclass
from typing import Any

import yaml

from launch.plan import Plan
from launch.ranks import Config as RanksConfig
from launch.ranks import agent, meeting
from launch.run import Run

NAME = r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?"
DNS = r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?"
"""A DNS label; the Job's controller puts the pod's index behind it."""
MISTAKE = 2
"""The exit code of a mistake in the config: no retry mends it; any other is tried again."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `kubernetes`: a Job of a cluster with Kubernetes 1.31 or newer."""

    image: str = ""
    """Container image with Millrace, from a registry that the nodes reach; required."""
    name: str = ""
    """Of Job and Service; empty: that of the run's folder."""
    namespace: str = "default"
    """Where both live."""
    num_nodes: int = 1
    """Pods, one on each machine."""
    devices_per_node: int = 8
    """GPUs of each, and ranks on each."""
    gpus: bool = True
    """Ask for a GPU for each rank."""
    cpus_per_device: int = 8
    """CPU cores for each rank."""
    memory_gib: int = 64
    """Memory of each pod."""
    shared_memory_gib: int = 16
    """Of memory_gib, /dev/shm, through which NCCL and loader workers talk."""
    claim: str = ""
    """PersistentVolumeClaim, ReadWriteMany, with dataset and run folders; empty: none."""
    mount: str = "/data"
    """Where the claim is seen."""
    secret: str = ""
    """Secret whose keys ranks see as environment, as credentials of a store; empty: none."""
    stop_seconds: int = 300
    """Between SIGTERM, at which the run writes a checkpoint, and the end of the pod."""
    retries: int = 100
    """Failed pods that are replaced; those that the cluster takes away do not count."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        counts = ("num_nodes", "devices_per_node", "cpus_per_device", "memory_gib", "stop_seconds")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if not 0 <= self.shared_memory_gib <= self.memory_gib:
            raise ValueError(
                f"shared_memory_gib must be 0 to memory_gib {self.memory_gib}, found "
                f"{self.shared_memory_gib}"
            )
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, found {self.retries}")
        if self.name and not re.fullmatch(NAME, self.name):
            raise ValueError(
                f"name has lower-case letters, digits and hyphens, at most 52; found {self.name!r}"
            )
        if self.image and not re.fullmatch(r"[\w.:/@-]+", self.image, re.ASCII):
            raise ValueError(f"image is REGISTRY/NAME:TAG, without spaces, found {self.image!r}")
        for name in ("namespace", "claim", "secret"):
            found = getattr(self, name)
            if not re.fullmatch(DNS, found or "a"):
                raise ValueError(
                    f"{name} has lower-case letters, digits, hyphens and dots, found {found!r}"
                )
        if not self.mount.startswith("/"):
            raise ValueError(f"mount is an absolute path, found {self.mount!r}")


def render(run: Run, settings: RanksConfig, kubernetes: Config) -> Plan:
    """The manifest, and the command that applies it.

    Raises:
        ValueError: no image, a relative run folder, or ranks that do not divide the global batch.
    """
    if not kubernetes.image:
        raise ValueError("kubernetes.image: missing; name a container image that has Millrace")
    run.check_ranks(kubernetes.num_nodes * kubernetes.devices_per_node)
    name = kubernetes.name or _name_of(run)
    if not re.fullmatch(NAME, name):
        raise ValueError(f"kubernetes.name: {run.name!r} makes none; give one, as first-run")
    objects = [_service(name, kubernetes), _job(name, run, settings, kubernetes)]
    path = f"{name}.yaml"
    text = yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=200)
    return Plan(command=("kubectl", "apply", "-f", path), files={path: text})


def _name_of(run: Run) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", run.name.lower()).strip("-")
    return f"{'run-' if name[:1].isdigit() else ''}{name}"[:52].strip("-")


class _Dumper(yaml.SafeDumper):
    """Writes a text of several lines as one reads it."""


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)


def _service(name: str, kubernetes: Config) -> dict[str, Any]:
    """Without an address of its own: a name for each pod, also before it is ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": kubernetes.namespace},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": name},
        },
    }


def _job(name: str, run: Run, settings: RanksConfig, kubernetes: Config) -> dict[str, Any]:
    """Pods that the cluster takes away are replaced for ever, failed ones `retries` times."""
    on_pod = {"type": "DisruptionTarget", "status": "True"}
    mistake = {"containerName": "ranks", "operator": "In", "values": [MISTAKE]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": kubernetes.namespace},
        "spec": {
            "completions": kubernetes.num_nodes,
            "parallelism": kubernetes.num_nodes,
            "completionMode": "Indexed",
            "backoffLimit": kubernetes.retries,
            "podReplacementPolicy": "Failed",
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [on_pod]},
                    {"action": "FailJob", "onExitCodes": mistake},
                ]
            },
            "template": {
                "metadata": {"labels": {"app.kubernetes.io/name": "millrace"}},
                "spec": _pod(name, run, settings, kubernetes),
            },
        },
    }


def _pod(name: str, run: Run, settings: RanksConfig, kubernetes: Config) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    if kubernetes.shared_memory_gib:
        size = f"{kubernetes.shared_memory_gib}Gi"
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    if kubernetes.claim:
        claim = {"claimName": kubernetes.claim}
        volumes.append({"name": "data", "persistentVolumeClaim": claim})
        mounts.append({"name": "data", "mountPath": kubernetes.mount})
    return {
        "subdomain": name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": kubernetes.stop_seconds,
        "containers": [_container(name, run, settings, kubernetes, mounts)],
        "volumes": volumes,
    }


def _container(
    name: str,
    run: Run,
    settings: RanksConfig,
    kubernetes: Config,
    mounts: list[dict[str, Any]],
) -> dict[str, Any]:
    meet = meeting(kubernetes.num_nodes, f"{name}-0.{name}", settings, name=name)
    command = agent(run, settings, devices=kubernetes.devices_per_node, meet=meet)
    resources: dict[str, Any] = {
        "cpu": kubernetes.cpus_per_device * kubernetes.devices_per_node,
        "memory": f"{kubernetes.memory_gib}Gi",
    }
    if kubernetes.gpus:
        resources["nvidia.com/gpu"] = kubernetes.devices_per_node
    container: dict[str, Any] = {
        "name": "ranks",
        "image": kubernetes.image,
        "command": ["bash", "-c", _script(command, run)],
        "workingDir": run.folder,
        "env": [_variable(setting) for setting in settings.env],
        "resources": {"limits": resources, "requests": dict(resources)},
        "volumeMounts": mounts,
    }
    if kubernetes.secret:
        container["envFrom"] = [{"secretRef": {"name": kubernetes.secret}}]
    return container


def _variable(setting: str) -> dict[str, str]:
    name, value = setting.split("=", 1)
    return {"name": name, "value": value}


def _script(command: list[str], run: Run) -> str:
    """Told to stop, a run ends with code 0, behind which the pod would count as done."""
    progress = [run.python, "-m", "training.progress", str(run.tree["run_dir"])]
    return "\n".join(
        [
            f"{shlex.join(command)} &",
            "ranks=$!",
            "trap 'kill -TERM $ranks' TERM",
            "wait $ranks; code=$?",
            "while kill -0 $ranks 2> /dev/null; do wait $ranks; code=$?; done",
            "[ $code -eq 0 ] || exit $code",
            f"exec {shlex.join(progress)}",
        ]
    )
