"""What assembly knows of a kind of dataset: a module for each, text and image."""

import importlib
from typing import Any, Protocol, cast

from pipeline.manifest import Manifest
from training.data.loader import Dataset, FileOrder
from training.engine import Engine
from training.events import EventFile
from training.trainer import Hook


class Split(Dataset, FileOrder, Protocol):
    """The samples of a split, in the data order and as they lie."""


class Kind(Protocol):
    """A module of this package; `config` is the training config of the kind."""

    UNIT: str
    """What speed is counted in: tokens or images."""

    def build_task(self, config: Any, manifest: Manifest) -> Any:
        """The task, which fits the dataset and the model.

        Raises:
            ValueError: it does not.
        """
        ...

    def open_split(
        self, config: Any, manifest: Manifest, *, split: str, ranks_per_lane_set: int = 1
    ) -> Split:
        """The samples of a split.

        `ranks_per_lane_set` is the number of ranks that share the lanes: the world size where the
        global batch is a multiple of `num_lanes`, else 1.
        """
        ...

    def describe_samples(self, config: Any) -> str:
        """What the samples are, in the plural: `sequences of 64 tokens`."""
        ...

    def units_per_sample(self, config: Any) -> int:
        """`UNIT`s in a sample."""
        ...

    def build_hooks(
        self,
        config: Any,
        manifest: Manifest,
        task: Any,
        engine: Engine,
        events: EventFile | None,
    ) -> list[Hook]:
        """Hooks that this kind alone has."""
        ...


def kind_of(config: Any) -> Kind:
    """The kind that the task of a run is about."""
    return cast("Kind", importlib.import_module(f"training.kinds.{config.task.module.KIND}"))
