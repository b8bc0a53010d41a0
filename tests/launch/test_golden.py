"""What launchers render, against golden files; each script is one that bash can read."""

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from launch import hosts, kubernetes, local, slurm
from launch.hostfile import Host
from launch.ranks import Config as Ranks
from launch.run import Run

GOLDEN = Path(__file__).parent / "golden"
TWO = [Host("h1", 8), Host("h2", 8)]
ENV = ("NCCL_SOCKET_IFNAME=eth0", "NOTE=two words")


def run(**changes):
    defaults = {
        "config": "configs/training/gpt2_124m.yaml",
        "overrides": ("run_dir=/shared/runs/first", "data.dataset_dir=/shared/datasets/web"),
        "tree": {
            "run_dir": "/shared/runs/first",
            "batch": {"global_batch_size": 480, "micro_batch_size": 15},
        },
        "folder": "/shared/work",
        "python": "/shared/venv/bin/python",
    }
    return Run(**defaults | changes)


RENDERED = {
    "local": lambda: local.render(run(), Ranks(), local.Config()),
    "local-torchrun": lambda: local.render(
        run(), Ranks(restarts=3, env=ENV), local.Config(program="torchrun", devices=8)
    ),
    "local-elsewhere": lambda: local.render(run(), Ranks(folder="/shared/my work"), local.Config()),
    "hosts": lambda: hosts.render(run(), Ranks(env=ENV), hosts.Config(), TWO),
    "hosts-elsewhere": lambda: hosts.render(
        run(), Ranks(folder="/shared/work", env=ENV), hosts.Config(hostfile="/etc/hostfile"), TWO
    ),
    "hosts-odd-words": lambda: hosts.render(
        run(overrides=("run_dir=/shared/runs/50%", "corpus=[a,b]", "note=two words")),
        Ranks(),
        hosts.Config(master_addr="10.0.0.1"),
        [Host("h1", 8), Host("h2", 8)],
    ),
    "hosts-torchrun": lambda: hosts.render(
        run(overrides=("run_dir=/shared/runs/50%",)),
        Ranks(restarts=3, env=ENV),
        hosts.Config(program="torchrun"),
        TWO,
    ),
    "slurm-odd-words": lambda: slurm.render(
        run(tree=run().tree | {"run_dir": "/shared/runs/my run"}),
        Ranks(),
        slurm.Config(num_nodes=4, options=("--comment=two words",)),
    ),
    "slurm": lambda: slurm.render(run(), Ranks(env=ENV), slurm.Config(num_nodes=4)),
    "slurm-torchrun": lambda: slurm.render(
        run(),
        Ranks(restarts=3),
        slurm.Config(num_nodes=4, program="torchrun", partition="gpu", options=("--qos=high",)),
    ),
    "slurm-array": lambda: slurm.render(
        run(), Ranks(), slurm.Config(array=5, gpus=False, account="me", time="2-00:00:00")
    ),
    "slurm-container": lambda: slurm.render(
        run(), Ranks(), slurm.Config(container="millrace.sqsh", mounts=("/data:/data",))
    ),
    "kubernetes": lambda: kubernetes.render(
        run(python="python", folder="/data"),
        Ranks(restarts=3, env=ENV),
        kubernetes.Config(
            image="example.org/millrace:1", num_nodes=4, claim="shared", secret="store"
        ),
    ),
    "kubernetes-cpu": lambda: kubernetes.render(
        run(python="python", folder="/data"),
        Ranks(),
        kubernetes.Config(
            image="millrace", gpus=False, devices_per_node=2, name="a-run", shared_memory_gib=0
        ),
    ),
}


@pytest.mark.parametrize("name", RENDERED)
def test_golden(name):
    text, path = RENDERED[name]().show(), GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), (
        f"if this is meant: UPDATE_GOLDEN=1 python -m pytest {__file__}"
    )


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.iterdir()} == RENDERED.keys()


@pytest.mark.parametrize("name", [name for name in RENDERED if name.startswith("slurm")])
def test_bash_reads_the_batch_script(name):
    (script,) = RENDERED[name]().files.values()
    answer = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (answer.returncode, answer.stderr) == (0, "")


@pytest.mark.parametrize("name", [name for name in RENDERED if name.startswith("kubernetes")])
@pytest.mark.parametrize("version", ["1.31", "1.33"])
def test_published_schemas_hold(name, version):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    (text,) = RENDERED[name]().files.values()
    objects = list(yaml.safe_load_all(text))
    assert [one["kind"] for one in objects] == ["Service", "Job"]
    for one in objects:
        kubernetes_validate.validate(one, version, strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(
            {**objects[1], "spec": {"completion": 1}}, version, strict=True
        )


def test_pods_meet_by_the_names_that_the_service_gives_them():
    (text,) = RENDERED["kubernetes"]().files.values()
    service, job = yaml.safe_load_all(text)
    pod = job["spec"]["template"]["spec"]
    name = service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == name
    (point,) = re.findall(r"--rdzv-endpoint (\S+)", pod["containers"][0]["command"][2])
    assert point == f"{job['metadata']['name']}-0.{name}:29500"


@pytest.mark.parametrize(
    ("code", "finished", "ends"), [(0, True, 0), (0, False, 3), (2, False, 2), (1, True, 1)]
)
def test_a_pod_counts_as_done_only_where_the_run_is(tmp_path, code, finished, ends):
    """The script of a pod with another Python: one that trains, and one that tells the progress."""
    python = tmp_path / "python"
    progress = 0 if finished else 3
    cases = f"training) exit {code};; training.progress) exit {progress};;"
    python.write_text(f'#!/bin/bash\ncase "$2" in {cases} esac\n')
    python.chmod(0o755)
    plan = kubernetes.render(
        run(python=str(python)), Ranks(), kubernetes.Config(image="i", devices_per_node=2)
    )
    job = list(yaml.safe_load_all(next(iter(plan.files.values()))))[1]
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert subprocess.run(command, check=False).returncode == ends
