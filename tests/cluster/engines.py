"""Flink, Spark and Prism on this machine: what they need is fetched by Maven and Go, once, into a
folder of the user's cache; daemons end with the tests.

The published job-server jars hold the same classes as the jars that the two POMs name.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.network import Network, inside
from tests.cluster.services import Daemons, free_port, wait_until

HERE = Path(__file__).parent / "engines"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "millrace-engines"
OPENED = (
    *("java.lang", "java.lang.invoke", "java.util", "java.util.concurrent"),
    *("java.util.concurrent.atomic", "java.io", "java.net", "java.nio", "java.time", "sun.nio.ch"),
    *("sun.nio.cs", "sun.security.action", "sun.util.calendar"),
)
OPENS = tuple(f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in OPENED)
"""What Java 17 shuts and both engines use."""
MIB = 2**20
FETCH_SECONDS = 300
TASK_MANAGER = {  # what Flink's start script computes; with one missing it ends
    "task.off-heap.size": 0,
    "network.min": 128 * MIB,
    "network.max": 128 * MIB,
    "managed.size": 128 * MIB,
    "framework.heap.size": 128 * MIB,
    "framework.off-heap.size": 128 * MIB,
    "jvm-metaspace.size": 256 * MIB,
    "jvm-overhead.min": 128 * MIB,
    "jvm-overhead.max": 128 * MIB,
}


def fetch_jars(name):
    """The folder of an engine's jars."""
    for program in ("java", "mvn"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    jars = CACHE / name
    if not (jars / ".complete").exists():
        copy = ["dependency:copy-dependencies", f"-DoutputDirectory={jars}"]
        words = ["mvn", "-B", "-q", "-f", str(HERE / f"{name}.xml"), *copy]
        try:
            answer = subprocess.run(
                words, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.skip(f"Maven did not fetch the jars within {FETCH_SECONDS} s")
        if answer.returncode:
            pytest.skip(f"Maven did not fetch the jars: {answer.stdout[-300:]}")
        (jars / ".complete").touch()
    return jars


def fetch_prism():
    program = CACHE / "bin/prism"
    if not program.exists():
        if shutil.which("go") is None:
            pytest.skip("needs go")
        package = "github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0"
        env = {**os.environ, "GOBIN": str(program.parent)}
        answer = subprocess.run(
            ["go", "install", package], env=env, capture_output=True, text=True, check=False
        )
        if answer.returncode:
            pytest.skip(f"go did not build Prism: {answer.stderr[-300:]}")
    return program


def job_server_jar(jars, main, folder):
    """A jar that starts an engine's job server, as the published ones do."""
    path = folder / "job-server.jar"
    text = f"Manifest-Version: 1.0\nMain-Class: {main}\n"
    line = "Class-Path: " + " ".join(jar.as_uri() for jar in sorted(jars.glob("*.jar")))
    # A line of a manifest has 72 bytes; it goes on behind a space.
    parts = [line[:70], *(f" {line[at : at + 69]}" for at in range(70, len(line), 69))]
    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", text + "\n".join(parts) + "\n\n")
    return path


def answers(port, host="127.0.0.1"):
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


@contextmanager
def started(kind, folder, env):
    """One at a time: each takes gigabytes. None of its processes is left."""
    daemons, made = Daemons(), None
    try:
        made = kind(daemons, folder, env)
        yield made
    finally:
        daemons.stop()
        if made:
            made.stop()


MACHINES = ("mill-w1", "mill-w2")
NETWORK = "10.77.32"
HERE_ADDRESS = f"{NETWORK}.254"
"""Of this machine, for the two."""
POOL = 50000
"""Each machine has a worker pool of its own there. Two managers must not share one: they give
their workers the same names, and a pool would stop the wrong one.
"""


class Cluster:
    """What Flink and Spark have alike: two machines, each with a worker pool, `before` it by choice
    what starts it.
    """

    def __init__(self, daemons, folder, env, before=()):
        self.daemons, self.folder, self.worker_env, self.before = daemons, folder, env, before
        self.network = Network(NETWORK, "mill-wbr", MACHINES)
        self.network.start()
        self.pools = {name: self.start_pool(name) for name in MACHINES}

    def start_pool(self, name):
        """Beam's worker pool, which starts a Python for whoever asks."""
        log = self.folder / f"pool-{name}.log"
        words = ["-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={POOL}"]
        command = inside(name, *self.before, sys.executable, *words)
        return self.daemons.start(*command, log=log, env=self.worker_env, cwd=self.folder)

    def fault(self, victim):
        """On one machine: killed by SIGKILL and started again, or the job is cancelled."""
        if victim == "job":
            self.cancel()
            return
        running, start = self.workers, self.start_worker
        if victim == "worker pool":
            running, start = self.pools, self.start_pool
        name = MACHINES[0]
        os.killpg(running[name].pid, signal.SIGKILL)
        running[name] = start(name)

    def logs(self):
        return "\n".join(path.read_text()[-2000:] for path in self.folder.glob("*.log"))

    def stop(self):
        self.network.stop()


class Flink(Cluster):
    """One job manager here, and a task manager with a slot on each machine."""

    def __init__(self, daemons, folder, env, heap_mib=256, direct_mib=512, before=()):
        self.jars, self.heap_mib, self.direct_mib = fetch_jars("flink"), heap_mib, direct_mib
        super().__init__(daemons, folder, env, before)
        self.port, rpc = free_port(), free_port()
        self.address = f"{self.network.here}:{self.port}"
        (folder / "flink-conf.yaml").write_text(
            f"jobmanager.rpc.address: {self.network.here}\njobmanager.rpc.port: {rpc}\n"
            f"rest.address: {self.network.here}\nrest.bind-address: 0.0.0.0\n"
            "jobmanager.bind-host: 0.0.0.0\njobmanager.memory.process.size: 1024m\n"
            f"taskmanager.numberOfTaskSlots: 1\nrest.port: {self.port}\n"
            "restart-strategy.type: fixed-delay\nrestart-strategy.fixed-delay.attempts: 3\n"
            "restart-strategy.fixed-delay.delay: 1s\nheartbeat.timeout: 10000\n"
            "heartbeat.interval: 2000\nparallelism.default: 2\n"
        )
        entry = "org.apache.flink.runtime.entrypoint.StandaloneSessionClusterEntrypoint"
        self._java("jobmanager", entry, "--executionMode", "cluster")
        self.env = {"JAVA_TOOL_OPTIONS": " ".join(OPENS)}
        """Of the job server."""
        self.starts = 0
        self.workers = {name: self.start_worker(name) for name in MACHINES}
        wait_until(lambda: self.get("/overview").get("slots-total") == 2, why=self.logs)

    def start_worker(self, name):
        """A task manager."""
        self.starts += 1
        sizes = {"task.heap.size": self.heap_mib * MIB, **TASK_MANAGER}
        memory = [f"taskmanager.memory.{key}={size}b" for key, size in sizes.items()]
        settings = [f"taskmanager.resource-id={name}-{self.starts}", "taskmanager.cpu.cores=1"]
        settings += [f"taskmanager.host={self.network.address(name)}", *memory]
        words = [word for setting in settings for word in ("-D", setting)]
        entry = "org.apache.flink.runtime.taskexecutor.TaskManagerRunner"
        return self._java(name, entry, *words, before=inside(name))

    def _java(self, name, entry, *words, before=()):
        limits = (
            f"-Xmx{self.heap_mib + 444}m",
            f"-XX:MaxDirectMemorySize={self.direct_mib}m",
        )
        command = (*before, "java", *OPENS, *limits, "-cp", f"{self.jars}/*", entry)
        rest = ("--configDir", self.folder, *words)
        return self.daemons.start(*command, *rest, log=self.folder / f"{name}.log")

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=5) as answer:
                return json.load(answer)
        except OSError:
            return {}

    def cancel(self):
        jobs = self.get("/jobs/overview").get("jobs", [])
        running = [job["jid"] for job in jobs if job["state"] == "RUNNING"]
        assert running, jobs
        for job in running:
            url = f"http://{self.address}/jobs/{job}?mode=cancel"
            request = urllib.request.Request(url, method="PATCH")
            urllib.request.urlopen(request, timeout=10).close()

    def flags(self):
        """What a user types, and where the job server is, which Beam would download."""
        jar = job_server_jar(
            self.jars, "org.apache.beam.runners.flink.FlinkJobServerDriver", self.folder
        )
        return [
            "--runner=FlinkRunner",
            f"--flink_master={self.address}",
            f"--flink_job_server_jar={jar}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{POOL}",
            "--parallelism=2",
        ]


class Spark(Cluster):
    """One master here, and a worker with a core on each machine."""

    def __init__(self, daemons, folder, env, before=()):
        self.jars = fetch_jars("spark")
        super().__init__(daemons, folder, env, before)
        home = folder / "home"
        home.mkdir()
        (home / "RELEASE").touch()
        (home / "jars").symlink_to(self.jars)
        self.env = {
            **os.environ,
            "SPARK_HOME": str(home),
            "SPARK_SCALA_VERSION": "2.12",
            "SPARK_LOCAL_IP": self.network.here,
            "JAVA_TOOL_OPTIONS": " ".join(OPENS),
        }
        port, self.web = free_port(), free_port()
        self.address = f"spark://{self.network.here}:{port}"
        master = "org.apache.spark.deploy.master.Master"
        words = ["--host", self.network.here, "--port", port, "--webui-port", self.web]
        self._java("master", master, *words)
        wait_until(lambda: answers(port, self.network.here), why=self.logs)
        self.workers = {name: self.start_worker(name) for name in MACHINES}
        registered = "Registering worker"
        log = folder / "master.log"
        wait_until(lambda: log.read_text().count(registered) == 2, why=self.logs)

    def start_worker(self, name):
        host = self.network.address(name)
        words = ["-c", "1", "-m", "1g", "--host", host, "-d", self.folder / name, self.address]
        entry, env = "org.apache.spark.deploy.worker.Worker", {**self.env, "SPARK_LOCAL_IP": host}
        return self._java(name, entry, *words, before=inside(name), env=env)

    def cancel(self):
        site = f"http://{self.network.here}:{self.web}"
        with urllib.request.urlopen(f"{site}/json/", timeout=10) as answer:
            running = [app["id"] for app in json.load(answer)["activeapps"]]
        assert running
        for app in running:
            urllib.request.urlopen(
                f"{site}/app/kill/", f"id={app}&terminate=true".encode(), timeout=10
            ).close()

    def _java(self, name, entry, *words, before=(), env=None):
        command = (*before, "java", "-Xmx512m", "-cp", f"{self.jars}/*", entry, *words)
        return self.daemons.start(*command, log=self.folder / f"{name}.log", env=env or self.env)

    def flags(self):
        jar = job_server_jar(
            self.jars, "org.apache.beam.runners.spark.SparkJobServerDriver", self.folder
        )
        return [
            "--runner=SparkRunner",
            f"--spark_master_url={self.address}",
            f"--spark_job_server_jar={jar}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{POOL}",
            "--parallelism=2",
        ]


class Prism:
    """Beam's portable runner in Go, one process here, with a worker pool, `before` it by choice."""

    def __init__(self, daemons, folder, env, before=()):
        self.folder, self.port, self.pool_port = folder, free_port(), free_port()
        self.daemons, self.worker_env, self.before, self.env = daemons, env, before, {}
        self.start_pool()
        self.start_server()

    def start_pool(self):
        words = ["-m", "apache_beam.runners.worker.worker_pool_main"]
        command = (*self.before, sys.executable, *words, f"--service_port={self.pool_port}")
        log = self.folder / "pool.log"
        self.pool = self.daemons.start(*command, log=log, env=self.worker_env, cwd=self.folder)
        wait_until(lambda: answers(self.pool_port), why=self.logs)

    def start_server(self):
        words = [f"--job_port={self.port}", "--serve_http=false"]
        self.server = self.daemons.start(fetch_prism(), *words, log=self.folder / "prism.log")
        wait_until(lambda: answers(self.port), why=self.logs)

    def fault(self, victim):
        """Killed by SIGKILL and started again."""
        killed, start = (self.server, self.start_server)
        if victim == "worker pool":
            killed, start = self.pool, self.start_pool
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        start()

    def logs(self):
        return (self.folder / "prism.log").read_text()[-3000:]

    def flags(self):
        return [
            "--runner=PortableRunner",
            f"--job_endpoint=localhost:{self.port}",
            "--environment_type=EXTERNAL",
            f"--environment_config=localhost:{self.pool_port}",
            "--parallelism=2",
        ]

    def stop(self):
        """Its processes are daemons of the tests."""
