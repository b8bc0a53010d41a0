"""What is wrong or dangerous in a DeepSpeed config that a user brings along: a JSON file.

Millrace writes DeepSpeed's config itself; this tells somebody who comes from elsewhere what their
file does, and which key of `engine` is in its place. Rules are of DeepSpeed 0.17 to 0.19.8.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from training.doctor.finding import Finding

REMOVED = {
    "nebula": "checkpoints.asynchronous",
    "compression_training": "nothing",
    "amp": "engine.precision",
    "quantize_training": "nothing",
    "sparse_gradients": "nothing",
    "eigenvalue": "nothing",
    "sparse_attention": "task.mask_documents",
    "elasticity": "nothing: a run resumes at any world size that divides the batch",
    "graph_harvesting": "engine.compile",
    "curriculum_learning": "nothing",
    "progressive_layer_drop": "model.stochastic_depth of images",
}
"""Top-level keys that 0.19.7 and later refuse, and what is there instead."""
REMOVED_ZERO = ("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param")
SECTIONS = ("zero_optimization", "bf16", "fp16", "optimizer", "data_types")
NUMBERS = (
    "reduce_bucket_size",
    "allgather_bucket_size",
    "stage3_max_live_parameters",
    "stage3_max_reuse_distance",
)
"""Of `zero_optimization`."""
SMALL_MODEL = 1_000_000_000
"""Parameters below which DeepSpeed's default buckets and live parameters waste memory."""


