"""A split of an image dataset: images decoded, augmented and cut to one size.

A pixel depends on the image, the recipe, the seed and the position of the sample in the data order
alone.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from training.augment.draws import sample_keys
from training.augment.recipe import Recipe
from training.data.chunks import ChunkReader
from training.data.decoders import Decoders
from training.data.image_chunks import ImageChunk
from training.data.order import Order
from training.data.replacement import Damage, ReplacingReader
from training.data.traffic import Traffic

Ints = npt.NDArray[np.int64]

BYTES_AT_ONCE = 32 << 20
"""Pixels that are decoded at once: 222 images of 224 pixels, enough for many workers."""


@dataclass(frozen=True, slots=True)
class Images:
    """Some images, a row each."""

    pixels: npt.NDArray[np.uint8]
    """(rows, size, size, 3), red, green and blue."""
    classes: Ints
    """Of each row, the class, or -1."""
    keys: npt.NDArray[np.uint64]
    """Of each row, what all further draws for it derive from."""
    positions: Ints
    """Of each row, its position in the data order."""
    weights: npt.NDArray[np.bool_]
    """Of each row, whether it counts; False is padding of a last validation batch."""

    def __len__(self) -> int:
        return len(self.positions)


class ImageDataset:
    """The images of a split, in the data order or as they lie in the shards."""

    def __init__(
        self,
        reader: ChunkReader[ImageChunk],
        order: Order,
        recipe: Recipe,
        *,
        seed: int,
        num_loader_workers: int,
        corrupt_chunks: Literal["stop", "replace"] = "stop",
    ) -> None:
        """Lay the order over the images; `seed` is that of the augmentations."""
        self.order = order
        self._seed = seed
        self._recipe = recipe
        self._decoders = Decoders(recipe, num_workers=num_loader_workers)
        counts = order.samples_per_chunk
        self._reader = ReplacingReader(reader, counts, replaces=corrupt_chunks == "replace")
        self._stops = np.cumsum(counts)

    def __len__(self) -> int:
        """Images in one epoch."""
        return self.order.samples_per_epoch

    @property
    def damage(self) -> Damage:
        """Chunks that are corrupt and images that no decoder takes, and how often others came."""
        return self._reader.damage

    @property
    def rows_at_once(self) -> int:
        """Rows that are worth one `read`: enough to keep every worker busy."""
        return max(1, BYTES_AT_ONCE // (3 * self._recipe.size**2))

    def read(self, positions: Ints) -> Images:
        """The images at these positions of the data order.

        An image that cannot be decoded is replaced by the next one of the split that can.

        Raises:
            CorruptChunkError: a chunk is not what the manifest says, and is not to be replaced.
            OSError: a chunk could not be read after several attempts.
            ValueError: no image of the split can be decoded.
        """
        _, chunk, index = self.order.locate(positions)
        images, replaced = self._gather(chunk, index, positions)
        self.damage.num_replaced += int(replaced.sum())
        return images

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

    def read_in_file_order(self, numbers: Ints) -> Images:
        """The images with these numbers, counted through the shards."""
        chunk = np.searchsorted(self._stops, numbers, side="right")
        index = numbers - (self._stops[chunk] - self.order.samples_per_chunk[chunk])
        following = int(chunk.max()) + 1
        self._reader.reader.expect(range(following, min(following + 4, len(self._stops))))
        images, replaced = self._gather(chunk, index, numbers)
        self.damage.replaced.update(numbers[replaced].tolist())
        return images

    def origins(self, positions: Ints) -> dict[str, dict[str, list[str]]]:
        """Where the images at these positions lie: their keys, by shard; they have no documents."""
        _, chunk, index = self.order.locate(positions)
        found = self._reader.find(chunk, index)
        origins: dict[str, dict[str, list[str]]] = {}
        for number, rows in found.rows.items():
            keys = map(found.chunks[number].key, found.index[rows].tolist())
            of_shard = origins.setdefault(self._reader.reader.shard_of(number), {})
            of_shard |= {key: [] for key in keys}
        return origins

    def close(self) -> None:
        """Let go of files, memory, threads and processes."""
        self._decoders.close()
        self._reader.reader.close()

    def _gather(
        self, chunk: Ints, index: Ints, positions: Ints
    ) -> tuple[Images, npt.NDArray[np.bool_]]:
        """The images, and which of them came in the place of others."""
        keys = sample_keys(self._seed, positions)
        pixels: npt.NDArray[np.uint8] | None = None
        classes = np.empty(len(positions), np.int64)
        replaced = np.zeros(len(positions), np.bool_)
        rows = np.arange(len(positions))
        for _ in range(len(self)):
            chunks = self._reader.find(chunk[rows], index[rows])
            replaced[rows] |= chunks.chunk != chunk[rows]
            encoded: list[memoryview] = [memoryview(b"")] * len(rows)
            for number, of_chunk in chunks.rows.items():
                index_of = chunks.index[of_chunk]
                images = chunks.chunks[number].encoded(index_of)
                for row, image in zip(of_chunk.tolist(), images, strict=True):
                    encoded[row] = image
                classes[rows[of_chunk]] = chunks.chunks[number].classes[index_of]
            decoded, faults = self._decoders.decode(encoded, keys[rows].tolist())
            if pixels is None:
                pixels = decoded
            else:
                pixels[rows] = decoded
            for number, fault in faults.items():
                key = chunks.chunks[int(chunks.chunk[number])].key(int(chunks.index[number]))
                name = f"image {key}"
                warning = f"{name}: {fault}; the next one comes in its place"
                self.damage.note(name, fault, warning=warning)
            if not faults:
                weights = np.ones(len(positions), np.bool_)
                return Images(pixels, classes, keys, positions, weights), replaced
            rows = rows[sorted(faults)]
            replaced[rows] = True
            chunk[rows], index[rows] = self._following(chunk[rows], index[rows])
        raise ValueError(f"none of the {len(self)} images of the split can be decoded")

    def _following(self, chunk: Ints, index: Ints) -> tuple[Ints, Ints]:
        """The next image in the order of files, behind the last one the first."""
        first = self._stops[chunk] - self.order.samples_per_chunk[chunk]
        number = (first + index + 1) % len(self)
        following = np.searchsorted(self._stops, number, side="right")
        return following, number - (
            self._stops[following] - self.order.samples_per_chunk[following]
        )
