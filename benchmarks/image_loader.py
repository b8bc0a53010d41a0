"""Speed of loading images for training, beside decoding, cutting and resizing alone, on one core.

    python -m benchmarks.image_loader PHOTOS CIFAR10

PHOTOS is a folder of JPEG files, CIFAR10 one with JPEG in class folders or in a tar.gz. Of each a
dataset is made, and read in training order by the loader with one worker process: checksums,
random crops, flips, tensors of 8 bits out. The plain loops do the same to the same files with
random numbers of Python. All alternate, pinned to one core; what counts is the CPU time of the
process and its worker, to which other programs add little.
"""

import argparse
import io
import itertools
import math
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cykooz_resizer as fast
import numpy as np
import PIL.Image
import simplejpeg
import torch

from benchmarks.images import cpu_seconds, read_photos
from pipeline.manifest import Manifest, write_manifest
from pipeline.tar import Sample, write_shard
from training.augment.config import Config
from training.data.config import DataConfig, open_images
from training.data.shards import load_manifest

Loop = Callable[[], int]
"""Makes some batches; how many images they hold."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("--rounds", type=int, default=9, help="of all, alternating")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the worker inherits it
    print(f"{'':58}{'images/s of CPU':>16}{'loader is':>12}")
    photos = list(read_photos(arguments.photos))
    random_crops = Config()
    compare("photographs, random crops to 224", photos, random_crops, 224, arguments.rounds)
    compare("prepared, random crops to 224", prepared(photos), random_crops, 224, arguments.rounds)
    small = list(read_photos(arguments.cifar10))[:10_000]
    compare("CIFAR-10, padded by 4", small, Config(crop="random_padded"), 32, arguments.rounds)


def prepared(photos: list[bytes]) -> list[bytes]:
    """As a dataset holds them: shorter side 256."""
    from pipeline.images.process import Config, Processed, process

    done = [process(photo, Config()) for photo in photos]
    return [one.encoded for one in done if isinstance(one, Processed)]


def compare(name: str, files: list[bytes], config: Config, size: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), files)
        loops = {"loader": loader(folder, config, size)}
        for way, cut in WAYS[config.crop].items():
            loops[way] = plain(files, cut, size)
        seconds: dict[str, list[float]] = {way: [] for way in loops}
        for number in range(rounds + 1):
            for way, loop in loops.items():
                before = cpu_seconds()
                images = loop()
                if number:  # the first round starts the worker and checks what is read
                    seconds[way].append((cpu_seconds() - before) / images)
        for way in loops:
            ratio = statistics.median(
                b / a for a, b in zip(seconds["loader"], seconds[way], strict=True)
            )
            rate = 1 / statistics.median(seconds[way])
            print(f"{name + ': ' + way:58}{rate:16.0f}{ratio:10.2f} x", flush=True)


def write_dataset(folder: Path, files: list[bytes]) -> None:
    samples = [Sample(f"{n:08x}", {"cls": b"0", "jpg": file}) for n, file in enumerate(files)]
    shard = write_shard(folder / "train-000000.tar", samples)
    write_manifest(Manifest("image", {"train": (shard,)}, {}, {}, classes=("any",)), folder)


def loader(folder: str, config: Config, size: int) -> Loop:
    """What the loader's thread does for a step, here without one, lest it work at other times."""
    dataset = open_images(
        DataConfig(dataset_dir=folder, num_loader_workers=1),
        load_manifest(folder),
        split="train",
        recipe=config.recipe(size),
        seed=0,
    )
    batch = dataset.rows_at_once
    starts = itertools.count(0, batch)

    def loop() -> int:
        images = dataset.read(dataset.order.global_batch(next(starts), batch))
        return len(torch.from_numpy(images.pixels))

    return loop


