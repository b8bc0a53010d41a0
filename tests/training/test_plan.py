"""`python -m training.plan`: the verb and its search."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import configs
from training import plan as verb
from training.config import TrainingConfig
from training.memory.explanation import explain
from training.memory.machine import GIB, Machine
from training.memory.prediction import predict
from training.memory.search import fits, search, smallest
from training.memory.zero import Ranks

ROOT = Path(__file__).parent.parent.parent
GPT = ROOT / "configs/training/gpt2_124m.yaml"


def load(*overrides, path=GPT):
    return configs.load(TrainingConfig, path, overrides)


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["plan", *map(str, words)])
    try:
        verb.main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_plan_prints_breakdown_points_and_reason(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, GPT, "--gpus", 8)
    assert code == 0
    for words in ("124,475,904 parameters on 8 GPUs", "activations", "loss (rules)", "Fits: "):
        assert words in out


def printed_in(page):
    """Commands of a page, each with the lines below it."""
    blocks, told = [], None
    for line in page.read_text().splitlines():
        if line.startswith("    $ "):
            told = []
            blocks.append((line.removeprefix("    $ ").split(), told))
        elif told is not None and line.startswith("    "):
            told.append(line[4:])
        else:
            told = None
    return blocks


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_the_page_on_memory_shows_what_is_printed(number):
    words, told = printed_in(ROOT / "docs/memory.md")[number]
    env = {**os.environ, "COLUMNS": "200"}
    answer = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )

    def comparable(lines):
        return [line.rstrip() for line in lines if not line.startswith("Searched in ")]

    assert len(told) > 15
    assert comparable(answer.stdout.splitlines()) == comparable(told)


def test_a_plan_that_fits_tightly_says_so(monkeypatch, capsys):
    """Tensors have 96 % of what the context leaves."""
    needed = predict(load(), Ranks(1)).peak.num_bytes / GIB
    for share, told in ((1.01, True), (1.1, False)):
        words = (GPT, "--gpu-memory-gib", f"{share * (needed + 0.5) / 0.96:.3f}")
        code, out, _ = run(monkeypatch, capsys, *words)
        assert code == 0
        assert "Fits: " in out
        assert ("Tightly: " in out) == told, out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--gpus", 8), "leave --gpus away"),
        (("--gpu-memory-gib", 5), "leave --gpu-memory-gib away"),
        (("--out", "x.yaml"), "--out writes the winner of a search; add --search"),
    ],
)
def test_a_probe_of_what_is_not_here(monkeypatch, capsys, words, told):
    code, out, err = run(monkeypatch, capsys, GPT, "--probe", *words)
    assert (code, out) == (2, "")
    assert told in err


@pytest.mark.slow  # the imports of deepspeed
@pytest.mark.parametrize(
    ("stem", "overrides"),
    [
        ("t5_tiny_shakespeare", ()),  # its sentinels stand behind the tokenizer's tokens
        (
            "tiny_shakespeare",
            ("engine.precision=fp16", "engine.zero_stage=1"),
        ),  # no step is skipped
    ],
)
def test_a_probe_measures_what_is_predicted(stem, overrides):
    words = ["-m", "training.plan", ROOT / f"configs/training/{stem}.yaml", "--probe", *overrides]
    env = {**os.environ, "DS_ACCELERATOR": "cpu"}
    answer = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    error = float(re.search(r"predicted [0-9.]+ GiB, ([-+0-9.]+)%", answer.stdout)[1])
    assert abs(error) < 1


def test_a_trace_is_of_what_is_not_compiled(monkeypatch, capsys):
    """As the formula beside it; the config compiles blocks and loss."""
    assert load().engine.compile == "blocks"
    words = (GPT, "--trace", "batch.micro_batch_size=2")
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    error = float(re.search(r"fake tensors [0-9.]+ GiB, ([-+0-9.]+)%", out)[1])
    assert abs(error) < 1


def test_a_folder_that_is_missing_is_told_before_the_search(monkeypatch, capsys):
    words = (GPT, "--search", "--out", "/nowhere/best.yaml")
    code, out, err = run(monkeypatch, capsys, *words)
    assert (code, out) == (2, "")
    assert "--out /nowhere/best.yaml: no such folder" in err


@pytest.mark.parametrize(
    ("stem", "num_blocks"), [("gpt2_124m", 12), ("mae_small_cifar10", 6), ("t5_base", 24)]
)
def test_every_n_that_reaches_no_block_is_refused(stem, num_blocks):
    """Blocks of encoder and decoder count together, as they are checkpointed."""
    path = ROOT / f"configs/training/{stem}.yaml"
    every = "engine.activation_checkpointing=every_n engine.activation_checkpointing_every_n="
    config = load(*f"{every}{num_blocks}".split(), path=path)
    with torch.device("meta"):
        assert len(config.model.module.Model(config.model.config).blocks) == num_blocks
    with pytest.raises(configs.ConfigError, match=f"the model has {num_blocks} blocks, of which"):
        load(*f"{every}{num_blocks + 1}".split(), path=path)


def test_the_winner_is_a_config_that_fits_and_trains_the_same(monkeypatch, capsys, tmp_path):
    best = tmp_path / "best.yaml"
    machine = Machine(world_size=2, memory_gib=6)
    words = (GPT, "--gpus", 2, "--gpu-memory-gib", 6, "--search", "--out", best)
    code, out, _ = run(monkeypatch, capsys, *words)
    assert code == 0
    assert "fastest plans that fit" in out
    given, found = load(), load(path=best)
    assert found.batch.global_batch_size == given.batch.global_batch_size
    assert fits(predict(found, Ranks(2)), machine)
    assert replace(found, engine=given.engine, batch=given.batch, task=given.task) == given


def test_plans_are_ranked_and_fit():
    machine = Machine(world_size=4, memory_gib=10)
    plans = search(load("batch.global_batch_size=64"), machine)
    seconds = [plan.cost.seconds for plan in plans]
    assert seconds == sorted(seconds)
    assert len({plan.config.engine for plan in plans}) == len(plans) > 1
    assert all(plan.prediction.peak.num_bytes <= machine.usable_bytes for plan in plans)


def test_the_search_leaves_out_the_stage_that_cannot_add_up_bf16():
    plans = search(load("engine.optimizer_precision=bf16"), Machine(world_size=8))
    assert {plan.config.engine.zero_stage for plan in plans} == {2, 3}


@pytest.mark.parametrize(("wished", "at_stage_3"), [("blocks", "none"), ("none", "none")])
def test_the_search_compiles_blocks_where_they_can_be(wished, at_stage_3):
    plans = search(load(f"engine.compile={wished}"), Machine(world_size=8), num_plans=100)
    compiled = {plan.config.engine.zero_stage: plan.config.engine.compile for plan in plans}
    assert compiled == {1: wished, 2: wished, 3: at_stage_3}


def test_the_search_leaves_n_to_every_n():
    words = "engine.activation_checkpointing=every_n engine.activation_checkpointing_every_n=3"
    plans = search(load(*words.split()), Machine(world_size=8), num_plans=100)
    engines = {plan.config.engine for plan in plans}
    every = {(e.activation_checkpointing, e.activation_checkpointing_every_n) for e in engines}
    assert {("none", 2), ("full", 2), ("every_n", 3)} <= every


def test_less_memory_takes_a_slower_plan():
    best = [
        search(load("batch.global_batch_size=64"), Machine(memory_gib=gib), num_plans=1)[0]
        for gib in (80, 5)
    ]
    assert best[0].cost.seconds < best[1].cost.seconds
    assert best[0].prediction.peak.num_bytes > 5 * GIB > best[1].prediction.peak.num_bytes


def test_what_fits_nowhere_says_what_it_needs(monkeypatch, capsys):
    words = (GPT, "batch.global_batch_size=8", "--gpu-memory-gib", 1, "--search")
    code, _, err = run(monkeypatch, capsys, *words)
    assert code == 2
    assert "fits on 1 GPUs of 1 GiB by no plan; the smallest needs" in err
    least = smallest(load("batch.global_batch_size=8"), Machine(memory_gib=1))
    assert least.config.batch.micro_batch_size == 1
    assert f"{least.prediction.peak.num_bytes / 0.96 / GIB + 0.5:.2f} GiB a GPU" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "0"), "argument --gpus: found 0, expected a whole number of at least 1"),
        (
            ("--gpu-memory-gib", "-4"),
            "--gpu-memory-gib: found -4, expected a number of GiB above 0",
        ),
        (("--host-memory-gib", "1e9"), "above 0 and below 10000"),
        (("--search", "--out", "/tmp"), "--out /tmp: is a folder; name a file in it"),
        (("--gpus", "7"), "no multiple of batch.micro_batch_size"),
        (("--gpus", "7", "--search"), "cannot be shared by 7 ranks; use a multiple of 7"),
        (("--out", "x.yaml"), "add --search"),
        (
            ("engine.sequence_parallel_size=2",),
            "engine.sequence_parallel_size=2 does not divide the 1 ranks; use a divisor of them",
        ),
        (
            ("engine.sequence_parallel_size=8", "--gpus", "8"),
            "engine.sequence_parallel_size 8 does not divide model.num_heads 12, which its ranks",
        ),
        (
            ("engine.tensor_parallel_size=2", "--gpus", "3"),
            "engine.tensor_parallel_size=2 does not divide the 3 ranks; use a divisor of them",
        ),
        (
            (
                *("engine.zero_stage=3", "engine.compile=none"),
                *("engine.quantize_weights=true", "--gpus", "8"),
            ),
            "no formula of the memory of engine.quantize_weights",
        ),
        (
            ("engine.sequence_parallel_size=2", "--gpus", "8", "--search"),
            "--search and --trace know ranks with sequences and weights of their own",
        ),
        (
            ("engine.tensor_parallel_size=2", "--gpus", "8", "--trace"),
            "--search and --trace know ranks with sequences and weights of their own",
        ),
        (("--trace", "--search"), "not allowed with"),
        (("--gpus", "many"), "found many, expected a whole number"),
    ],
)
def test_nonsense_is_refused_in_a_line(monkeypatch, capsys, words, message):
    code, out, err = run(monkeypatch, capsys, GPT, *words)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("task.chunk_tokens=100000", "engine.activation_checkpointing=full"), "chunk the loss"),
        ((), "activation_checkpointing=selective or full"),
        (
            ("engine.tensor_parallel_size=2", "task.chunk_tokens=512"),
            "activation_checkpointing=full would keep",
        ),
        (("batch.micro_batch_size=1", "engine.activation_checkpointing=full"), "zero_stage=2"),
    ],
)
def test_the_reason_names_the_largest_part(overrides, words):
    config = load(*overrides)
    assert words in explain(predict(config, Ranks(8)), config, world_size=8)


def test_the_benchmark_needs_a_gpu():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--only", "GPT 124M"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert "this machine has none" in run.stderr
