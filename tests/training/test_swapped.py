"""What waits in files, on two gloo ranks, with the operator that DeepSpeed compiles for it."""

import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from training import swapped
from training.deepspeed_config import Config
from training.swapped import prepare_nvme

WRITERS = ("memory", "states", "all")
READERS = (*WRITERS, "weights", "zero1")


def has_libaio():
    """Whether a program can be compiled that uses it."""
    source = "#include <libaio.h>\nint main() { return io_destroy(0) == 1; }"
    words = ["g++", "-x", "c++", "-", "-laio", "-o", "/dev/null"]
    return (
        bool(shutil.which("g++"))
        and not subprocess.run(
            words, input=source, text=True, capture_output=True, check=False
        ).returncode
    )


COMPILE = """
from deepspeed.ops.op_builder import AsyncIOBuilder
AsyncIOBuilder().load(verbose=False)
"""


@pytest.fixture(scope="module")
def operator(environment):
    """DeepSpeed's, for files; it compiles for minutes on a busy machine, the first time."""
    if not has_libaio():
        pytest.skip("needs g++ and libaio-dev")
    words = [sys.executable, "-c", COMPILE]
    subprocess.run(words, env=environment, capture_output=True, check=True, timeout=1500)


@pytest.fixture(scope="module")
def found(run_ranks, operator, tmp_path_factory):
    out = tmp_path_factory.mktemp("nvme") / "losses.pt"
    run_ranks("nvme_worker.py", out, world_size=2)
    return torch.load(out, weights_only=False)


@pytest.mark.slow
@pytest.mark.timeout(2100)
class TestTwoRanks:
    @pytest.mark.parametrize("reader", READERS)
    @pytest.mark.parametrize("writer", WRITERS)
    def test_a_checkpoint_goes_on_with_and_without_files(self, found, writer, reader):
        assert found[writer][reader] == pytest.approx(found[writer]["on"], rel=1e-5)

    def test_the_losses_are_those_without_files(self, found):
        for writer in WRITERS[1:]:
            assert found[writer]["on"] == pytest.approx(found["memory"]["on"], rel=1e-5)

    def test_steps_behind_a_checkpoint_differ_from_its_last(self, found):
        first, second = found["states"]["on"]
        assert abs(first - second) > 1e-3  # else any weights would do

    def test_states_lie_in_files(self, found):
        kinds = {name.split("-")[0].split("_gradient")[0] for name in found["states"]["files"]}
        assert {"exp_avg", "exp_avg_sq"} < kinds
        assert not any("param" in name for name in found["states"]["files"])
        assert any("param" in name for name in found["all"]["files"])

    @pytest.mark.parametrize("writer", WRITERS)
    def test_weights_are_consolidated_from_its_checkpoint(self, found, writer):
        ours, others = found[writer]["consolidated"], found[writer]["loaded"]
        assert ours.keys() >= others.keys()
        for name, weight in others.items():
            torch.testing.assert_close(ours[name], weight, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.timeout(2100)
def test_a_run_goes_on_behind_its_checkpoint(operator, environment, write_config, tmp_path):
    """With the losses of the unbroken one, bitwise, and without the files of the killed one."""
    files = tmp_path / "files"
    model = "{name: transformer, vocab_size: 32, d_model: 384, num_layers: 1, num_heads: 2}"
    config = write_config(model=model, engine="{zero_stage: 3, precision: fp32}", evaluation="{}")
    words = [f"run_dir={tmp_path}/run", "engine.offload_optimizer=nvme", f"engine.nvme_dir={files}"]
    command = [sys.executable, "-m", "training", config, *words]
    rows = []
    for number in range(2):
        answer = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert answer.returncode == 0, answer.stderr
        assert ("resumed from" in answer.stdout) == (number > 0)
        assert any("exp_avg" in path.name for path in files.rglob("*.swp"))
        rows.append((tmp_path / "run/metrics.jsonl").read_text())
        shutil.rmtree(files)
        shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    assert rows[0] == rows[1]
    assert len(set(rows[0].splitlines())) == 6


def builder(*, compatible=True):
    return SimpleNamespace(name="millrace_test", is_compatible=lambda verbose: compatible)


def prepare(folder, *, compatible=True, num_parameters=1000, **options):
    said = []
    options = {"offload_optimizer": "nvme"} | options
    config = Config(zero_stage=3, nvme_dir=str(folder), **options)
    tools = builder(compatible=compatible)
    prepare_nvme(config, tools, num_parameters=num_parameters, say=said.append)
    return said


def test_a_compilation_is_announced(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    (line,) = prepare(tmp_path / "files")
    assert "compiles its operator for files into" in line
    (tmp_path / "built/millrace_test/millrace_test.so").touch()
    assert prepare(tmp_path / "files") == []


def test_a_folder_that_is_none_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"engine.nvme_dir={tmp_path}/file: cannot be written: "):
        prepare(tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "num_bytes"),
    [
        ({}, 16),
        ({"offload_parameters": "nvme"}, 18),
        ({"offload_parameters": "nvme", "precision": "fp32"}, 20),
        ({"offload_optimizer": "none", "offload_parameters": "nvme"}, 2),
    ],
)
def test_a_disk_too_small_is_refused(tmp_path, monkeypatch, options, num_bytes):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "built"))
    old = tmp_path / "zero_stage_3/optimizer/rank0/0.tensor.swp"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(100))  # of a run before this one
    usage = SimpleNamespace(free=1000 * num_bytes - 100)
    monkeypatch.setattr(swapped.shutil, "disk_usage", lambda _: usage)
    prepare(tmp_path, **options)
    with pytest.raises(OSError, match="GiB free, and what the 1 ranks of this node offload takes"):
        prepare(tmp_path, num_parameters=1001, **options)


def test_a_missing_library_is_named(tmp_path):
    with pytest.raises(ValueError, match="needs libaio and its headers: install libaio-dev"):
        prepare(tmp_path, compatible=False)
