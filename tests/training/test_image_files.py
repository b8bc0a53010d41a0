"""Images that users bring: which are found, by which names, and what comes of bad ones."""

import os
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from training.augment.config import Config as AugmentConfig
from training.augment.recipe import render
from training.image_files import decode_images, find_images

CONFIG = SimpleNamespace(
    augment=AugmentConfig(crop_ratio=0.5),
    model=SimpleNamespace(config=SimpleNamespace(image_size=8)),
    data=SimpleNamespace(num_loader_workers=1),
)


def paint(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    PIL.Image.fromarray(colours).save(path)
    return path


def test_a_folder_in_the_order_of_paths(tmp_path):
    for name in ("b/dog/2.png", "b/dog/1.JPG", "a.bmp", "b/cat/9.webp"):
        paint(tmp_path / name)
    (tmp_path / "b/notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    found = [(image.key, image.class_name) for image in find_images([str(tmp_path)])]
    assert found == [
        (f"{tmp_path}/a.bmp", None),
        (f"{tmp_path}/b/cat/9.webp", "cat"),
        (f"{tmp_path}/b/dog/1.JPG", "dog"),
        (f"{tmp_path}/b/dog/2.png", "dog"),
    ]


def test_a_dataset_sample_by_sample(image_dir):
    found = list(find_images([str(image_dir)]))
    assert [(image.key, image.split, image.class_name) for image in found] == [
        (f"{split}{n:02}", split, ("dark", "bright")[n % 2])
        for split, number in (("train", 48), ("validation", 16))
        for n in range(number)
    ]
    (decoded,) = decode_images(iter(found), CONFIG, micro_batch_size=64)
    bright = decoded.pixels.float().mean((1, 2, 3)) > 128
    assert bright.tolist() == [image.class_name == "bright" for image in found]


def test_files_come_as_given(tmp_path):
    paths = [str(paint(tmp_path / name)) for name in ("2.png", "1.png", "odd.name.png")]
    assert [image.key for image in find_images(paths)] == paths


def test_a_place_that_is_not_there_is_told_before_any_image(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing: no such file or folder"):
        find_images([str(paint(tmp_path / "1.png")), str(tmp_path / "missing")])


def test_a_dataset_of_text_is_refused(dataset_dir):
    with pytest.raises(ValueError, match="holds samples of kind text, expected images"):
        find_images([str(dataset_dir)])


def test_batches_as_in_validation_and_bad_images_beside_them(tmp_path):
    paths = [paint(tmp_path / f"{n}.png", seed=n) for n in range(7)]
    paths[2].write_bytes(b"no image")
    paths[5].write_bytes(b"")
    paths[6].unlink()
    os.mkfifo(tmp_path / "pipe.png")  # would never end
    listed = find_images([str(tmp_path), str(paths[0])])
    paths[6].symlink_to(tmp_path)
    batches = list(decode_images(listed, CONFIG, micro_batch_size=4))
    assert [[image.key for image in batch.images] for batch in batches] == [
        [str(paths[n]) for n in (0, 1, 3)],
        [str(paths[n]) for n in (4, 0)],
    ]
    (first,), (second,) = (batch.faults for batch in batches)
    assert first.startswith(f"{paths[2]}: UnidentifiedImageError")
    assert second == f"{paths[5]}: ValueError: no bytes"
    recipe = CONFIG.augment.plain_recipe(8)
    for batch in batches:
        assert batch.pixels.shape == (len(batch.images), 8, 8, 3)
        for image, pixels in zip(batch.images, batch.pixels, strict=True):
            expected = render(open(image.key, "rb").read(), recipe, key=0)  # noqa: PTH123, SIM115
            assert np.array_equal(pixels, expected)


def test_a_file_that_vanishes_is_a_bad_image(tmp_path):
    path = paint(tmp_path / "1.png")
    listed = find_images([str(path)])
    path.unlink()
    (batch,) = decode_images(listed, CONFIG, micro_batch_size=4)
    assert batch.images == []
    assert "No such file" in batch.faults[0]
