"""What the network carries in an optimizer step, by ZeRO stage: formulas, equal to what DeepSpeed's
comms logger counts (`benchmarks/communication.py`, `docs/communication.md`).

ZeRO (Rajbhandari et al. 2020, section 7) and ZeRO++ (Wang et al. 2023, table 1), with what
DeepSpeed does beside the papers: stages 1 and 2 sum gradients by all-reduce, stage 2 in every micro
batch; a block that is computed again keeps the weights that it was given for its backward.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Bytes that one rank hands to collectives in one optimizer step."""

    all_reduce: float = 0.0
    """Whole tensors."""
    all_gather: float = 0.0
    """This rank's parts of them."""
    reduce_scatter: float = 0.0
    """Whole tensors."""
    all_gather_in_node: float = 0.0
    """Parts whose others all lie in the same node (hpZ)."""

    def sent(self, world_size: int) -> float:
        """Bytes that a rank sends to other ranks, by rings over all of them; in a node apart."""
        share = (world_size - 1) / world_size
        summed = (2 * self.all_reduce + self.reduce_scatter) * share
        return summed + self.all_gather * (world_size - 1)

    def sent_in_node(self, ranks_per_node: int) -> float:
        """Bytes that a rank sends inside of its node alone."""
        return self.all_gather_in_node * (ranks_per_node - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """How a run communicates: section `engine` in numbers."""

    zero_stage: int
    weight_bytes: float = 2.0
    """Of a weight that is gathered: 4 in fp32, 2 in bf16 and fp16, about 1 quantized (qwZ)."""
    gradient_bytes: float = 4.0
    """Of a gradient that is summed: 4, or as a weight; about 1/2 quantized (qgZ)."""
    secondary: int = 1
    """Ranks that share a secondary copy of the weights, for the backward (hpZ)."""


def step_traffic(num_weights: int, ways: Ways, *, world_size: int, accumulation: int) -> Traffic:
    """Of one step. Few bytes of norms and of the loss are left out.

    Stage 3 gathers weights for forward and backward of each micro batch, and DeepSpeed somewhat
    less: weights used last in the forward are first in the backward and stay, up to
    `stage3_max_reuse_distance`, and small ones are always there.
    """
    gradients = ways.gradient_bytes * num_weights
    part = ways.weight_bytes * num_weights / world_size
    if ways.zero_stage == 0:
        return Traffic(all_reduce=gradients)
    if ways.zero_stage < 3:
        rounds = accumulation if ways.zero_stage == 2 else 1
        return Traffic(all_reduce=rounds * gradients, all_gather=part)
    if ways.secondary == 1:
        return Traffic(all_gather=accumulation * 2 * part, reduce_scatter=accumulation * gradients)
    inside = ways.weight_bytes * num_weights / ways.secondary
    return Traffic(
        all_gather=accumulation * part,
        all_gather_in_node=accumulation * inside,
        reduce_scatter=accumulation * gradients,
    )
