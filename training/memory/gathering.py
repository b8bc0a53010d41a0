"""How many weights ZeRO stage 3 has gathered at once.

DeepSpeed's coordinator (`runtime/zero/partitioned_param_coordinator.py`) on a list of uses: it
fetches what is used, and ahead as much as a bucket and the limit of live parameters allow, and
lets go what is not used again within the reuse distance.
"""

from collections.abc import Sequence
from typing import Any

from training.deepspeed_config import Config


def most_gathered(sizes: Sequence[int], settings: dict[str, Any], config: Config) -> int:
    """Elements, of weights of these sizes in the order of the forward pass."""
    persistent = int(settings["stage3_param_persistence_threshold"])
    kept = sum(size for size in sizes if size <= persistent)
    uses = [n for n, size in enumerate(sizes) if size > persistent]
    order = [*uses, *reversed(uses)]
    if (
        config.activation_checkpointing != "none"
    ):  # the forward of a block again before its backward
        order = [*uses, *(n for n in reversed(uses) for _ in range(2))]
    return kept + _walk(
        order,
        sizes,
        prefetch=int(settings["stage3_prefetch_bucket_size"]),
        most_live=int(settings["stage3_max_live_parameters"]),
        reuse=int(settings["stage3_max_reuse_distance"]),
    )


def _walk(
    order: list[int], sizes: Sequence[int], *, prefetch: int, most_live: int, reuse: int
) -> int:
    next_use = _next_uses(order)
    traversed = [0]
    for name in order:
        traversed.append(traversed[-1] + sizes[name])
    there: set[int] = set()
    live = highest = 0
    ahead = 0
    for position, name in enumerate(order):
        if name not in there:
            there.add(name)
            live += sizes[name]
        ahead = max(ahead, position + 1)
        room, fetched = min(most_live - live, prefetch), 0
        while ahead < len(order) and fetched < room:
            if order[ahead] not in there:
                there.add(order[ahead])
                fetched += sizes[order[ahead]]
            ahead += 1
        live += fetched
        highest = max(highest, live)
        following = next_use[position]
        is_far = following is None or traversed[following] - traversed[position + 1] >= reuse
        if is_far and (following is None or following >= ahead):
            there.discard(name)
            live -= sizes[name]
    return highest


def _next_uses(order: list[int]) -> list[int | None]:
    """For each position the next one of the same weight."""
    later: dict[int, int] = {}
    result: list[int | None] = [None] * len(order)
    for position in range(len(order) - 1, -1, -1):
        result[position] = later.get(order[position])
        later[order[position]] = position
    return result
