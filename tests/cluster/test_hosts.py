"""Two hosts made of network namespaces, with sshd and pdsh: a rank on each.

They share this machine's disk, as hosts of a cluster share a file system.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import ROOT, build_shakespeare
from tests.cluster.network import Network, inside
from tests.cluster.network import run as shell
from tests.cluster.services import need, wait_until

NAMES = ("mill-h1", "mill-h2")


class Hosts:
    """A network of two, with an sshd each, and `ssh` that gets in without a password."""

    def __init__(self, folder, env, daemons):
        self.folder, self.env, self.daemons = folder, env, daemons
        self.network = Network("10.77.31", "mill-br", NAMES)
        self.sshd = {}

    def start(self):
        self.network.start()
        self._write_ssh()
        for name in NAMES:
            self._start_sshd(name)

    def _write_ssh(self):
        """A key of its own, and `ssh` first on the path, which knows it."""
        for key in ("host_key", "user_key"):
            shell("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / key)
        (self.folder / "authorized").write_text((self.folder / "user_key.pub").read_text())
        lines = ["StrictHostKeyChecking no", "UserKnownHostsFile /dev/null", "LogLevel ERROR"]
        (self.folder / "ssh_config").write_text(
            "\n".join([*lines, f"IdentityFile {self.folder}/user_key"]) + "\n"
        )
        bin_dir = self.folder / "bin"
        bin_dir.mkdir()
        (bin_dir / "ssh").write_text(
            f'#!/bin/sh\nexec /usr/bin/ssh -F {self.folder}/ssh_config "$@"\n'
        )
        (bin_dir / "ssh").chmod(0o755)
        self.env = {**self.env, "PATH": f"{bin_dir}:{self.env['PATH']}"}

    def _start_sshd(self, name, *lines):
        """In a namespace of mounts and one of names, too: a host of its own."""
        config = self.folder / f"sshd-{name}"
        config.write_text(
            f"ListenAddress {self.network.address(name)}\nHostKey {self.folder}/host_key\n"
            f"StrictModes no\nAuthorizedKeysFile {self.folder}/authorized\n"
            "PidFile none\nUsePAM no\n"
            + "".join(f"{line}\n" for line in ["PermitRootLogin yes", *lines])
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        named = f"hostname {name} && exec /usr/sbin/sshd -D -f {config}"
        words = inside(name, "unshare", "--uts", "--mount", "sh", "-c", named)
        self.sshd[name] = self.daemons.start(*words, log=self.folder / f"sshd-{name}.log")
        up = lambda: self.on(NAMES[0], "ssh", name, "true").wait() == 0  # noqa: E731
        wait_until(up, why=(self.folder / f"sshd-{name}.log").read_text)

    def restart(self, name, *lines, over=()):
        """As another host: more lines of sshd_config, and files that lie over others there."""
        self.sshd[name].terminate()
        self.sshd[name].wait()
        self._start_sshd(name, *lines)
        for other, path in over:
            words = ["-t", self.sshd[name].pid, "-m", "mount", "--bind", other, path]
            shell("nsenter", *words)

    def on(self, name, *words, **options):
        """A process on a host."""
        words = inside(name, *words)
        return subprocess.Popen(words, env=self.env, start_new_session=True, **options)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory, cpu_env, daemons):
    need("pdsh", "ssh", "ssh-keygen")
    if not Path("/usr/sbin/sshd").exists():
        pytest.skip("needs openssh-server")
    made = Hosts(tmp_path_factory.mktemp("hosts"), cpu_env, daemons)
    made.start()
    yield made
    made.network.stop()


class Launched:
    """`python -m launch hosts` on the first host, for a run of its own."""

    def __init__(self, hosts, folder, config):
        self.hosts, self.folder, self.config = hosts, folder, config
        self.run_dir, self.log = folder / "run", folder / "log"
        self.process = None
        (folder / "hostfile").write_text("".join(f"{name} slots=1\n" for name in NAMES))

    def start(self, *settings):
        env = ["DS_ACCELERATOR=cpu", "OMP_NUM_THREADS=1", "GLOO_SOCKET_IFNAME=eth0"]
        env += [f"{name}={self.hosts.env[name]}" for name in ("PYTHONPATH", "PATH")]
        words = ["-m", "launch", "hosts", self.config, f"launch.env=[{','.join(env)}]", *settings]
        with self.log.open("a") as log:
            self.process = self.hosts.on(
                *(NAMES[0], sys.executable, *words, "--submit"),
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )

    def end(self, seconds=180):
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(self.text) from None

    @property
    def text(self):
        return self.log.read_text()

    @property
    def rows(self):
        path = self.run_dir / "metrics.jsonl"
        return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


@pytest.fixture
def launched(hosts, write_training, tmp_path):
    made = []

    def make(*, num_steps, zero_stage=2, every_steps=10):
        config = write_training(
            tmp_path, num_steps=num_steps, zero_stage=zero_stage, every_steps=every_steps
        )
        made.append(Launched(hosts, tmp_path, config))
        return made[-1]

    yield make
    for one in made:
        if one.process and one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("zero_stage", [2, 3])
@pytest.mark.parametrize("program", ["deepspeed", "torchrun"])
def test_a_rank_on_each_host_trains_and_resumes(launched, program, zero_stage):
    run = launched(num_steps=15, zero_stage=zero_stage)
    run.start(f"hosts.program={program}")
    assert run.end() == 0, run.text
    assert f"2 cpu ranks, ZeRO stage {zero_stage}" in run.text
    run.start(f"hosts.program={program}", "num_steps=25")
    assert run.end() == 0, run.text
    assert f"resumed from {run.run_dir}/checkpoints/step-00000015" in run.text
    assert [row["step"] for row in run.rows] == list(range(1, 26))
    assert [row["samples_seen"] for row in run.rows] == list(range(8, 201, 8))
    assert (run.folder / ".deepspeed_env").exists() == (program == "deepspeed")


def test_a_host_that_is_cut_off_ends_the_run_and_it_resumes_when_it_is_back(launched):
    run = launched(num_steps=400, every_steps=20)
    run.start()
    wait_until(lambda: len(run.rows) > 30, why=lambda: run.text)
    launched_on = run.hosts.network
    launched_on.cut(NAMES[1])
    try:
        assert run.end(240) != 0, run.text
        assert "rank 0: ends, since rank 1 is gone" in run.text
        run.start()
        assert run.end() == 2, run.text
        assert f"error: host {NAMES[1]}: is not reachable by ssh" in run.text
    finally:
        launched_on.mend(NAMES[1])
        for pid in launched_on.pids(NAMES[1], str(run.config)):
            os.kill(pid, signal.SIGKILL)  # as a machine that was switched off and on
    run.start()
    assert run.end() == 0, run.text
    assert "resumed from " in run.text
    assert [row["step"] for row in run.rows] == list(range(1, 401))


FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


@pytest.mark.parametrize("what", ["code of Millrace", "dataset", "clock"])
def test_a_host_that_differs_is_refused(launched, hosts, text_dataset, cpu_env, tmp_path, what):
    run = launched(num_steps=5)
    lines, over = [], []
    if what == "clock":
        if not FAKETIME.exists():
            pytest.skip("needs faketime")
        lines = [f"SetEnv LD_PRELOAD={FAKETIME} FAKETIME=+60s"]
    elif what == "dataset":
        build_shakespeare(tmp_path / "other", cpu_env, "shuffle_seed=1")
        over = [(tmp_path / "other", text_dataset)]
    else:
        (tmp_path / "ema.py").write_text((ROOT / "training/ema.py").read_text() + "# other\n")
        over = [(tmp_path / "ema.py", ROOT / "training/ema.py")]
    hosts.restart(NAMES[1], *lines, over=over)
    try:
        run.start()
        assert run.end() != 0
        told = {"clock": f"the clock of {NAMES[1]} is 60 s ahead of that of {NAMES[0]}"}
        assert f"error: nodes differ: {told.get(what, f'{what} of {NAMES[1]} is ')}" in run.text
        assert "Traceback" not in run.text
        assert run.rows == []
    finally:
        hosts.restart(NAMES[1])
    run.start()
    assert run.end() == 0, run.text
    assert "2 nodes with the same code, versions and dataset; between two of them" in run.text


def test_ctrl_c_leaves_no_rank_behind(launched):
    run = launched(num_steps=100000)
    run.start("hosts.program=torchrun")
    wait_until(lambda: len(run.rows) > 5, why=lambda: run.text)
    os.killpg(run.process.pid, signal.SIGINT)
    assert run.end(60) != 0
    for name in NAMES:
        wait_until(lambda name=name: not run.hosts.network.pids(name, "training"), seconds=60)


@pytest.mark.parametrize(
    ("hostfile", "told"),
    [
        ("mill-h1 slots=1\nmill-h9 slots=1\n", "host mill-h9: no address of that name is known"),
        ("mill-h1 slots=1\n10.77.31.77 slots=1\n", "host 10.77.31.77: is not reachable by ssh"),
    ],
)
def test_a_host_that_is_not_there(launched, hostfile, told):
    run = launched(num_steps=5)
    (run.folder / "hostfile").write_text(hostfile)
    run.start("hosts.ssh_seconds=2")
    assert run.end() == 2
    assert told in run.text
    assert "Traceback" not in run.text


def test_a_port_that_is_taken_and_a_folder_that_is_not_shared(launched, hosts):
    run = launched(num_steps=5)
    listen = "s = socket.socket(); s.bind(('', 29517)); s.listen(); time.sleep(600)"
    taker = hosts.on(NAMES[0], sys.executable, "-c", f"import socket, time; {listen}")
    try:
        wait_until(lambda: f":{29517:04X} " in shell(*inside(NAMES[0], "cat", "/proc/net/tcp")))
        run.start("launch.port=29517")
        assert run.end() == 2
        assert f"host {NAMES[0]}: port 29517 is taken; choose another by launch.port" in run.text
    finally:
        os.killpg(taker.pid, signal.SIGKILL)
    run.start("data.dataset_dir=/nowhere")
    assert run.end() == 2
    for name in NAMES:
        assert f"host {name} does not see /nowhere/manifest.json; share the folder" in run.text
