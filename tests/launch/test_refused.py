"""Mistakes are told before anything is started: hostfiles, settings, time limits."""

import json
import os
import shutil
import socket
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import configs
from launch import check, hosts, kubernetes, local, slurm
from launch.hostfile import Host, read_hostfile
from launch.ranks import Config as Ranks
from launch.run import read_run
from launch.settings import Settings


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "run_dir: runs/a\nbatch: {global_batch_size: 12, micro_batch_size: 2}\n"
        "checkpoints: {every_steps: 500}\n"
    )

    def read(*overrides):
        return read_run(str(path), overrides, folder=str(tmp_path), python="python")

    return read


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("h1 slots=8\nh2 slots=4\n", [Host("h1", 8), Host("h2", 4)]),
        ("# ours\n\n  h1   slots=8 # old\n10.0.0.2 slots=1", [Host("h1", 8), Host("10.0.0.2", 1)]),
    ],
)
def test_hostfile(tmp_path, text, hosts):
    (tmp_path / "hostfile").write_text(text)
    assert read_hostfile(str(tmp_path / "hostfile")) == hosts


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("h1 slots=8\nh1 slots=8\n", r":2: host h1 is there twice"),
        ("h1 slots=8\nh2\n", r":2: found 'h2'; a line is `HOST slots=N`"),
        ("h1 slots=0\n", r":1: found 'h1 slots=0'"),
        ("h1 slots=eight\n", r":1: found 'h1 slots=eight'"),
        ("h1;reboot slots=1\n", r":1: found 'h1;reboot slots=1'"),
        ("-v slots=1\n", r":1: found '-v slots=1'"),
        ("# nothing\n", r"holds no host"),
    ],
)
def test_bad_hostfile(tmp_path, text, told):
    (tmp_path / "hostfile").write_text(text)
    with pytest.raises(ValueError, match=told):
        read_hostfile(str(tmp_path / "hostfile"))


def test_no_hostfile(tmp_path):
    with pytest.raises(ValueError, match="hosts.hostfile: .*nothere is not readable: .*No such"):
        read_hostfile(str(tmp_path / "nothere"))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("launch.restarts=-1", "launch.restarts must be 0 or more, found -1"),
        ("launch.port=0", "launch.port must be 1 to 65535, found 0"),
        ("launch.env=[1A=b]", "launch.env holds NAME=VALUE in one line each, found '1A=b'"),
        (
            "launch.env=[AWS_SECRET_ACCESS_KEY=hush]",
            "launch.env would show AWS_SECRET_ACCESS_KEY to",
        ),
        ("launch.env=[HF_TOKEN=hush]", "launch.env would show HF_TOKEN to whoever reads scripts"),
        ("launch.env=[HTTPS_PROXY=http://me:hush@proxy:1]", "launch.env would show HTTPS_PROXY"),
        (
            "launch.env=[AZURE_STORAGE_CONNECTION_STRING=AccountKey=hush]",
            "launch.env would show AZURE_STORAGE_CONNECTION_STRING",
        ),
        ("local.devices=-1", "local.devices must be 0 or more, found -1"),
        ("hosts.ssh_seconds=0", "hosts.ssh_seconds must be at least 1, found 0"),
        ("hosts.programme=torchrun", "hosts.programme: unknown key (did you mean 'program'?)"),
        ("slurm.num_nodes=0", "slurm.num_nodes must be at least 1, found 0"),
        ("slurm.array=-1", "slurm.array must be 0 or more, found -1"),
        ("slurm.time=soon", "slurm.time is D-HH:MM:SS, HH:MM:SS or minutes, found 'soon'"),
        ("slurm.time=5", "slurm.time 5 is not above stop_seconds 300"),
        ("slurm.options=[-q]", "slurm.options are sbatch's, as --qos=high; found '-q'"),
        ("slurm.stop_seconds=70000", "slurm.stop_seconds is at most 65535, sbatch's limit"),
        ("slurm.mounts=[/a:/a]", "slurm.mounts are folders of a container"),
        ("kubernetes.memory_gib=0", "kubernetes.memory_gib must be at least 1, found 0"),
        ("kubernetes.shared_memory_gib=65", "kubernetes.shared_memory_gib must be 0 to memory_gib"),
        ("kubernetes.retries=-1", "kubernetes.retries must be 0 or more"),
        ("kubernetes.name=My_run", "kubernetes.name has lower-case letters"),
        ("kubernetes.image=bad image", "kubernetes.image is REGISTRY/NAME:TAG, without spaces"),
        ("kubernetes.claim=My Claim", "kubernetes.claim has lower-case letters"),
        ("kubernetes.secret=my_keys", "kubernetes.secret has lower-case letters"),
        ("kubernetes.namespace=X", "kubernetes.namespace has lower-case letters"),
        ("kubernetes.mount=data", "kubernetes.mount is an absolute path, found 'data'"),
    ],
)
def test_settings(override, told):
    with pytest.raises(configs.ConfigError) as error:
        configs.load(Settings, None, [override])
    assert str(error.value).startswith(told)
    assert "hush" not in str(error.value)


