"""DeepSpeed's config as a pure function of ours; `tests/training/golden/` holds its results.

The choices avoid what is known to go wrong in DeepSpeed 0.19 (each has a test): gradients
accumulate in fp32 and are summed over ranks in fp32, not in bf16; clipping and printing are set,
their defaults changed between versions; buckets fit the model, 5e8 elements waste a gigabyte on a
small one; ZeRO stage 0 computes under autocast on fp32 weights, since its own bf16 and fp16
wrappers take an optimizer step with zero gradients at the start and accumulate in low precision.
"""

from dataclasses import dataclass
from typing import Any, Literal

from training.activation_checkpointing import Mode

NEVER = 10**9


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `engine`: how the model is spread over ranks and computed."""

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What is partitioned over the ranks: 0 nothing, 1 optimizer, 2 also gradients, 3 also weights.
    """
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Of forward and backward; master weights, moments and accumulation are fp32 always."""
    activation_checkpointing: Mode = "none"
    """What is kept of each block for the backward pass, where the rest is computed again: `none`
    keeps all, `full` its input, `every_n` of each n-th block its input, `selective` its input,
    matrix products and attention, `offload` its input, in the memory of the host.
    """
    activation_checkpointing_every_n: int = 2
    """n of activation_checkpointing=every_n; 1 is `full`."""
    compile: Literal["none", "blocks", "deepcompile"] = "none"
    """`blocks` compiles each block by torch.compile, at ZeRO stages 0 to 2; `deepcompile` compiles
    the whole model with its communication by DeepSpeed, at stage 3 on GPUs.
    """
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global L2 norm; 0 leaves them as they are."""
    max_skips_in_a_row: int = 10
    """A step whose gradient norm is not finite is skipped; so many in a row end the run, 0 never.
    fp16 counts those at a loss scale of 1 alone, which cannot fall.
    """
    reduce_in_fp32: bool = True
    """Gradients are summed over ranks in fp32; else in `precision`, half the traffic and rounded.
    """
    bucket_elements: int = 50_000_000
    """Largest communication bucket, elements; smaller models use smaller ones."""
    initial_loss_scale_power: int = 16
    """fp16: the loss scale starts at 2 to this power."""
    loss_scale_window: int = 1000
    """fp16: the loss scale doubles after so many steps without an overflow."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.max_grad_norm < 0:
            raise ValueError(f"max_grad_norm must be 0 or more, found {self.max_grad_norm}")
        if self.max_skips_in_a_row < 0:
            raise ValueError(
                f"max_skips_in_a_row must be 0 or more, found {self.max_skips_in_a_row}"
            )
        for name in ("bucket_elements", "activation_checkpointing_every_n"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if (self.compile == "blocks") == (self.zero_stage == 3) and self.compile != "none":
            raise ValueError(
                f"compile={self.compile} does not go with zero_stage={self.zero_stage}: blocks are "
                "compiled at stages 0 to 2; at stage 3, whose weights come and go, deepcompile is"
            )


def build_deepspeed_config(
    config: Config,
    *,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    num_parameters: int,
    overlap: bool,
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`; `overlap` communicates during the backward."""
    # At stage 0 the engine clips: DeepSpeed would not tell the norm there.
    max_grad_norm = config.max_grad_norm if config.zero_stage > 0 else 0.0
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "gradient_clipping": max_grad_norm,
        "communication_data_type": "fp32" if config.reduce_in_fp32 else config.precision,
        "steps_per_print": NEVER,
        "wall_clock_breakdown": False,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": _zero(config, num_parameters, overlap=overlap),
        **({"compile": {"deepcompile": True}} if config.compile == "deepcompile" else {}),
        **_precision(config),
    }


def _zero(config: Config, num_parameters: int, *, overlap: bool) -> dict[str, Any]:
    bucket = max(1, min(config.bucket_elements, num_parameters))
    section: dict[str, Any] = {
        "stage": config.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": overlap,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if config.zero_stage == 3:
        section["stage3_prefetch_bucket_size"] = bucket
        section["stage3_param_persistence_threshold"] = min(100_000, num_parameters // 100)
        # The default 1e9 keeps a model below a billion parameters gathered and saves nothing.
        section["stage3_max_live_parameters"] = max(1, num_parameters // 4)
        section["stage3_max_reuse_distance"] = max(1, num_parameters // 4)
        # Its linear layer adds the bias in place to a product that `selective` has kept.
        section["memory_efficient_linear"] = config.activation_checkpointing != "selective"
    return section


def _precision(config: Config) -> dict[str, Any]:
    if config.precision == "fp32":
        return {}
    if config.zero_stage == 0:
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[config.precision]
        return {"torch_autocast": {"enabled": True, "dtype": dtype}}
    accumulation = {"data_types": {"grad_accum_dtype": "fp32"}}
    if config.precision == "bf16":
        return {"bf16": {"enabled": True, "check_grad_overflow": True}, **accumulation}
    fp16 = {
        "enabled": True,
        "loss_scale": 0,
        "initial_scale_power": config.initial_loss_scale_power,
        "loss_scale_window": config.loss_scale_window,
        "hysteresis": 2,
        "min_loss_scale": 1,
    }
    return {"fp16": fp16, **accumulation}
