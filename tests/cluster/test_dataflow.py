"""Dataflow cannot run here; its runner translates our jobs, in an environment of its own, since
apache-beam[gcp] is a hundred packages.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import ROOT


def test_its_runner_takes_every_job(cpu_env, tmp_path):
    uv, python = Path(sys.executable).parent / "uv", tmp_path / "venv/bin/python"
    subprocess.run(
        [uv, "venv", "-q", "--seed", "-p", sys.executable, tmp_path / "venv"], check=True
    )
    packages = ["-e", f"{ROOT}[pipeline,gcs]", "apache-beam[gcp]"]
    tests = ["hypothesis", "pytest", "pytest-timeout", "pytest-xdist"]
    words = [uv, "pip", "install", "-q", "-p", python, "-c", ROOT / "constraints.txt"]
    answer = subprocess.run([*words, *packages, *tests], capture_output=True, text=True)
    if answer.returncode:
        pytest.skip(f"apache-beam[gcp] was not to be had: {answer.stderr[-200:]}")
    command = ["-m", "pytest", "-rs", "tests/pipeline/test_job.py", "-k", "dataflow_takes"]
    answer = subprocess.run(
        [python, *command], cwd=ROOT, env=cpu_env, capture_output=True, text=True, timeout=600
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "5 passed" in answer.stdout, answer.stdout
