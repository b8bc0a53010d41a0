"""Runs on images from the command line: classification, masked autoencoding, one from another."""

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

pytestmark = pytest.mark.slow

VIT = {"name": "vit"}
MAE = {"name": "mae"}


@pytest.fixture
def train(cli, write_image_config, tmp_path):
    """Train in a folder; the answer of the command."""

    def run(model, task, *overrides, name="run", **sections):
        config = write_image_config(model, task, run_dir=str(tmp_path / name), **sections)
        return cli("training", config, *overrides)

    return run


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def pictures(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [e.step for e in events.Images(tag)] for tag in events.Tags()["images"]}


def shown(folder, tag):
    """The pixels of a picture at its last step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (*_, last) = EventAccumulator(str(folder)).Reload().Images(tag)
    with PIL.Image.open(io.BytesIO(last.encoded_image_string)) as picture:
        return np.asarray(picture).astype(int)


def stored(image_dir, split):
    from training.image_files import find_images

    encoded = [one.stored for one in find_images([str(image_dir)]) if one.split == split]
    return [np.asarray(PIL.Image.open(io.BytesIO(one))).astype(int) for one in encoded]


def test_pictures_show_what_the_task_learns_from(train, image_dir, tmp_path):
    """Of classification the train split, mirrored at random; else the validation split as it is."""
    small = {"num_steps": 2, "evaluation": {"every_steps": 0}}
    small["pictures"] = {"every_steps": 1, "num_images": 4}
    assert train(VIT, "image_classification", name="vit", **small)["code"] == 0
    picture, mirrored = shown(tmp_path / "vit", "images"), []
    for number, image in enumerate(stored(image_dir, "train")[:4]):
        y, x = 98 * (number // 2), 98 * (number % 2)
        tile = picture[y : y + 96 : 12, x : x + 96 : 12]
        mirrored.append(np.abs(tile - image[:, ::-1]).max() <= 1)
        assert mirrored[-1] or np.abs(tile - image).max() <= 1
    assert set(mirrored) == {True, False}
    assert train(MAE, "masked_autoencoding", name="mae", **small)["code"] == 0
    picture = shown(tmp_path / "mae", "reconstructions")[14:]
    for number, image in enumerate(stored(image_dir, "validation")[:4]):
        assert np.abs(picture[98 * number :, :96][:96:12, ::12] - image).max() <= 1


def test_classes_are_learned(train, tmp_path):
    answer = train(VIT, "image_classification", augment={"mixup_alpha": 0.2, "crop": "center"})
    assert answer["code"] == 0, answer
    found = rows(tmp_path / "run", "evaluation.jsonl")
    assert [row["step"] for row in found] == [6, 12]
    assert found[-1]["top1"] == 1.0
    assert found[-1]["num_targets"] == 16
    assert "images/s" in answer["stdout"]
    assert "top1 100.00%" in answer["stdout"]
    assert pictures(tmp_path / "run") == {"images": [6, 12], "validation/confusion": [6, 12]}


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_zero_stage(train, tmp_path, zero_stage, precision):
    engine = {"zero_stage": zero_stage, "precision": precision}
    for name, model, task in (
        ("vit", VIT, "image_classification"),
        ("mae", MAE, "masked_autoencoding"),
    ):
        answer = train(model, task, name=name, num_steps=6, engine=engine)
        assert answer["code"] == 0, answer
        same = train(model, task, name=f"{name}-1", num_steps=6)
        assert same["code"] == 0, same
        found, expected = (
            [row["loss"] for row in rows(tmp_path / one, "metrics.jsonl")]
            for one in (name, f"{name}-1")
        )
        assert found == pytest.approx(expected, rel=1e-5 if precision == "fp32" else 0.1)


def test_a_resumed_run_has_the_same_losses(train, tmp_path):
    augment = {"policy": "rand_augment", "cutmix_alpha": 1.0}
    model = VIT | {"stochastic_depth": 0.1, "dropout": 0.1, "num_layers": 2}
    assert train(model, "image_classification", augment=augment, name="whole")["code"] == 0
    half = train(model, "image_classification", "num_steps=12", augment=augment, name="half")
    assert half["code"] == 0
    shutil.rmtree(tmp_path / "half/checkpoints/step-00000012")
    again = train(model, "image_classification", augment=augment, name="half")
    assert "step 6, 96 samples seen" in again["stdout"]
    whole, resumed = (rows(tmp_path / name, "metrics.jsonl") for name in ("whole", "half"))
    assert whole == resumed


def test_a_classifier_begins_with_the_encoder_of_a_masked_autoencoder(train, tmp_path):
    assert train(MAE, "masked_autoencoding", name="mae")["code"] == 0
    assert pictures(tmp_path / "mae") == {"reconstructions": [6, 12]}
    losses = [row["loss"] for row in rows(tmp_path / "mae", "evaluation.jsonl")]
    assert losses[1] < losses[0]
    answer = train(VIT, "image_classification", f"init_from={tmp_path}/mae", name="vit")
    assert answer["code"] == 0, answer
    report = json.loads((tmp_path / "vit/init_from.json").read_text())
    assert sorted(report["missing"]) == ["head.bias", "head.weight"]
    assert all(name.startswith("decoder.") for name in report["unused"])
    assert "encoder.blocks.0.attention.query_key_value.weight" in report["loaded"]


@pytest.mark.parametrize(
    ("model", "task", "overrides", "message"),
    [
        (MAE, "image_classification", (), "needs a model that gives classes: vit"),
        (VIT, "image_classification", ("model.num_classes=1",), "the dataset has 2 classes"),
        (
            VIT,
            "image_classification",
            ("augment.mixup_alpha=1", "batch.micro_batch_size=1"),
            "mixup and CutMix mix pairs",
        ),
        (VIT, "image_classification", ("augment.magnitude=11",), "must be 0 to 10"),
        (
            MAE,
            "masked_autoencoding",
            ("augment.cutmix_alpha=1",),
            "task masked_autoencoding mixes no images: augment.mixup_alpha and augment.cut",
        ),
    ],
)
def test_refused(train, model, task, overrides, message):
    answer = train(model, task, *overrides)
    assert answer["code"] == 2
    (line,) = answer["stderr"].splitlines()
    assert message in line


def test_text_is_no_image_and_an_image_no_text(train, cli, dataset_dir, tmp_path):
    answer = train(VIT, "image_classification", f"data.dataset_dir={dataset_dir}")
    assert answer["code"] == 2
    assert "holds samples of kind text, expected images" in answer["stderr"]
    assert train(VIT, "image_classification", num_steps=2)["code"] == 0
    answer = cli("training.generate", tmp_path / "run")
    assert answer["code"] == 2
    assert "is a run of task image_classification, which writes no text" in answer["stderr"]


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_probe_of_any_task(train, tmp_path, zero_stage, scalars):
    """Dark and bright images are told apart by any features at all; the last batch is filled up."""
    for model, task in ((VIT, "image_classification"), (MAE, "masked_autoencoding")):
        probe = {"every_steps": 6, "num_neighbours": 5, "max_samples": 15}
        engine = {"zero_stage": zero_stage, "precision": "fp32"}
        answer = train(model, task, probe=probe, engine=engine, ema={"decay": 0.9}, name=task)
        assert answer["code"] == 0, answer
        folder = tmp_path / task
        assert rows(folder, "probe.jsonl") == [
            {"step": step, "neighbours_top1": 1.0, "linear_top1": 1.0, "num_samples": 15}
            for step in (0, 6, 12)
        ]
        assert scalars(folder)["probe/linear_top1"] == [(0, 1.0), (6, 1.0), (12, 1.0)]
        assert [row["step"] for row in rows(folder, "probe_ema.jsonl")] == [6, 12]
        assert "probe at step 12: nearest neighbours 100.00%" in answer["stdout"]
        assert "probe of averaged weights at step 12: nearest neighbours 100" in answer["stdout"]
        losses = [row["loss"] for row in rows(folder, "metrics.jsonl")]
        assert train(model, task, engine=engine, name="plain")["code"] == 0
        plain = [row["loss"] for row in rows(tmp_path / "plain", "metrics.jsonl")]
        assert losses == plain  # it changes nothing
        shutil.rmtree(tmp_path / "plain")


def test_damaged_images_are_counted_and_named(train, image_dir, tmp_path, scalars):
    """One image of 48, which three epochs come to three times; a run that continues goes on."""
    folder = shutil.copytree(image_dir, tmp_path / "damaged")
    content = (folder / "train-000000.tar").read_bytes()
    place = content.index(b"\x89PNG", content.index(b"train07.png"))
    content = content[:place] + b"none" + content[place + 4 :]
    write_again(folder, content)
    data = {"dataset_dir": str(folder), "num_lanes": 4, "num_loader_workers": 1}
    answer = train(VIT, "image_classification", num_steps=9, data=data, logging={"every_steps": 3})
    assert answer["code"] == 0, answer
    found = rows(tmp_path / "run", "damage.jsonl")
    assert list(found[0]["faults"]) == ["image train07"]
    assert "UnidentifiedImageError" in found[0]["faults"]["image train07"]
    assert all(row["faults"] == {} for row in found[1:])
    counts = [row["replaced_samples"] for row in found]
    assert counts == sorted(set(counts))
    assert 3 <= counts[-1] <= 3 + 2  # and what was read ahead
    assert (
        f"{counts[-1]} samples so far came in the place of 1 damaged images or chunks"
        in (answer["stdout"])
    )
    shown = scalars(tmp_path / "run")
    steps = [row["step"] for row in found]
    assert shown["data/replaced_samples"] == list(zip(steps, counts, strict=True))
    assert shown["data/damaged"] == [(step, 1.0) for step in steps]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_damaged_images_of_validation_are_told_once(
    write_image_config, environment, image_dir, tmp_path, num_ranks
):
    """Two of sixteen, one of them the last, which fills up the last batch."""
    folder = shutil.copytree(image_dir, tmp_path / "damaged")
    content = (folder / "validation-000000.tar").read_bytes()
    for name in (b"validation04.png", b"validation15.png"):
        place = content.index(b"\x89PNG", content.index(name))
        content = content[:place] + b"none" + content[place + 4 :]
    write_again(folder, content, split="validation")
    config = write_image_config(
        VIT,
        "image_classification",
        run_dir=str(tmp_path / "run"),
        data={"dataset_dir": str(folder), "num_lanes": 4, "num_loader_workers": 1},
        evaluation={"every_steps": 6, "micro_batch_size": 5},
        probe={"every_steps": 6, "num_neighbours": 5},
        logging={"every_steps": 3},
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
    answer = subprocess.run(
        [sys.executable, *launcher, "--module", "training", config],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    (row,) = rows(tmp_path / "run", "damage.jsonl")
    assert sorted(row.pop("faults")) == ["image validation04", "image validation15"]
    assert row == {"step": 3, "split": "validation", "replaced_samples": 2}
    assert [row["replaced"] for row in rows(tmp_path / "run", "evaluation.jsonl")] == [2, 2]
    told = "2 samples of validation so far came in the place of 2 damaged images or chunks"
    assert answer.stdout.count(told) == 1


def write_again(folder, content, *, split="train"):
    """The shard of a split with other bytes, and a manifest that says so."""
    import dataclasses
    import hashlib
    import zlib

    from pipeline.manifest import read_manifest, write_manifest

    manifest = read_manifest(folder)
    (shard,) = manifest.splits[split]
    (folder / shard.name).write_bytes(content)
    spans = zip(shard.chunks.start, shard.chunks.stop, strict=True)
    crc32 = tuple(zlib.crc32(content[start:stop]) for start, stop in spans)
    again = dataclasses.replace(
        shard,
        sha256=hashlib.sha256(content).hexdigest(),
        chunks=dataclasses.replace(shard.chunks, crc32=crc32),
    )
    splits = {**manifest.splits, split: (again,)}
    write_manifest(dataclasses.replace(manifest, splits=splits), folder)
