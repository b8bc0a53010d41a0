"""Weights of another run: matched by name and shape, reported, the same at every ZeRO stage."""

import dataclasses
import hashlib
import json
import shutil

import pytest
import torch

from pipeline.manifest import read_manifest, write_manifest
from training.engine import load_weights
from training.huggingface.seen_images import read_classes
from training.initial_weights import _other_classes, adapt, match_weights
from training.models import mae, vit

SIZES = {"image_size": 16, "patch_size": 4, "d_model": 16, "num_layers": 2, "num_heads": 2}


def shapes(**sizes):
    return {name.replace("_", "."): torch.Size(size) for name, size in sizes.items()}


def test_every_weight_is_accounted_for():
    own = shapes(body_a=(2, 3), body_b=(4,), head_a=(5, 2), head_b=(5,), new=(1,))
    found = shapes(body_a=(2, 3), body_b=(4,), head_a=(9, 2), head_b=(5,), old=(7,))
    report = match_weights(own, found, skip=["*.b"])
    assert report.loaded == ("body.a",)
    assert report.missing == {
        "body.b": "skipped",
        "head.a": "9 x 2 there, 5 x 2 here",
        "head.b": "skipped",
        "new": "not there",
    }
    assert report.unused == ("old",)


@pytest.mark.parametrize(
    ("own", "found", "skip", "message"),
    [
        ({"a": (2,)}, {"a": (3,)}, [], "^a is 3 there, 2 here; make the models alike, or let"),
        ({"a": ()}, {"a": (3, 1)}, [], "^a is 3 x 1 there, a number here"),
        ({"header": (2,)}, {"header": (3,)}, [], "^header is 3 there"),
        ({"a": (2,)}, {"b": (2,)}, [], "no weight of it fits: it has b, and this model has a"),
        ({"a": (2,)}, {"a": (2,)}, ["b*"], r"init_skip: no weight of this model is named b\*"),
        ({"a": (2,)}, {"a": (2,)}, ["a"], "no weight of it fits"),
        (
            {f"n{i}": (2,) for i in range(7)},
            {f"n{i}": (3,) for i in range(7)},
            [],
            "n3 is 3 there, 2 here; 3 more; make",
        ),
    ],
)
def test_refused(own, found, skip, message):
    with pytest.raises(ValueError, match=message):
        match_weights(shapes(**own), shapes(**found), skip=skip)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("image_size", [16, 24])
def test_a_vit_takes_the_encoder_of_a_masked_autoencoder(image_size, class_token):
    """Of learned positions, which stretch; with fixed waves there is nothing to stretch."""
    torch.manual_seed(0)
    shape = SIZES | {"positions": "learned", "pooling": "mean", "class_token": class_token}
    parts = {"decoder_d_model": 8, "decoder_num_layers": 1, "decoder_num_heads": 2}
    autoencoder = mae.Model(mae.Config(**shape, **parts))
    config = vit.Config(**(shape | {"image_size": image_size}), num_classes=5)
    classifier = vit.Model(config)
    found = adapt(vit, autoencoder.state_dict(), config)
    report = match_weights(
        {name: tensor.shape for name, tensor in classifier.state_dict().items()},
        {name: tensor.shape for name, tensor in found.items()},
        skip=[],
    )
    assert set(report.missing) == {"head.weight", "head.bias"}
    assert all(name.startswith("decoder.") for name in report.unused)
    classifier.load_state_dict({name: found[name] for name in report.loaded}, strict=False)
    pixels = torch.randn(2, 3, 24, 24)  # the autoencoder stretches its positions in its forward
    expected = autoencoder.eval().embed(pixels)
    torch.testing.assert_close(classifier.eval().embed(pixels), expected)


