"""Recipes for a small image model side by side: which learns best, in minutes on one GPU.

    python -m benchmarks.image_recipes CONFIG --epochs 50 --recipe 'NAME: KEY=VALUE ...' ...
                                       [--authors FOLDER] [--out TABLE.md]

CONFIG is a training config, vit_lite_cifar10.yaml say, whose dataset is there; each recipe is that
config with other values. All take their steps from the same images in the same order, in bf16
autocast with fp32 weights, on streams of their own inside one CUDA graph: a model of 4 million
parameters leaves most of a GPU idle, and one alone waits for Python. Images are made an epoch
ahead by the loader of the product, once for all recipes that augment alike.

Of a config count `model`, `task`, `augment`, `optimizer`, `schedule`, `seed`, `data` and
`batch.global_batch_size`; gradients are not clipped. `--authors` adds ViT-Lite-7/4 itself, from the
folder of Compact-Transformers (yours; nothing of it is copied), by CONFIG without changes.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from configs import load
from training.augment.recipe import Recipe
from training.compilation import compile_blocks
from training.config import TrainingConfig
from training.data.loader import EvaluationBatches
from training.data.shards import load_manifest
from training.kinds import kind_of
from training.objective import Objective
from training.optimizer import build_optimizer
from training.schedule import learning_rate

ROWS_OF_EVALUATION = 1000
TIMED_STEPS = 50
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

Batch = dict[str, Tensor]


class Candidate:
    """A recipe with its model, optimizer and the images of an epoch on the device."""

    def __init__(self, name: str, config: Any, epochs: int, authors: Path | None) -> None:
        self.name, self.config = name, config
        manifest = load_manifest(config.data.dataset_dir)
        self.task = kind_of(config).build_task(config, manifest)
        self.rows = config.batch.global_batch_size
        torch.manual_seed(config.seed)
        model: Any = (
            _load_authors(authors) if authors else config.model.module.Model(config.model.config)
        )
        self.objective = Objective(model.to(DEVICE), self.task)
        if DEVICE.type == "cuda":
            compile_blocks(model.blocks)
            # Its constants would be copied to the device, which no CUDA graph can record.
            self.task.pixels = torch.compile(self.task.pixels)
        self.optimizer = build_optimizer(model, config.optimizer)
        samples = sum(shard.samples for shard in manifest.splits["train"])
        self.steps_per_epoch = samples // self.rows
        self.rates = self._rates(epochs * self.steps_per_epoch)  # (steps)
        for group in self.optimizer.param_groups:
            group["lr"], group["capturable"] = torch.zeros((), device=DEVICE), DEVICE.type == "cuda"
        self.loss = torch.zeros((), device=DEVICE)  # of the last steps
        self.epoch: Batch = {}
        self.found: list[tuple[float, float]] = []

    def take_epoch(self, images: Any) -> None:
        """Put an epoch's images where the steps find them, each time at the same address."""
        for name, rows in self.task.collate(images).items():
            if name in self.epoch:
                self.epoch[name].copy_(rows)
            else:
                self.epoch[name] = rows.to(DEVICE)

    def step(self, number: Tensor, of_all: Tensor) -> None:
        """An optimizer step; its number in the epoch and in the run, (), are on the device."""
        rows = number * self.rows + torch.arange(self.rows, device=DEVICE)  # (B)
        batch = {name: column.index_select(0, rows) for name, column in self.epoch.items()}
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss_sum, _ = self.objective(batch)
        loss = loss_sum / self.rows
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        rate = self.rates.index_select(0, of_all.view(1))[0]
        for group in self.optimizer.param_groups:
            group["lr"].copy_(rate * group["lr_scale"])
        self.optimizer.step()
        self.loss.lerp_(loss.detach(), 0.02)

    def forget_steps(self) -> None:
        """Steps at a learning rate of 0 have changed nothing but what the optimizer remembers."""
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.loss.zero_()

    @torch.no_grad()
    def evaluate(self, batches: list[Batch]) -> None:
        """Note top-1, %, and the mean loss, nats."""
        self.objective.eval()
        hits = losses = count = 0.0
        for batch in batches:
            with torch.autocast(DEVICE.type, torch.bfloat16):
                loss_sum, metrics = self.objective(batch)
            hits += float(metrics["top1"])
            losses += float(loss_sum)
            count += float(batch["weights"].sum())
        self.objective.train()
        self.found.append((100 * hits / count, losses / count))

    def _rates(self, num_steps: int) -> Tensor:
        schedule = self.config.schedule
        schedule.check(num_steps)
        rates = [
            learning_rate(
                step,
                shape=schedule.shape,
                num_steps=num_steps,
                peak_learning_rate=self.config.optimizer.peak_learning_rate,
                warmup_steps=schedule.warmup_steps,
                decay_steps=schedule.decay_steps,
                min_learning_rate_ratio=schedule.min_learning_rate_ratio,
            )
            for step in range(1, num_steps + 1)
        ]
        return torch.tensor(rates, device=DEVICE)


