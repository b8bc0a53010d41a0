"""Engines on one process group, for `test_zero.py`: `probe_worker.py OUT CONFIG OVERRIDES...`

Each word of overrides, separated by commas, is a case; rank 0 writes predicted and measured bytes.
"""

import gc
import json
import sys
from pathlib import Path

import configs
from training import distributed
from training import engine as engines
from training.config import TrainingConfig
from training.memory import probe
from training.memory.prediction import predict
from training.memory.zero import Ranks


def main(out, config_path, *cases):
    engines.initialize_distributed()
    results = {}
    for case in cases:
        config = configs.load(TrainingConfig, config_path, case.split(","))
        config = probe.shorten(config)
        predicted = predict(config, Ranks(distributed.world_size(), "cpu"))
        measured, _ = probe.measure_peak(config)
        results[case] = {"predicted": predicted.peak.num_bytes, "measured": measured}
        gc.collect()
    if distributed.is_rank_zero():
        Path(out).write_text(json.dumps(results))
    distributed.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
