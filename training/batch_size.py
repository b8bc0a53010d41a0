"""Batch arithmetic: the global and the micro batch are given, gradient accumulation is derived."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Config:
    """Section `batch`."""

    global_batch_size: int
    """Samples per optimizer step over all ranks, sequences for text."""
    micro_batch_size: int
    """Samples per forward pass on one rank."""

    def __post_init__(self) -> None:
        """Refuse sizes below one."""
        for name in ("global_batch_size", "micro_batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")


def accumulation_steps(*, global_batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro batches of each rank per optimizer step: global / (micro * world).

    Raises:
        ValueError: the global batch is no multiple of micro batch times world size; names every
        factor.
    """
    per_pass = micro_batch_size * world_size
    if global_batch_size % per_pass == 0:
        return global_batch_size // per_pass
    below, above = (
        global_batch_size // per_pass * per_pass,
        -(-global_batch_size // per_pass) * per_pass,
    )
    near = f"{above}" if below == 0 else f"{below} or {above}"
    worlds = [
        n
        for n in range(1, global_batch_size + 1)
        if global_batch_size % (n * micro_batch_size) == 0
    ]
    fitting = ", ".join(map(str, worlds[:12])) or "none: the micro batch does not divide it"
    raise ValueError(
        f"batch.global_batch_size={global_batch_size} is no multiple of batch.micro_batch_size="
        f"{micro_batch_size} x world size {world_size} = {per_pass}; use a global batch of {near}, "
        f"or a world size among: {fitting}"
    )
