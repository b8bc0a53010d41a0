"""Initial weights from another run, or from a Hugging Face folder: `init_from`.

Weights alone are taken, not the optimizer or the place in the data, and every weight is told of:
loaded, missing in the other run, or unused by this one.
"""

import fnmatch
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from training import checkpoint, distributed, run_dataset
from training.augment.config import Config as Augment
from training.config import TrainingConfig
from training.console import say
from training.engine import assign_weights, load_weights
from training.huggingface.folder import is_folder
from training.huggingface.initial import compare, read_weights
from training.huggingface.seen_images import read_classes, read_normalisation
from training.huggingface.vocabulary import find_other_meaning
from training.objective import count_elements
from training.run_dataset import DatasetFacts, read_kept
from training.run_dir import find_checkpoint

REPORT = "init_from.json"
NUM_TOLD = 4
"""Names in a list on the console; the report has all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of the weights of both runs, by name."""

    loaded: tuple[str, ...]
    """Taken over."""
    missing: dict[str, str]
    """Of the new model, which start anew, and why."""
    unused: tuple[str, ...]
    """Of the other run, which the new model has no place for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Weights to begin with, under our names, and what is known of them."""

    name: str
    """Where they are."""
    weights: dict[str, Tensor]
    """In fp32."""
    unused: tuple[str, ...] = ()
    """Names of weights that no model of ours has."""
    fits: str = ""
    """Of a foreign model, the section `model` that is its own."""
    differs: dict[str, str] = field(default_factory=dict)
    """Keys of `model` that are otherwise here, and how."""
    normalisation: dict[str, list[float]] = field(default_factory=dict)
    """`mean` and `std` of the pixels that it learned from, as far as known."""


def take_initial_weights(model: nn.Module, config: TrainingConfig, facts: DatasetFacts) -> None:
    """Load the weights of `init_from` into a new run's model, and report.

    Every rank calls it with the model, before DeepSpeed's engine has it, and with the facts of the
    run's dataset. A run that continues has weights of its own, and is left alone.

    Raises:
        ValueError: no weight fits, or one has another shape than the model's, or the folder is one
            of a model that ours is not.
        FileNotFoundError: nothing complete there, or no average in it.
    """
    run_dir = Path(config.run_dir)
    if distributed.broadcast(checkpoint.list_checkpoints(run_dir / "checkpoints")):
        return
    source = _open_source(config)
    found = adapt(config.model.module, source.weights, config.model.config)
    own = model.state_dict(keep_vars=True)  # a partitioned weight remembers its shape
    try:
        report = match_weights(
            {name: getattr(tensor, "ds_shape", tensor.shape) for name, tensor in own.items()},
            {name: tensor.shape for name, tensor in found.items()},
            skip=config.init_skip,
        )
    except ValueError as error:
        fits = f"; the section that fits is {source.fits}" if source.fits else ""
        raise ValueError(f"init_from={config.init_from}: {error}{fits}") from None
    report = replace(report, unused=report.unused + source.unused)
    assign_weights(model, {name: found[name] for name in report.loaded})
    if distributed.is_rank_zero():
        tree = {"init_from": source.name, "init_ema": config.init_ema, **asdict(report)}
        tree |= {"differs": source.differs}
        (run_dir / REPORT).write_text(json.dumps(tree, indent=1) + "\n")
    of = f"the average in {source.name}" if config.init_ema else source.name
    say(f"initial weights of {of}: {describe(report, model)}; all names in {run_dir / REPORT}")
    for line in _warnings(source, report, facts, getattr(config, "augment", None)):
        say(f"initial weights of {of}: {line}")


def _open_source(config: TrainingConfig) -> Source:
    """A run, one of its checkpoints, or a Hugging Face folder."""
    path = Path(config.init_from)
    if not is_folder(path):
        found = _find_checkpoint(path)
        tree = yaml.safe_load((found / checkpoint.CONFIG).read_text())
        section = dict(tree["model"])
        section.pop("name")
        augment = tree.get("augment", {})
        return Source(
            name=str(found),
            weights=load_weights(found, averaged=config.init_ema),
            differs=compare(section, config.model.config),
            normalisation={name: augment[name] for name in ("mean", "std") if name in augment},
        )
    if config.init_ema:
        raise ValueError(f"init_ema asks for an average, which {path}, of Hugging Face, has not")
    try:
        read = read_weights(path, config.model.config)
    except ValueError as error:
        raise ValueError(f"init_from={config.init_from}: {error}") from None
    return Source(
        name=str(path),
        weights=read.weights,
        unused=read.unused,
        fits=read.section,
        differs=read.differs,
        normalisation=read_normalisation(path),
    )


def _find_checkpoint(path: Path) -> Path:
    try:
        return find_checkpoint(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}, or a Hugging Face folder, with config.json") from None


