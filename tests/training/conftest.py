"""A tiny text dataset, engine cases on one and two ranks, and a warm process for command lines."""

import contextlib
import io
import json
import os
import resource
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TEXT = "the mill turns and the water runs; " * 5
END_OF_DOCUMENT = "<|endoftext|>"
SIZES = {"image_size": 8, "patch_size": 4, "d_model": 16, "num_layers": 1, "num_heads": 2}
IMAGE_MODELS = {
    "vit": SIZES | {"num_classes": 2, "positions": "sincos", "pooling": "mean"},
    "mae": SIZES | {"decoder_d_model": 8, "decoder_num_layers": 1, "decoder_num_heads": 2},
}


@pytest.fixture(scope="session")
def environment():
    """Variables of a process that trains on the CPU, without a launcher's."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    kept = {name: value for name, value in os.environ.items() if name not in launcher}
    return kept | {
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory):
    """3,500 training and 700 validation tokens of characters, one document of 175 after another."""
    return write_text_dataset(tmp_path_factory.mktemp("dataset"), TEXT)


def write_text_dataset(folder, text):
    from pipeline.manifest import Manifest, write_manifest
    from pipeline.tar import write_shard
    from pipeline.tokenizer import (
        characters_tokenizer,
        describe_tokenizer,
        parse_tokenizer,
        write_tokenizer,
    )

    tokenizer = characters_tokenizer(text, end_of_document=END_OF_DOCUMENT)
    write_tokenizer(tokenizer, folder / "tokenizer.json")
    described = describe_tokenizer(tokenizer, end_of_document=END_OF_DOCUMENT)
    document = [*parse_tokenizer(tokenizer).encode(text).ids, described.end_of_document]
    splits = {}
    for split, copies in (("train", 20), ("validation", 4)):
        samples = [_block(f"{split}-{n}", document * (copies // 2)) for n in range(2)]
        shard = write_shard(folder / f"{split}-000000.tar", samples, chunk_bytes=1)
        splits[split] = (shard,)
    write_manifest(
        Manifest(
            kind="text",
            splits=splits,
            config={},
            libraries={},
            tokenizer=described,
            token_dtype="uint16",
        ),
        folder,
    )
    return folder


def _block(key, tokens):
    from pipeline.tar import Sample, encode_npy

    length = len(TEXT) + 1
    files = {
        "docs.npy": encode_npy(np.arange(0, len(tokens), length, dtype=np.uint32)),
        "json": json.dumps({"documents": [], "tokens": len(tokens)}).encode(),
        "tokens.npy": encode_npy(np.array(tokens, np.uint16)),
    }
    return Sample(key, files, tokens=len(tokens))


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory, environment):
    """The engine cases on two gloo ranks, by name."""
    return run_cases(tmp_path_factory.mktemp("two-ranks"), environment, world_size=2)


@pytest.fixture(scope="session")
def one_rank(tmp_path_factory, environment):
    """The engine cases on one rank, by name."""
    return run_cases(tmp_path_factory.mktemp("one-rank"), environment, world_size=1)


def run_cases(folder, environment, *, world_size):
    import torch

    out = folder / "results.pt"
    _run_ranks("engine_worker.py", out, environment=environment, world_size=world_size)
    results = torch.load(out, weights_only=False)
    errors = [f"{name}: {case['error']}" for name, case in results.items() if "error" in case]
    assert not errors, "\n".join(errors)
    return results


@pytest.fixture(scope="session")
def run_ranks(environment):
    """`run_ranks("worker.py", FOLDER, world_size=2)`: a script of this folder on gloo ranks."""
    return partial(_run_ranks, environment=environment)


def _run_ranks(script, *words, environment, world_size):
    """The first word is a folder for logs, or a file in it."""
    folder = words[0] if words[0].is_dir() else words[0].parent
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(world_size):
        launcher = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        with (folder / f"rank-{rank}.log").open("w") as log:
            ranks.append(
                subprocess.Popen(
                    [sys.executable, HERE / script, *words],
                    env=environment | launcher,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        codes = [process.wait(timeout=580) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    logs = "\n".join((folder / f"rank-{rank}.log").read_text() for rank in range(world_size))
    assert not any(codes), logs


@pytest.fixture
def full_disk(capsys):
    """`with full_disk(100):` no file of this process grows above 100 bytes.

    `capsys` keeps in memory what pytest would else capture in a file.
    """

    @contextlib.contextmanager
    def limited(num_bytes):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield  # Python ignores the signal that comes with the limit
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture(scope="session")
def state_of():
    """`state_of(7)`: the state of a run behind step 7."""
    from training.checkpoint import RunState

    def build(step, **changes):
        numbers = {"samples_seen": 0, "skipped_steps": 0, "world_size": 1, "zero_stage": 0}
        return RunState(**{"step": step, **numbers, "data_order": "f00d", **changes})

    return build


@pytest.fixture
def info_of(state_of):
    """`info_of(7, result)`: what a hook is told after step 7 of 10."""
    from training.trainer import StepInfo

    def build(step, result=None, *, num_steps=10, **changes):
        result = result or SimpleNamespace(wants_stop=False, skipped=False)
        return StepInfo(state_of(step, **changes), num_steps, 0.1, result, 1.0, 0.0)

    return build


@pytest.fixture(scope="session")
def scalars():
    """What TensorBoard shows of a run folder: steps and values by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(folder):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        return {
            name: [(event.step, event.value) for event in events.Scalars(name)]
            for name in events.Tags()["scalars"]
        }

    return read


