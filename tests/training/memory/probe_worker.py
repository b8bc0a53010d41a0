"""Engines of two ranks or one, for `test_zero.py`: `probe_worker.py OUT CONFIG PORT OVERRIDES ...`

Each pair of a port and words of overrides, separated by commas, is a case; rank 0 writes predicted
and measured bytes. Every case has a process of its own, forked behind the imports: what an engine
leaves behind would be counted with the next one, 4 % of a case at stage 1 behind one at stage 3.
"""

import json
import os
import sys
from pathlib import Path

import configs
from training import distributed
from training import engine as engines
from training.config import TrainingConfig
from training.memory import probe
from training.memory.prediction import predict
from training.memory.zero import Ranks


def main(out, config_path, *words):
    for port, case in zip(words[::2], words[1::2], strict=True):
        child = os.fork()
        if not child:
            measure(Path(out), config_path, port, case)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if status:
            sys.exit(f"{case}: exit status {os.waitstatus_to_exitcode(status)}")


def measure(out, config_path, port, case):
    os.environ["MASTER_PORT"] = port
    engines.initialize_distributed()
    config = configs.load(TrainingConfig, config_path, case.split(","))
    config = probe.shorten(config)
    predicted = predict(config, Ranks(distributed.world_size(), "cpu"))
    measured, _ = probe.measure_peak(config)
    if distributed.is_rank_zero():
        results = json.loads(out.read_text()) if out.exists() else {}
        results[case] = {"predicted": predicted.peak.num_bytes, "measured": measured}
        out.write_text(json.dumps(results))
    distributed.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