def _warnings(
    source: Source, report: Report, facts: DatasetFacts, augment: Augment | None
) -> Iterator[str]:
    """What of the other model is otherwise here, and may be so by choice; shapes tell it not."""
    for key, how in source.differs.items():
        yield f"model.{key} is {how}"
    for key, theirs_of_key in source.normalisation.items() if augment else ():
        ours = list(getattr(augment, key))
        if list(theirs_of_key) != ours:
            yield f"augment.{key} is {theirs_of_key} there, {ours} here"
    try:
        theirs = _facts_of(source)
    except (OSError, ValueError) as error:
        yield f"what it learned from is not known: {error}"
        return
    if theirs.tokenizer_json and facts.tokenizer_json:
        other = find_other_meaning(theirs.tokenizer_json, facts.tokenizer_json)
        if other:
            yield f"its tokenizer is not the dataset's: {other}"
    takes_head = any(name.partition(".")[0] == "head" for name in report.loaded)
    if takes_head and theirs.classes and theirs.classes != facts.classes:
        yield f"its head is of other classes: {_other_classes(theirs.classes, facts.classes)}"


def _facts_of(source: Source) -> DatasetFacts:
    """What the source tells of the dataset that it learned from, which may be nothing."""
    path = Path(source.name)
    if not source.fits:
        run_dir = path.resolve().parents[1]
        return read_kept(run_dir) if (run_dir / run_dataset.FILE).exists() else DatasetFacts("")
    tokenizer = path / run_dataset.TOKENIZER
    content = tokenizer.read_bytes() if tokenizer.is_file() else b""
    return DatasetFacts("", classes=read_classes(path), tokenizer_json=content)


def _other_classes(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """The first few of the indices at which names differ."""
    pairs = zip_longest(map(repr, theirs), map(repr, ours), fillvalue="nothing")
    there, here = zip(*(pair for pair in pairs if pair[0] != pair[1]), strict=True)
    return f"{_list(there)} there, {_list(here)} in the dataset"


def adapt(module: ModuleType, found: dict[str, Tensor], model_config: Any) -> dict[str, Tensor]:
    """Let a model's module name and form another model's weights as its own, if it knows how."""
    if not hasattr(module, "adapt"):
        return found
    adapted: dict[str, Tensor] = module.adapt(found, model_config)
    return adapted


def match_weights(
    own: Mapping[str, torch.Size], found: Mapping[str, torch.Size], *, skip: Sequence[str]
) -> Report:
    """Weights of the same name and shape are loaded.

    A `head` of another shape starts anew, as for another number of classes; so does what a pattern
    of `skip` names.

    Raises:
        ValueError: another weight has another shape, a pattern names none, or nothing is loaded.
    """
    for pattern in skip:
        if not fnmatch.filter(own, pattern):
            raise ValueError(f"init_skip: no weight of this model is named {pattern}")
    loaded: list[str] = []
    missing: dict[str, str] = {}
    conflicts: list[str] = []
    for name, shape in own.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in skip):
            missing[name] = "skipped"
        elif name not in found:
            missing[name] = "not there"
        elif found[name] == shape:
            loaded.append(name)
        else:
            missing[name] = f"{_size(found[name])} there, {_size(shape)} here"
            if name.partition(".")[0] != "head":
                conflicts.append(f"{name} is {missing[name]}")
    if conflicts:
        raise ValueError(
            f"{_list(conflicts, joined_by='; ')}; make the models alike, or let such weights start "
            "anew by init_skip, a list of names or patterns"
        )
    if not loaded:
        raise ValueError(
            f"no weight of it fits: it has {_list(found)}, and this model has {_list(own)}"
        )
    unused = tuple(name for name in found if name not in own)
    return Report(loaded=tuple(loaded), missing=missing, unused=unused)


def describe(report: Report, model: nn.Module) -> str:
    """A report in one line, with the first few names of what was not loaded."""
    sizes = {name: count_elements(parameter) for name, parameter in model.named_parameters()}
    loaded = sum(sizes.get(name, 0) for name in report.loaded)
    parts = [f"{len(report.loaded)} loaded, {loaded:,} of {sum(sizes.values()):,} parameters"]
    if report.missing:
        reasons = [f"{name} ({reason})" for name, reason in report.missing.items()]
        parts.append(f"{len(reasons)} start anew: {_list(reasons)}")
    if report.unused:
        parts.append(f"{len(report.unused)} of them unused: {_list(report.unused)}")
    return "; ".join(parts)


def _list(names: Iterable[str], *, joined_by: str = ", ") -> str:
    names = list(names)
    rest = len(names) - NUM_TOLD
    return joined_by.join([*names[:NUM_TOLD], *([f"{rest} more"] if rest > 0 else [])])


def _size(shape: torch.Size) -> str:
    return " x ".join(map(str, shape)) or "a number"
