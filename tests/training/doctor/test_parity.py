"""The doctor: what it calls a fault, and the whole of it on two ranks."""

import subprocess
import sys

import pytest

from training.doctor import installation, parity
from training.doctor.parity import Result, judge

PLAIN = Result([4.1, 4.0, 3.9])


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([4.1, 4.0, 3.9], "ok"),
        ([4.1, 4.00005, 3.9], "ok"),
        ([4.1, 4.001, 3.9], "fault"),
        ([4.1, float("nan"), 3.9], "fault"),
    ],
)
def test_losses_beside_those_of_plain_torch(losses, verdict):
    finding = judge("stage 2", PLAIN, {1: PLAIN, 2: Result(losses)})
    assert finding.verdict == verdict
    assert finding.found.startswith("1 rank: off by 0.0e+00; 2 ranks:")


@pytest.mark.parametrize(
    ("name", "loss", "verdict"),
    [
        ("stage 2, bf16", 4.108, "ok"),
        ("stage 2, bf16", 4.12, "fault"),
        ("stage 0, fp16", 4.1015, "ok"),
        ("stage 0, fp16", 4.108, "fault"),
    ],
)
def test_16_bits_have_a_wider_tolerance_that_the_row_states(name, loss, verdict):
    finding = judge(name, PLAIN, {1: Result([loss, 4.0, 3.9])})
    precision = name[-4:]
    states = {"bf16": "up to 1e-02 is the rounding of bf16", "fp16": "up to 2e-03 is the rounding"}
    assert finding.verdict == verdict
    assert states[precision] in finding.found


def test_a_cpu_is_not_asked_for_fp16_that_it_does_not_compute():
    on_cpu = parity.cases_of("cpu")
    assert {*parity.cases_of("cuda")} - {*on_cpu} == {"stage 2, fp16"}
    assert {"stage 0, fp16", "stage 2, bf16"} < {*on_cpu}


def test_a_case_that_failed_tells_why():
    finding = judge("stage 2", PLAIN, {2: Result([], "RuntimeError: no kernel")})
    assert (finding.verdict, finding.found) == ("fault", "2 ranks: RuntimeError: no kernel")


def test_a_rank_that_dies_is_a_finding(monkeypatch):
    monkeypatch.setattr(parity.sys, "executable", "/bin/false")
    findings = list(parity.check_parity(2, ["stage 3, average of weights"]))
    assert [finding.verdict for finding in findings] == ["fault"]
    assert "1 ranks ended without results" in findings[0].found


def test_locks_of_killed_compilations(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert list(installation._check_locks()) == []
    (tmp_path / "py311_cpu" / "async_io").mkdir(parents=True)
    (tmp_path / "py311_cpu" / "async_io" / "lock").touch()
    (finding,) = installation._check_locks()
    assert (finding.verdict, "async_io/lock" in finding.found) == ("note", True)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ways_to_train_on_one_rank_and_on_two(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    names = (
        "stage 2, accumulation 4",
        "stage 3, selective",
        "stage 2, every 2nd block",
        "stage 3, zero_init",
        "stage 3, average of weights",
        "stage 2, bf16",
        "stage 0, fp16",
    )
    plain, *findings, bandwidth = parity.check_parity(2, names)
    assert (plain.verdict, plain.found.count(", ")) == ("ok", 3)
    assert [(each.verdict, each.what) for each in findings] == [("ok", name) for name in names]
    assert all("2 ranks: off by" in each.found for each in findings)
    assert bandwidth.verdict == "ok"
    assert bandwidth.found.endswith("GB/s over 2 ranks, 64 MiB")


@pytest.mark.slow
def test_the_verb(environment, tmp_path, dataset_dir):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"run_dir: {tmp_path / 'run'}\nnum_steps: 3\n"
        "model: {name: transformer, vocab_size: 10}\ntask: {name: causal_lm}\n"
        f"data: {{dataset_dir: {dataset_dir}, sequence_length: 8}}\n"
        "batch: {global_batch_size: 9, micro_batch_size: 2}\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "training.doctor", config, "engine.zero_stage=1", "--no-parity"],
        env=environment | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert done.returncode == 1, done.stderr
    assert lines[-1] == "1 fault"
    (fault,) = [line for line in lines if line.startswith("fault")]
    assert fault.startswith("fault batch batch.global_batch_size=9 is no multiple")
    assert any(line.startswith("ok dataset") and "train 2 samples" in line for line in lines)
