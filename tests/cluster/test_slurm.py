"""The rendered batch script under a real SLURM on this machine: run, told to stop, preempted,
requeued and cancelled.
"""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from tests.cluster.services import free_port, need, wait_until

CONF = """
ClusterName=millrace
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
MpiDefault=none
ReturnToService=2
KillWait=30
MinJobAge=3600
SchedulerParameters=requeue_delay=1,bf_interval=1,sched_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=120 MaxTime=INFINITE
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF MaxTime=INFINITE
"""


class Slurm:
    def __init__(self, folder, env):
        self.env = {**env, "SLURM_CONF": str(folder / "slurm.conf")}

    def __call__(self, *words, **options):
        answer = subprocess.run(
            [str(word) for word in words], env=self.env, capture_output=True, text=True, **options
        )
        assert answer.returncode == 0, answer.stderr + answer.stdout
        return answer.stdout

    def state(self, job):
        """The state of a job, and how often it was requeued."""
        told = dict(
            word.split("=", 1) for word in self("scontrol", "-o", "show", "job", job).split()
        )
        return told["JobState"], int(told["Restarts"])

    def wait_for_requeue(self, job, times, run_dir):
        """And let it start: SLURM waits two minutes before it starts a requeued job again, and does
        so nevertheless where the script had not ended when it was told.
        """
        pending = ("PENDING", times)
        wait_until(lambda: self.state(job) == pending, seconds=300, why=lambda: log_of(run_dir))
        self("scontrol", "update", f"JobId={job}", "StartTime=now")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory, cpu_env, daemons):
    need("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    munged = ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket"]
    munged += [f"--{name}-file={folder}/munge.{name}" for name in ("key", "log", "pid", "seed")]
    daemons.start(*munged, log=folder / "munged.out")
    wait_until((folder / "munge.socket").exists)
    controller, node = free_port(), free_port()
    text = CONF.format(host=socket.gethostname(), folder=folder, controller=controller, node=node)
    (folder / "slurm.conf").write_text(text)
    env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    daemons.start("slurmctld", "-D", log=folder / "slurmctld.out", env=env)
    daemons.start("slurmd", "-D", log=folder / "slurmd.out", env=env)
    ready = Slurm(folder, cpu_env)
    idle = ["sinfo", "-h", "-p", "low", "-o", "%T"]

    def is_idle():
        answer = subprocess.run(idle, env=ready.env, capture_output=True, text=True)
        return answer.stdout.strip() == "idle"

    wait_until(is_idle, why=lambda: (folder / "slurmctld.log").read_text())
    return ready


@pytest.fixture
def submit(slurm, write_training, tmp_path):
    """Submits a run as a user does; returns the job and the folder of the run."""

    def call(*settings, num_steps, name="run", **changes):
        config = write_training(tmp_path, num_steps=num_steps, **changes)
        settings = [f"run_dir={tmp_path}/{name}", *settings]
        settings = ["slurm.devices_per_node=2", "slurm.cpus_per_device=1", *settings]
        words = ["-m", "launch", "slurm", config, "slurm.gpus=false", *settings, "--submit"]
        told = slurm(sys.executable, *words, cwd=tmp_path)
        assert "Submitted batch job" in told, told
        return told.split()[-1], tmp_path / name

    yield call
    slurm("scancel", "--full", "--user=root")


def rows(run_dir):
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def log_of(run_dir):
    return "".join(path.read_text() for path in run_dir.parent.glob(f"{run_dir.name}-*.log"))


def last_step(run_dir):
    found = rows(run_dir)
    return found[-1]["step"] if found else 0


def assert_whole(run_dir, num_steps):
    assert [row["step"] for row in rows(run_dir)] == list(range(1, num_steps + 1))
    seen = [row["samples_seen"] for row in rows(run_dir)]
    assert seen == list(range(8, 8 * num_steps + 1, 8))


@pytest.mark.parametrize("program", ["srun", "torchrun"])
def test_a_job_trains_to_its_end(slurm, submit, program):
    job, run_dir = submit(f"slurm.program={program}", "slurm.time=30", num_steps=20)
    ends = ("COMPLETED", "FAILED", "CANCELLED")
    wait_until(lambda: slurm.state(job)[0] in ends, why=lambda: log_of(run_dir))
    assert slurm.state(job) == ("COMPLETED", 0), log_of(run_dir)
    assert_whole(run_dir, 20)
    assert "2 cpu ranks, ZeRO stage 2" in log_of(run_dir)


