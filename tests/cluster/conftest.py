"""Real services for `make cluster-test`; what is not installed is skipped, saying so."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.object_store import object_store
from tests.cluster.services import Daemons

__all__ = ["object_store"]

ROOT = Path(__file__).parent.parent.parent


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(1200))


@pytest.fixture(scope="session")
def cpu_env():
    """What ranks on CPUs are told, and `launch` itself."""
    return {
        **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")},
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def daemons():
    kept = Daemons()
    yield kept
    kept.stop()


def build_shakespeare(folder, env, *settings):
    """Tiny Shakespeare, a token for each character, built by a user's command."""
    words = [sys.executable, "-m", "pipeline", ROOT / "configs/pipeline/tiny_shakespeare.yaml"]
    subprocess.run([*words, f"dataset_dir={folder}", *settings], check=True, env=env, cwd=ROOT)


@pytest.fixture(scope="session")
def text_dataset(tmp_path_factory, cpu_env):
    folder = tmp_path_factory.mktemp("dataset") / "shakespeare"
    build_shakespeare(folder, cpu_env)
    return folder


@pytest.fixture(scope="session")
def write_training(tmp_path_factory, text_dataset):
    """Writes the YAML of a run of a small model; returns its path."""

    def write(folder, *, num_steps, every_steps=10, zero_stage=2):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "config.yaml"
        path.write_text(
            f"run_dir: {folder}/run\n"
            f"num_steps: {num_steps}\n"
            "model: {name: transformer, vocab_size: 96, d_model: 64, num_layers: 2, num_heads: 2,"
            " max_positions: 64, dropout: 0.1}\n"
            "task: {name: causal_lm}\n"
            f"data: {{dataset_dir: {text_dataset}, sequence_length: 64}}\n"
            "batch: {global_batch_size: 8, micro_batch_size: 4}\n"
            f"engine: {{zero_stage: {zero_stage}, precision: fp32}}\n"
            f"checkpoints: {{every_steps: {every_steps}, keep: 2}}\n"
            "evaluation: {every_steps: 0}\n"
        )
        return path

    return write