def test_files_with_credentials_may_be_named():
    env = ("AWS_SHARED_CREDENTIALS_FILE=/shared/keys", "TOKENIZERS_PARALLELISM=false")
    assert Ranks(env=env).env == env


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        *(("90", 5400), ("90:30", 5430), ("1:30:00", 5400)),
        *(("2-12", 216000), ("1-1:30", 91800), ("1-00:00:05", 86405)),
    ],
)
def test_times_as_slurm_writes_them(time, seconds):
    assert slurm.seconds(time) == seconds


@pytest.mark.parametrize("time", ["", "0", "1:2:3:4", "1h", "-5", "1-"])
def test_no_time(time):
    with pytest.raises(ValueError, match="time is D-HH:MM:SS"):
        slurm.seconds(time)


def test_ranks_must_divide_the_global_batch(run):
    message = "8 ranks do not divide a global batch of 12: .* 2 x 8 ranks"
    eight = [Host("h1", 4), Host("h2", 4)]
    with pytest.raises(ValueError, match=message):
        hosts.render(run(), Ranks(), hosts.Config(), eight)
    with pytest.raises(ValueError, match=message):
        slurm.render(run(), Ranks(), slurm.Config())
    with pytest.raises(ValueError, match=message):
        kubernetes.render(run(), Ranks(), kubernetes.Config(image="i"))
    with pytest.raises(ValueError, match=message):
        local.render(run(), Ranks(), local.Config(devices=8))
    shared = run("engine.sequence_parallel_size=4")
    assert slurm.render(shared, Ranks(), slurm.Config()).files
    with pytest.raises(ValueError, match="engine.sequence_parallel_size 3"):
        slurm.render(run("engine.sequence_parallel_size=3"), Ranks(), slurm.Config())
    assert slurm.render(run("engine.tensor_parallel_size=4"), Ranks(), slurm.Config()).files
    with pytest.raises(ValueError, match="8 ranks / engine.tensor_parallel_size 3"):
        slurm.render(run("engine.tensor_parallel_size=3"), Ranks(), slurm.Config())


def test_restarts_need_an_agent(run):
    again = Ranks(restarts=3)
    told = "launch.restarts=3 needs {}.program=torchrun: {} has no restarts"
    with pytest.raises(ValueError, match=told.format("local", "deepspeed")):
        local.render(run(), again, local.Config())
    with pytest.raises(ValueError, match=told.format("hosts", "deepspeed")):
        hosts.render(run(), again, hosts.Config(), [Host("h1", 2)])
    with pytest.raises(ValueError, match=told.format("slurm", "srun")):
        slurm.render(run(), again, slurm.Config(devices_per_node=2))


def test_agents_have_the_same_number_of_ranks(run):
    with pytest.raises(ValueError, match="hosts have 2, 4 slots; with hosts.program=torchrun"):
        two = [Host("h1", 4), Host("h2", 2)]
        hosts.render(run(), Ranks(), hosts.Config(program="torchrun"), two)
    assert hosts.render(run(), Ranks(), hosts.Config(), two).command


def test_an_image_is_required(run):
    with pytest.raises(ValueError, match=r"kubernetes.image: missing; name a container image"):
        kubernetes.render(run(), Ranks(), kubernetes.Config(devices_per_node=2))


def test_a_run_without_a_folder(tmp_path):
    (tmp_path / "a.yaml").write_text("num_steps: 5\n")
    with pytest.raises(configs.ConfigError, match="run_dir: missing"):
        read_run(str(tmp_path / "a.yaml"), (), folder="/", python="python")


def test_a_time_limit_without_a_checkpoint(run, tmp_path):
    """By the speed that the run has shown; without one nothing is known."""
    every_500 = {"checkpoints": {"every_steps": 500}}
    check.check_time(run(), every_500, 60)
    (tmp_path / "runs/a").mkdir(parents=True)
    rows = [json.dumps({"step": n, "step_seconds": 10.0 if n == 1 else 2.0}) for n in range(1, 9)]
    torn = '{"step": 9, "step_sec'
    (tmp_path / "runs/a/metrics.jsonl").write_text("\n".join([*rows, torn]))
    check.check_time(run(), every_500, 1000)
    told = r"slurm.time is 999 s, but .* every 500 steps, which is every 1,000 s by .*metrics.jsonl"
    with pytest.raises(ValueError, match=told):
        check.check_time(run(), every_500, 999)
    check.check_time(run(), {"checkpoints": {"every_steps": 499}}, 999)
    check.check_time(run(), {"checkpoints": {"every_steps": 0}}, 999)


