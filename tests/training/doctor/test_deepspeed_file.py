"""A DeepSpeed config that a user brings along: each rule by a file that breaks it alone."""

import json

import pytest

from training.deepspeed_config import Config, build_deepspeed_config
from training.doctor.deepspeed_file import REMOVED, check_deepspeed_file

GOOD = {
    "gradient_clipping": 1.0,
    "steps_per_print": 100,
    "bf16": {"enabled": True},
    "data_types": {"grad_accum_dtype": "fp32"},
    "zero_optimization": {"stage": 1, "reduce_bucket_size": 5e7, "allgather_bucket_size": 5e7},
}


def check(tmp_path, config):
    path = tmp_path / "ds_config.json"
    path.write_text(json.dumps(config))
    return [(each.verdict, each.what) for each in check_deepspeed_file(path)]


def test_a_good_file(tmp_path):
    assert check(tmp_path, GOOD) == [("ok", str(tmp_path / "ds_config.json"))]


@pytest.mark.parametrize("key", REMOVED)
def test_removed_keys(tmp_path, key):
    assert check(tmp_path, GOOD | {key: {}}) == [("fault", key)]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"zero_optimization": GOOD["zero_optimization"] | {"stage": 0}},
            [("fault", "zero_optimization.stage")],
        ),
        ({"data_types": {}}, [("fault", "data_types.grad_accum_dtype")]),
        (
            {"bf16": {"enabled": True, "check_grad_overflow": False}},
            [("fault", "bf16.check_grad_overflow")],
        ),
        (
            {"bf16": {}, "fp16": {"enabled": True, "loss_scale": 128}},
            [("note", "fp16.loss_scale")],
        ),
        ({"optimizer": {"type": "AdamW"}}, [("note", "optimizer.type")]),
        (
            {"zero_optimization": {"stage": 2}},
            [
                ("note", "zero_optimization.reduce_bucket_size"),
                ("note", "zero_optimization.allgather_bucket_size"),
            ],
        ),
        (
            {
                "optimizer": {"type": "Muon"},
                "zero_optimization": GOOD["zero_optimization"]
                | {"stage": 3, "stage3_max_live_parameters": 1e7},
            },
            [
                ("note", "zero_optimization.stage3_max_reuse_distance"),
                ("fault", "optimizer.type"),
            ],
        ),
        (
            {"zero_optimization": GOOD["zero_optimization"] | {"mics_shard_size": 8}},
            [("fault", "zero_optimization.mics_shard_size")],
        ),
    ],
)
def test_what_is_dangerous(tmp_path, change, expected):
    assert check(tmp_path, GOOD | change) == expected


@pytest.mark.parametrize("key", ["gradient_clipping", "steps_per_print"])
def test_defaults_that_changed_between_versions(tmp_path, key):
    assert check(tmp_path, {k: v for k, v in GOOD.items() if k != key}) == [("note", key)]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_our_own_configs_have_no_fault(tmp_path, stage):
    config = build_deepspeed_config(
        Config(zero_stage=stage),
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        num_parameters=10**9,
        overlap=True,
    )
    assert [verdict for verdict, _ in check(tmp_path, config)] == ["ok"]


@pytest.mark.parametrize("text", ["{", "[1, 2]", "3"])
def test_a_file_that_is_no_config(tmp_path, text):
    path = tmp_path / "ds_config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="ds_config.json: no JSON object"):
        list(check_deepspeed_file(path))


ZERO = GOOD["zero_optimization"]


@pytest.mark.slow  # DeepSpeed's own model of the section
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"zero_optimization": ZERO | {"reduce_bucket_size": "auto"}},
            [
                ("note", "zero_optimization.reduce_bucket_size"),
                ("note", "zero_optimization.reduce_bucket_size"),  # without a Trainer it is 5e8
            ],
        ),
        ({"optimizer": {"params": {"lr": "auto"}}}, [("note", "optimizer.params.lr")]),
        ({"bf16": True}, [("fault", "bf16")]),
        (
            {"zero_optimization": ZERO | {"reduce_bucket_size": "many"}},
            [
                ("fault", "zero_optimization.reduce_bucket_size"),
                ("note", "zero_optimization.reduce_bucket_size"),
            ],
        ),
        (
            {"zero_optimization": ZERO | {"stage3_param_persistance_threshold": 1}},
            [("fault", "zero_optimization.stage3_param_persistance_threshold")],
        ),
        (
            {"zero_optimization": ZERO | {"cpu_offload": True}},
            [("note", "zero_optimization.cpu_offload")],
        ),
    ],
)
def test_what_deepspeed_itself_refuses(tmp_path, change, expected):
    assert check(tmp_path, GOOD | change) == expected
