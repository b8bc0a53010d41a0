"""`python -m training`: help, dry run, training, resuming, and the errors of its users.

`cli` runs the command lines in one warm process; one test takes a real one.
"""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

import configs
from training.config import TrainingConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run_dir(cli, write_config, tmp_path_factory):
    """A run of six steps with checkpoints at 4 and 6; tests take copies."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    answer = cli("training", write_config(), f"run_dir={folder}")
    assert answer["code"] == 0, answer
    return folder


@pytest.fixture
def copy(run_dir, tmp_path):
    return shutil.copytree(run_dir, tmp_path / "copy")


@pytest.fixture
def train(cli, write_config, tmp_path):
    """Train with overrides; the answer of the command."""

    def run(*overrides, **sections):
        words = [word for word in overrides if not word.startswith("run_dir=")]
        folder = [word for word in overrides if word.startswith("run_dir=")]
        return cli(
            "training", write_config(**sections), *(folder or [f"run_dir={tmp_path}/run"]), *words
        )

    return run


def assert_one_line(answer, *parts, code=2):
    assert answer["code"] == code, answer
    (line,) = answer["stderr"].splitlines()
    for part in parts:
        assert part in line


def rows(folder, name="metrics.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def fields_of(schema, prefix=""):
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type) and "plugin" not in field.metadata:
            yield from fields_of(field.type, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def test_help_lists_every_field(cli):
    answer = cli("training", "--help")
    assert answer["code"] == 0
    for key in fields_of(TrainingConfig):
        assert key in answer["stdout"], key
    for key in ("model.d_model", "task.chunk_tokens", "deepspeed --module training CONFIG"):
        assert key in answer["stdout"], key
    assert answer["stderr"] == ""


def test_dry_run_prints_the_resolved_config_and_does_nothing(train, tmp_path):
    answer = train("--dry-run", "seed=5")
    assert answer["code"] == 0
    tree = yaml.safe_load(answer["stdout"])
    assert tree["seed"] == 5
    assert tree["model"]["d_ff"] == 64  # 4 x d_model
    assert not (tmp_path / "run").exists()
    (tmp_path / "again.yaml").write_text(answer["stdout"])
    assert (
        configs.to_yaml(configs.load(TrainingConfig, tmp_path / "again.yaml")) == answer["stdout"]
    )


def test_a_run_leaves_what_it_promises(run_dir):
    assert [row["step"] for row in rows(run_dir)] == [1, 2, 3, 4, 5, 6]
    assert [row["samples_seen"] for row in rows(run_dir)] == [4, 8, 12, 16, 20, 24]
    assert {row["num_targets"] for row in rows(run_dir)} == {64}
    assert [row["step"] for row in rows(run_dir, "evaluation.jsonl")] == [3, 6]
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["latest", "step-00000004", "step-00000006"]
    assert list(run_dir.glob("events.out.tfevents.*"))
    config = configs.load(TrainingConfig, run_dir / "config.yaml")
    assert config.run_dir == str(run_dir)
    checkpointed = run_dir / "checkpoints/step-00000006/config.yaml"
    assert checkpointed.read_text() == (run_dir / "config.yaml").read_text()


def test_a_finished_run_does_nothing(train, copy):
    before = rows(copy)
    answer = train(f"run_dir={copy}")
    assert answer["code"] == 0
    assert (
        f"resumed from {copy}/checkpoints/step-00000006: step 6, 24 samples seen"
        in answer["stdout"]
    )
    assert "changed since" not in answer["stdout"]
    assert rows(copy) == before


def test_what_a_run_changes_on_its_way_is_told(train, copy):
    answer = train(
        f"run_dir={copy}", "num_steps=7", "optimizer.weight_decay=0.25", "anomalies.sigmas=7"
    )
    assert answer["code"] == 0, answer
    (told,) = [line for line in answer["stdout"].splitlines() if line.startswith("changed since ")]
    told = told.removeprefix("changed since that checkpoint: ").split(", ")
    assert told[0] == "num_steps 6 -> 7"
    assert told[1].startswith("optimizer.weight_decay ")
    assert told[1].endswith(" -> 0.25")
    assert len(told) == 2


@pytest.mark.parametrize("damage", ["cut", "missing summary"])
def test_the_checkpoint_before_a_damaged_one_gives_the_same_run(train, copy, run_dir, damage):
    newest = copy / "checkpoints/step-00000006"
    path = newest / ("rank-00000.pt" if damage == "cut" else "checkpoint.json")
    path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    answer = train(f"run_dir={copy}")
    assert answer["code"] == 0, answer
    assert f"{newest}: damaged, passed over: {path.name}" in answer["stdout"]
    assert f"resumed from {copy}/checkpoints/step-00000004" in answer["stdout"]
    assert rows(copy) == rows(run_dir)  # bitwise, with dropout
    assert rows(copy, "evaluation.jsonl") == rows(run_dir, "evaluation.jsonl")


def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(cli, write_config, copy, run_dir):
    shutil.rmtree(copy / "checkpoints/step-00000006")
    # The optimizer's file has 60 kB: 7,360 parameters and their moments, 4 bytes each.
    answer = cli("training", write_config(), f"run_dir={copy}", file_bytes=40_000)
    assert_one_line(answer, "error: checkpoint of step 6 not written to", "are untouched", code=1)
    names = {path.name for path in (copy / "checkpoints").iterdir()}
    assert names == {"latest", "step-00000004"}
    answer = cli("training", write_config(), f"run_dir={copy}")
    assert answer["code"] == 0
    assert "resumed from" in answer["stdout"]
    assert rows(copy) == rows(run_dir)
    assert not (copy / "checkpoints/.tmp-step-00000006").exists()


def test_metrics_that_find_no_space_end_no_run(cli, write_config, run_dir, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    row = {"step": 0, "loss": 1.0, "grad_norm": 1.0, "padding": "x" * 200_000}
    rest = json.dumps(row) + "\n"  # of an earlier start
    (folder / "metrics.jsonl").write_text(rest)
    # The files of a checkpoint have less than 100 kB.
    answer = cli("training", write_config(), f"run_dir={folder}", file_bytes=190_000)
    assert answer["code"] == 0, answer
    warning = f"warning: {folder}/metrics.jsonl cannot be written: "
    assert answer["stdout"].count(warning) == 1
    assert "ends without its last rows; 6 rows are lost" in answer["stdout"]
    assert (folder / "metrics.jsonl").read_text() == rest
    assert rows(folder, "evaluation.jsonl") == rows(run_dir, "evaluation.jsonl")
    assert (folder / "checkpoints/latest").read_text() == "step-00000006\n"


@pytest.mark.parametrize("limit", [3, 0])
def test_a_diverged_run_ends_unless_told_otherwise(train, tmp_path, limit):
    """A learning rate that carries every weight to infinity."""
    answer = train(
        "optimizer.peak_learning_rate=1e30",
        "schedule.shape=constant",
        f"anomalies.max_in_a_row={limit}",
        "evaluation.every_steps=0",
    )
    assert answer["stdout"].count("warning: step 2: ") == 1
    assert answer["stdout"].count("is not finite; the step is skipped; its samples: ") == 1
    skipped = [row["skipped_steps"] for row in rows(tmp_path / "run")]
    if limit:
        assert_one_line(
            answer, "error: steps 2 to 4 were skipped, the last since its ", "not finite"
        )
        assert skipped == [0, 1, 2, 3]
    else:
        assert answer["code"] == 0
        assert skipped == [0, 1, 2, 3, 4, 5]
        assert "  skipped 5" in answer["stdout"]


@pytest.mark.parametrize(
    ("policy", "asynchronous"), [("skip", False), ("rollback", False), ("rollback", True)]
)
def test_spikes_are_left_out_and_a_resumed_run_agrees(train, tmp_path, policy, asynchronous):
    """Small deviations are spikes here, so that every run has some."""
    whole, resumed = tmp_path / "run", tmp_path / "resumed"
    settings = ["anomalies.sigmas=2.5", "anomalies.window_steps=8", f"anomalies.spike={policy}"]
    settings += ["num_steps=40", "checkpoints.every_steps=5", "checkpoints.keep=0"]
    settings += ["optimizer.peak_learning_rate=0.003", "evaluation.every_steps=0"]
    settings += [f"checkpoints.asynchronous={asynchronous}"]
    answer = train(*settings)
    assert answer["code"] == 0, answer
    anomalies = rows(whole, "anomalies.jsonl")
    spikes = [row for row in anomalies if row["policy"] == policy]
    assert spikes == anomalies
    assert any(key.startswith("train-") for row in spikes for key in row["samples"])
    seen = [row["samples_seen"] for row in rows(whole)]
    if policy == "skip":
        assert seen == list(range(4, 164, 4))
        assert rows(whole)[-1]["skipped_steps"] == len(spikes) >= 1
    else:
        assert sum(f"back to step {row['step']}, " in answer["stdout"] for row in spikes) >= 1
        assert len(seen) == 40
        assert not {row["samples_seen"] for row in spikes} & set(seen)  # never met again
    first = min(row["step"] for row in spikes) // 5 * 5
    shutil.copytree(whole, resumed)
    for path in (resumed / "checkpoints").glob("step-*"):
        if int(path.name.removeprefix("step-")) > max(first, 5):
            shutil.rmtree(path)
    answer = train(*settings, f"run_dir={resumed}")
    assert f"resumed from {resumed}/checkpoints/step-{max(first, 5):08d}" in answer["stdout"]
    assert rows(resumed) == rows(whole)
    assert rows(resumed, "anomalies.jsonl") == anomalies


def test_a_deadline_stops_with_a_checkpoint_and_the_same_command_goes_on(train, copy, run_dir):
    for step in (4, 6):
        shutil.rmtree(copy / f"checkpoints/step-0000000{step}")
    for step in range(1, 7):
        answer = train(f"run_dir={copy}", *["max_hours=1e-9"] * (step < 6))
        assert answer["code"] == 0, answer
        line = f"stopped by max_hours=1e-09 behind step {step}; the same command goes on\n"
        assert (line in answer["stdout"]) == (step < 6)
    assert rows(copy) == rows(run_dir)
    assert rows(copy, "evaluation.jsonl") == rows(run_dir, "evaluation.jsonl")


def damage_all(folder):
    for state in folder.glob("checkpoints/step-*/state.json"):
        state.write_text("{}")


@pytest.mark.parametrize("resume", ["auto", "required"])
def test_all_checkpoints_damaged_stops_and_keeps_the_history(train, copy, resume):
    damage_all(copy)
    before = rows(copy)
    answer = train(f"run_dir={copy}", f"resume={resume}")
    assert_one_line(answer, "holds only damaged checkpoints", "another run_dir")
    assert answer["stdout"].count("damaged, passed over: state.json has 2 of ") == 2
    assert rows(copy) == before


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("seed=77", "seed"),
        ("model.d_model=32", "model.d_model"),
        ("engine.precision=bf16", "engine.precision"),
        ("optimizer.decay_embeddings=false", "optimizer.decay_embeddings"),
        ("optimizer.layer_decay=0.5", "optimizer.layer_decay"),
    ],
)
def test_another_model_or_engine_is_refused_by_name(train, copy, override, name):
    before = (copy / "config.yaml").read_text()
    assert_one_line(train(f"run_dir={copy}", override, "num_steps=8"), f"was written with {name} ")
    assert (copy / "config.yaml").read_text() == before


def test_changed_optimizer_options_have_their_effect_on_resume(train, copy, tmp_path):
    """DeepSpeed brings those of the checkpoint back."""
    twin = tmp_path / "twin"
    shutil.copytree(copy, twin)
    changed = ["optimizer.weight_decay=0.9", "optimizer.betas=[0.5,0.6]"]
    assert train(f"run_dir={copy}", "num_steps=9")["code"] == 0
    assert train(f"run_dir={twin}", "num_steps=9", *changed)["code"] == 0
    ours, theirs = ([row["loss"] for row in rows(run)[6:]] for run in (copy, twin))
    assert ours[0] == theirs[0]  # computed before the first changed step
    assert ours[1:] != theirs[1:]


def test_resume_required_and_resume_never(train, copy):
    mistyped = copy.parent / "runs/mistyped"
    answer = train(f"run_dir={mistyped}", "resume=required")
    assert_one_line(answer, "resume=required, but", "holds no checkpoint")
    assert not mistyped.parent.exists()
    assert_one_line(
        train(f"run_dir={copy}", "resume=never"), "resume=never, but", "another run_dir"
    )
    answer = train(f"run_dir={copy}", "resume=required")
    assert answer["code"] == 0


def rewrite_state(folder, **changes):
    """As if the checkpoint had been written under other circumstances."""
    path = folder / "checkpoints/step-00000006/state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    summary = path.with_name("checkpoint.json")
    tree = json.loads(summary.read_text())
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    tree["files"]["state.json"] = {"bytes": len(content), "sha256": sha256}
    summary.write_text(json.dumps(tree))


def test_another_dataset_or_order(train, copy):
    answer = train(f"run_dir={copy}", "data.sequence_length=8")
    assert_one_line(answer, "was written with", "sequence_length 16", "sequence_length 8")
    rewrite_state(copy, data_order="dataset f00d")
    assert_one_line(train(f"run_dir={copy}"), "was written with", "dataset f00d")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("engine.zero_stages=1", ["engine.zero_stages: unknown key", "did you mean 'zero_stage'?"]),
        ("engine.zero_stage=4", ["engine.zero_stage"]),
        ("num_steps=many", ["num_steps", "many"]),
        ("data.dataset_dir=/nowhere", ["/nowhere", "python -m pipeline"]),
        ("model.vocab_size=5", ["model.vocab_size is 5, but the dataset's tokenizer has"]),
        ("model.name=transformr", ["model.name: unknown name 'transformr'", "'transformer'"]),
        (
            "batch.global_batch_size=5",
            ["batch.global_batch_size=5", "batch.micro_batch_size=2 x world size 1", "4 or 6"],
        ),
        (
            "samples={every_steps: 1, prompt: the mill turns and}",
            ["the prompt has 18 tokens, but the model was trained on sequences of 16"],
        ),
    ],
)
def test_errors_are_one_line(train, override, parts):
    answer = train(override)
    assert_one_line(answer, *parts)


def test_a_sequence_longer_than_every_chunk(train):
    answer = train("data.sequence_length=100000", "model.max_positions=100000")
    assert_one_line(answer, "no sequence of 100000 + 1 tokens fits")


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.sequence_length=17",
            "data.sequence_length is 17, but model.max_positions is 16; "
            "raise the one or lower the other",
        ),
        ("schedule.warmup_steps=6", "schedule.warmup_steps 6 + decay_steps 0 leave nothing of"),
        ("seed=-1", "seed must be at least 0 and below 2^63, found -1"),
        (f"seed={2**63}", f"seed must be at least 0 and below 2^63, found {2**63}"),
        ("samples.temperature=nan", "samples.temperature is nan; it must be at least 0 and finite"),
        ("samples.top_k=-1", "samples.top_k is -1; it must be at least 1, or 0 for all tokens"),
    ],
)
def test_sections_that_do_not_fit_together_are_refused_by_a_dry_run_too(
    train, dry_run, override, message
):
    answer = train(override, *dry_run)
    assert_one_line(answer, f"python -m training: {message}")
    assert answer["stdout"] == ""


@pytest.mark.skipif(
    torch.ops.mkldnn._is_mkldnn_fp16_supported(), reason="this processor computes fp16"
)
def test_fp16_without_hardware_is_one_line(train):
    parts = "engine.precision=fp16: this device computes no fp16", "use bf16 or fp32"
    assert_one_line(train("engine.precision=fp16"), *parts)


def test_a_missing_config(cli):
    assert_one_line(cli("training", "nowhere.yaml"), "nowhere.yaml: no such config file")


def test_a_real_process_ends_with_code_2(write_config, environment, tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "training", write_config(), "run_dir=x", "sed=1"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert line.startswith("python -m training: sed: unknown key (did you mean 'seed'?)")