def test_the_default_interval_of_checkpoints_counts(tmp_path):
    """What the config leaves out, the training stage fills in."""
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/metrics.jsonl").write_text('{"step": 1, "step_seconds": 20.0}\n')
    path = tmp_path / "config.yaml"
    path.write_text(
        "run_dir: runs/a\nnum_steps: 5\nmodel: {name: transformer, vocab_size: 32}\n"
        "task: {name: causal_lm}\ndata: {dataset_dir: d, sequence_length: 32}\n"
        "batch: {global_batch_size: 12, micro_batch_size: 2}\nschedule: {warmup_steps: 1}\n"
    )
    found = read_run(str(path), (), folder=str(tmp_path), python=sys.executable)
    with pytest.raises(ValueError, match="slurm.time is 600 s, but a checkpoint comes every 500"):
        check.check_time(found, check.check_config(found), 600)


@pytest.mark.parametrize("names", [("localhost", "127.0.0.1"), ("h1", "127.0.0.1", "localhost")])
def test_a_machine_under_two_names(names):
    with pytest.raises(
        ValueError, match=r"hosts \S+ and localhost|hosts \S+ and 127.0.0.1 are one"
    ):
        check.check_same([Host(name, 1) for name in names])


def test_files_of_an_environment_that_deepspeed_would_read(tmp_path):
    settings = configs.load(Settings, None, ["launch.env=[A=b, C=d]"])
    folders = [tmp_path, tmp_path / "nothere"]
    check.check_environment(settings, folders)
    (tmp_path / ".deepspeed_env").write_text("A=old\nC=d\n")
    check.check_environment(settings, folders)
    (tmp_path / ".deepspeed_env").write_text("A=old\nLD_PRELOAD=hush\n")
    with pytest.raises(ValueError, match="would set LD_PRELOAD in the ranks, unseen") as error:
        check.check_environment(settings, folders)
    assert "hush" not in str(error.value)


def test_a_folder_that_is_not_here(run):
    check.check_folder(run())
    with pytest.raises(ValueError, match="launch.folder: /nowhere is no folder on this machine"):
        check.check_folder(replace(run(), folder="/nowhere"))


def test_a_port_of_this_machine_that_is_taken():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"launch.port: {port} is taken"):
            check.check_port(configs.load(Settings, None, [f"launch.port={port}"]))
    check.check_port(configs.load(Settings, None, [f"launch.port={port}"]))


def test_credentials_in_an_override(run):
    with pytest.raises(ValueError, match="holds credentials") as error:
        run("data.dataset_dir=https://me:hush@store/d")
    assert "hush" not in str(error.value)


@pytest.fixture
def hosts_here(monkeypatch, tmp_path, run):
    """Hosts that are this machine by an ssh that goes nowhere, with two GPUs as nvidia-smi says."""
    programs = {
        "ssh": 'for word; do :; done; [ "$5" = away ] && exit 255; exec sh -c "$word"',
        "nvidia-smi": "echo GPU 0: a; echo GPU 1: b; echo '  MIG 1g'",
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    here = replace(run(), python=sys.executable)

    def look(*machines, run=here, **settings):
        with socket.socket() as probe:
            probe.bind(("", 0))
            settings["port"] = probe.getsockname()[1]
        words = [f"launch.{name}={value}" for name, value in settings.items()]
        check.check_hosts(run, configs.load(Settings, None, words), machines)

    return SimpleNamespace(look=look, run=here, bin=tmp_path)


def test_slots_that_disagree_with_the_devices(hosts_here):
    hosts_here.look(Host("h1", 2), Host("h2", 1))
    with pytest.raises(ValueError, match=r"^host h2 has 2 devices, but slots=3 in the hostfile$"):
        hosts_here.look(Host("h1", 2), Host("h2", 3))
    hosts_here.look(Host("h1", 8), env="[DS_ACCELERATOR=cpu]")


@pytest.mark.slow
def test_slots_of_a_host_without_a_device(hosts_here):
    """Without nvidia-smi torch is asked; it has none here."""
    (hosts_here.bin / "nvidia-smi").unlink()
    if shutil.which("nvidia-smi") or torch.accelerator.is_available():
        pytest.skip("needs a machine without devices, found one with some")
    told = r"has 0 devices, but slots=1 .*; for ranks on CPUs set launch.env=\[DS_ACCELERATOR=cpu\]"
    with pytest.raises(ValueError, match=told):
        hosts_here.look(Host("h1", 1))


def test_a_host_that_is_away_and_one_without_this_python(hosts_here):
    told = "host away: no address of that name is known here; it ended with code 255"
    with pytest.raises(ValueError, match=told):
        hosts_here.look(Host("away", 1))
    with pytest.raises(
        ValueError, match="host h1: /nowhere/python does not run there: .*not found"
    ):
        hosts_here.look(Host("h1", 1), run=replace(hosts_here.run, python="/nowhere/python"))


def test_names_of_kubernetes_are_made_from_those_of_runs(run):
    for name, made in {"2026-first": "run-2026-first", "a" * 51 + "-b": "a" * 51}.items():
        plan = kubernetes.render(
            run(f"run_dir=/data/{name}"), Ranks(), kubernetes.Config(image="i", devices_per_node=2)
        )
        assert list(plan.files) == [f"{made}.yaml"]
