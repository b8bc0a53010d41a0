"""Seconds of an optimizer step by counting: operations, bytes through memory, links and host.

Made to rank plans, not to promise a speed. What is counted is printed beside each plan.
"""

import math
from dataclasses import dataclass
from typing import Any

from training.communication import Ways, step_traffic
from training.config import TrainingConfig
from training.memory.machine import Machine
from training.memory.operations import FP32
from training.tasks.span_corruption import count_lengths


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one step on every rank; what of communication hides behind computing is out."""

    compute: float
    """Matrix products and attention, with what is computed again."""
    memory: float
    """Bytes of weights, gradients and activations through the device's memory."""
    communication: float
    """What does not hide behind the two."""
    host: float
    """Offload: traffic to the host, and the optimizer there."""
    useful_flops: float
    """Of the step on one rank, nothing counted twice: what MFU is measured by."""

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.compute + self.memory + self.communication + self.host


@dataclass(frozen=True, slots=True)
class Work:
    """Of one sample's forward pass."""

    block_flops: float
    """Of all blocks."""
    head_flops: float
    """Of what turns features into the prediction."""
    activation_bytes: float
    """Written by the blocks."""
    tokens: int
    """Or patches."""


def estimate(config: TrainingConfig, machine: Machine, model: Any, *, accumulation: int) -> Cost:
    """Seconds of a step of this config."""
    width = 4 if config.engine.precision == "fp32" else 2
    num_weights = sum(weight.numel for weight in model.weights())
    work = sample_work(config, width)
    samples = config.batch.micro_batch_size * accumulation
    forward = work.block_flops + work.head_flops
    again = _computed_again(config, work)
    rate = machine.peak_flops * machine.efficiency / (8 if width == 4 else 1)
    compute = samples * (3 * forward + again) / rate
    memory = _memory_seconds(config, machine, work, num_weights, accumulation=accumulation)
    communication = _communication_seconds(
        config, machine, width * num_weights, num_weights, accumulation=accumulation
    )
    exposed = max(0.0, communication - 0.8 * (compute + memory))
    return Cost(
        compute,
        memory,
        exposed,
        _host_seconds(config, machine, work, num_weights, accumulation=accumulation),
        samples * 3 * forward,
    )


def sample_work(config: Any, width: int) -> Work:
    """Counted from the shapes of blocks; 2 operations for each weight and token, 4 for each pair of
    positions and feature, half of them where attention looks back alone.
    """
    model = config.model.config
    if config.model.name == "transformer":
        tokens = config.data.sequence_length
        kv = model.num_kv_heads * model.head_dim
        attended = model.num_heads * model.head_dim
        ups = 3 if model.activation == "swiglu" else 2
        weights = model.d_model * (2 * attended + 2 * kv + ups * model.d_ff)
        pairs = 2 * tokens * attended
        block = model.num_layers * (2 * weights + pairs) * tokens
        head = 2 * model.d_model * model.vocab_size * tokens
        written = model.num_layers * (8 * model.d_model + 2 * attended + ups * model.d_ff) * tokens
        return Work(block, head, width * written, tokens)
    if config.model.name == "encoder_decoder":
        return _encoder_decoder_work(config, width)
    patches = math.prod(model.grid)
    seen = patches + model.class_token
    if config.model.name == "mae":
        seen = model.num_visible(patches) + model.class_token
    block, written = _image_blocks(model.d_model, model.d_ff, model.num_layers, seen)
    head = 2 * 3 * model.patch_size**2 * model.d_model * patches
    if config.model.name == "mae":
        shape = (model.decoder_d_model, model.decoder_d_ff, model.decoder_num_layers)
        more, written_more = _image_blocks(*shape, patches + model.class_token)
        block, written = block + more, written + written_more
        head += 2 * 3 * model.patch_size**2 * model.decoder_d_model * patches
    return Work(block, head, width * written, patches)


