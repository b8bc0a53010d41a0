"""Images of a split: the same tensors for any ranks, workers and micro batches; bad images."""

import contextlib
import dataclasses
import gc
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from pipeline.manifest import Manifest, write_manifest
from pipeline.tar import Sample, write_shard
from training.augment.config import Config as AugmentConfig
from training.augment.mix import plan_mix
from training.augment.recipe import Recipe, render
from training.data import decoders
from training.data.config import DataConfig, open_images
from training.data.image_chunks import parse_images
from training.data.loader import Loader
from training.data.shards import load_manifest
from training.data.shared_pixels import SharedPixels

SIZE = 12
NUM_IMAGES = 40
EVERYTHING = AugmentConfig(
    policy="rand_augment", erasing=0.5, mixup_alpha=0.8, cutmix_alpha=1.0, area=(0.3, 1.0)
)
BAD = 7


def encoded(number, kind="JPEG"):
    noise = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = PIL.Image.fromarray(noise).resize((40 + number % 3, 30))
    content = io.BytesIO()
    image.save(content, format=kind)
    return content.getvalue()


def write_images(folder, images):
    samples = [
        Sample(f"{n:04x}", {"cls": str(n % 3).encode(), "jpg": image, "json": b"{}"})
        for n, image in enumerate(images)
    ]
    shards = tuple(
        write_shard(folder / f"train-00000{n}.tar", samples[n::2], chunk_bytes=20_000)
        for n in range(2)
    )
    splits = {"train": shards}
    manifest = Manifest("image", splits, {}, {}, classes=("cat", "dog", "emu"))
    write_manifest(manifest, folder)
    return str(folder)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return write_images(folder, [encoded(n) for n in range(NUM_IMAGES)])


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    images = [encoded(n) for n in range(NUM_IMAGES)]
    images[BAD] = b"no image at all"
    return write_images(tmp_path_factory.mktemp("broken"), images)


@pytest.fixture
def opened(request):
    """Opens a dataset and closes it after the test."""

    def open_dataset(path, *, workers=1, recipe=None, augment=EVERYTHING, corrupt_chunks="stop"):
        config = DataConfig(
            dataset_dir=path,
            num_lanes=4,
            window=3,
            num_loader_workers=workers,
            corrupt_chunks=corrupt_chunks,
        )
        dataset = open_images(
            config,
            load_manifest(path),
            split="train",
            recipe=recipe or augment.recipe(SIZE),
            seed=5,
        )
        request.addfinalizer(dataset.close)
        return dataset

    return open_dataset


def collate(images):
    plan = plan_mix(images.keys, EVERYTHING, image_size=SIZE)
    rows = {"pixels": images.pixels, "classes": images.classes, **plan}
    return {name: torch.from_numpy(value) for name, value in rows.items()}


def global_batches(dataset, *, world_size, micro_batch_size, samples_seen=0, steps=3):
    """Rows of each global batch, from all ranks one behind the other."""
    shares = []
    for rank in range(world_size):
        with Loader(
            dataset,
            collate=collate,
            samples_seen=samples_seen,
            global_batch_size=16,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
        ) as loader:
            shares.append([next(loader) for _ in range(steps)])
    return [
        {
            name: torch.cat([batch[name] for share in shares for batch in share[step]])
            for name in shares[0][0][0]
        }
        for step in range(steps)
    ]


def assert_same(batches, expected):
    for own, other in zip(batches, expected, strict=True):
        assert own.keys() == other.keys()
        assert all(torch.equal(own[name], other[name]) for name in own)


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size", "workers"), [(1, 2, 3), (2, 8, 1), (2, 4, 2), (4, 4, 1)]
)
def test_ranks_workers_and_micro_batches_change_no_tensor(
    path, opened, world_size, micro_batch_size, workers
):
    expected = global_batches(opened(path), world_size=1, micro_batch_size=16)
    assert len(expected[0]["pixels"].unique(dim=0)) == 16
    assert (expected[0]["share"] < 1).any()
    dataset = opened(path, workers=workers)
    found = global_batches(dataset, world_size=world_size, micro_batch_size=micro_batch_size)
    assert_same(found, expected)


def test_a_resumed_run_sees_the_same_tensors(path, opened):
    dataset = opened(path)
    whole = global_batches(dataset, world_size=1, micro_batch_size=4, steps=4)
    rest = global_batches(dataset, world_size=1, micro_batch_size=4, samples_seen=32, steps=2)
    assert_same(rest, whole[2:])


