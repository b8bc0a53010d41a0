"""The predicted peak of a rank: one optimizer step played in a ledger, and what it says."""

from dataclasses import dataclass, replace

from training.batch_size import accumulation_steps
from training.config import TrainingConfig
from training.deepspeed_config import Config as EngineConfig
from training.memory.forward_backward import build_model, run_forward_backward
from training.memory.ledger import Ledger, Peak
from training.memory.zero import Ranks, Zero


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one rank, in the allocator of its device; the context of the device comes on top."""

    peak: Peak
    """The highest point, its bytes by kind, and what goes on there."""
    phases: dict[str, Peak]
    """The highest points of forward, loss, backward and optimizer step."""
    host_bytes: int
    """What is brought to the memory of the host."""
    num_parameters: int
    """Of the whole model."""


def predict(config: TrainingConfig, ranks: Ranks) -> Prediction:
    """Arithmetic on shapes alone: a step behind the first, in which optimizer states exist.

    Raises:
        ValueError: there is no formula for the model, or the batch does not fit the ranks.
    """
    _check_known(config.engine)
    for name in ("hpz_partition_size", "sequence_parallel_size", "tensor_parallel_size"):
        if ranks.world_size % getattr(config.engine, name):
            raise ValueError(
                f"engine.{name}={getattr(config.engine, name)} does not divide the "
                f"{ranks.world_size} ranks; use a divisor of them"
            )
    accumulation = accumulation_steps(
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        world_size=ranks.world_size // config.engine.ranks_per_sample,
    )
    weight_ranks = config.engine.tensor_parallel_size
    ledger, model = Ledger(), build_model(config, weight_ranks=weight_ranks)
    zero = Zero(
        ledger,
        config.engine,
        model.weights(),
        replace(ranks, world_size=ranks.world_size // weight_ranks),  # with the same weights
        gradient_accumulation_steps=accumulation,
        averaged=config.ema.decay > 0,
    )
    host_bytes = 0
    for is_last in [False, True] if accumulation > 1 else [True]:
        zero.begin(is_last=is_last)
        tape = run_forward_backward(
            ledger,
            model,
            config,
            device=ranks.device,
            on_gradient=zero.take,
        )
        host_bytes = tape.host_bytes
        zero.end_backward()
    zero.step()
    phases = {name: peak for name, peak in ledger.peaks.items() if name != "start"}
    return Prediction(ledger.peak, phases, host_bytes + zero.host_bytes, _count(config))


def _count(config: TrainingConfig) -> int:
    return sum(weight.numel for weight in build_model(config).weights())


def _check_known(engine: EngineConfig) -> None:
    """Refuse what the formula would be wrong about."""
    unknown = {
        "quantize_weights": engine.quantize_weights,
        "quantize_gradients": engine.quantize_gradients,
    }
    for name, is_wished in unknown.items():
        if is_wished:
            raise ValueError(
                f"there is no formula of the memory of engine.{name}; a run measures it"
            )
