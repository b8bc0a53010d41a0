"""What DeepSpeed holds and makes on a rank, against the tensors of real steps on the CPU."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from training.memory.prediction import predict
from training.memory.zero import Ranks

WORKER = Path(__file__).parent / "probe_worker.py"
CONFIG = """\
# A Transformer whose states outweigh its activations.
run_dir: nowhere
num_steps: 3
model: {name: transformer, vocab_size: 2048, d_model: 256, num_layers: 8, num_heads: 4,
        max_positions: 32}
task: {name: causal_lm}
data: {dataset_dir: nowhere, sequence_length: 32}
batch: {global_batch_size: 8, micro_batch_size: 2}
schedule: {warmup_steps: 0}
"""
LONGER = "model.max_positions=128,data.sequence_length=128"
SHARED = (
    "engine.sequence_parallel_size=2,model.max_positions=512,data.sequence_length=512,"
    "engine.zero_stage=2,batch.micro_batch_size=4"
)
CUT = (
    "engine.tensor_parallel_size=2,model.max_positions=256,data.sequence_length=256,"
    "engine.zero_stage=2,batch.micro_batch_size=4"
)
NARROW = "engine.optimizer_precision=bf16"
SMALL_BUCKETS = (
    "engine.bucket_elements=1200000,engine.activation_checkpointing=full,data.sequence_length=8"
)
CASES = {
    1: (
        "engine.zero_stage=0,model.num_layers=5",
        "engine.zero_stage=2,engine.activation_checkpointing=full,batch.micro_batch_size=4",
        "engine.zero_stage=1,engine.precision=fp32,ema.decay=0.9",
        f"engine.zero_stage=1,engine.precision=fp32,{LONGER}",
        f"engine.zero_stage=2,engine.precision=fp32,{LONGER}",
        "engine.zero_stage=2,batch.micro_batch_size=8",
        f"{NARROW},engine.zero_stage=1,batch.micro_batch_size=8",
        f"{NARROW},engine.zero_stage=3",
    ),
    2: (
        "engine.zero_stage=1",
        "engine.zero_stage=2",
        "engine.zero_stage=3",
        "engine.zero_stage=1,engine.precision=fp32",
        "engine.zero_stage=2,engine.precision=fp32",
        f"{NARROW},engine.zero_stage=1,batch.micro_batch_size=4,{SMALL_BUCKETS}",
        f"{NARROW},engine.zero_stage=2",
        f"{NARROW},engine.zero_stage=2,batch.micro_batch_size=4,{SMALL_BUCKETS}",
        f"{NARROW},engine.zero_stage=3,{SMALL_BUCKETS}",
        f"{NARROW},engine.zero_stage=3,batch.micro_batch_size=4",
        f"engine.zero_stage=3,engine.reduce_in_fp32=false,{SMALL_BUCKETS}",
        f"engine.zero_stage=3,engine.hpz_partition_size=2,{SMALL_BUCKETS}",
    ),
}
"""By world size; optimizer states in bf16 with gradients that are added up, and that are not."""
PARALLEL = (
    SHARED,
    f"{SHARED},engine.activation_checkpointing=full",
    f"{SHARED},engine.zero_stage=3,engine.precision=fp32,model.positions=rotary",
    f"{SHARED},model.num_kv_heads=2,model.activation=swiglu,model.positions=rotary",
    f"{SHARED},model.num_kv_heads=1,task.mask_documents=true",
    CUT,
    f"{CUT},engine.precision=fp32",
    f"{CUT},engine.zero_stage=1,engine.activation_checkpointing=full",
    f"{CUT},engine.zero_stage=3,engine.precision=fp32,model.bias=false",
    f"{CUT},model.num_kv_heads=2,model.activation=swiglu,model.positions=rotary",
)
"""On two ranks that share sequences, or weights."""


@pytest.mark.slow
@pytest.mark.timeout(900)  # bf16 on a CPU without instructions for it
@pytest.mark.parametrize(("world_size", "cases"), [*CASES.items(), (2, PARALLEL)])
def test_prediction_of_real_steps(tmp_path, world_size, cases):
    (tmp_path / "config.yaml").write_text(CONFIG)
    results = run_ranks(tmp_path, cases, world_size=world_size)
    errors = {case: one["predicted"] / one["measured"] - 1 for case, one in results.items()}
    assert errors == dict.fromkeys(cases, pytest.approx(0, abs=0.03))


def run_ranks(folder, cases, *, world_size):
    words = [word for pair in zip(free_ports(len(cases)), cases, strict=True) for word in pair]
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1"}
    common = os.environ | shared | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, WORKER, folder / "out.json", folder / "config.yaml", *words],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(world_size)
    ]
    faults = [process.communicate(timeout=880)[1].decode() for process in ranks]
    assert not any(process.returncode for process in ranks), "\n".join(faults)
    return json.loads((folder / "out.json").read_text())


def free_ports(number):
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(number)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]


def test_more_ranks_share_what_the_stage_shares(config_of):
    """In bytes a parameter, of a model whose batch is nothing beside it."""
    overrides = "model.vocab_size=50000 model.d_model=4096 model.num_heads=32 model.num_layers=4"
    overrides += " data.sequence_length=16 engine.zero_stage={stage}"

    def held(stage, world_size):
        config = config_of("gpt", overrides.format(stage=stage), global_batch_size=128)
        prediction = predict(config, Ranks(world_size))
        kinds = prediction.phases["optimizer step"].breakdown
        return {
            kind: round(kinds[kind] / prediction.num_parameters, 2)
            for kind in ("parameters", "optimizer")
        }

    assert held(1, 1) == held(2, 1) == held(3, 1) == {"parameters": 2.0, "optimizer": 12.0}
    assert held(1, 8) == held(2, 8) == {"parameters": 2.0, "optimizer": 1.5}
    assert held(3, 8) == {"parameters": 0.25, "optimizer": 1.5}


def test_a_second_copy_of_the_weights_is_shared_by_the_ranks_of_a_node(config_of):
    overrides = "model.vocab_size=50000 model.d_model=4096 model.num_heads=32 model.num_layers=4"
    overrides += " data.sequence_length=16 engine.zero_stage=3 engine.hpz_partition_size={size}"

    def copied(size):
        config = config_of("gpt", overrides.format(size=size), global_batch_size=128)
        prediction = predict(config, Ranks(8))
        kinds = prediction.phases["optimizer step"].breakdown
        return round(kinds["second copy"] / prediction.num_parameters, 2)

    assert {size: copied(size) for size in (1, 2, 4, 8)} == {1: 0, 2: 1, 4: 0.5, 8: 0.25}