def test_an_epoch_has_every_image_once_and_the_next_other_pixels(path, opened):
    recipe = dataclasses.replace(EVERYTHING.recipe(SIZE), policy="none", erasing=0.0)
    dataset = opened(path, recipe=recipe)
    first, second = (dataset.read(np.arange(NUM_IMAGES) + at) for at in (0, NUM_IMAGES))
    assert sorted(first.classes.tolist()) == sorted(n % 3 for n in range(NUM_IMAGES))
    assert len(np.unique(first.pixels.reshape(NUM_IMAGES, -1), axis=0)) == NUM_IMAGES
    assert not np.array_equal(np.sort(first.pixels, axis=0), np.sort(second.pixels, axis=0))


def test_in_file_order_by_the_plain_recipe(path, opened):
    recipe = EVERYTHING.plain_recipe(SIZE)
    images = opened(path, recipe=recipe).read_in_file_order(np.arange(NUM_IMAGES))
    of_files = [*range(0, NUM_IMAGES, 2), *range(1, NUM_IMAGES, 2)]  # two shards
    assert images.classes.tolist() == [n % 3 for n in of_files]
    for row, number in enumerate(of_files):
        assert np.array_equal(images.pixels[row], render(encoded(number), recipe, key=0))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_image_is_replaced_by_the_next_and_reported_once(broken, opened, caplog, workers):
    dataset = opened(broken, workers=workers, recipe=EVERYTHING.plain_recipe(SIZE))
    numbers = np.arange(NUM_IMAGES)
    images = dataset.read_in_file_order(numbers)
    row = NUM_IMAGES // 2 + BAD // 2  # in the second shard
    assert np.array_equal(images.pixels[row], images.pixels[row + 1])
    assert images.classes[row] == images.classes[row + 1]
    dataset.read_in_file_order(numbers)
    assert list(dataset.damage.faults) == [f"image {BAD:04x}"]
    assert dataset.damage.replaced == {row}
    assert dataset.damage.num_replaced == 0
    dataset.read(np.arange(NUM_IMAGES))
    dataset.read(np.arange(NUM_IMAGES))
    assert dataset.damage.num_replaced == 2  # in the data order each time
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["image 0007"]


def test_images_of_a_corrupt_chunk_count_once_each(broken, tmp_path, opened):
    """The second chunk of five images, and the bad image elsewhere."""
    folder = shutil.copytree(broken, tmp_path / "corrupt")
    content = bytearray((folder / "train-000000.tar").read_bytes())
    chunks = load_manifest(broken).splits["train"][0].chunks
    content[chunks.start[1] + 1000] ^= 255
    (folder / "train-000000.tar").write_bytes(content)
    dataset = opened(str(folder), recipe=EVERYTHING.plain_recipe(SIZE), corrupt_chunks="replace")
    dataset.read_in_file_order(np.arange(NUM_IMAGES))
    assert chunks.samples[1] == 5
    assert len(dataset.damage.replaced) == 5 + 1
    assert sorted(dataset.damage.faults) == ["chunk 1", f"image {BAD:04x}"]


def test_a_dataset_of_bad_images_alone(tmp_path, opened):
    dataset = opened(write_images(tmp_path, [b"bad"] * 4))
    with pytest.raises(ValueError, match="none of the 4 images of the split can be decoded"):
        dataset.read(np.arange(2))


def test_large_answers(opened):
    """Jobs larger than a socket holds, to and from more workers than one."""
    recipe = Recipe(size=32)
    pool = decoders.Decoders(recipe, num_workers=2)
    images = [encoded(n, "PNG") for n in range(50)] * 20
    pixels, faults = pool.decode(images, range(len(images)))
    pool.close()
    assert faults == {}
    for number in range(50):
        expected = render(images[number], recipe, key=0)
        assert (pixels[number::50] == expected).all()


def test_memory_is_used_again_when_nobody_sees_it():
    pool = decoders.Decoders(Recipe(size=SIZE), num_workers=1)
    images = [encoded(n) for n in range(8)]
    kept = [pool.decode(images, range(8))[0] for _ in range(3)]
    places = {one.ctypes.data for one in kept}
    assert len(places) == 3
    view = torch.from_numpy(kept.pop())[2:3]  # what a micro batch is
    held = view.clone()
    kept.clear()
    again = [pool.decode(images[::-1], range(8))[0] for _ in range(3)]
    assert len({one.ctypes.data for one in again} & places) == 2
    assert torch.equal(view, held)
    assert not np.array_equal(again[0][2], held[0].numpy())
    pool.close()


