"""DeepSpeed's config as a pure function of ours; `tests/training/golden/` holds its results.

The choices avoid what is known to go wrong in DeepSpeed 0.19 (each has a test): gradients
accumulate in fp32 and are summed over ranks in fp32, not in bf16; clipping and printing are set,
their defaults changed between versions; buckets fit the model, 5e8 elements waste a gigabyte on a
small one; ZeRO stage 0 computes under autocast on fp32 weights, since its own bf16 and fp16
wrappers take an optimizer step with zero gradients at the start and accumulate in low precision.
"""

import math
from collections.abc import Mapping, Sequence
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
    """Of forward and backward; master weights, moments and accumulation are fp32, unless
    optimizer_precision says else.
    """
    activation_checkpointing: Mode = "none"
    """What is kept of each block for the backward pass, where the rest is computed again: `none`
    keeps all, `full` its input, `every_n` of each n-th block its input, `selective` its input,
    matrix products and attention, `offload` its input, in the memory of the host.
    """
    activation_checkpointing_every_n: int = 2
    """n of activation_checkpointing=every_n alone; 1 is `full`."""
    compile: Literal["none", "blocks", "model", "deepcompile"] = "none"
    """`blocks` compiles each block by torch.compile, at ZeRO stages 0 to 2; `model` compiles model
    and loss as one, which a GPU replays as CUDA graphs, at stage 0: for small models, whose kernels
    are shorter than the Python between them; `deepcompile` compiles the whole model with its
    communication by DeepSpeed, at stage 3 on GPUs.
    """
    offload_optimizer: Literal["none", "cpu", "nvme"] = "none"
    """Where master weights and moments wait and the optimizer steps, at ZeRO stages 1 to 3: the
    memory of the host, or, at stage 3, files below nvme_dir. Frees 12 bytes a parameter, shared.
    """
    offload_parameters: Literal["none", "cpu", "nvme"] = "none"
    """ZeRO stage 3: where weights wait between the blocks that need them."""
    nvme_dir: str = ""
    """Folder on a fast local disk for what is offloaded to nvme; each rank has files of its own."""
    optimizer_precision: Literal["fp32", "bf16"] = "fp32"
    """Of master weights, gradients and moments under precision=bf16: bf16 takes 10 bytes a
    parameter in the place of 18, and small updates are lost to rounding.
    """
    zero_init: bool = False
    """ZeRO stage 3: weights are partitioned while the model is built, so that no process ever holds
    them all. They are drawn where the ranks compute: on CPUs the same seed draws the same weights
    as without, for any number of ranks (but, in 16 bits, for the last 16 elements of a weight whose
    number of elements is no multiple of 16), on GPUs others, with the generator of the GPU.
    """
    hpz_partition_size: int = 1
    """ZeRO++ at stage 3: ranks of a node, a divisor of the world size, that hold a second copy of
    the weights, so that the backward pass gathers them inside the node; 1 = without.
    """
    quantize_weights: bool = False
    """ZeRO++ at stage 3, on GPUs: weights are gathered as int8, half the traffic and rounded."""
    quantize_gradients: bool = False
    """ZeRO++ at stage 3, on GPUs: gradients are summed up over nodes as int4, rounded."""
    sequence_parallel_size: int = 1
    """Neighbouring ranks that share each sequence, positions and heads divided among them, for
    sequences too long for one (Ulysses); a divisor of the world size and of num_heads.
    """
    tensor_parallel_size: int = 1
    """Neighbouring ranks that share the weights of each block of the decoder Transformer, heads and
    features of the feed-forward divided among them, for weights too large for one (AutoTP); a
    divisor of the world size, of num_heads, num_kv_heads and d_ff.
    """
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global L2 norm; 0 leaves them as they are."""
    reduce_in_fp32: bool = True
    """Gradients are summed over ranks in fp32; else in `precision`, bf16 or fp16, half the traffic
    and rounded.
    """
    bucket_elements: int = 50_000_000
    """Largest communication bucket at ZeRO stages 1 to 3, elements; smaller models use smaller
    ones.
    """
    initial_loss_scale_power: int = 16
    """fp16 alone: the loss scale starts at 2 to this power."""
    loss_scale_window: int = 1000
    """fp16 alone: the loss scale doubles after so many steps without an overflow."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if not 0 <= self.max_grad_norm < math.inf:
            raise ValueError(
                f"max_grad_norm must be 0 or more and finite, found {self.max_grad_norm}"
            )
        if not 0 <= self.initial_loss_scale_power <= 32:
            raise ValueError(
                "initial_loss_scale_power must be 0 to 32, found "
                f"{self.initial_loss_scale_power}; fp16 ends at 2^16, and the loss is below 1"
            )
        names = (
            "loss_scale_window",
            "bucket_elements",
            "activation_checkpointing_every_n",
            "hpz_partition_size",
            "sequence_parallel_size",
            "tensor_parallel_size",
        )
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        self._check_compile()
        self._check_stages()
        self._check_offload()
        self._check_tensor_parallel()
        self._check_effects()

    @property
    def ranks_per_sample(self) -> int:
        """Neighbouring ranks that compute the same samples together."""
        return self.sequence_parallel_size * self.tensor_parallel_size

    @property
    def uses_nvme(self) -> bool:
        """Whether anything waits in files."""
        return "nvme" in (self.offload_optimizer, self.offload_parameters)

    def _check_compile(self) -> None:
        stages = {"none": range(4), "blocks": range(3), "model": range(1), "deepcompile": [3]}
        if self.zero_stage not in stages[self.compile]:
            raise ValueError(
                f"compile={self.compile} does not go with zero_stage={self.zero_stage}: the whole "
                "model is compiled at stage 0, blocks at stages 0 to 2; at stage 3, whose weights "
                "come and go, deepcompile is"
            )
        if self.compile == "model" and self.sequence_parallel_size > 1:
            raise ValueError(
                f"compile=model does not go with sequence_parallel_size="
                f"{self.sequence_parallel_size}, which communicates inside; use blocks"
            )
        if self.compile == "model" and self.activation_checkpointing == "offload":
            raise ValueError(
                "compile=model does not go with activation_checkpointing=offload: the compiler "
                "does not look through the copy to the host; use blocks"
            )

    def _check_stages(self) -> None:
        """Refuse what this ZeRO stage cannot do."""
        least = {
            "offload_optimizer": (self.offload_optimizer != "none", 1),
            "offload_optimizer=nvme": (self.offload_optimizer == "nvme", 3),
            "offload_parameters": (self.offload_parameters != "none", 3),
            "optimizer_precision=bf16": (self.optimizer_precision == "bf16", 1),
            "zero_init": (self.zero_init, 3),
            "hpz_partition_size": (self.hpz_partition_size > 1, 3),
            "quantize_weights": (self.quantize_weights, 3),
            "quantize_gradients": (self.quantize_gradients, 3),
        }
        for name, (is_wished, stage) in least.items():
            if is_wished and self.zero_stage < stage:
                raise ValueError(
                    f"{name} needs zero_stage {stage}{' or more' if stage < 3 else ''}, "
                    f"found {self.zero_stage}"
                )

    def _check_offload(self) -> None:
        if self.uses_nvme != bool(self.nvme_dir):
            raise ValueError(
                f"nvme_dir is {self.nvme_dir!r}, offload_optimizer {self.offload_optimizer} and "
                f"offload_parameters {self.offload_parameters}; a folder is needed for nvme, and "
                "for it alone"
            )
        if self.optimizer_precision == "bf16" and self.precision != "bf16":
            raise ValueError(
                f"optimizer_precision=bf16 needs precision=bf16, found {self.precision}"
            )
        if self.optimizer_precision == "bf16" and self.offload_optimizer != "none":
            raise ValueError(
                "optimizer_precision=bf16 and offload_optimizer do not go together: DeepSpeed "
                "offloads fp32 alone; take one of them"
            )

    def _check_tensor_parallel(self) -> None:
        """Refuse what does not compute the same, or was never seen to."""
        if self.tensor_parallel_size == 1:
            return
        allowed: dict[str, tuple[Any, ...]] = {
            "sequence_parallel_size": (1,),
            "precision": ("bf16", "fp32"),
            # What selective keeps of a product, DeepSpeed sums up over ranks in place: the second
            # forward would find the sum and sum up once more.
            "activation_checkpointing": ("none", "full", "every_n", "offload"),
            "compile": ("none", "blocks"),
            "offload_optimizer": ("none", "cpu"),
            "offload_parameters": ("none", "cpu"),
            "zero_init": (False,),
            "hpz_partition_size": (1,),  # seen to compute other losses
            "quantize_weights": (False,),
            "quantize_gradients": (False,),
        }
        for name, values in allowed.items():
            found = getattr(self, name)
            if found not in values:
                raise ValueError(
                    f"tensor_parallel_size={self.tensor_parallel_size} does not go with "
                    f"{name}={found}; use {', '.join(map(str, values))}"
                )

    def _check_effects(self) -> None:
        """Refuse a value that nothing looks at: who set it expects something of it."""
        looks: dict[str, tuple[str, tuple[Any, ...]]] = {
            "activation_checkpointing_every_n": ("activation_checkpointing", ("every_n",)),
            "bucket_elements": ("zero_stage", (1, 2, 3)),
            "reduce_in_fp32": ("precision", ("bf16", "fp16")),
            "initial_loss_scale_power": ("precision", ("fp16",)),
            "loss_scale_window": ("precision", ("fp16",)),
        }
        for name, (key, values) in looks.items():
            value, default, found = getattr(self, name), getattr(Config, name), getattr(self, key)
            if value != default and found not in values:
                raise ValueError(
                    f"{name}={value} has no effect at {key}={found}, only at "
                    f"{', '.join(map(str, values))}; leave it at {default}"
                )


