"""The average of weights: its numbers, its config, and runs that keep one.

The engine's tests compare it at every ZeRO stage.
"""

import json
import shutil

import pytest
import torch

from training.ema import Average, Config, load_parts


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_an_average_that_never_moves_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay is {decay}; it must be at least 0 and below 1"):
        Config(decay=decay)


def test_it_is_that_of_the_formula_from_the_early_steps_to_the_late():
    weight = torch.full((3,), 7.0)
    average = Average({"w": weight}, decay=0.9)
    expected = 7.0
    generator = torch.Generator().manual_seed(0)
    for step in range(120):  # from step 81 on, (1 + step) / (10 + step) is above 0.9
        weight = torch.rand(1, generator=generator).expand(3)
        average.update({"w": weight})
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight[0].item()
        assert average.means["w"].tolist() == pytest.approx([expected] * 3, rel=1e-5)


def test_what_is_saved_is_loaded_bitwise(tmp_path):
    weights = {"a": torch.randn(5), "b": torch.randn(2, 3)}
    average = Average(weights, decay=0.5)
    average.update({name: weight + 1 for name, weight in weights.items()})
    path = tmp_path / "ema-00000.pt"
    torch.save(average.state_dict(), path)
    other = Average(weights, decay=0.5)
    other.load(path, weights)
    assert other.num_updates == 1
    (part,) = load_parts(tmp_path)
    for name, mean in average.means.items():
        assert torch.equal(other.means[name], mean)
        assert torch.equal(part[name], mean)
    other.load(tmp_path / "none.pt", weights)  # of a run that had no average so far
    assert other.num_updates == 0
    assert all(torch.equal(other.means[name], weight) for name, weight in weights.items())


@pytest.fixture(scope="module")
def train(cli, write_config, tmp_path_factory):
    """Train with an average of decay 0.9; the run's folder and the answer."""

    def run(*overrides, folder=None):
        folder = folder or tmp_path_factory.mktemp("runs") / "run"
        answer = cli("training", write_config(ema="{decay: 0.9}"), f"run_dir={folder}", *overrides)
        assert answer["code"] == 0, answer
        return folder, answer

    return run


@pytest.fixture(scope="module")
def run_dir(train):
    return train()[0]


def rows(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.slow
def test_evaluation_looks_at_both(train, scalars):
    folder, answer = train()
    plain, averaged = (rows(folder, f"evaluation{end}.jsonl") for end in ("", "_ema"))
    assert [row["step"] for row in plain] == [row["step"] for row in averaged] == [3, 6]
    assert plain[0].keys() == averaged[0].keys()
    assert plain[1]["loss"] != averaged[1]["loss"]
    lines = answer["stdout"].splitlines()
    starts = [line.split(": ")[0] for line in lines if line.startswith("validation")]
    assert starts == [
        "validation at step 3",
        "validation of averaged weights at step 3",
        "validation at step 6",
        "validation of averaged weights at step 6",
    ]
    shown = scalars(folder)
    assert shown["validation_ema/loss"] == [
        (row["step"], pytest.approx(row["loss"])) for row in averaged
    ]


@pytest.mark.slow
def test_it_changes_nothing_in_training(train, run_dir):
    without, _ = train("ema.decay=0")
    assert rows(without, "metrics.jsonl") == rows(run_dir, "metrics.jsonl")
    assert not (without / "evaluation_ema.jsonl").exists()
    assert not list(without.rglob("ema-*.pt"))


@pytest.mark.slow
def test_a_resumed_run_has_the_same(train, run_dir, tmp_path):
    folder = shutil.copytree(run_dir, tmp_path / "copy")
    shutil.rmtree(folder / "checkpoints/step-00000006")
    train(folder=folder)
    for name in ("evaluation_ema.jsonl", "metrics.jsonl"):
        assert rows(folder, name) == rows(run_dir, name)
    ours, theirs = (load_parts(f / "checkpoints/step-00000006") for f in (folder, run_dir))
    for name, mean in ours[0].items():
        assert torch.equal(mean, theirs[0][name])


@pytest.mark.slow
def test_a_run_that_had_none_begins_one_where_it_continues(train, tmp_path):
    folder, _ = train("ema.decay=0", "num_steps=4")
    train("num_steps=6", folder=folder)
    (part,) = load_parts(folder / "checkpoints/step-00000006")
    assert part.keys() >= {"0"}
    path = folder / "checkpoints/step-00000006/ema-00000.pt"
    assert torch.load(path, weights_only=True)["num_updates"] == 2


@pytest.mark.slow
def test_text_of_the_averaged_weights(cli, train, run_dir):
    words = ("--prompt", "the mill", "--num-tokens", "600", "--temperature", "2")
    plain, averaged = (cli("training.generate", run_dir, *words, *ema) for ema in ([], ["--ema"]))
    assert plain["code"] == averaged["code"] == 0, averaged
    assert plain["stdout"] != averaged["stdout"]
    without, _ = train("ema.decay=0", "num_steps=1")
    answer = cli("training.generate", without, "--ema")
    assert answer["code"] == 2
    assert answer["stderr"].endswith("holds no average of weights; the run had ema.decay=0\n")
