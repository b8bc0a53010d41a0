"""DeepSpeed's config against golden files, and each of its rules by itself."""

import itertools
import json
import os
from pathlib import Path

import pytest

from training.deepspeed_config import NEVER, Config, build_deepspeed_config, check_device

GOLDEN = Path(__file__).parent / "golden"
SPECS = [
    {
        "patterns": [r"model\.blocks\.\d+\.attention\.query_key_value\.weight$"],
        "partition_type": "column",
        "shape": [[64, 32, 32], -1],
        "partition_dim": 0,
    }
]
COMBINATIONS = list(itertools.product((0, 1, 2, 3), ("fp32", "bf16", "fp16")))
GOLDENS = {
    f"zero{stage}-{precision}": {"stage": stage, "precision": precision}
    for stage, precision in COMBINATIONS
} | {
    "zero3-bf16-selective": {
        "stage": 3,
        "precision": "bf16",
        "activation_checkpointing": "selective",
    },
    "zero1-bf16-offload": {"stage": 1, "precision": "bf16", "offload_optimizer": "cpu"},
    "zero3-bf16-offload": {
        "stage": 3,
        "precision": "bf16",
        "offload_optimizer": "nvme",
        "offload_parameters": "cpu",
        "nvme_dir": "/local",
    },
    "zero3-bf16-zeropp": {
        "stage": 3,
        "precision": "bf16",
        "hpz_partition_size": 8,
        "quantize_weights": True,
        "quantize_gradients": True,
    },
    "zero2-bf16-states": {"stage": 2, "precision": "bf16", "optimizer_precision": "bf16"},
    "zero2-bf16-compiled": {"stage": 2, "precision": "bf16", "compile": "blocks"},
    "zero3-bf16-deepcompile": {"stage": 3, "precision": "bf16", "compile": "deepcompile"},
    "zero1-bf16-tensor-parallel": {
        "stage": 1,
        "precision": "bf16",
        "tensor_parallel_size": 4,
        "layer_specs": SPECS,
    },
    "zero2-bf16-reduced-in-bf16": {"stage": 2, "precision": "bf16", "reduce_in_fp32": False},
}
REMOVED_KEYS = {
    *("nebula", "compression_training", "amp", "quantize_training", "sparse_gradients"),
    *("eigenvalue", "sparse_attention", "elasticity", "graph_harvesting"),
    *("curriculum_learning", "progressive_layer_drop"),
}
"""DeepSpeed 0.19.7 and later refuse them."""

every_combination = pytest.mark.parametrize(("stage", "precision"), COMBINATIONS)


def build(stage, precision, *, num_parameters=1_000_000, overlap=True, layer_specs=(), **settings):
    return build_deepspeed_config(
        Config(zero_stage=stage, precision=precision, **settings),
        micro_batch_size=8,
        gradient_accumulation_steps=4,
        num_parameters=num_parameters,
        overlap=overlap,
        layer_specs=layer_specs,
    )


@pytest.mark.parametrize("name", GOLDENS)
def test_golden(name):
    path = GOLDEN / f"{name}.json"
    text = json.dumps(build(**GOLDENS[name]), indent=2) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), (
        f"if this is meant: UPDATE_GOLDEN=1 python -m pytest {__file__}"
    )


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.iterdir()} == GOLDENS.keys()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_low_precision_accumulates_in_fp32(stage, precision):
    config = build(stage, precision)
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config[precision]["enabled"] is True


@every_combination
def test_ranks_sum_in_fp32_unless_told_otherwise(stage, precision):
    assert build(stage, precision)["communication_data_type"] == "fp32"
    if precision != "fp32":
        config = build(stage, precision, reduce_in_fp32=False)
        assert config["communication_data_type"] == precision


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_stage_0_never_uses_the_wrappers_that_take_a_hidden_step(precision):
    config = build(0, precision)
    assert not {"bf16", "fp16", "data_types"} & config.keys()
    dtype = config.get("torch_autocast", {}).get("dtype")
    assert dtype == {"fp32": None, "bf16": "bfloat16", "fp16": "float16"}[precision]