def _encoder_decoder_work(config: Any, width: int) -> Work:
    """Keys and values of cross-attention are made of the source, its pairs are of both lengths."""
    model = config.model.config
    lengths = count_lengths(config.data.sequence_length, config.task.config)
    source, target, attended = lengths.source, lengths.target, model.num_heads * model.head_dim
    ups = 3 if model.is_gated else 2
    attention, forward = 4 * model.d_model * attended, ups * model.d_model * model.d_ff
    encoder = 2 * source * (attention + forward) + 4 * source**2 * attended
    decoder = 2 * target * (attention + forward) + 2 * target**2 * attended
    decoder += attention * (source + target) + 4 * source * target * attended
    written = model.num_layers * (8 * model.d_model + 2 * attended + ups * model.d_ff) * source
    of_decoder = 11 * model.d_model + 4 * attended + ups * model.d_ff
    written += model.num_decoder_layers * of_decoder * target
    blocks = model.num_layers * encoder + model.num_decoder_layers * decoder
    return Work(
        blocks, 2 * model.d_model * model.vocab_size * target, width * written, source + target
    )


def _image_blocks(d_model: int, d_ff: int, num_layers: int, tokens: int) -> tuple[float, float]:
    weights = d_model * (4 * d_model + 2 * d_ff)
    operations = num_layers * (2 * weights + 4 * tokens * d_model) * tokens
    return operations, num_layers * (10 * d_model + 2 * d_ff) * tokens


def _computed_again(config: Any, work: Work) -> float:
    mode = config.engine.activation_checkpointing
    share: float = {"full": 1.0, "offload": 1.0}.get(mode, 0.0)
    if mode == "every_n":
        share = 1 / config.engine.activation_checkpointing_every_n
    tokens = config.batch.micro_batch_size * work.tokens
    chunk = getattr(config.task.config, "chunk_tokens", tokens)
    of_head = work.head_flops if tokens > chunk else 0.0
    return share * work.block_flops + of_head


def _memory_seconds(
    config: Any, machine: Machine, work: Work, num_weights: int, *, accumulation: int
) -> float:
    """Weights are read forward and backward, gradients written and added up, activations written
    and read both ways; the optimizer reads and writes masters, moments and gradients.
    """
    mode = config.engine.activation_checkpointing
    rounds: int = {"none": 6, "every_n": 7, "selective": 8}.get(mode, 9)
    of_pass = num_weights * (2 * 2 + 2 + 2 * FP32)
    of_pass += rounds * work.activation_bytes * config.batch.micro_batch_size
    share = machine.world_size if config.engine.zero_stage else 1
    of_step = 7 * FP32 * num_weights / share
    offloads = config.engine.offload_optimizer != "none"
    total: float = accumulation * of_pass + (0 if offloads else of_step)
    return total / machine.memory_bandwidth


def _communication_seconds(
    config: Any, machine: Machine, weight_bytes: float, num_weights: int, *, accumulation: int
) -> float:
    engine = config.engine
    ways = Ways(
        zero_stage=engine.zero_stage,
        weight_bytes=weight_bytes / num_weights,
        gradient_bytes=FP32 if engine.reduce_in_fp32 else 2,
    )
    size = machine.world_size
    traffic = step_traffic(num_weights, ways, world_size=size, accumulation=accumulation)
    return traffic.sent(size) / machine.collective_bandwidth


def _host_seconds(
    config: Any, machine: Machine, work: Work, num_weights: int, *, accumulation: int
) -> float:
    """Gradients go down and weights up, the optimizer steps there; weights come for every pass."""
    engine, part = config.engine, num_weights / machine.world_size
    seconds = 0.0
    if engine.offload_optimizer != "none":
        seconds += (FP32 + 2) * part / machine.host_bandwidth
        seconds += 7 * FP32 * part / machine.host_memory_bandwidth
    if engine.offload_parameters != "none":
        seconds += accumulation * 2 * 2 * part / machine.host_bandwidth  # forward and backward
    if engine.activation_checkpointing == "offload":
        inputs = _block_inputs(config, work)
        seconds += accumulation * 2 * inputs / machine.host_bandwidth
    return seconds


def _block_inputs(config: Any, work: Work) -> float:
    model = config.model.config
    return float(2 * config.batch.micro_batch_size * work.tokens * model.d_model * model.num_layers)