@pytest.fixture(scope="module")
def run_dir(cli, write_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    answer = cli("training", write_config(num_steps=3), f"run_dir={folder}")
    assert answer["code"] == 0, answer
    return folder


@pytest.fixture
def start(cli, write_config, run_dir, tmp_path):
    """A run of one step of next to no learning rate from the weights of the first."""

    def run(*overrides, source=run_dir, **sections):
        small = {"num_steps": 1, "optimizer": "{peak_learning_rate: 1.0e-30}"}
        words = [f"run_dir={tmp_path}/second", f"init_from={source}", *overrides]
        return cli("training", write_config(**(small | sections)), *words)

    return run


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_run_starts_with_the_weights_of_another(start, run_dir, tmp_path, stage, precision):
    answer = start(
        engine=f"{{zero_stage: {stage}, precision: {precision}}}", seed=7, checkpoints="{keep: 2}"
    )
    assert answer["code"] == 0, answer
    source, second = run_dir / "checkpoints/step-00000003", tmp_path / "second"
    line = f"initial weights of {source}: 29 loaded, 7,360 of 7,360 parameters; all names in "
    assert f"{line}{second}/init_from.json\n" in answer["stdout"]
    before, after = (load_weights(f) for f in (source, second / "checkpoints/step-00000001"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        rounded = tensor.bfloat16().float() if precision == "bf16" and stage else tensor
        assert torch.equal(after[name], rounded), name
    (loss,) = [row["loss"] for row in rows(second, "evaluation.jsonl")]
    last = rows(run_dir, "evaluation.jsonl")[-1]["loss"]
    assert loss == pytest.approx(last, abs=1e-6 if precision == "fp32" else 5e-3)
    report = json.loads((second / "init_from.json").read_text())
    assert report["init_from"] == str(source)
    assert sorted(report["loaded"]) == sorted(before)
    assert report["missing"] == {}
    assert report["unused"] == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 3])
def test_a_run_starts_with_the_average_of_another(cli, write_config, start, tmp_path, stage):
    engine, source = f"{{zero_stage: {stage}, precision: fp32}}", tmp_path / "source"
    config = write_config(num_steps=6, engine=engine, ema="{decay: 0.8}")
    assert cli("training", config, f"run_dir={source}")["code"] == 0
    answer = start("init_ema=true", source=source)
    assert answer["code"] == 0, answer
    folder = source / "checkpoints/step-00000006"
    assert f"initial weights of the average in {folder}: 29 loaded, " in answer["stdout"]
    last, average = (load_weights(folder, averaged=averaged) for averaged in (False, True))
    after = load_weights(tmp_path / "second/checkpoints/step-00000001")
    assert after.keys() == average.keys()
    for name, tensor in average.items():
        assert torch.equal(after[name], tensor), name
    assert not any(torch.equal(last[name], average[name]) for name in last)
    assert json.loads((tmp_path / "second/init_from.json").read_text())["init_ema"] is True


@pytest.mark.slow
def test_a_run_that_continues_keeps_its_own_weights(start, run_dir, tmp_path):
    source = shutil.copytree(run_dir, tmp_path / "source")
    assert start(source=source)["code"] == 0
    shutil.rmtree(source)
    answer = start(source=source, num_steps=2)
    assert answer["code"] == 0, answer
    assert "resumed from " in answer["stdout"]
    assert "initial weights" not in answer["stdout"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            ["init_from=/nowhere"],
            "/nowhere: no complete checkpoint; give a run folder or a checkpoint, or a Hugging",
        ),
        (["model.d_model=32"], "embedding.weight is 32 x 16 there, 32 x 32 here; "),
        (["init_skip=[nothing]"], "init_skip: no weight of this model is named nothing"),
        (["init_from=''", "init_skip=[a]"], "init_skip names weights of init_from, which is empty"),
        (["init_from=''", "init_ema=true"], "init_ema takes the average of init_from, which is"),
        (["init_ema=true"], "holds no average of weights; the run had ema.decay=0"),
    ],
)
def test_mistakes_are_one_line(start, tmp_path, overrides, part):
    answer = start(*overrides)
    assert answer["code"] == 2
    (line,) = answer["stderr"].splitlines()
    assert part in line
    assert not (tmp_path / "second/config.yaml").exists()


@pytest.mark.slow
def test_what_starts_anew_is_told(start, run_dir):
    """A deeper model, with other positions."""
    answer = start("model.num_layers=3", "model.positions=sinusoidal", "init_skip=[blocks.1.*]")
    assert answer["code"] == 0, answer
    line, *others = [row for row in answer["stdout"].splitlines() if row.startswith("initial")]
    assert [row.split(": ")[1] for row in others] == [
        "model.num_layers is 2 there, 3 here",
        "model.positions is learned there, sinusoidal here",
    ]
    assert ": 16 loaded, 3,824 of " in line
    assert "; 24 start anew: blocks.1.attention_norm.weight (skipped), " in line
    assert ", 20 more; 1 of them unused: positions.table.weight; all names in " in line


@pytest.mark.slow
def test_what_shapes_do_not_show_is_told(start, run_dir):
    answer = start("model.num_heads=1")
    assert answer["code"] == 0, answer
    source = run_dir / "checkpoints/step-00000003"
    assert f"initial weights of {source}: model.num_heads is 2 there, 1 here\n" in answer["stdout"]


