"""What the network carries in a step: counted on two ranks, and the formula for many GPUs.

    DS_ACCELERATOR=cpu OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 -m benchmarks.communication
    python -m benchmarks.communication --parameters 7e9

The first prints, for each ZeRO stage, what DeepSpeed's comms logger counts beside the formula. The
second, without ranks, prints bytes and seconds for 8, 64 and 512 GPUs at stated bandwidths.
"""

import argparse
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from training.communication import Ways, step_traffic
from training.memory.machine import Machine

SIZES = (8, 64, 512)
WAYS = {
    "ZeRO 0": Ways(zero_stage=0),
    "ZeRO 1": Ways(zero_stage=1),
    "ZeRO 2": Ways(zero_stage=2),
    "ZeRO 3": Ways(zero_stage=3),
    "ZeRO 3, gradients summed in bf16": Ways(zero_stage=3, gradient_bytes=2),
    "ZeRO++: hpZ": Ways(zero_stage=3, secondary=8),
    "ZeRO++: hpZ, gradients in bf16": Ways(zero_stage=3, gradient_bytes=2, secondary=8),
    "ZeRO++: hpZ, qwZ, qgZ": Ways(zero_stage=3, weight_bytes=1, gradient_bytes=0.5, secondary=8),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parameters", type=float, default=7e9, help="weights of the model")
    parser.add_argument("--accumulation", type=int, default=1, help="micro batches of a step")
    arguments = parser.parse_args()
    if arguments.parameters < 1 or arguments.accumulation < 1:
        parser.error("--parameters and --accumulation are at least 1")
    if "RANK" in os.environ:
        count()
    else:
        tell(int(arguments.parameters), arguments.accumulation)


def tell(num_weights: int, accumulation: int) -> None:
    """The table of many GPUs."""
    machine = Machine()
    inside, between = machine.node_bandwidth, machine.network_bandwidth
    console = Console()
    console.print(
        f"{num_weights / 1e9:g} billion weights in bf16, {accumulation} micro batches; a GPU sends "
        f"{inside / 1e9:g} GB/s inside a node of {machine.gpus_per_node}, {between / 1e9:g} GB/s "
        "between nodes; GB that each sends in a step, and seconds if nothing else is done meanwhile"
    )
    table = Table("", *(f"{size} GPUs" for size in SIZES))
    for name, cells in table_of(num_weights, accumulation).items():
        table.add_row(name, *cells)
    console.print(table)


def table_of(num_weights: int, accumulation: int) -> dict[str, list[str]]:
    """What a GPU sends in a step, and for how long, by way and number of GPUs."""
    machine = Machine()
    rows: dict[str, list[str]] = {}
    for name, ways in WAYS.items():
        for size in SIZES:
            traffic = step_traffic(num_weights, ways, world_size=size, accumulation=accumulation)
            sent, in_node = traffic.sent(size), traffic.sent_in_node(machine.gpus_per_node)
            crosses = size > machine.gpus_per_node
            between = machine.network_bandwidth if crosses else machine.node_bandwidth
            seconds = sent / between + in_node / machine.node_bandwidth
            cell = f"{(sent + in_node) / 1e9:,.0f} GB, {seconds:.2f} s"
            rows.setdefault(name, []).append(cell)
    return rows


def count() -> None:
    """The table of two ranks, from the worker of the tests."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests/training"))
    import communication_worker  # noqa: PLC0415

    communication_worker.engines.initialize_distributed()
    table = Table("case", "collective", "counted, bytes a step", "formula", "ratio")
    for case in communication_worker.CASES:
        stage, precision, accumulation, mode, secondary = case
        sums, num_weights = communication_worker.count(*case)
        width = 4 if precision == "fp32" else 2
        ways = Ways(zero_stage=stage, weight_bytes=width, secondary=secondary)
        traffic = step_traffic(num_weights, ways, world_size=2, accumulation=accumulation)
        for field, name in communication_worker.NAMES.items():
            expected, found = getattr(traffic, field), sums.get(name, 0)
            expected += traffic.all_gather_in_node if field == "all_gather" else 0
            if expected:
                told = f"stage {stage} {precision} x {accumulation}, checkpointing {mode}"
                told += f", hpz_partition_size {secondary}" if secondary > 1 else ""
                table.add_row(
                    told, field, f"{found:,.0f}", f"{expected:,.0f}", f"{found / expected:.3f}"
                )
    if communication_worker.distributed.is_rank_zero():
        Console(width=110).print(table)


if __name__ == "__main__":
    main()
