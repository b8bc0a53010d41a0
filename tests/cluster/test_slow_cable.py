"""Four hosts made of network namespaces, one behind a slow cable: it is named before step 1."""

import re
import subprocess
import sys

import pytest

from tests.cluster.network import Network, inside
from tests.cluster.services import free_port, need

NAMES = ("mill-s1", "mill-s2", "mill-s3", "mill-s4")
RANK = """
import sys
from pathlib import Path
import torch.distributed as dist
from training import preflight
dist.init_process_group("gloo")
preflight.check_nodes(preflight.Config(bandwidth_mib=8), Path(sys.argv[1]), "a" * 64, {})
dist.destroy_process_group()
"""


@pytest.fixture
def network():
    made = Network("10.77.33", "mill-bs", NAMES)
    made.start()
    yield made
    made.stop()


def test_the_pairs_with_a_slow_cable_are_named(network, cpu_env, tmp_path):
    """100 Mbit/s, 12 MB/s, to and from the third host; the others have what memory gives."""
    need("tc")
    for link in (("mill-s3-v",), ("eth0", "mill-s3")):
        words = ["tc", *(["-n", link[1]] if link[1:] else []), "qdisc", "add", "dev", link[0]]
        words += ["root", "tbf", "rate", "100mbit", "burst", "64kbit", "latency", "400ms"]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("needs a kernel with the queue tbf")
    port, ranks = free_port(), []
    for rank, name in enumerate(NAMES):
        env = {
            **{"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(len(NAMES))},
            **{"MASTER_ADDR": network.address(NAMES[0]), "MASTER_PORT": str(port)},
            "GLOO_SOCKET_IFNAME": "eth0",
        }
        script = f'hostname {name} && exec "$@"'
        words = ["unshare", "--uts", "sh", "-c", script, "sh", sys.executable, "-c", RANK, tmp_path]
        ranks.append(
            subprocess.Popen(
                inside(name, *words), env={**cpu_env, **env}, stdout=subprocess.PIPE, text=True
            )
        )
    told = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * len(NAMES), told
    assert re.search(r"4 nodes with the same code.* slowest \S+ and \S+ 0.01 GiB/s", told[0]), told
    slow = set(re.findall(r"warning: (\S+) and (\S+) exchange 0.01 GiB/s", told[0]))
    assert slow == {(one, "mill-s3") for one in NAMES[:2]} | {("mill-s3", "mill-s4")}
