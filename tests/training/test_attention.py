"""`python -m training.attention` on a run."""

import io
import shutil

import numpy as np
import PIL.Image
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(cli, write_config, dataset_dir, tmp_path_factory):
    """A run whose dataset is gone."""
    folder, dataset = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("dataset") / "gone"
    shutil.copytree(dataset_dir, dataset)
    places = (f"run_dir={folder}", f"data.dataset_dir={dataset}")
    answer = cli("training", write_config(num_steps=1), *places)
    shutil.rmtree(dataset)
    assert answer["code"] == 0, answer
    return folder


def test_pictures_of_a_prompt(cli, run_dir, tmp_path):
    out = tmp_path / "deep/maps"
    answer = cli("training.attention", run_dir, "--prompt", "the mill", "--out", out, "--rollout")
    assert answer["code"] == 0, answer
    assert answer["stdout"] == f"7 pictures in {out}\n"
    names = sorted(path.name for path in out.iterdir())
    assert names == [
        "layer-01-head-01.png",
        "layer-01-head-02.png",
        "layer-01.png",
        "layer-02-head-01.png",
        "layer-02-head-02.png",
        "layer-02.png",
        "rollout.png",
    ]
    with PIL.Image.open(out / "layer-01-head-01.png") as picture:
        assert picture.mode == "RGB"
        assert min(picture.size) >= 8 * 14  # a token is a character, and 14 pixels


def test_without_out_a_folder_in_this_one_that_is_not_there(cli, run_dir, tmp_path):
    words = ("training.attention", run_dir, "--prompt", "the mill")
    answer = cli(*words, folder=tmp_path)
    assert (answer["code"], answer["stdout"]) == (0, "6 pictures in attention\n"), answer
    answer = cli(*words, folder=tmp_path)
    assert answer["code"] == 2
    assert "attention: is there already; --out names another place" in answer["stderr"]
    (tmp_path / "file").touch()
    answer = cli("training.attention", "no-run", "--prompt", "a", "--out", "file", folder=tmp_path)
    assert answer["code"] == 2
    assert answer["stderr"].endswith("--out file: is a file; name a folder\n")


@pytest.fixture(scope="module")
def image_run_dir(cli, write_image_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = write_image_config(
        {"name": "mae"}, "masked_autoencoding", run_dir=str(folder), num_steps=2
    )
    answer = cli("training", config)
    assert answer["code"] == 0, answer
    return folder


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image.png"
    PIL.Image.radial_gradient("L").save(path)
    return path


def test_pictures_of_an_image(cli, image_run_dir, image, tmp_path):
    out = tmp_path / "maps"
    answer = cli("training.attention", image_run_dir, image, "--out", out, "--rollout")
    assert answer["code"] == 0, answer
    names = sorted(path.stem for path in out.iterdir())
    assert names == ["layer-01", "layer-01-head-01", "layer-01-head-02", "rollout"]
    with PIL.Image.open(out / "layer-01-head-02.png") as picture:
        assert (picture.mode, picture.size) == ("RGB", (224, 224))
    with PIL.Image.open(out / "layer-01.png") as picture:
        assert picture.size == (2 * 224 + 4, 14 + 224)  # under their titles


def test_mistakes_of_a_run_on_images(cli, image_run_dir, image, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    for words, part in (
        ([], "is a run on images; give the path of one, no --prompt"),
        ([image, "--prompt", "the mill"], "is a run on images; give the path of one, no --prompt"),
        ([tmp_path / "missing.png"], "missing.png: no such file"),
        ([tmp_path], "no such file"),
        ([tmp_path / "bad.png"], "bad.png: UnidentifiedImageError"),
        ([image, "--max-pixels", "9"], "ValueError: 256 x 256 pixels; max_pixels=9"),
    ):
        answer = cli("training.attention", image_run_dir, *words, "--out", tmp_path / "maps")
        assert answer["code"] == 2, answer
        assert part in answer["stderr"].splitlines()[-1]
        assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--prompt", "the mill turns and turns"], "the prompt has 24 tokens, but the model was"),
        (["--prompt", "a", "--ema"], "holds no average of weights"),
        ([], "is a run on text; give a --prompt, and no image"),
        (["image.png", "--prompt", "a"], "is a run on text; give a --prompt, and no image"),
    ],
)
def test_mistakes_are_one_line(cli, run_dir, tmp_path, words, part):
    answer = cli("training.attention", run_dir, "--out", tmp_path / "maps", *words)
    assert answer["code"] == 2
    (line,) = answer["stderr"].splitlines()
    assert part in line
    assert not (tmp_path / "maps").exists()


def attention_pictures(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith("attention/")]
    return {
        tag: {e.step: decoded(e.encoded_image_string) for e in events.Images(tag)} for tag in tags
    }


def decoded(encoded):
    with PIL.Image.open(io.BytesIO(encoded)) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_pictures_while_an_image_run_goes_on(cli, write_image_config, tmp_path, zero_stage):
    """Those of the last step are those of the command on the last checkpoint."""
    config = write_image_config(
        {"name": "vit", "num_layers": 2},
        "image_classification",
        run_dir=str(tmp_path / "run"),
        num_steps=6,
        engine={"zero_stage": zero_stage, "precision": "fp32"},
        attention={"every_steps": 4},
    )
    assert cli("training", config)["code"] == 0
    found = attention_pictures(tmp_path / "run")
    assert {tag: list(steps) for tag, steps in found.items()} == dict.fromkeys(
        ("attention/layer-01", "attention/layer-02", "attention/rollout"), [4, 6]
    )
    first = first_validation_image(tmp_path / "first.png", config)
    words = [tmp_path / "run", first, "--out", tmp_path / "maps", "--rollout"]
    assert cli("training.attention", *words)["code"] == 0
    for tag, steps in found.items():
        with PIL.Image.open(tmp_path / f"maps/{tag.removeprefix('attention/')}.png") as picture:
            difference = np.asarray(picture, np.int64) - steps[6]
            assert np.abs(difference).max() <= 1


def first_validation_image(path, config):
    import yaml

    from training.image_files import find_images

    dataset_dir = yaml.safe_load(config.read_text())["data"]["dataset_dir"]
    listed = next(image for image in find_images([dataset_dir]) if image.split == "validation")
    path.write_bytes(listed.stored)
    return path


def test_pictures_while_a_text_run_goes_on(cli, write_config, tmp_path):
    config = write_config(num_steps=4, attention="{every_steps: 3}", samples="{every_steps: 0}")
    assert cli("training", config, f"run_dir={tmp_path}/run")["code"] == 0
    found = attention_pictures(tmp_path / "run")
    assert {tag: list(steps) for tag, steps in found.items()} == dict.fromkeys(
        ("attention/layer-01", "attention/layer-02", "attention/rollout"), [3, 4]
    )
    words = ["--prompt", "the mill turns a", "--out", tmp_path / "maps", "--rollout"]
    assert cli("training.attention", tmp_path / "run", *words)["code"] == 0
    for tag, steps in found.items():
        with PIL.Image.open(tmp_path / f"maps/{tag.removeprefix('attention/')}.png") as picture:
            difference = np.asarray(picture, np.int64) - steps[4]
            assert np.abs(difference).max() <= 1


def test_a_negative_number_is_refused():
    from training.hooks.attention import Config

    with pytest.raises(ValueError, match="every_steps must be 0 or more, found -1"):
        Config(every_steps=-1)