@every_combination
def test_clipping_is_always_set(stage, precision):
    # At stage 0 the engine clips itself, to know the norm.
    expected = 0.0 if stage == 0 else 0.7
    assert build(stage, precision, max_grad_norm=0.7)["gradient_clipping"] == expected


@every_combination
def test_deepspeed_prints_nothing_and_uses_no_removed_key(stage, precision):
    config = build(stage, precision)
    assert config["steps_per_print"] == NEVER >= 10**9
    assert config["wall_clock_breakdown"] is False
    assert not REMOVED_KEYS & config.keys()
    assert not [key for key in config["zero_optimization"] if key.startswith("mics_")]
    assert not {"optimizer", "scheduler"} & config.keys()  # ours


@every_combination
@pytest.mark.parametrize("num_parameters", [1, 1000, 999, 7_000_000_000])
def test_buckets_fit_the_model(stage, precision, num_parameters):
    largest = 5000 if stage else Config.bucket_elements  # of stage 0, which looks at none
    config = build(stage, precision, num_parameters=num_parameters, bucket_elements=largest)
    zero = config["zero_optimization"]
    bucket = 2 * -(-min(largest, num_parameters) // 2)  # even, or DeepSpeed refuses it
    assert zero["reduce_bucket_size"] == zero["allgather_bucket_size"] == bucket
    if stage == 3:
        assert zero["stage3_prefetch_bucket_size"] == bucket
        live = {1: 1, 999: 249, 1000: 250, 7_000_000_000: 10**9}[num_parameters]
        assert zero["stage3_max_live_parameters"] == zero["stage3_max_reuse_distance"] == live
        assert zero["stage3_param_persistence_threshold"] <= max(0, num_parameters // 100)


def test_batch_and_overlap_are_passed_on():
    config = build(2, "bf16", overlap=False)
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["gradient_accumulation_steps"] == 4
    assert config["zero_optimization"]["overlap_comm"] is False


def test_the_loss_scale_is_dynamic_and_ours():
    fp16 = build(1, "fp16", initial_loss_scale_power=9, loss_scale_window=77)["fp16"]
    assert fp16["loss_scale"] == 0  # dynamic
    assert (fp16["initial_scale_power"], fp16["loss_scale_window"]) == (9, 77)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_grad_norm", -1.0),
        ("max_grad_norm", float("nan")),
        ("max_grad_norm", float("inf")),
        ("initial_loss_scale_power", 33),
        ("initial_loss_scale_power", -1),
        ("loss_scale_window", 0),
        ("bucket_elements", 0),
        ("activation_checkpointing_every_n", 0),
        ("hpz_partition_size", 0),
        ("sequence_parallel_size", 0),
        ("tensor_parallel_size", 0),
    ],
)
def test_numbers_without_a_meaning(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* found {value}"):
        Config(**{name: value})


@pytest.mark.parametrize(
    ("mode", "stages"), [("blocks", {0, 1, 2}), ("model", {0}), ("deepcompile", {3})]
)
def test_compilation_and_zero_stages(mode, stages):
    for stage in range(4):
        if stage in stages:
            section = build(stage, "bf16", compile=mode).get("compile")
            assert section == ({"deepcompile": True} if mode == "deepcompile" else None)
        else:
            with pytest.raises(ValueError, match=f"compile={mode} does not go with zero_stage"):
                Config(zero_stage=stage, compile=mode)


@pytest.mark.parametrize(
    ("stage", "settings", "message"),
    [
        (0, {"offload_optimizer": "cpu"}, "offload_optimizer needs zero_stage 1 or more, found 0"),
        (2, {"offload_optimizer": "nvme", "nvme_dir": "/x"}, "nvme needs zero_stage 3, found 2"),
        (2, {"offload_parameters": "cpu"}, "offload_parameters needs zero_stage 3, found 2"),
        (0, {"optimizer_precision": "bf16"}, "needs zero_stage 1 or more"),
        (2, {"zero_init": True}, "zero_init needs zero_stage 3, found 2"),
        (1, {"hpz_partition_size": 2}, "hpz_partition_size needs zero_stage 3"),
        (2, {"quantize_weights": True}, "quantize_weights needs zero_stage 3"),
        (2, {"quantize_gradients": True}, "quantize_gradients needs zero_stage 3"),
        (3, {"offload_optimizer": "nvme"}, "a folder is needed for nvme"),
        (3, {"nvme_dir": "/x"}, "a folder is needed for nvme, and for it alone"),
        (3, {"optimizer_precision": "bf16", "precision": "fp32"}, "needs precision=bf16, found f"),
        (1, {"optimizer_precision": "bf16", "offload_optimizer": "cpu"}, "do not go together"),
        (0, {"compile": "model", "sequence_parallel_size": 2}, "communicates inside; use blocks"),
        (0, {"compile": "model", "activation_checkpointing": "offload"}, "copy to the host; use b"),
    ],
)
def test_settings_that_do_not_go_together(stage, settings, message):
    with pytest.raises(ValueError, match=message):
        Config(zero_stage=stage, **settings)


@pytest.mark.parametrize(("accumulation", "dtype"), [(1, "bf16"), (4, "fp32")])
def test_bf16_states_still_add_up_in_fp32(accumulation, dtype):
    config = build_deepspeed_config(
        Config(zero_stage=2, optimizer_precision="bf16"),
        micro_batch_size=8,
        gradient_accumulation_steps=accumulation,
        num_parameters=100,
        overlap=True,
    )
    assert config["data_types"]["grad_accum_dtype"] == dtype
    assert config["bf16"]["bf16_master_weights_and_grads"] is True
    assert config["bf16"]["bf16_optimizer_states"] is True


def test_bf16_states_at_stage_1_do_not_accumulate():
    # DeepSpeed would take its optimizer of fp32 states there, silently.
    with pytest.raises(ValueError, match="cannot accumulate 4 micro batches in fp32"):
        build(1, "bf16", optimizer_precision="bf16")


@pytest.mark.parametrize(
    "settings",
    [
        {"compile": "deepcompile"},
        {"quantize_weights": True},
        {"quantize_gradients": True},
        {"precision": "fp16"},
    ],
)
def test_what_a_device_cannot_do(settings):
    config = Config(zero_stage=3, **settings)
    check_device(config, "cuda", computes_fp16=True)
    with pytest.raises(ValueError, match=next(iter(settings))):
        check_device(config, "cpu", computes_fp16=False)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"activation_checkpointing": "full", "activation_checkpointing_every_n": 3},
            "activation_checkpointing_every_n=3 has no effect at activation_checkpointing=full, "
            "only at every_n; leave it at 2",
        ),
        (
            {"zero_stage": 0, "bucket_elements": 5000},
            "bucket_elements=5000 has no effect at zero_stage=0, only at 1, 2, 3; leave it at 5",
        ),
        (
            {"precision": "fp32", "reduce_in_fp32": False},
            "reduce_in_fp32=False has no effect at precision=fp32, only at bf16, fp16; leave it at",
        ),
        (
            {"initial_loss_scale_power": 8},
            "initial_loss_scale_power=8 has no effect at precision=bf16, only at fp16; leave it at",
        ),
        (
            {"precision": "fp32", "loss_scale_window": 77},
            "loss_scale_window=77 has no effect at precision=fp32, only at fp16; leave it at 1000",
        ),
    ],
)
def test_a_value_that_nothing_looks_at_is_refused(settings, told):
    with pytest.raises(ValueError, match=f"^{told}"):
        Config(**settings)
