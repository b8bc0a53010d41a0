"""A split of a text dataset as sequences of `sequence_length + 1` tokens.

Sequences are cut at chunk granularity, across the samples of the chunk; their number follows from
the chunk table alone. Consecutive ones share one token, the label of one and the input of the next.
In each epoch the cuts of a chunk move by a phase that leaves the number as it is.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from training.augment.draws import sample_keys
from training.data.blocks import Blocks
from training.data.chunks import ChunkReader
from training.data.order import PHASES, Keys, Order, fold, run_key
from training.data.replacement import Damage, ReplacingReader
from training.data.traffic import Traffic

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sequences:
    """Some sequences, a row each."""

    tokens: npt.NDArray[Any]
    """(rows, sequence_length + 1), in the integer type of the dataset."""
    document_starts: list[Ints]
    """Of each row, the offsets in it at which a document begins."""
    positions: Ints
    """Of each row, its position in the data order."""
    weights: npt.NDArray[np.bool_]
    """Of each row, whether it counts; False is padding of a last validation batch."""
    keys: Keys
    """Of each row, what a task's random numbers derive from: the seed and the position."""

    def __len__(self) -> int:
        return len(self.positions)


def sequences_per_chunk(tokens: Ints, sequence_length: int) -> Ints:
    """How many sequences chunks of so many tokens give: [9, 10, 12] at length 3 give [2, 3, 3]."""
    return np.maximum(tokens - 1, 0) // sequence_length


class TokenDataset:
    """The sequences of a split, in the data order or as they lie in the shards."""

    def __init__(
        self,
        reader: ChunkReader[Blocks],
        *,
        split: str,
        sequence_length: int,
        fingerprint: str,
        seed: int,
        num_lanes: int = 128,
        window: int = 64,
        corrupt_chunks: Literal["stop", "replace"] = "stop",
    ) -> None:
        """Lay the order over the chunks of a split.

        Raises:
            ValueError: no chunk is long enough for a sequence.
        """
        tokens = reader.table.tokens
        counts = sequences_per_chunk(tokens, sequence_length)
        if not counts.any():
            raise ValueError(
                f"split {split}: no sequence of {sequence_length} + 1 tokens fits; its "
                f"{len(tokens)} chunks hold at most {tokens.max(initial=0)} tokens each; use a "
                "smaller data.sequence_length or a larger corpus"
            )
        self.sequence_length = sequence_length
        self.order = Order(
            counts, fingerprint=fingerprint, seed=seed, num_lanes=num_lanes, window=window
        )
        self._reader = ReplacingReader(reader, counts, replaces=corrupt_chunks == "replace")
        self._key = run_key(fingerprint, seed)
        self._slack = np.maximum(tokens - 1, 0) - counts * sequence_length
        self._stops = np.cumsum(counts)
        self.draw_seed = 0
        """Of what tasks draw for a sequence, beside its position."""

    def __len__(self) -> int:
        """Sequences in one epoch."""
        return self.order.samples_per_epoch

    @property
    def replaced(self) -> dict[int, int]:
        """Corrupt chunks, and those whose sequences came in their place."""
        return self._reader.replaced

    @property
    def damage(self) -> Damage:
        """Chunks that are corrupt, and how often sequences of others came."""
        return self._reader.damage

    @property
    def rows_at_once(self) -> int:
        """Rows that are worth one `read`: a million tokens spread the cost of its few calls."""
        return max(1, (1 << 20) // (self.sequence_length + 1))

    def read(self, positions: Ints) -> Sequences:
        """The sequences at these positions of the data order.

        Raises:
            CorruptChunkError: a chunk is not what the manifest says, and is not to be replaced.
            OSError: a chunk could not be read after several attempts.
        """
        epoch, chunk, index = self.order.locate(positions)
        sequences, replaced = self._gather(epoch, chunk, index, positions)
        self.damage.num_replaced += int(replaced.sum())
        return sequences

    @property
    def rows_ahead(self) -> int:
        """Rows whose chunks are worth asking for before they are read: one window of all lanes."""
        return self.order.num_lanes * self.order.window if self._reader.reader.is_remote else 0

    @property
    def traffic(self) -> Traffic:
        """What was asked of the store so far."""
        return self._reader.reader.traffic

    def expect(self, positions: Ints) -> None:
        """Begin to fetch what the samples at these positions need, as far as there is memory."""
        self._reader.expect(self.order.locate(positions).chunk)

    def read_in_file_order(self, numbers: Ints) -> Sequences:
        """The sequences with these numbers, counted through the shards, with phase 0."""
        chunk = np.searchsorted(self._stops, numbers, side="right")
        index = numbers - (self._stops[chunk] - self.order.samples_per_chunk[chunk])
        following = int(chunk.max()) + 1
        self._reader.reader.expect(range(following, min(following + 4, len(self._stops))))
        sequences, replaced = self._gather(None, chunk, index, numbers)
        self.damage.replaced.update(numbers[replaced].tolist())
        return sequences

    def origins(self, positions: Ints) -> dict[str, dict[str, list[str]]]:
        """Where the sequences at these positions lie: documents by sample, samples by shard."""
        epoch, chunk, index = self.order.locate(positions)
        found = self._reader.find(chunk, index)
        firsts = self._phases(epoch, found.chunk) + found.index * self.sequence_length
        origins: dict[str, dict[str, list[str]]] = {}
        for number, rows in found.rows.items():
            samples = found.chunks[number].origins(firsts[rows], self.sequence_length + 1)
            of_shard = origins.setdefault(self._reader.reader.shard_of(number), {})
            for key, documents in samples.items():
                names = of_shard.setdefault(key, [])
                names += [name for name in documents if name not in names]
        return origins

    def close(self) -> None:
        """Let go of files, memory and threads."""
        self._reader.reader.close()

    def _gather(
        self, epoch: Ints | None, chunk: Ints, index: Ints, positions: Ints
    ) -> tuple[Sequences, npt.NDArray[np.bool_]]:
        """The sequences, and which of them came in the place of others."""
        found = self._reader.find(chunk, index)
        firsts = self._phases(epoch, found.chunk) + found.index * self.sequence_length
        width = self.sequence_length + 1
        dtype = next(iter(found.chunks.values())).words.dtype
        tokens = np.empty((len(positions), width), dtype)
        document_starts: list[Ints] = [_NO_STARTS] * len(positions)
        for number, rows in found.rows.items():
            blocks = found.chunks[number]
            blocks.copy_to(tokens, rows, firsts[rows])
            starts = blocks.documents_in(firsts[rows], width)
            for row, offsets in zip(rows.tolist(), starts, strict=True):
                document_starts[row] = offsets
        weights = np.ones(len(positions), np.bool_)
        keys = sample_keys(self.draw_seed, positions)
        sequences = Sequences(tokens, document_starts, positions, weights, keys)
        return sequences, found.chunk != chunk

    def _phases(self, epoch: Ints | None, chunk: Ints) -> Ints:
        """Where the first sequence of each chunk begins in these epochs: 0 to the slack."""
        if epoch is None:
            return np.zeros_like(chunk)
        hashes = fold(self._key, PHASES, epoch, chunk)
        return (hashes % (self._slack[chunk] + 1).astype(np.uint64)).astype(np.int64)


_NO_STARTS = np.empty(0, np.int64)
