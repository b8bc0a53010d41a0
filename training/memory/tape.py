"""A model's forward and backward pass with sizes in the place of numbers, as autograd runs them.

What an operation keeps for its gradient, what it makes in the backward pass, and when each ends,
follow PyTorch; `training/memory/operations.py` has the operations. The highest point comes out by
itself, wherever in the pass it lies.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from training.memory.ledger import Buffer, Ledger

ACTIVATIONS = "activations"
GRADIENTS = "gradients"
LOGITS = "logits"


class Weight:
    """A parameter, or one in the backward pass whose gradient is on its way."""

    def __init__(self, numel: int, *, matrix: bool = True) -> None:
        self.numel = numel
        self.matrix = matrix
        self.uses = 0
        """Gradients that are still to come in this pass."""
        self.pending: Buffer | None = None
        self.cast: Buffer | None = None
        """Under autocast, the copy in the precision of matrix products."""


class Value:
    """A tensor: its storage, which views share, elements, bytes of each, and who made it."""

    __slots__ = ("buffer", "node", "numel", "width")

    def __init__(self, buffer: Buffer, numel: int, width: int, node: "Node | None") -> None:
        self.buffer = buffer
        self.numel = numel
        self.width = width
        self.node = node


@dataclass(slots=True, eq=False)
class Node:
    """An operation in the backward pass."""

    parents: "tuple[Node | None, ...]"
    saved: list[Buffer]
    weights: tuple[tuple[Weight, int], ...]
    """With the bytes of an element of their gradients."""
    gradients: tuple[int, ...]
    """Bytes of the gradient of each parent; 0 hands on the gradient that came, as a view."""
    workspace: int
    """Bytes that are needed beside them."""
    where: str
    segment: "Segment | None" = None
    gradient: Buffer | None = None


@dataclass(slots=True, eq=False)
class Segment:
    """Nodes that keep nothing in the forward pass and are computed again in the backward pass."""

    again: Callable[[], None]
    nodes: list[Node]
    products: list[Buffer] | None
    """Results of matrix products and attention, where they are kept."""
    num_saved: int = 0
    is_there: bool = False


class StopRecomputationError(Exception):
    """All that the backward pass needs is there again."""


class Tape:
    """Records operations, then runs the backward pass over them."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        width: int,
        autocast: bool = False,
        device: str = "cuda",
        compiled: bool = False,
        on_gradient: Callable[[Weight, Buffer], None] | None = None,
    ) -> None:
        """`width` is of matrix products, bytes; under autocast weights have 4, else the same.

        Of compiled blocks and losses a few operations keep less.

        `on_gradient` takes a weight's gradient when it is whole; without it the gradient stays.
        """
        self.ledger = ledger
        self.width = width
        self.weight_width = 4 if autocast else width
        self.autocast = autocast
        self.device = device
        self.compiled = compiled
        self.on_gradient = on_gradient or self._keep
        self.where = ""
        self.kind = ACTIVATIONS
        self.nodes: list[Node] = []
        self.kept: list[Buffer] = []
        self.casts: list[Weight] = []
        self.host_bytes = 0
        """What waits in the memory of the host."""
        self._recorded: Segment | None = None
        self._repeated: Segment | None = None
        self._left_to_save = 0

    @property
    def keeps_nothing(self) -> bool:
        """Whether what comes now is computed again in the backward pass."""
        return self._recorded is not None

    def enter(self, where: str, *, kind: str = ACTIVATIONS) -> None:
        """What comes now belongs to `where`, a part of the model, and is of this kind."""
        self.where, self.kind = where, kind
        self.ledger.go_to(_phase(where, "forward"), f"forward of {where}")

    def book(self, num_bytes: float) -> Buffer:
        """A buffer of the current kind."""
        return self.ledger.book(self.kind, num_bytes)

    def book_product(self, num_bytes: float) -> Buffer:
        """The result of a matrix product or of attention, which `selective` keeps."""
        if self._repeated is not None and self._repeated.products:
            return self._repeated.products.pop(0)
        product = self.book(num_bytes)
        if self._recorded is not None and self._recorded.products is not None:
            self._recorded.products.append(product)
        return product

    def leaf(self, num_bytes: float) -> Value:
        """An input without a gradient."""
        return Value(self.book(num_bytes), int(num_bytes), 1, None)

    def record(
        self,
        inputs: tuple[Value, ...],
        output: Value,
        *,
        saved: tuple[Buffer, ...] = (),
        weights: tuple[tuple[Weight, int], ...] = (),
        gradients: tuple[int, ...],
        workspace: int = 0,
    ) -> Value:
        """Put an operation on the tape; the output knows it from then on."""
        for weight, _ in weights:
            weight.uses += self._repeated is None
        kept = list(saved)
        node = Node(
            tuple(one.node for one in inputs), kept, weights, gradients, workspace, self.where
        )
        if self._recorded is not None:
            node.segment, node.saved = self._recorded, []
            self._recorded.num_saved += len(saved)
            self._recorded.nodes.append(node)
        self.nodes.append(node)
        output.node = node
        if self._repeated is not None:
            self._left_to_save -= len(saved)
            if self._left_to_save <= 0:
                raise StopRecomputationError
        return output

    def checkpoint(self, compute: Callable[[Value], Value], x: Value, mode: str = "full") -> Value:
        """Run `compute` keeping its input alone; the rest is computed again in the backward pass.

        `selective` also keeps the results of matrix products and attention, `offload` brings the
        input to the host. Inside what is itself computed again, it is as any other operation.
        """
        if self._recorded is not None or self._repeated is not None:
            return compute(x)
        where, kind, numel, width = self.where, self.kind, x.numel, x.width
        kept = None if mode == "offload" else x.buffer
        self.host_bytes += numel * width * (mode == "offload")

        def again() -> None:
            self.where, self.kind = where, kind
            compute(Value(kept or self.book(numel * width), numel, width, None))

        self._recorded = Segment(again, [], [] if mode == "selective" else None)
        output = compute(x)
        self._recorded = None
        return output

    def end_forward(self) -> None:
        """Forget the casts that autocast has kept for weights that are used again."""
        for weight in self.casts:
            weight.cast = None
        self.casts.clear()

    def backward(self, loss: Value) -> None:
        """Run the tape backwards."""
        assert loss.node is not None
        loss.node.gradient = self.ledger.book(ACTIVATIONS, 4)
        loss.node = None
        while self.nodes:
            node = self.nodes.pop()
            if node.gradient is not None:
                if node.segment is not None and not node.segment.is_there:
                    self._compute_again(node.segment)
                self._run(node)

    def _compute_again(self, segment: Segment) -> None:
        where = segment.nodes[0].where
        self.ledger.go_to(_phase(where, "backward"), f"recomputation of {where}")
        segment.is_there = True
        nodes, self.nodes = self.nodes, []
        self._repeated, self._left_to_save = segment, segment.num_saved
        with contextlib.suppress(StopRecomputationError):
            segment.again()
        self.end_forward()
        self._repeated = None
        for node, fresh in zip(segment.nodes, self.nodes, strict=False):
            node.saved = fresh.saved
        segment.nodes = []
        self.nodes = nodes

    def _run(self, node: Node) -> None:
        """The backward pass of one operation: all it makes is there at once."""
        self.ledger.go_to(_phase(node.where, "backward"), f"backward of {node.where}")
        arrived, node.gradient = node.gradient, None
        assert arrived is not None
        kind = LOGITS if node.where == "loss" else ACTIVATIONS
        workspace = self.ledger.book(kind, node.workspace)
        made = [
            (parent, self.ledger.book(kind, size) if size else arrived)
            for parent, size in zip(node.parents, node.gradients, strict=True)
            if parent is not None
        ]
        of_weights = [
            (weight, self.ledger.book(GRADIENTS, weight.numel * width))
            for weight, width in node.weights
        ]
        node.saved = []
        del workspace, arrived
        while of_weights:
            self._add_up(*of_weights.pop(0))
        while made:
            parent, gradient = made.pop(0)
            if parent.gradient is None:
                parent.gradient = gradient

    def _add_up(self, weight: Weight, gradient: Buffer) -> None:
        """Into the gradient that is there already, in place; the engine takes the whole."""
        weight.uses -= 1
        whole, weight.pending = weight.pending or gradient, None
        del gradient
        if weight.uses:
            weight.pending = whole
            return
        if self.autocast and whole.num_bytes < 4 * weight.numel:
            whole = self.ledger.book(GRADIENTS, 4 * weight.numel)
        self.on_gradient(weight, whole)

    def _keep(self, weight: Weight, gradient: Buffer) -> None:
        del weight
        self.kept.append(gradient)


def _phase(where: str, direction: str) -> str:
    return "loss" if where == "loss" else direction