@pytest.mark.slow
def test_another_tokenizer_is_told(start, run_dir, dataset_dir, tmp_path):
    other = shutil.copytree(dataset_dir, tmp_path / "other")
    tree = json.loads((other / "tokenizer.json").read_text())
    words = tree["model"]["vocab"]
    words["m"], words["w"] = words["w"], words["m"]
    content = json.dumps(tree).encode()
    (other / "tokenizer.json").write_bytes(content)
    manifest = read_manifest(other)
    described = dataclasses.replace(manifest.tokenizer, sha256=hashlib.sha256(content).hexdigest())
    write_manifest(dataclasses.replace(manifest, tokenizer=described), other)
    answer = start(f"data.dataset_dir={other}")
    assert answer["code"] == 0, answer
    first, now = ("m", "w") if words["w"] < words["m"] else ("w", "m")
    line = f"its tokenizer is not the dataset's: token {words[now]} is {first!r} there, {now!r} in "
    assert line in answer["stdout"]


@pytest.mark.slow
def test_a_head_of_other_classes_is_told(cli, write_image_config, image_dir, tmp_path):
    other = shutil.copytree(image_dir, tmp_path / "other")
    manifest = read_manifest(other)
    write_manifest(dataclasses.replace(manifest, classes=("dark", "loud")), other)
    small = {"num_steps": 2, "evaluation": {"every_steps": 0}, "pictures": {"every_steps": 0}}
    config = write_image_config({"name": "vit"}, "image_classification", **small)
    source = tmp_path / "first"
    assert cli("training", config, f"run_dir={source}")["code"] == 0

    def heads_told(name, *words):
        answer = cli(
            "training", config, f"run_dir={tmp_path / name}", f"init_from={source}", *words
        )
        assert answer["code"] == 0, answer
        return [line for line in answer["stdout"].splitlines() if "its head is" in line]

    elsewhere = f"data.dataset_dir={other}"
    folder = source / "checkpoints/step-00000002"
    assert heads_told("second", elsewhere) == [
        f"initial weights of {folder}: its head is of other classes: "
        "'bright' there, 'loud' in the dataset"
    ]
    assert heads_told("same") == []
    assert heads_told("anew", elsewhere, "init_skip=[head.*]") == []
    (source / "dataset.json").write_text("{")
    answer = cli(
        "training", config, f"run_dir={tmp_path / 'half'}", f"init_from={source}", elsewhere
    )
    assert answer["code"] == 0, answer
    assert f"what it learned from is not known: {source}/dataset.json: damaged" in answer["stdout"]


@pytest.mark.slow
def test_other_classes_and_pixels_of_a_run_and_of_what_it_exports(
    cli, write_image_config, image_dir, tmp_path
):
    other = shutil.copytree(image_dir, tmp_path / "other")
    manifest = read_manifest(other)
    write_manifest(dataclasses.replace(manifest, classes=("dark", "loud")), other)
    small = {"num_steps": 2, "evaluation": {"every_steps": 0}, "pictures": {"every_steps": 0}}
    config = write_image_config({"name": "vit"}, "image_classification", **small)
    source, exported = tmp_path / "first", tmp_path / "exported"
    assert cli("training", config, f"run_dir={source}")["code"] == 0
    assert cli("training.export", source, exported, "--format", "huggingface")["code"] == 0
    elsewhere = (f"data.dataset_dir={other}", "augment.mean=[0.5,0.5,0.5]")
    for number, (folder, words, is_told) in enumerate(
        [(source, elsewhere, True), (exported, elsewhere, True), (exported, (), False)]
    ):
        run = f"run_dir={tmp_path / str(number)}"
        answer = cli("training", config, run, f"init_from={folder}", *words)
        assert answer["code"] == 0, answer
        for told in (
            "its head is of other classes: 'bright' there, 'loud' in the dataset",
            "augment.mean is [0.485, 0.456, 0.406] there, [0.5, 0.5, 0.5] here",
        ):
            assert (told in answer["stdout"]) == is_told
        assert "augment.std is" not in answer["stdout"]


def test_labels_that_nobody_gave_are_none(tmp_path):
    assert read_classes(tmp_path) == ()
    for labels, names in (
        ({"0": "LABEL_0", "1": "LABEL_1"}, ()),
        ({"0": "cat", "1": "dog", "2": "class 2"}, ("cat", "dog")),
        (["cat"], ()),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
        assert read_classes(tmp_path) == names


def test_the_first_few_classes_that_differ():
    theirs = ["same", *map(str, range(6))]
    assert _other_classes(theirs, ["same", "a", "1", "c"]) == (
        "'0', '2', '3', '4', 1 more there, 'a', 'c', nothing, nothing, 1 more in the dataset"
    )
