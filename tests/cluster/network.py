"""Machines made of network namespaces on a bridge; they share this machine's disk."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cluster.services import need


class Network:
    """Namespaces by name, with addresses that end in 1, 2 and so on; this machine's in 254."""

    def __init__(self, prefix, bridge, names):
        self.prefix, self.bridge, self.names = prefix, bridge, tuple(names)
        self.here = f"{prefix}.254"

    def address(self, name):
        return f"{self.prefix}.{self.names.index(name) + 1}"

    def start(self):
        need("ip")
        if not may_make_namespaces():
            pytest.skip("may not make network namespaces")
        self.stop()  # what a killed test has left
        ip("link", "add", self.bridge, "type", "bridge")
        ip("addr", "add", f"{self.here}/24", "dev", self.bridge)
        ip("link", "set", self.bridge, "up")
        for name in self.names:
            self._add(name)

    def _add(self, name):
        ip("netns", "add", name)
        ip("link", "add", f"{name}-v", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", f"{name}-v", "master", self.bridge, "up")
        for words in (
            ("addr", "add", f"{self.address(name)}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", name, *words)
        etc = Path("/etc/netns", name)  # what a namespace sees as /etc/hosts
        etc.mkdir(parents=True, exist_ok=True)
        lines = ["127.0.0.1 localhost", *(f"{self.address(one)} {one}" for one in self.names)]
        (etc / "hosts").write_text("\n".join(lines) + "\n")

    def cut(self, name):
        ip("link", "set", f"{name}-v", "down")

    def mend(self, name):
        ip("link", "set", f"{name}-v", "up")

    def pids(self, name, word=""):
        """Processes of a machine whose command line holds a word."""
        text = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout
        found = []
        for pid in text.split():
            path = Path(f"/proc/{pid}/cmdline")
            if path.exists() and word in path.read_text().replace("\0", " "):
                found.append(int(pid))
        return found

    def stop(self):
        there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
        for name in self.names:
            for pid in self.pids(name):
                os.kill(pid, signal.SIGKILL)
            if name in there.split():
                ip("netns", "del", name)
                (Path("/etc/netns", name) / "hosts").unlink(missing_ok=True)
        for link in (*(f"{name}-v" for name in self.names), self.bridge):
            subprocess.run(["ip", "link", "del", link], capture_output=True, check=False)


def may_make_namespaces():
    """Whether this user may, on this machine."""
    if shutil.which("ip") is None:
        return False
    if subprocess.run(["ip", "netns", "add", "mill-probe"], capture_output=True).returncode:
        return False
    ip("netns", "del", "mill-probe")
    return True


def inside(name, *words):
    """A command on a machine."""
    return ("ip", "netns", "exec", name, *map(str, words))


def run(*words):
    answer = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def ip(*words):
    run("ip", *words)