@pytest.mark.parametrize("program", ["srun", "torchrun"])
def test_told_to_stop_before_its_limit_it_is_requeued_and_goes_on(slurm, submit, program):
    """The limit is three minutes, and the signal comes soon behind the start of the ranks."""
    settings = [f"slurm.program={program}", "slurm.time=3", "slurm.stop_seconds=75"]
    job, run_dir = submit(*settings, num_steps=3000, every_steps=1000)
    slurm.wait_for_requeue(job, 1, run_dir)
    stopped = last_step(run_dir)
    assert 0 < stopped < 3000
    assert f"stopped by SIGUSR1 behind step {stopped}; the same command goes on" in log_of(run_dir)
    on = lambda: last_step(run_dir) > stopped  # noqa: E731
    wait_until(on, seconds=300, why=lambda: log_of(run_dir))
    assert f"resumed from {run_dir}/checkpoints/step-{stopped:08d}" in log_of(run_dir)


def test_jobs_of_an_array_follow_one_another(slurm, submit):
    """Where requeues are forbidden; a name of two words is one to sbatch."""
    settings = ["slurm.array=2", "slurm.time=3", "slurm.stop_seconds=75"]
    _, run_dir = submit(*settings, num_steps=100000, every_steps=10000, name="my run")
    told = "stopped by SIGUSR1 behind step "
    wait_until(lambda: told in log_of(run_dir), seconds=300, why=lambda: log_of(run_dir))
    stopped = int(log_of(run_dir).split(told)[1].split(";")[0])
    wait_until(lambda: last_step(run_dir) > stopped, why=lambda: log_of(run_dir))
    assert f"resumed from {run_dir}/checkpoints/step-{stopped:08d}" in log_of(run_dir)
    assert len(list(run_dir.parent.glob("my run-*.log"))) == 2


def test_a_preempted_job_stops_with_a_checkpoint_and_goes_on(slurm, submit):
    job, run_dir = submit("slurm.time=60", num_steps=2000, every_steps=1000)
    wait_until(lambda: last_step(run_dir) > 0, why=lambda: log_of(run_dir))
    urgent = ["--partition=high", "--ntasks=2", "--time=1", "--output=/dev/null", "--wrap=sleep 5"]
    slurm("sbatch", *urgent)
    slurm.wait_for_requeue(job, 1, run_dir)
    stopped = last_step(run_dir)
    assert f"stopped by SIGTERM behind step {stopped}; the same command goes on" in log_of(run_dir)
    wait_until(lambda: last_step(run_dir) > stopped, why=lambda: log_of(run_dir))
    assert f"resumed from {run_dir}/checkpoints/step-{stopped:08d}" in log_of(run_dir)
    slurm("scontrol", "requeue", job)  # by an administrator
    slurm.wait_for_requeue(job, 2, run_dir)
    wait_until(lambda: slurm.state(job)[0] == "COMPLETED", seconds=400, why=lambda: log_of(run_dir))
    assert log_of(run_dir).count("resumed from ") == 2
    assert_whole(run_dir, 2000)


def test_a_cancelled_job_stays_cancelled(slurm, submit):
    job, run_dir = submit("slurm.time=60", num_steps=100000)
    wait_until(lambda: last_step(run_dir) > 0, why=lambda: log_of(run_dir))
    slurm("scancel", job)
    wait_until(lambda: slurm.state(job)[0] == "CANCELLED", why=lambda: log_of(run_dir))
    time.sleep(5)
    assert slurm.state(job) == ("CANCELLED", 0)


def test_a_mistake_in_the_config_is_told_before_the_job(slurm, write_training, tmp_path):
    config = write_training(tmp_path, num_steps=5)
    words = [sys.executable, "-m", "launch", "slurm", config, "slurm.gpus=false"]
    words += ["slurm.devices_per_node=2", "optimizer.peak_rate=1", "--submit"]
    answer = subprocess.run(words, env=slurm.env, capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 2
    assert "optimizer.peak_rate: unknown key" in answer.stderr
    assert "Traceback" not in answer.stderr
