"""Ctrl-C, which reaches all processes of the terminal: one line, exit code 130, no worker left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SLOW = """
import sys, time
import pipeline.readers.jsonl as jsonl
parse = jsonl._parse
def slow(line, column):
    time.sleep(0.008)
    return parse(line, column)
jsonl._parse = slow
"""
"""`sitecustomize` of the driver and of its workers."""


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_ctrl_c(tmp_path, num_workers):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for name in ("a", "b"):
        text = "the river and the garden that have with " * 20
        lines = [f'{{"text": "{text} {name} {number}"}}\n' for number in range(1000)]
        (corpus / f"{name}.jsonl").write_text("".join(lines))
    (tmp_path / "build.yaml").write_text(
        f"dataset_dir: {tmp_path / 'dataset'}\n"
        f"corpus: {{format: jsonl, path: [{corpus}]}}\n"
        "tokenizer: {vocab_size: 300}\n"
        f"num_workers: {num_workers}\n"
    )
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SLOW)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", str(tmp_path / "build.yaml")],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _wait_for(lambda: (tmp_path / "dataset" / ".work" / "portions").is_dir())
    time.sleep(5)  # workers read
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert said.strip().splitlines()[-1] == "interrupted", said
    assert "Traceback" not in said
    assert "error" not in said.lower()
    assert process.returncode == 130
    _wait_for(lambda: not _group_lives(process.pid))


def _group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_for(condition):
    until = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)
