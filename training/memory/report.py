"""What a plan prints: the breakdown of a peak, its points, and the ranking of a search."""

from collections.abc import Sequence

from rich.table import Table

from training.memory.ledger import Peak
from training.memory.machine import GIB, Machine
from training.memory.prediction import Prediction
from training.memory.search import Plan


def breakdown_table(prediction: Prediction, machine: Machine) -> Table:
    """The peak's bytes by kind, largest first, and what comes on top of them."""
    peak = prediction.peak
    table = Table(title="peak of a rank", title_justify="left")
    table.add_column("part")
    table.add_column("GiB", justify="right")
    table.add_column("share", justify="right")
    for kind, num_bytes in peak.breakdown.most_common():
        if num_bytes >= 0.0005 * peak.num_bytes:
            table.add_row(kind, _gib(num_bytes), f"{num_bytes / peak.num_bytes:.1%}")
    table.add_section()
    table.add_row("allocated at the peak", _gib(peak.num_bytes), "100.0%")
    table.add_row("context, outside of the allocator", _gib(machine.context_bytes), "")
    if prediction.host_bytes:
        table.add_row("in the memory of the host", _gib(prediction.host_bytes), "")
    return table


def points_table(prediction: Prediction) -> Table:
    """The highest point of each phase; one of them rules."""
    table = Table(title="highest points", title_justify="left")
    table.add_column("phase")
    table.add_column("GiB", justify="right")
    table.add_column("in the")
    for name, peak in prediction.phases.items():
        rules = " (rules)" if peak is prediction.peak else ""
        table.add_row(f"{name}{rules}", _gib(peak.num_bytes), peak.moment)
    return table


def ranking_table(plans: Sequence[Plan]) -> Table:
    """Plans, fastest first, with where their time goes."""
    table = Table(title="fastest plans that fit", title_justify="left")
    for name in ("", "ZeRO", "micro", "accum.", "checkpointing", "offload", "loss chunk"):
        table.add_column(name, justify="right" if name in ("micro", "accum.") else "left")
    for name in ("peak GiB", "host GiB", "s/step", "compute", "memory", "links", "host", "MFU"):
        table.add_column(name, justify="right")
    for number, plan in enumerate(plans, 1):
        table.add_row(str(number), *_choices(plan), *_numbers(plan))
    return table


def describe_machine(machine: Machine) -> str:
    """What the ranking assumes."""
    crosses = machine.world_size > machine.gpus_per_node
    link = machine.network_bandwidth if crosses else machine.node_bandwidth
    return (
        f"Assumed: {machine.peak_flops / 1e12:.0f} TFLOP/s at {machine.efficiency:.0%}, device "
        f"memory {machine.memory_bandwidth / 1e12:.2f} TB/s, collectives {link / 1e9:.0f} GB/s, "
        f"host link {machine.host_bandwidth / 1e9:.0f} GB/s, host memory "
        f"{machine.host_memory_bandwidth / 1e9:.0f} GB/s and {machine.host_memory_gib:.0f} GiB a "
        "device. Estimated, not measured: made to rank plans."
    )


def describe_fit(peak: Peak, machine: Machine) -> str:
    """Whether it fits, with the numbers."""
    usable = machine.usable_bytes
    of = (
        f"{_gib(usable)} GiB for tensors on {machine.world_size} x {machine.memory_gib:g} GiB (4 % "
        "are left to the allocator)"
    )
    if peak.num_bytes <= usable:
        tight = " Tightly: predictions are off by up to 2 %." * (peak.num_bytes > 0.98 * usable)
        return f"Fits: {_gib(peak.num_bytes)} of {of}.{tight}"
    return f"Does not fit: {_gib(peak.num_bytes)} GiB, but {of}."


def _choices(plan: Plan) -> list[str]:
    engine = plan.config.engine
    mode: str = engine.activation_checkpointing
    if mode == "every_n":
        mode = f"every {engine.activation_checkpointing_every_n}"
    offloads = {
        "optimizer": engine.offload_optimizer,
        "parameters": engine.offload_parameters,
    }
    offload = ", ".join(name for name, where in offloads.items() if where != "none")
    chunk = getattr(plan.config.task.config, "chunk_tokens", "-")
    size = plan.config.batch.micro_batch_size
    return [
        str(engine.zero_stage),
        str(size),
        str(plan.accumulation),
        mode,
        offload or "none",
        str(chunk),
    ]


def _numbers(plan: Plan) -> list[str]:
    cost = plan.cost
    parts = (cost.seconds, cost.compute, cost.memory, cost.communication, cost.host)
    seconds = [f"{part:.2f}" for part in parts]
    gib = [_gib(plan.prediction.peak.num_bytes), _gib(plan.prediction.host_bytes)]
    return [*gib, *seconds, f"{plan.useful_flops_share:.0%}"]


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / GIB:.2f}"