class EpochImages:
    """Makes the images of the next epoch while the steps of this one run."""

    def __init__(self, candidates: list[Candidate]) -> None:
        self.candidates = candidates
        self._splits: dict[tuple[Recipe, int], Any] = {}
        for one in candidates:
            key = self._key(one)
            if key not in self._splits:
                config = one.config
                manifest = load_manifest(config.data.dataset_dir)
                self._splits[key] = kind_of(config).open_split(config, manifest, split="train")
        self._pool = ThreadPoolExecutor(1)
        self._next = self._order(0)

    def load(self, epoch: int, *, last: bool) -> None:
        """Give each its images of this epoch, and begin with the next one's."""
        images = self._next.result()
        if not last:
            self._next = self._order(epoch + 1)
        for one in self.candidates:
            one.take_epoch(images[self._key(one)])

    def close(self) -> None:
        self._pool.shutdown()
        for split in self._splits.values():
            split.close()

    def _key(self, one: Candidate) -> tuple[Recipe, int]:
        return one.config.augment.recipe(one.task.image_size), one.config.seed

    def _order(self, epoch: int) -> Future[dict[tuple[Recipe, int], Any]]:
        def make() -> dict[tuple[Recipe, int], Any]:
            return {
                key: split.read(np.arange(epoch * len(split), (epoch + 1) * len(split)))
                for key, split in self._splits.items()
            }

        return self._pool.submit(make)


def main() -> None:
    arguments = _arguments()
    candidates = [
        Candidate(name, load(TrainingConfig, arguments.config, words), arguments.epochs, authors)
        for name, words, authors in _recipes(arguments)
    ]
    validation = _validation(candidates[0])
    images = EpochImages(candidates)
    images.load(0, last=arguments.epochs == 1)
    steps = JointSteps(candidates)
    step = steps.record() if DEVICE.type == "cuda" else steps.step
    told = sorted({round(arguments.epochs * n / 12) for n in range(1, 13)} - {0})
    began = time.monotonic()
    for epoch in range(arguments.epochs):
        if epoch:
            images.load(epoch, last=epoch + 1 == arguments.epochs)
        for _ in range(candidates[0].steps_per_epoch):
            step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        if epoch + 1 in told:
            for one in candidates:
                one.evaluate(validation)
            left = (time.monotonic() - began) / (epoch + 1) * (arguments.epochs - epoch - 1)
            tops = ", ".join(f"{one.name} {one.found[-1][0]:.2f}" for one in candidates)
            sys.stderr.write(f"epoch {epoch + 1}: {tops}; {left:.0f} s left\n")
            _write(arguments.out, candidates, told)
    images.close()
    print(_table(candidates, told))