def check_device(config: Config, device: str, *, computes_fp16: bool) -> None:
    """Refuse what the device, `cuda` or `cpu`, cannot do.

    Raises:
        ValueError: with what it can.
    """
    if config.compile == "deepcompile" and device != "cuda":
        raise ValueError(
            f"engine.compile=deepcompile needs a GPU, found {device}; use none, or blocks at ZeRO "
            "stages 0 to 2"
        )
    if (config.quantize_weights or config.quantize_gradients) and device != "cuda":
        raise ValueError(
            f"engine.quantize_weights and engine.quantize_gradients need GPUs, found {device}"
        )
    if config.precision == "fp16" and config.zero_stage > 0 and not computes_fp16:
        raise ValueError(
            "engine.precision=fp16: this device computes no fp16; use bf16 or fp32, or "
            "engine.zero_stage=0, which runs fp16 under autocast"
        )


def build_deepspeed_config(
    config: Config,
    *,
    micro_batch_size: int,
    gradient_accumulation_steps: int,
    num_parameters: int,
    overlap: bool,
    layer_specs: Sequence[Mapping[str, Any]] = (),
    largest_share: int = 100_000_000,
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`.

    `overlap` communicates during the backward; `layer_specs` tell AutoTP how to cut weights;
    `largest_share` is what a rank has of the largest weight, elements, where that is known.

    Raises:
        ValueError: DeepSpeed would do something else than the config says.
    """
    accumulates = gradient_accumulation_steps > 1
    if config.optimizer_precision == "bf16" and accumulates and config.zero_stage == 1:
        raise ValueError(
            "optimizer_precision=bf16 at zero_stage 1 cannot accumulate "
            f"{gradient_accumulation_steps} micro batches in fp32; use stage 2 or 3, or a larger "
            "micro_batch_size"
        )
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
        "zero_force_ds_cpu_optimizer": False,  # torch's steps on the host too, without a compiler
        "zero_optimization": _zero(config, num_parameters, largest_share, overlap=overlap),
        **({"compile": {"deepcompile": True}} if config.compile == "deepcompile" else {}),
        **_tensor_parallel(config.tensor_parallel_size, layer_specs),
        **_precision(config, accumulates=accumulates),
    }


def _tensor_parallel(size: int, layer_specs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if size == 1:
        return {}
    # Nothing is left to guesses by name: what has no spec stays whole.
    partition = {"use_default_specs": False, "layer_specs": list(layer_specs)}
    return {"tensor_parallel": {"autotp_size": size, "partition_config": partition}}


def _zero(
    config: Config, num_parameters: int, largest_share: int, *, overlap: bool
) -> dict[str, Any]:
    # DeepSpeed refuses odd ones, which NCCL cannot align.
    bucket = 2 * math.ceil(min(config.bucket_elements, num_parameters) / 2)
    section: dict[str, Any] = {
        "stage": config.zero_stage,
        "contiguous_gradients": True,
        "overlap_comm": overlap,
        "reduce_scatter": True,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if config.offload_optimizer != "none":
        section["offload_optimizer"] = _offload(config.offload_optimizer, config.nvme_dir)
    if config.zero_stage == 3:
        section |= _zero3(config, num_parameters, largest_share, bucket)
    return section


def _zero3(config: Config, num_parameters: int, largest_share: int, bucket: int) -> dict[str, Any]:
    live = min(10**9, max(1, num_parameters // 4))
    section: dict[str, Any] = {
        "stage3_prefetch_bucket_size": bucket,
        "stage3_param_persistence_threshold": min(100_000, num_parameters // 100),
        # DeepSpeed's 1e9 keeps a model below a billion parameters gathered and saves nothing; a
        # quarter of a large one would be tens of gigabytes.
        "stage3_max_live_parameters": live,
        "stage3_max_reuse_distance": live,
        # Its linear layer adds the bias in place to a product that `selective` has kept.
        "memory_efficient_linear": config.activation_checkpointing != "selective",
    }
    if config.offload_parameters != "none":
        section["offload_param"] = _offload(config.offload_parameters, config.nvme_dir)
    if config.offload_parameters == "nvme":  # five buffers, pinned
        section["offload_param"]["buffer_size"] = largest_share
    if config.hpz_partition_size > 1:
        section["zero_hpz_partition_size"] = config.hpz_partition_size
    if config.quantize_weights:
        section["zero_quantized_weights"] = True
    if config.quantize_gradients:
        section["zero_quantized_gradients"] = True
    return section


def _offload(device: str, nvme_dir: str) -> dict[str, Any]:
    return {"device": device} | ({"nvme_path": nvme_dir} if device == "nvme" else {})


def _precision(config: Config, *, accumulates: bool) -> dict[str, Any]:
    if config.precision == "fp32":
        return {}
    if config.zero_stage == 0:
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[config.precision]
        return {"torch_autocast": {"enabled": True, "dtype": dtype}}
    accumulation = {"data_types": {"grad_accum_dtype": "fp32"}}
    if config.precision == "bf16":
        bf16 = {"enabled": True, "check_grad_overflow": True}
        if config.optimizer_precision == "bf16":
            bf16 |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
            if not accumulates:  # nothing is added up, so nothing is lost
                accumulation = {"data_types": {"grad_accum_dtype": "bf16"}}
        return {"bf16": bf16, **accumulation}
    fp16 = {
        "enabled": True,
        "loss_scale": 0,
        "initial_scale_power": config.initial_loss_scale_power,
        "loss_scale_window": config.loss_scale_window,
        "hysteresis": 2,
        "min_loss_scale": 1,
    }
    return {"fp16": fp16, **accumulation}