def check_deepspeed_file(path: Path) -> Iterator[Finding]:
    """Findings on a DeepSpeed config.

    Raises:
        ValueError: the file is no JSON object.
    """
    try:
        config = dict(json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: no JSON object: {error}") from None
    findings = list(_malformed(config))
    config = _comparable(config)
    findings += [*_refused(config), *_deprecated(config)]
    for key in NUMBERS:
        if not isinstance(_zero(config).get(key, 0), int | float):
            del _zero(config)[key]
    findings += [each for rule in RULES for each in rule(config)]
    yield from findings or [Finding("ok", str(path), "nothing removed, nothing dangerous")]


def _malformed(config: dict[str, Any]) -> Iterator[Finding]:
    """Sections that are none, and values that Hugging Face's Trainer fills in."""
    for name in SECTIONS:
        if not isinstance(config.get(name, {}), dict):
            yield Finding("fault", name, f"found {config[name]}, expected an object")
    for key in _auto_keys(config):
        yield Finding("note", key, "auto: Hugging Face's Trainer fills it in, nothing else does")


def _auto_keys(config: dict[str, Any], where: str = "") -> Iterator[str]:
    for key, value in config.items():
        if value == "auto":
            yield f"{where}{key}"
        elif isinstance(value, dict):
            yield from _auto_keys(value, f"{where}{key}.")


def _comparable(config: dict[str, Any]) -> dict[str, Any]:
    """Without sections that are none, and without what is `auto`."""
    return {
        name: {key: value for key, value in content.items() if value != "auto"}
        if isinstance(content, dict)
        else content
        for name, content in config.items()
        if content != "auto" and (name not in SECTIONS or isinstance(content, dict))
    }


def _refused(config: dict[str, Any]) -> Iterator[Finding]:
    """What DeepSpeed's own model of `zero_optimization` does not take."""
    from pydantic import ValidationError  # noqa: PLC0415  (with deepspeed)

    known = {key: value for key, value in _zero(config).items() if key not in REMOVED_ZERO}
    try:
        _zero_model().model_validate(known)
    except ValidationError as error:
        for each in error.errors():
            key = ".".join(["zero_optimization", *map(str, each["loc"])])
            yield Finding("fault", key, f"DeepSpeed refuses it: {each['msg']}")


def _deprecated(config: dict[str, Any]) -> Iterator[Finding]:
    for name, field in _zero_model().model_fields.items():
        extra: Any = field.json_schema_extra or {}
        if name in _zero(config) and extra.get("deprecated"):
            instead = extra.get("new_param", "")
            told = f"; {instead} is there instead" if instead else ""
            yield Finding("note", f"zero_optimization.{name}", f"deprecated{told}")


def _zero_model() -> Any:
    from training import engine  # noqa: PLC0415  (which imports deepspeed, for seconds)

    return engine.deepspeed.runtime.zero.config.DeepSpeedZeroConfig  # type: ignore[attr-defined]


def _removed(config: dict[str, Any]) -> Iterator[Finding]:
    for key, instead in REMOVED.items():
        if key in config:
            yield Finding("fault", key, f"removed from DeepSpeed; here: {instead}")
    for key in REMOVED_ZERO:
        if key in _zero(config):
            yield Finding("fault", f"zero_optimization.{key}", "removed from DeepSpeed")


def _hidden_step(config: dict[str, Any]) -> Iterator[Finding]:
    if _zero(config).get("stage", 0) == 0 and (
        _enabled(config, "bf16") or _enabled(config, "fp16")
    ):
        yield Finding(
            "fault",
            "zero_optimization.stage",
            "at stage 0, bf16 and fp16 take an optimizer step with zero gradients at the start: "
            "Adam begins a quarter too slow; use stage 1, which costs the same on one GPU",
        )


def _accumulation(config: dict[str, Any]) -> Iterator[Finding]:
    low = _enabled(config, "bf16") or _enabled(config, "fp16")
    if low and config.get("data_types", {}).get("grad_accum_dtype") != "fp32":
        yield Finding(
            "fault",
            "data_types.grad_accum_dtype",
            "gradients accumulate in 16 bits, small ones are lost; set fp32, as engine does",
        )


def _defaults_that_changed(config: dict[str, Any]) -> Iterator[Finding]:
    if "gradient_clipping" not in config:
        yield Finding(
            "note",
            "gradient_clipping",
            "not set: 0 before June 2026, 1.0 since; engine.max_grad_norm is always set",
        )
    if "steps_per_print" not in config:
        yield Finding("note", "steps_per_print", "not set: newer versions are silent")


def _overflow(config: dict[str, Any]) -> Iterator[Finding]:
    if config.get("bf16", {}).get("check_grad_overflow") is False:
        yield Finding(
            "fault", "bf16.check_grad_overflow", "a NaN gradient goes into the weights; set true"
        )
    if _enabled(config, "fp16") and config.get("fp16", {}).get("loss_scale", 0):
        yield Finding("note", "fp16.loss_scale", "fixed: every overflow is a lost step; 0 adapts")


def _buckets(config: dict[str, Any]) -> Iterator[Finding]:
    zero = _zero(config)
    for key in ("reduce_bucket_size", "allgather_bucket_size"):
        if zero.get("stage", 0) and float(zero.get(key, 5e8)) >= 5e8:
            yield Finding(
                "note",
                f"zero_optimization.{key}",
                "5e8 elements take 1 GB in bf16, and 2 GB with overlap; engine.bucket_elements is "
                "5e7, and less for a small model",
            )
    if zero.get("stage") == 3:
        for key in ("stage3_max_live_parameters", "stage3_max_reuse_distance"):
            if float(zero.get(key, 1e9)) >= SMALL_MODEL:
                yield Finding(
                    "note",
                    f"zero_optimization.{key}",
                    "1e9 keeps a model below a billion parameters gathered: stage 3 saves nothing",
                )


def _muon(config: dict[str, Any]) -> Iterator[Finding]:
    is_muon = config.get("optimizer", {}).get("type", "").lower() == "muon"
    if is_muon and _zero(config).get("stage") == 3 and _zero(config).get("reduce_scatter", True):
        yield Finding("fault", "optimizer.type", "Muon at stage 3 needs reduce_scatter=false")


def _compiled_optimizer(config: dict[str, Any]) -> Iterator[Finding]:
    optimizer = config.get("optimizer", {})
    is_adam = optimizer.get("type", "").lower() in {"adam", "adamw"}
    if is_adam and not optimizer.get("params", {}).get("torch_adam"):
        yield Finding(
            "note",
            "optimizer.type",
            "compiles a CUDA kernel at the first start; torch's fused AdamW, which is used here, "
            "does not",
        )


def _zero(config: dict[str, Any]) -> dict[str, Any]:
    section: dict[str, Any] = config.get("zero_optimization", {})
    return section


def _enabled(config: dict[str, Any], precision: str) -> bool:
    return bool(config.get(precision, {}).get("enabled"))


RULES: tuple[Callable[[dict[str, Any]], Iterator[Finding]], ...] = (
    _removed,
    _hidden_step,
    _accumulation,
    _defaults_that_changed,
    _overflow,
    _buckets,
    _muon,
    _compiled_optimizer,
)
