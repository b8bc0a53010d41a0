"""Activation checkpointing of a model's blocks, applied from outside: model code does not know of
it.

A block that is checkpointed becomes an object of a subclass whose forward runs the block's own
under `torch.utils.checkpoint`. One class serves all blocks of a kind, so that torch.compile
compiles them once, not once each.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    _CachedTorchDispatchMode,
    _CachingTorchDispatchMode,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from training.layers.document_attention import HAS_KERNEL

Mode = Literal["none", "full", "every_n", "selective", "offload"]

Forward = Callable[..., Tensor]

KEPT_BY_SELECTIVE: frozenset[Any] = frozenset(
    {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        *([torch.ops.torch_attn._varlen_attn.default] if HAS_KERNEL else []),
    }
)
"""Matrix products and attention: nearly all of the time of a block, and half of its memory."""


def apply_activation_checkpointing(blocks: nn.ModuleList, mode: Mode, *, every_n: int = 1) -> None:
    """Change how the blocks run, in place; values and gradients stay the same, bit by bit.

    What is kept for the backward pass, the rest is computed again with the same random numbers:

    - `none`: all activations.
    - `full`: of each block its input, 2 bytes x d_model per token in bf16.
    - `every_n`: of each `every_n`-th block its input, of the others everything.
    - `selective`: of each block its input and the results of matrix products and attention.
    - `offload`: as `full`, and the inputs wait in the memory of the host, pinned for a GPU.
    """
    if mode == "none":
        return
    step = every_n if mode == "every_n" else 1
    if step > len(blocks):
        raise ValueError(f"every {step}. of {len(blocks)} blocks is none")
    for block in list(blocks)[step - 1 :: step]:
        own_class: Any = type(block)
        block.__class__ = _checkpointed(own_class, "full" if mode == "every_n" else mode)


@cache
def _checkpointed(block_class: type[Any], mode: Mode) -> type[nn.Module]:
    """The class of blocks that run as `mode` says."""
    bases = (_RUN[mode], block_class)
    own = {"inner": block_class.forward, "__module__": __name__}
    return type(f"{_RUN[mode].__name__}{block_class.__name__}", bases, own)


class _Recomputed(nn.Module):
    """Keeps its input; masks and angles, which the blocks share, stay with the closure."""

    inner: ClassVar[Forward]

    def forward(self, x: Tensor, *shared: Any) -> Tensor:
        return cast("Tensor", checkpoint(lambda x: self.inner(x, *shared), x, use_reentrant=False))


class _Selective(nn.Module):
    inner: ClassVar[Forward]

    def forward(self, x: Tensor, *shared: Any) -> Tensor:
        compiling = torch.compiler.is_compiling()  # it knows torch's own contexts alone
        contexts = _torch_contexts if compiling else _contexts
        run = checkpoint(
            lambda x: self.inner(x, *shared), x, use_reentrant=False, context_fn=contexts
        )
        return cast("Tensor", run)


class _Offloaded(nn.Module):
    inner: ClassVar[Forward]

    def forward(self, x: Tensor, *shared: Any) -> Tensor:
        with save_on_cpu(pin_memory=x.is_cuda):  # what is saved here is x alone
            run = checkpoint(lambda x: self.inner(x, *shared), x, use_reentrant=False)
        return cast("Tensor", run)

    def compile(self, **settings: Any) -> None:
        """Compile what runs inside: the compiler does not look through the copy to the host."""
        own_class: Any = type(self)
        self.__class__ = _compiled_inside(own_class, **settings)


@cache
def _compiled_inside(block_class: type[Any], **settings: Any) -> type[_Offloaded]:
    inner = torch.compile(block_class.inner, **settings)
    return type(f"Compiled{block_class.__name__}", (block_class,), {"inner": inner})


_RUN: dict[str, type[nn.Module]] = {
    "full": _Recomputed,
    "selective": _Selective,
    "offload": _Offloaded,
}


def _contexts() -> tuple[_CachingTorchDispatchMode, _CachedTorchDispatchMode]:
    """For the forward pass and for the second one, in which the kept results are taken."""
    keeping, kept = _torch_contexts()
    keeping.__class__, kept.__class__ = _Keeping, _Kept
    return keeping, kept


class _KeptAlone:
    """Looks at the operators that are kept, and lets the others pass.

    Torch's own modes count every operator and refuse a second forward that has others, as it has
    under ZeRO stage 3, whose hooks gather weights or find them there.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in KEPT_BY_SELECTIVE:
            return func(*args, **kwargs or {})
        mode: Any = super()
        return mode.__torch_dispatch__(func, types, args, kwargs)


class _Keeping(_KeptAlone, _CachingTorchDispatchMode):  # type: ignore[no-untyped-call]
    pass


class _Kept(_KeptAlone, _CachedTorchDispatchMode):  # type: ignore[no-untyped-call]
    pass


def _keep(
    context: SelectiveCheckpointContext, operator: Any, *inputs: Any, **settings: Any
) -> CheckpointPolicy:
    del context, inputs, settings
    if operator in KEPT_BY_SELECTIVE:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


_torch_contexts = partial(create_selective_checkpoint_contexts, _keep)