def test_memory_is_given_back_with_the_pool_and_its_last_batch():
    def open_files():
        found = set()
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # the folder's own
                if "memfd:pixels" in str(link.readlink()):
                    found.add(link.stat().st_ino)  # a mapping has a descriptor of its own
        return len(found)

    gc.collect()
    before = open_files()
    pool = SharedPixels()
    kept, gone = (pool.take((4, 8, 8, 3))[1] for _ in range(2))
    assert open_files() == before + 2
    del gone, pool
    kept[:] = 7
    assert (kept == 7).all()
    del kept
    assert open_files() == before


def test_a_worker_that_dies_costs_its_image_alone(monkeypatch, tmp_path):
    """A decoder that crashes on one image, in a real process."""
    killer = tmp_path / "killer.py"
    killer.write_text(
        "import os, signal\n"
        "from training.data import decoding_worker as worker\n"
        "plain = worker.Renderer.render\n"
        "def render(self, number, image, pixels):\n"
        "    pixels[:] = 7\n"
        "    if image == b'deadly':\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    plain(self, number, image, pixels)\n"
        "worker.Renderer.render = render\n"
        "worker.main()\n"
    )
    start = subprocess.Popen

    def starting(command, **options):
        return start([command[0], str(killer), *command[3:]], **options)

    monkeypatch.setattr(decoders.subprocess, "Popen", starting)
    pool = decoders.Decoders(Recipe(size=SIZE), num_workers=2)
    images = [encoded(n) for n in range(9)]
    images[4] = b"deadly"
    pixels, faults = pool.decode(images, range(9))
    pool.close()
    assert list(faults) == [4]
    assert not pixels[4].any()
    for number in {*range(9)} - {4}:
        assert np.array_equal(pixels[number], render(images[number], Recipe(size=SIZE), number))


def test_workers_end_with_a_killed_run_and_need_no_torch(tmp_path):
    code = (
        "import os, sys, time\n"
        "from training.augment.recipe import Recipe\n"
        "from training.data.decoders import Decoders\n"
        "pool = Decoders(Recipe(size=8), num_workers=1)\n"
        "pool.decode([b'x'], [0])\n"
        "print(pool._workers[0].process.pid, 'torch' in sys.modules, flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        pid, has_torch = run.stdout.readline().split()
        for number in (signal.SIGTERM, signal.SIGUSR1):  # launchers send it to all below a rank
            os.kill(int(pid), number)
        time.sleep(0.1)
        assert ") S" in _stat(pid)
        run.send_signal(signal.SIGKILL)
    assert has_torch == "False"
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:  # noqa: PTH110
        time.sleep(0.05)
        if f"{pid} (python) Z" in _stat(pid):
            break
    assert _stat(pid) == "" or ") Z" in _stat(pid)


def _stat(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read()
    except FileNotFoundError:
        return ""


def test_a_chunk_that_holds_something_else(path):
    content = (load_manifest(path), open(f"{path}/train-000000.tar", "rb").read())[1]  # noqa: PTH123, SIM115
    whole = content.rstrip(b"\0")
    whole = whole + b"\0" * (-len(whole) % 512)
    chunk = parse_images(whole, 20, 0)
    assert [chunk.key(n) for n in range(3)] == ["0000", "0002", "0004"]
    assert [bytes(one) for one in chunk.encoded(np.array([1, 0]))] == [encoded(2), encoded(0)]
    assert chunk.classes.tolist() == [n % 3 for n in range(0, 40, 2)]
    with pytest.raises(ValueError, match="holds 20 images, the manifest says 21"):
        parse_images(whole, 21, 0)


def test_origins_of_positions(path, opened):
    """Every image once in an epoch, under the shard that holds it."""
    dataset = opened(path)
    origins = dataset.origins(np.arange(len(dataset)))
    for number in range(2):
        keys = {f"{n:04x}" for n in range(number, len(dataset), 2)}
        assert origins[f"train-00000{number}.tar"] == dict.fromkeys(keys, [])
    few = dataset.origins(np.array([5, 5 + len(dataset)]))
    assert sum(map(len, few.values())) <= 2
