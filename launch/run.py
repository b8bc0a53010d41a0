"""The run that is put on machines: a training config, its overrides, and what a launcher must know
of it.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import configs
from configs import command
from configs.redact import redact


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training config on a command line, and the folder and Python that it is started with."""

    config: str
    """The YAML file, as ranks see it."""
    overrides: tuple[str, ...]
    """`key=value` of the training config."""
    tree: dict[str, Any]
    """The YAML with its overrides, as it is written: without defaults."""
    folder: str
    """Where ranks start; relative paths of the config begin there."""
    python: str
    """The Python that has Millrace, on every machine."""

    @property
    def name(self) -> str:
        """That of its folder."""
        return Path(str(self.tree["run_dir"])).name

    @property
    def arguments(self) -> tuple[str, ...]:
        """What `python -m training` is told."""
        return (self.config, *self.overrides)

    def program(self, name: str) -> str:
        """A command of the Python's environment, as `deepspeed`."""
        return str(Path(self.python).parent / name)

    def check_ranks(self, world_size: int) -> None:
        """Refuse a number of ranks that does not divide the global batch.

        Raises:
            ValueError: with the numbers that do, and the factors.
        """
        batch, engine = self._section("batch"), self._section("engine")
        whole, micro = batch.get("global_batch_size"), batch.get("micro_batch_size")
        names = ("sequence_parallel_size", "tensor_parallel_size")
        sizes = {name: engine.get(name, 1) for name in names}
        if not all(isinstance(number, int) for number in (whole, micro, *sizes.values())):
            return  # the training stage tells what is missing
        shared = math.prod(sizes.values())
        if world_size % shared or whole % (micro * (world_size // shared)):
            raise ValueError(
                f"{world_size} ranks do not divide a global batch of {whole}: batch.global_batch_"
                f"size must be a multiple of batch.micro_batch_size {micro} x {world_size} ranks"
                + "".join(f" / engine.{name} {size}" for name, size in sizes.items() if size > 1)
            )

    def _section(self, name: str) -> dict[str, Any]:
        section = self.tree.get(name)
        return section if isinstance(section, dict) else {}


def read_run(config: str, overrides: Sequence[str], *, folder: str, python: str) -> Run:
    """The run of a training config.

    Raises:
        ConfigError: the file is missing or no YAML, an override is none, or there is no run_dir.
        ValueError: an override holds credentials.
    """
    for word in overrides:
        if redact(word) != word:
            raise ValueError(
                f"{redact(word)}: holds credentials, which whoever reads scripts, manifests or the "
                "list of processes would see; docs/object_storage.md has better ways"
            )
    tree = configs.read_tree(command.find(config), overrides)
    if not tree.get("run_dir"):
        raise configs.ConfigError(
            "run_dir: missing; give it a value in the YAML or as run_dir=FOLDER"
        )
    return Run(config=config, overrides=tuple(overrides), tree=tree, folder=folder, python=python)


def quote(words: Sequence[str], *, indent: str = "  ") -> str:
    """A command for a shell script, a line for each word of its own that is long."""
    text = shlex.join(words)
    if len(text) <= 100:
        return text
    lines = [shlex.quote(words[0])]
    for word in map(shlex.quote, words[1:]):
        if len(lines[-1]) + len(word) < 96:
            lines[-1] += f" {word}"
        else:
            lines.append(f"{indent}{word}")
    return " \\\n".join(lines)
