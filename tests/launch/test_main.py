"""The verb: what is shown is what is done, and nothing is done without `--submit`."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
YAML = sorted((ROOT / "configs/launch").glob("*.yaml"))


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def launch(*words, cwd, **env):
    return subprocess.run(
        [sys.executable, "-m", "launch", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
    )


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text("run_dir: runs/a\nbatch: {global_batch_size: 16, micro_batch_size: 1}\n")
    return path


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.stem)
def test_our_settings_render_from_any_folder_as_their_headers_say(path, tmp_path):
    (tmp_path / "hostfile").write_text("h1 slots=8\nh2 slots=8\n")
    (line,) = re.findall(r"#   python -m launch (.*)", path.read_text())
    answer = launch(*line.split(), cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "gpt2_124m.yaml" in answer.stdout
    assert answer.stdout.endswith("\nnothing was written or run; --submit does both\n")
    assert [one.name for one in tmp_path.iterdir()] == ["hostfile"]


def commands_of_the_docs():
    """Those with `python -m launch`, as a reader types them; CONFIG is one that comes with us."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        for line in re.findall(r"^    python -m launch (.*)$", path.read_text(), re.MULTILINE):
            words = line.split("#")[0].replace("CONFIG", "configs/training/gpt2_124m.yaml").split()
            yield pytest.param(words, id=f"{path.stem}: {' '.join(words)}")


@pytest.mark.parametrize("words", list(commands_of_the_docs()))
def test_commands_of_the_docs_render(words, tmp_path):
    (tmp_path / "hostfile").write_text("h1 slots=8\nh2 slots=8\n")
    answer = launch(*(word for word in words if word != "--submit"), cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    run_dir = next(word for word in words if word.startswith("run_dir="))
    assert run_dir in answer.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["hosts"], "hosts.hostfile: hostfile is not readable"),
        (["kubernetes"], "kubernetes.image: missing; name a container image"),
        (["slurm", "slurm.devices_per_node=3"], "3 ranks do not divide a global batch of 16"),
        (["slurm", "slurm.programme=srun"], "slurm.programme: unknown key (did you mean"),
        (["local", "seed"], "'seed' is no override; write key=value"),
        (["local", "--settings", "nothere.yaml"], "nothere.yaml: no such config file"),
    ],
)
def test_mistakes_are_one_line(config, words, told):
    answer = launch(words[0], config, *words[1:], cwd=config.parent)
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"error: {told}")
    assert answer.stderr.count("\n") == 1
    assert answer.stdout == ""


def test_no_such_config(tmp_path):
    answer = launch("local", "nothere.yaml", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (2, "error: nothere.yaml: no such config file\n")


def test_what_is_submitted_is_what_is_shown(config):
    """With a Python and programs that only tell how they were called."""
    bin_dir = config.parent / "bin"
    bin_dir.mkdir()
    for name in ("python", "deepspeed", "sbatch", "kubectl"):
        (bin_dir / name).write_text(f'#!/bin/sh\necho "{name} called: $*, A=$A"\n')
        (bin_dir / name).chmod(0o755)
    path = f"{bin_dir}:{os.environ['PATH']}"
    port = free_port()
    common = [config, f"launch.python={bin_dir}/python", "--submit", "launch.env=[A=b]"]
    common.append(f"launch.port={port}")
    cases = {
        "local": f"deepspeed called: --master_port {port} --module training {{config}}, A=b\n",
        "slurm": "sbatch called: {folder}/a.sbatch, A=\n",
        "kubernetes": "kubectl called: apply -f a.yaml, A=\n",
    }
    for launcher, line in cases.items():
        answer = launch(launcher, *common, "kubernetes.image=i", cwd=config.parent, PATH=path, A="")
        assert answer.returncode == 0, answer.stderr
        assert answer.stdout.endswith(line.format(config=config, folder=config.parent))
    common.remove("--submit")
    shown = launch("slurm", *common, cwd=config.parent).stdout
    script = (config.parent / "a.sbatch").read_text()
    assert shown.startswith(f"# {config.parent}/a.sbatch\n{script}")
    assert "export A=b" in script


def test_a_program_that_is_not_here(config):
    python = config.parent / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    answer = launch(
        *("kubernetes", config, "kubernetes.image=i", f"launch.python={python}", "--submit"),
        cwd=config.parent,
        PATH=str(config.parent),
    )
    assert answer.returncode == 2
    assert answer.stderr == (
        "error: kubectl: no such program on this machine; submit where it is installed\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("program", ["deepspeed", "torchrun"])
def test_local_trains_to_the_end(tmp_path, program):
    """On one rank, with the dataset that the pipeline makes of the corpus that ships here."""
    env = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    pipeline = [sys.executable, "-m", "pipeline", "configs/pipeline/tiny_shakespeare.yaml"]
    whole = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(pipeline, cwd=tmp_path, env=whole, check=True, capture_output=True)
    words = ["configs/training/tiny_shakespeare.yaml", "num_steps=2", "schedule.warmup_steps=1"]
    settings = [
        f"local.program={program}",
        "local.devices=1",
        f"launch.port={free_port()}",
        "evaluation.every_steps=0",
    ]
    answer = launch("local", *words, *settings, "--submit", cwd=tmp_path, **env)
    assert answer.returncode == 0, answer.stderr
    assert (tmp_path / "runs/tiny_shakespeare/checkpoints/step-00000002").is_dir()
