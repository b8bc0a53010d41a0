"""Mistakes are told before anything is started: hostfiles, settings, time limits."""

import json

import pytest

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
        ("local.devices=-1", "local.devices must be 0 or more, found -1"),
        ("hosts.ssh_seconds=0", "hosts.ssh_seconds must be at least 1, found 0"),
        ("hosts.programme=torchrun", "hosts.programme: unknown key (did you mean 'program'?)"),
        ("slurm.num_nodes=0", "slurm.num_nodes must be at least 1, found 0"),
        ("slurm.array=-1", "slurm.array must be 0 or more, found -1"),
        ("slurm.time=soon", "slurm.time is D-HH:MM:SS, HH:MM:SS or minutes, found 'soon'"),
        ("slurm.time=5", "slurm.time 5 is not above stop_seconds 300"),
        ("slurm.options=[-q]", "slurm.options are sbatch's, as --qos=high; found '-q'"),
        ("slurm.mounts=[/a:/a]", "slurm.mounts are folders of a container"),
        ("kubernetes.memory_gib=0", "kubernetes.memory_gib must be at least 1, found 0"),
        ("kubernetes.shared_memory_gib=65", "kubernetes.shared_memory_gib must be 0 to memory_gib"),
        ("kubernetes.retries=-1", "kubernetes.retries must be 0 or more"),
        ("kubernetes.name=My_run", "kubernetes.name has lower-case letters"),
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
    check.check_time(run(), 60)
    (tmp_path / "runs/a").mkdir(parents=True)
    rows = [json.dumps({"step": n, "step_seconds": 10.0 if n == 1 else 2.0}) for n in range(1, 9)]
    (tmp_path / "runs/a/metrics.jsonl").write_text("\n".join(rows))
    check.check_time(run(), 1000)
    told = r"slurm.time is 999 s, but .* every 500 steps, which is every 1,000 s by .*metrics.jsonl"
    with pytest.raises(ValueError, match=told):
        check.check_time(run(), 999)
    check.check_time(run("checkpoints.every_steps=499"), 999)