class WarmPython:
    """Runs command lines of our modules in one process that has imported everything once."""

    def __init__(self, folder, environment):
        self.log = (folder / "cli.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, HERE / "cli_worker.py"],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )

    def __call__(self, module, *arguments, file_bytes=None, variables=None, folder="."):
        """Exit code, stdout and stderr of `python -m module arguments`, as a dictionary.

        No file may grow above `file_bytes`, as on a disk that is full; `variables` of the
        environment are those of a store; relative paths begin at `folder`.
        """
        argv = [str(word) for word in arguments]
        request = {"module": module, "argv": argv, "file_bytes": file_bytes, "variables": variables}
        request["folder"] = str(folder)
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.log.seek(0)
            raise AssertionError(f"the process died: {self.log.read()}")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(timeout=120)  # to end takes seconds, on a loaded machine many
        finally:
            self.process.kill()
            self.log.close()


@pytest.fixture(scope="session")
def cli(tmp_path_factory, environment):
    """`cli("training", "CONFIG", "key=value")`: exit code, stdout, stderr."""
    python = WarmPython(tmp_path_factory.mktemp("cli"), environment)
    yield python
    python.close()


@pytest.fixture(scope="session")
def write_config(tmp_path_factory, dataset_dir):
    """Writes the YAML of a run of a tiny model in fp32 with dropout; returns its path."""

    def write(**changes):
        sections = {
            "num_steps": 6,
            "model": "{name: transformer, vocab_size: 32, d_model: 16, num_layers: 2, num_heads: 2,"
            " max_positions: 16, dropout: 0.1}",
            "task": "{name: causal_lm}",
            "data": f"{{dataset_dir: {dataset_dir}, sequence_length: 16, num_lanes: 4, window: 4}}",
            "batch": "{global_batch_size: 4, micro_batch_size: 2}",
            "optimizer": "{peak_learning_rate: 0.01}",
            "engine": "{zero_stage: 1, precision: fp32}",
            "checkpoints": "{every_steps: 2, keep: 2}",
            "evaluation": "{every_steps: 3}",
            "logging": "{every_steps: 4}",
        } | changes
        path = tmp_path_factory.mktemp("config") / "tiny.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in sections.items()))
        return path

    return write


@pytest.fixture(scope="session")
def image_dir(tmp_path_factory):
    """Sixty-four images, dark ones and bright ones."""
    import PIL.Image

    from pipeline.manifest import Manifest, write_manifest
    from pipeline.tar import Sample, write_shard

    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    splits = {}
    for split, number in (("train", 48), ("validation", 16)):
        samples = []
        for n in range(number):
            content = io.BytesIO()
            colours = generator.integers(0, 90, (8, 8, 3)) + 160 * (n % 2)
            PIL.Image.fromarray(colours.astype(np.uint8)).save(content, format="PNG")
            files = {"cls": str(n % 2).encode(), "json": b"{}", "png": content.getvalue()}
            samples.append(Sample(f"{split}{n:02}", files))
        shard = write_shard(folder / f"{split}-000000.tar", samples, chunk_bytes=20_000)
        splits[split] = (shard,)
    write_manifest(Manifest("image", splits, {}, {}, classes=("dark", "bright")), folder)
    return folder


@pytest.fixture(scope="session")
def write_image_config(tmp_path_factory, image_dir):
    """Writes the YAML of a run on images of a tiny vit or mae with changes; returns its path."""

    def write(model, task, **sections):
        config = {
            "num_steps": 12,
            "model": IMAGE_MODELS[model["name"]] | model,
            "task": {"name": task},
            "data": {"dataset_dir": str(image_dir), "num_lanes": 4, "num_loader_workers": 1},
            "augment": {"crop": "center"},
            "batch": {"global_batch_size": 16, "micro_batch_size": 8},
            "optimizer": {"peak_learning_rate": 0.01},
            "schedule": {"warmup_steps": 1},
            "engine": {"zero_stage": 1, "precision": "fp32"},
            "checkpoints": {"every_steps": 6},
            "evaluation": {"every_steps": 6},
            "pictures": {"every_steps": 6, "num_images": 4},
            "logging": {"every_steps": 6},
        } | sections
        path = tmp_path_factory.mktemp("config") / "images.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return write


@pytest.fixture
def roughen():
    """Moves weights away from zeros, ones and small numbers, so that every part shows."""

    def change(model):
        import torch

        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:  # positions of a masked autoencoder stay as they are
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)

    return change