class JointSteps:
    """Steps of all candidates, each of the epoch's next images."""

    def __init__(self, candidates: list[Candidate]) -> None:
        self.candidates = candidates
        self._of_epoch, self._of_all = torch.zeros(2, dtype=torch.long, device=DEVICE).unbind()

    def step(self) -> None:
        """One of each."""
        for one in self.candidates:
            one.step(self._of_epoch, self._of_all)
        self._advance()

    def record(self) -> Callable[[], None]:
        """One step of each as one CUDA graph, of which each has a branch of its own."""
        rates = [one.rates.clone() for one in self.candidates]
        for one in self.candidates:
            one.rates.zero_()
        streams: list[Any] = [torch.cuda.Stream() for _ in self.candidates]  # type: ignore[no-untyped-call]
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            for _ in range(3):
                self._branch(streams)  # compiles, and lets the optimizers allocate
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._branch(streams)
        self._time(graph.replay)
        for one, own in zip(self.candidates, rates, strict=True):
            one.rates.copy_(own)
            one.forget_steps()
        self._of_epoch.zero_()
        self._of_all.zero_()
        return graph.replay

    def _branch(self, streams: list[Any]) -> None:
        trunk = torch.cuda.current_stream()
        for one, stream in zip(self.candidates, streams, strict=True):
            stream.wait_stream(trunk)
            with torch.cuda.stream(stream):
                one.step(self._of_epoch, self._of_all)
        for stream in streams:
            trunk.wait_stream(stream)
        self._advance()

    def _advance(self) -> None:
        self._of_epoch.add_(1).remainder_(self.candidates[0].steps_per_epoch)
        self._of_all.add_(1)

    def _time(self, step: Callable[[], None]) -> None:
        began = time.monotonic()
        for _ in range(TIMED_STEPS):
            step()
        torch.cuda.synchronize()
        milliseconds = (time.monotonic() - began) / TIMED_STEPS * 1e3
        sys.stderr.write(f"{milliseconds:.2f} ms a step of all {len(self.candidates)}\n")


def _validation(one: Candidate) -> list[Batch]:
    manifest = load_manifest(one.config.data.dataset_dir)
    split: Any = kind_of(one.config).open_split(one.config, manifest, split="validation")
    batches = EvaluationBatches(
        split, collate=one.task.collate, micro_batch_size=ROWS_OF_EVALUATION, rank=0, world_size=1
    )
    found = [{name: rows.to(DEVICE) for name, rows in batch.items()} for batch in batches]
    split.close()
    return found


def _load_authors(folder: Path) -> Any:
    sys.path.insert(0, str(folder))
    from src.vit import vit_7_4_32  # type: ignore[import-not-found]  # noqa: PLC0415

    model: Any = vit_7_4_32()
    model.blocks = model.classifier.blocks
    return model


def _recipes(arguments: argparse.Namespace) -> list[tuple[str, list[str], Path | None]]:
    recipes: list[tuple[str, list[str], Path | None]] = []
    if arguments.authors:
        recipes.append(("authors", arguments.set, arguments.authors))
    for text in arguments.recipe:
        name, _, words = text.partition(":")
        recipes.append((name.strip(), [*arguments.set, *words.split()], None))
    return recipes


def _table(candidates: list[Candidate], told: list[int]) -> str:
    told = told[: len(candidates[0].found)]
    lines = [
        f"| top-1, % at epoch | {' | '.join(map(str, told))} | training loss |",
        f"|---|{'--:|' * (len(told) + 1)}",
    ]
    for one in candidates:
        tops = " | ".join(f"{top:.2f}" for top, _ in one.found)
        lines.append(f"| {one.name} | {tops} | {float(one.loss):.3f} |")
    return "\n".join(lines)


def _write(path: str, candidates: list[Candidate], told: list[int]) -> None:
    if path:
        rows = {one.name: one.found for one in candidates}
        Path(path).write_text(f"{_table(candidates, told)}\n\n{json.dumps(rows)}\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.image_recipes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--epochs", type=int, default=50, help="of all, each with its own schedule")
    parser.add_argument(
        "--recipe", nargs="*", default=["as it is:"], metavar="'NAME: KEY=VALUE ...'"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for all recipes")
    parser.add_argument("--authors", type=Path, metavar="FOLDER", help="of Compact-Transformers")
    parser.add_argument("--out", default="", metavar="FILE", help="write the table there, too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
