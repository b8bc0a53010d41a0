"""The schema of a run, and the runs that the project carries."""

from pathlib import Path

import pytest

import configs
from training.batch_size import accumulation_steps
from training.config import TrainingConfig
from training.models.transformer import num_parameters

ROOT = Path(__file__).parent.parent.parent
YAMLS = sorted((ROOT / "configs/training").glob("*.yaml"))

each_yaml = pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)


def test_there_are_runs():
    assert {"tiny_shakespeare", "gpt2_124m", "llama_10m"} <= {path.stem for path in YAMLS}


@each_yaml
def test_every_yaml_loads_and_is_a_run(path):
    config = configs.load(TrainingConfig, path)
    assert accumulation_steps(
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        world_size=1,
    )
    assert configs.load(TrainingConfig, None, _dotlist(configs.to_dict(config))) == config


@each_yaml
def test_every_yaml_opens_with_its_command(path):
    header = path.read_text().split("\nrun_dir:")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    assert f"configs/training/{path.name}" in header
    assert "Batch:" in header


@pytest.mark.parametrize(("stem", "millions"), [("gpt2_124m", 124), ("llama_10m", 10)])
def test_names_tell_the_size(stem, millions):
    config = configs.load(TrainingConfig, ROOT / f"configs/training/{stem}.yaml")
    assert num_parameters(config.model.config) / 1e6 == pytest.approx(millions, rel=0.06)


def test_a_run_without_steps(write_config):
    with pytest.raises(configs.ConfigError, match="num_steps must be at least 1, found 0"):
        configs.load(TrainingConfig, write_config(), ["run_dir=x", "num_steps=0"])


def test_a_model_that_gives_something_else(write_config):
    model = {"name": "vit", "num_classes": 3}
    message = (
        "model.name is vit, which gives classes, but task.name causal_lm needs .*: transformer$"
    )
    with pytest.raises(configs.ConfigError, match=message):
        configs.load(TrainingConfig, write_config(model=model), ["run_dir=x"])


def test_padding_that_shifts_images_out_of_sight(write_image_config):
    config = write_image_config({"name": "vit"}, "image_classification")
    words = ["run_dir=x", "augment.crop=random_padded"]
    configs.load(TrainingConfig, config, [*words, "augment.padding=7"])
    configs.load(TrainingConfig, config, ["run_dir=x", "augment.padding=8"])  # of another crop
    message = "augment.padding is 8, by which images of model.image_size 8 are .* at most 7$"
    with pytest.raises(configs.ConfigError, match=message):
        configs.load(TrainingConfig, config, [*words, "augment.padding=8"])


def _dotlist(tree, prefix=""):
    words = []
    for key, value in tree.items():
        if isinstance(value, dict):
            words += _dotlist(value, f"{prefix}{key}.")
        else:
            words.append(f"{prefix}{key}={'null' if value is None else _yaml(value)}")
    return words


def _yaml(value):
    return f"'{value}'" if isinstance(value, str) else value