def plain(files: list[bytes], cut: Callable[[bytes, int], Any], size: int) -> Loop:
    """A loop over files in random order, into one tensor."""
    batch = min(len(files), max(1, (32 << 20) // (3 * size * size)))
    order = endless(len(files))

    def loop() -> int:
        pixels = np.empty((batch, size, size, 3), np.uint8)
        for row in range(batch):
            square = cut(files[next(order)], size)
            if random.random() < 0.5:
                for colour in range(3):  # a sixth of the time of `square[:, ::-1]`
                    pixels[row, ..., colour] = square[:, ::-1, colour]
            else:
                pixels[row] = square
        return len(torch.from_numpy(pixels))

    return loop


def endless(count: int) -> Iterator[int]:
    while True:
        yield from random.sample(range(count), count)


def random_box(width: int, height: int) -> tuple[int, int, int, int]:
    """As torchvision's RandomResizedCrop draws it."""
    for _ in range(10):
        area = width * height * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left, top = random.randint(0, width - across), random.randint(0, height - down)
            return left, top, left + across, top + down
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def shrink(box: tuple[int, int, int, int], size: int) -> int:
    """By how much a JPEG is divided while it is decoded, twice the size staying."""
    side = min(box[2] - box[0], box[3] - box[1])
    return next((by for by in (8, 4, 2) if side >= 2 * by * size), 1)


def cut_by_pillow(file: bytes, size: int) -> Any:
    image: PIL.Image.Image = PIL.Image.open(io.BytesIO(file))
    box = random_box(*image.size)
    width, height = image.size
    if (by := shrink(box, size)) > 1:
        image.draft("RGB", (width // by, height // by))
    image = image.convert("RGB")
    x, y = image.width / width, image.height / height
    scaled = (box[0] * x, box[1] * y, box[2] * x, box[3] * y)
    return np.asarray(image.resize((size, size), PIL.Image.Resampling.BICUBIC, box=scaled))


def cut_by_fast_resize(file: bytes, size: int) -> Any:
    height, width = simplejpeg.decode_jpeg_header(file)[:2]
    box = random_box(width, height)
    by = shrink(box, size)
    least = {"min_height": -(-height // by), "min_width": -(-width // by)} if by > 1 else {}
    pixels = simplejpeg.decode_jpeg(file, "RGB", **least)
    x, y = pixels.shape[1] / width, pixels.shape[0] / height
    crop = fast.CropBox(box[0] * x, box[1] * y, (box[2] - box[0]) * x, (box[3] - box[1]) * y)
    options = fast.ResizeOptions(BICUBIC, crop_box=crop)
    source = fast.ImageData(pixels.shape[1], pixels.shape[0], fast.PixelType.U8x3, pixels.tobytes())
    target = fast.ImageData(size, size, fast.PixelType.U8x3)
    RESIZER.resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(size, size, 3)


BICUBIC = fast.ResizeAlg.convolution(fast.FilterType.catmull_rom)
RESIZER = fast.Resizer()


def shift_by_pillow(file: bytes, size: int) -> Any:
    image: PIL.Image.Image = PIL.Image.open(io.BytesIO(file)).convert("RGB")
    right, down = random.randint(-4, 4), random.randint(-4, 4)
    return np.asarray(image.crop((right, down, right + size, down + size)))


def shift_by_numpy(file: bytes, size: int) -> Any:
    padded = np.zeros((size + 8, size + 8, 3), np.uint8)
    padded[4:-4, 4:-4] = simplejpeg.decode_jpeg(file, "RGB")
    right, down = random.randint(0, 8), random.randint(0, 8)
    return padded[down : down + size, right : right + size]


WAYS: dict[str, dict[str, Callable[[bytes, int], Any]]] = {
    "random_resized": {
        "Pillow": cut_by_pillow,
        "libjpeg-turbo, fast_image_resize": cut_by_fast_resize,
    },
    "random_padded": {"Pillow": shift_by_pillow, "libjpeg-turbo, numpy": shift_by_numpy},
}
"""Plain loops, by crop."""


if __name__ == "__main__":
    main()
