"""The launcher's words are told apart from the ranks'; its runs are in tests/integration."""

import subprocess
import sys

import pytest

from training import restarts

RESTARTED = "attempts left"
"""What torchrun's agent logs in front of a restart."""


@pytest.fixture
def start(write_config, environment, tmp_path):
    """Start `python -m training --restarts 2` with overrides; the process."""

    def run(*words):
        return subprocess.Popen(
            [sys.executable, "-m", "training", "--restarts", "2", write_config()]
            + [f"run_dir={tmp_path}/run", *words],
            env=environment | {"LOGLEVEL": "INFO"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return run


def test_what_is_the_launchers_and_what_is_for_ranks():
    words = ["--nproc-per-node", "2", "a.yaml", "--restarts=3", "num_steps=4", "--dry-run"]
    assert restarts.is_wanted(words)
    options, rest = restarts.split(words)
    assert (options.restarts, options.nproc_per_node, options.nnodes) == (3, "2", "1")
    assert rest == ["a.yaml", "num_steps=4", "--dry-run"]
    assert not restarts.is_wanted(["a.yaml", "num_steps=4"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--restarts", "-1"], "--restarts must be 0 or more, found -1"),
        (["--restarts", "many"], "invalid int value: 'many'"),
        (["--restarts", "1", "--nnodes", "1:2"], "--nnodes above 1 needs --rdzv-endpoint HOST"),
    ],
)
def test_mistakes(words, told, capsys):
    with pytest.raises(SystemExit) as end:
        restarts.split(words)
    assert end.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["resume=required"], "error: resume=required, but "),
        (
            ["optimizer.peak_learning_rate=1e38", "anomalies.nonfinite=stop"],
            "the run stops before it changed a weight (anomalies.nonfinite=stop)",
        ),
    ],
)
def test_neither_a_mistake_nor_a_deliberate_stop_is_started_again(start, words, told):
    ranks = start("--nproc-per-node", "2", *words)
    log, _ = ranks.communicate(timeout=240)
    assert ranks.returncode == 2, log
    assert told in log
    assert "ended with code 2, which no restart mends; its error is above" in log
    assert RESTARTED not in log


@pytest.mark.slow
def test_machines_that_do_not_meet_may_be_started_again(write_config, environment, tmp_path):
    """Code 2 would be a mistake, which Kubernetes does not try again."""
    words = ["--restarts", "1", "--nnodes", "2", "--rdzv-endpoint", "nothere.invalid:29500"]
    answer = subprocess.run(
        [sys.executable, "-m", "training", *words, write_config(), f"run_dir={tmp_path}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1, answer.stderr
    assert "error: machines did not meet at --rdzv-endpoint nothere.invalid:29500" in answer.stderr
