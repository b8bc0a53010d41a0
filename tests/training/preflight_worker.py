"""A rank of `test_preflight.py`: each is a node of its own, and the second one is as told."""

import json
import os
import sys
import time
from pathlib import Path

import torch.distributed as dist

from training import preflight

folder, case = Path(sys.argv[1]), sys.argv[2]
rank = int(os.environ["RANK"])
os.environ["LOCAL_RANK"] = "0"
preflight.socket.gethostname = lambda: f"h{rank + 1}"
run_dir, fingerprint = folder / "run", "a" * 64
tree = {"data": {"dataset_dir": f"/of-{rank}"}, "optimizer": {"peak_learning_rate": 0.1}}
if rank == 1:
    if case == "dataset":
        fingerprint = "b" * 64
    if case == "config":
        tree["optimizer"]["peak_learning_rate"] = 0.5
    if case == "folder":
        run_dir = folder / "elsewhere"
    if case == "clock":
        now = time.time
        preflight.time.time = lambda: now() + 61
    if case == "code":
        preflight.hash_code = lambda packages: "c" * 16
    if case == "version":
        preflight.platform.python_version = lambda: "3.99.0"
run_dir.mkdir(exist_ok=True)
dist.init_process_group("gloo")
told = ""
try:
    preflight.check_nodes(preflight.Config(bandwidth_mib=1), run_dir, fingerprint, tree)
except ValueError as error:
    told = str(error)
left = sorted(path.name for path in run_dir.iterdir())
(folder / f"told-{rank}.json").write_text(json.dumps([told, left]))
dist.destroy_process_group()
