"""Tensor parallelism: a group of ranks holds slices of each block's weights, and computes with them
what one rank would with all.

Every rank has its own heads, and its own features of the feed-forward; behind both the group sums
up, forward in front of the residual stream and backward behind it (Megatron-LM, Shoeybi et al.
2019, section 3). DeepSpeed's AutoTP cuts the weights and sums up. Embedding, head, norms and the
residual stream are whole on each. A checkpoint holds, for each place in a group, what one of a run
of its own would: `of_place` shows it as such, and `load_whole` puts the weights together.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.layers.attention import Attention
from training.layers.feed_forward import FeedForward, GatedFeedForward

FILE = "tensor-parallel.json"
"""In a checkpoint of several ranks a group: their number, and how weights are cut."""


class Cut(NamedTuple):
    """How a weight is cut: each of the parts that lie behind one another, in equal slices."""

    dim: int
    """Along which the parts lie: 0 in the outputs of a layer, 1 in its inputs."""
    widths: Sequence[int]
    """Of the parts, as those of queries, keys and values."""


def cut_heads(model: nn.Module, size: int) -> dict[str, Cut]:
    """Let attention compute a `size`-th of its heads, in place; how each weight is to be cut."""
    cuts = {}
    for name, module in model.named_modules():
        columns: dict[str, Sequence[int]] = {}
        if isinstance(module, Attention):
            widths: Sequence[int] = [count * module.head_dim for count in module.groups]
            columns, row = {"query_key_value": widths}, ("output", widths[:1])
            queries, keys, values = (count // size for count in module.groups)
            module.groups = (queries, keys, values)
        elif isinstance(module, FeedForward | GatedFeedForward):
            width = [module.up.out_features]
            columns, row = {"up": width, "gate": width}, ("down", width)
        for layer, widths in columns.items():
            for kind in ("weight", "bias"):
                cuts[f"{name}.{layer}.{kind}"] = Cut(0, widths)
        if columns:
            cuts[f"{name}.{row[0]}.weight"] = Cut(1, row[1])
    names = {name for name, _ in model.named_parameters()}
    return {name: cut for name, cut in cuts.items() if name in names}


def count_elsewhere(model: nn.Module, cuts: Mapping[str, Cut], size: int) -> int:
    """Parameters of a model that other ranks of a group will hold, and not this one."""
    cut = [weight.numel() for name, weight in model.named_parameters() if name in cuts]
    return sum(cut) * (size - 1) // size


def layer_specs(cuts: Mapping[str, Cut], *, prefix: str) -> list[dict[str, Any]]:
    """The cuts as AutoTP is told them: one for all blocks of a shape; a bias goes as its weight."""
    specs = {}
    for name, cut in cuts.items():
        if name.endswith(".weight"):
            pattern = re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(prefix + name)) + "$"
            kind = ("column", "row")[cut.dim]
            spec: dict[str, Any] = {"patterns": [pattern], "partition_type": kind}
            if len(cut.widths) > 1:
                spec |= {"shape": [list(cut.widths), -1], "partition_dim": cut.dim}
            specs[pattern] = spec
    return list(specs.values())


def grad_norm(weights: Sequence[Tensor], groups: Any | None) -> Tensor:
    """Of all gradients, cut or whole, the same on every rank; DeepSpeed knows the `groups`."""
    gradients: dict[bool, list[Tensor]] = {True: [], False: []}
    for weight in weights:
        if weight.grad is not None:
            is_cut = getattr(weight, "tensor_model_parallel", False)  # AutoTP's mark
            gradients[is_cut].append(weight.grad)
    whole = nn.utils.get_total_norm(gradients[False])
    if groups is None:
        return whole
    squares = nn.utils.get_total_norm(gradients[True]).square()
    dist.all_reduce(squares, group=groups.get_tensor_model_parallel_group())
    return (squares + whole.square()).sqrt()


def description(checkpoint_dir: Path, cuts: Mapping[str, Cut], size: int) -> dict[Path, str]:
    """The file of a checkpoint that tells of them, if there is something to tell."""
    text = json.dumps({"size": size, "cuts": cuts}) + "\n"
    return {checkpoint_dir / FILE: text} if size > 1 else {}


def read(checkpoint_dir: Path) -> tuple[int, dict[str, Cut]]:
    """How many ranks a group had that wrote a checkpoint, and how they cut weights."""
    path = checkpoint_dir / FILE
    if not path.exists():
        return 1, {}
    tree = json.loads(path.read_text())
    return tree["size"], {name: Cut(*cut) for name, cut in tree["cuts"].items()}


def check_size(checkpoint_dir: Path, size: int) -> None:
    """Refuse a checkpoint whose weights are cut otherwise.

    Raises:
        ValueError: with the size to take.
    """
    written, _ = read(checkpoint_dir)
    if written != size:
        raise ValueError(
            f"{checkpoint_dir} was written with engine.tensor_parallel_size {written}, this run "
            f"has {size}; continue with {written}, or begin a new run with init_from"
        )


@contextmanager
def of_place(checkpoint_dir: Path, place: int, size: int) -> Iterator[Path]:
    """A folder with the files of the ranks at a place in their groups, named as without groups."""
    if size == 1:
        yield checkpoint_dir
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in checkpoint_dir.rglob("*"):
            name = _name_at(path.name, place, size)
            if name:
                link = Path(folder) / path.relative_to(checkpoint_dir).with_name(name)
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(path.resolve())
        yield Path(folder)


def _name_at(name: str, place: int, size: int) -> str:
    """What a file is called there, or nothing if it belongs to another place."""
    if found := re.fullmatch(r"(.*mp_rank_)(\d+)(_.*)", name):  # DeepSpeed's
        return f"{found[1]}00{found[3]}" if int(found[2]) == place else ""
    if found := re.fullmatch(r"(layout-|ema-)(\d+)(\..*)", name):  # by rank, groups in a row
        share, own = divmod(int(found[2]), size)
        return f"{found[1]}{share:05d}{found[3]}" if own == place else ""
    return ""


def load_whole(
    checkpoint_dir: Path, load: Callable[[Path], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """What is loaded of the files of each place in a group, put together."""
    size, cuts = read(checkpoint_dir)
    slices = []
    for place in range(size):
        with of_place(checkpoint_dir, place, size) as folder:
            slices.append(load(folder))
    return join(slices, cuts)


def join(slices: Sequence[Mapping[str, Tensor]], cuts: Mapping[str, Cut]) -> dict[str, Tensor]:
    """Whole weights, of the slices of each place in a group; tied ones stay one."""
    whole: dict[str, Tensor] = dict(slices[0])
    for name, cut in cuts.items():
        widths = [width // len(slices) for width in cut.widths]
        parts = zip(*(torch.split(each[name], widths, cut.dim) for each in slices), strict=True)
        whole[name] = torch.cat([one for part in parts for one in part], dim=cut.dim)
    return whole
