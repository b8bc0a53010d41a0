"""This rank's micro batches, step after step, made ahead of training by a background thread.

The state is the number of samples that optimizer steps have consumed; what lies ready does not
count. Any world size that divides the global batch and any number of threads give the same global
batches.
"""

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from training.data.order import Order
from training.data.replacement import Damage
from training.data.traffic import Traffic

Batch = dict[str, Tensor]
"""What a task collates: tensors by name, each with a row for every sample."""
Item = TypeVar("Item")

MOST_STEPS_AHEAD = 256
"""Whose chunks are looked up behind each read: 5 ms."""


class Dataset(Protocol):
    """A split as the loader needs it."""

    @property
    def order(self) -> Order: ...

    @property
    def rows_at_once(self) -> int:
        """Rows that are worth one `read`."""
        ...

    @property
    def rows_ahead(self) -> int:
        """Rows that are worth an `expect` before they are read; 0 where nothing is far away."""
        ...

    @property
    def damage(self) -> Damage:
        """What could not be read so far."""
        ...

    @property
    def traffic(self) -> Traffic:
        """What was asked of a store so far."""
        ...

    def expect(self, positions: npt.NDArray[np.int64]) -> None:
        """Begin to fetch what a later `read` of these positions needs."""
        ...

    def read(self, positions: npt.NDArray[np.int64]) -> Any:
        """The samples at these positions of the order, in that order."""
        ...

    def origins(self, positions: npt.NDArray[np.int64]) -> dict[str, dict[str, list[str]]]:
        """By shard and key of the stored sample: keys of the documents there, if it has any."""
        ...


class Loader:
    """Iterator without end: each `next` is the list of this rank's micro batches of one step."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        collate: Callable[[Any], Batch],
        samples_seen: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        num_batches_ahead: int = 4,
    ) -> None:
        """Start making batches behind the first `samples_seen` samples.

        `collate` gets as many rows as were read at once, and treats each by itself: it is cut into
        micro batches afterwards.
        """
        assert global_batch_size % (micro_batch_size * world_size) == 0  # checked with the config
        assert 0 <= rank < world_size
        self.dataset = dataset
        self.samples_seen = samples_seen
        """Of all ranks and epochs: the state to save with a checkpoint."""
        self.wait_seconds = 0.0
        """Time that `next` has waited for data so far."""
        self._global_batch_size = global_batch_size
        self._handoff: _Handoff[list[Batch]] = _Handoff(num_batches_ahead)
        share = global_batch_size // world_size
        steps = _steps(
            dataset,
            collate,
            samples_seen=samples_seen,
            global_batch_size=global_batch_size,
            own=slice(rank * share, (rank + 1) * share),
            micro_batch_size=micro_batch_size,
        )
        # The thread knows the handoff and not the loader, so a forgotten loader is collected; a
        # daemon, and stopped at exit, so that no thread outlives a run that failed.
        self._thread = threading.Thread(
            target=_produce, args=(steps, self._handoff), name="millrace-loader", daemon=True
        )
        self._finalizer = weakref.finalize(self, _stop, self._handoff, self._thread)
        self._thread.start()

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        started = time.perf_counter()
        batches = self._handoff.take()
        self.wait_seconds += time.perf_counter() - started
        self.samples_seen += self._global_batch_size
        return batches

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the thread; iteration ends."""
        self._finalizer()


class FileOrder(Protocol):
    """A split whose samples are also read as they lie."""

    @property
    def damage(self) -> Damage:
        """What could not be read so far."""
        ...

    def __len__(self) -> int: ...

    def read_in_file_order(self, numbers: npt.NDArray[np.int64]) -> Any:
        """The samples with these numbers."""
        ...


class EvaluationBatches(Sequence[Batch]):
    """This rank's share of a split's first samples in file order, the same every time.

    The last round is filled with rows of weight 0, so that every rank has as many micro batches.
    """

    def __init__(
        self,
        dataset: FileOrder,
        *,
        collate: Callable[[Any], Batch],
        micro_batch_size: int,
        rank: int,
        world_size: int,
        max_samples: int = 0,
    ) -> None:
        """Divide the first `max_samples` samples, 0 being all, among the ranks."""
        self.num_samples = min(max_samples or len(dataset), len(dataset))
        self._dataset = dataset
        self._collate = collate
        self._micro_batch_size = micro_batch_size
        self._round = micro_batch_size * world_size
        self._first = rank * micro_batch_size

    @property
    def damage(self) -> Damage:
        """What of this rank's share could not be read so far."""
        return self._dataset.damage

    def __len__(self) -> int:
        return -(-self.num_samples // self._round)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"evaluation has {len(self)} micro batches, asked for {index}")
        first = index % len(self) * self._round + self._first
        numbers = np.arange(first, first + self._micro_batch_size, dtype=np.int64)
        rows = self._dataset.read_in_file_order(np.minimum(numbers, self.num_samples - 1))
        rows.weights[:] = numbers < self.num_samples
        return self._collate(rows)


def _steps(
    dataset: Dataset,
    collate: Callable[[Any], Batch],
    *,
    samples_seen: int,
    global_batch_size: int,
    own: slice,
    micro_batch_size: int,
) -> Iterator[list[Batch]]:
    """The micro batches of each step; small steps are read and collated several at a time.

    The first read is one step, so that training starts at once; each next one is twice as long.
    What comes behind a read is fetched meanwhile, if it comes from far away.
    """

    def positions(start: int, num_steps: int) -> npt.NDArray[np.int64]:
        seen = range(start, start + num_steps * global_batch_size, global_batch_size)
        return np.concatenate(
            [dataset.order.global_batch(each, global_batch_size)[own] for each in seen]
        )

    share = own.stop - own.start
    most = max(1, dataset.rows_at_once // share)
    ahead = min(-(-dataset.rows_ahead // global_batch_size), MOST_STEPS_AHEAD)
    num_steps = 1
    while True:
        rows = collate(dataset.read(positions(samples_seen, num_steps)))
        if ahead:
            behind = samples_seen + num_steps * global_batch_size
            dataset.expect(positions(behind, max(ahead, min(2 * num_steps, most))))
        for step in range(num_steps):
            starts = range(step * share, (step + 1) * share, micro_batch_size)
            yield [_rows(rows, start, start + micro_batch_size) for start in starts]
        samples_seen += num_steps * global_batch_size
        num_steps = min(2 * num_steps, most)


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    return {name: tensor[start:stop] for name, tensor in batch.items()}


class _Handoff(Generic[Item]):
    """What the thread has made and training has not yet taken, at most `size` items."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: deque[Item] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> bool:
        """Wait for a free place; False when nobody takes items any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._size)
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def take(self) -> Item:
        """Wait for an item; the thread's error comes behind the last good item."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._items or self._error)
            if self._closed:
                raise StopIteration
            if not self._items:
                assert self._error is not None
                raise self._error
            self._changed.notify_all()
            return self._items.popleft()

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()


def _produce(steps: Iterator[Item], handoff: _Handoff[Item]) -> None:
    try:
        for item in steps:
            if not handoff.put(item):
                return
    except BaseException as error:  # noqa: BLE001 - whatever it is, training must hear of it
        handoff.fail(error)


def _stop(handoff: _Handoff[Any], thread: threading.Thread) -> None:
    handoff.close()
    thread.join(timeout=5)  # a read from a dead store may take longer; the thread is a daemon
