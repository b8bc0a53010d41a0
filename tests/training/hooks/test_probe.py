"""The probe's hook: rows, lines, what it leaves out, the same on two ranks as on one."""

import contextlib

import pytest
import torch

from training import distributed
from training.events import EventFile
from training.hooks.probe import Config, ProbeHook


class FakeEngine:
    device = torch.device("cpu")

    def __init__(self):
        self.deepspeed = torch.nn.Linear(1, 1)
        self.is_averaged = False

    @contextlib.contextmanager
    def averaged(self):
        self.is_averaged = True
        yield
        self.is_averaged = False

    def to_device(self, batch):
        return batch


def batches(seed, *, number=64, micro_batch_size=8, distance=8.0):
    """Images whose pixels are their features, in four classes; the last four are padding."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(4, (number,), generator=generator)
    pixels = distance * torch.eye(6)[classes] + torch.randn(number, 6, generator=generator)
    weights = torch.ones(number)
    weights[-4:] = 0
    pixels[-4:] = torch.nan
    rows = {"pixels": pixels, "classes": classes, "weights": weights}
    return [
        {name: tensor[start : start + micro_batch_size] for name, tensor in rows.items()}
        for start in range(0, number, micro_batch_size)
    ]


@pytest.fixture
def build(tmp_path):
    def hook_of(train, validation, events=None, *, averaged=False, **changes):
        engine = FakeEngine()
        return ProbeHook(
            engine,
            train,
            validation,
            events,
            Config(every_steps=2, **changes),
            # the average tells nothing, the weights tell pixels
            embed=lambda batch: (
                torch.zeros_like(batch["pixels"]) if engine.is_averaged else batch["pixels"]
            ),
            run_dir=tmp_path,
            averaged=averaged,
        )

    return hook_of


def test_rows_lines_and_tensorboard(build, info_of, scalars, tmp_path, capsys):
    hook = build(batches(0), batches(1), EventFile(tmp_path, first_step=1))
    assert hook.every_n_steps == 2
    hook.on_step(info_of(2))
    row = {"step": 2, "neighbours_top1": 1.0, "linear_top1": 1.0, "num_samples": 60}
    assert hook.log.rows() == [row]
    assert scalars(tmp_path) == {
        "probe/neighbours_top1": [(2, 1.0)],
        "probe/linear_top1": [(2, 1.0)],
    }
    line = capsys.readouterr().out
    assert line.startswith(
        "probe at step 2: nearest neighbours 100.00%, linear 100.00% of 60 images, by 60 in "
    )
    assert hook.engine.deepspeed.training


def test_the_average_of_the_weights(build, info_of, state_of, scalars, tmp_path, capsys):
    """Other features, under other names; a new run's average is not probed."""
    train, validation = batches(0), batches(1)
    hook = build(train, validation, EventFile(tmp_path, first_step=1), averaged=True)
    hook.on_start(state_of(0))
    hook.on_step(info_of(2))
    classes = torch.cat([batch["classes"] for batch in validation])[:-4]
    (row,) = hook.log.rows()
    assert row["num_samples"] == 60
    shares = [(classes == n).double().mean().item() for n in range(4)]
    assert row["neighbours_top1"] in shares and row["linear_top1"] in shares  # one class for all
    assert hook.log.path.name == "probe_ema.jsonl"
    assert scalars(tmp_path) == {
        f"probe_ema/{name}": [(2, pytest.approx(row[name]))]
        for name in ("neighbours_top1", "linear_top1")
    }
    assert capsys.readouterr().out.startswith("probe of averaged weights at step 2: nearest ")
    assert not hook.engine.is_averaged


def test_images_without_a_class_are_left_out(build, info_of):
    train, validation = batches(0), batches(1)
    validation[0]["classes"][:] = -1
    hook = build(train, validation)
    hook.on_step(info_of(2))
    assert [row["num_samples"] for row in hook.log.rows()] == [52]


@pytest.mark.parametrize("fault", ["classes", "features"])
def test_nothing_to_probe_is_told(build, info_of, capsys, fault):
    train, validation = batches(0), batches(1)
    for batch in train:
        if fault == "classes":
            batch["classes"][:] = -1
        else:
            batch["pixels"][0] = torch.inf
    hook = build(train, validation)
    hook.on_step(info_of(2))
    assert hook.log.rows() == []
    assert capsys.readouterr().out.startswith("no probe at step 2: no image has a class, or ")


def test_two_ranks_put_their_shares_in_order(build, monkeypatch):
    """Micro batches of the split go to the ranks in turn."""
    train = batches(0)
    whole = build(train, [])._features(train)
    others = iter([train[1::2]])

    def gather(parts):
        other = next(others)
        return [parts, [(b["pixels"], b["classes"], b["weights"]) for b in other]]

    monkeypatch.setattr(distributed, "gather", gather)
    both = build(train[::2], [])._features(train[::2])
    for ours, theirs in zip(both, whole, strict=True):
        assert torch.equal(ours, theirs)


def test_a_new_run_probes_its_first_weights(build, state_of):
    hook = build(batches(0), batches(1))
    hook.on_start(state_of(0))
    assert [row["step"] for row in hook.log.rows()] == [0]


def test_a_resumed_run_drops_what_it_does_again(build, info_of, state_of):
    hook = build(batches(0), batches(1))
    for step in (2, 4):
        hook.on_step(info_of(step))
    hook.on_start(state_of(3))
    assert [row["step"] for row in hook.log.rows()] == [2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every_steps": -1}, "every_steps must be 0 or more, found -1"),
        ({"max_samples": -1}, "max_samples must be 0 or more, found -1"),
        ({"num_neighbours": 0}, "num_neighbours must be 1 or more, found 0"),
        ({"temperature": 0.0}, "temperature must be above 0, found 0.0"),
        ({"weight_decay": float("nan")}, "weight_decay must be above 0, found nan"),
    ],
)
def test_numbers_without_a_meaning(changes, message):
    with pytest.raises(ValueError, match=message):
        Config(**changes)
