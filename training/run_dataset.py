"""What a run keeps of its dataset, so that its model is of use where the dataset is not.

`RUN/dataset.json` holds the names of classes and what is to be known of the tokenizer, which is
`RUN/tokenizer.json`. Runs that were started before there was such a file have their dataset only.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.manifest import Manifest, Tokenizer
from pipeline.urls import is_local
from training import checkpoint
from training.config import TrainingConfig
from training.data.config import is_order_of
from training.data.shards import load_manifest
from training.durable import write_durably
from training.text import read_tokenizer_file

FILE = "dataset.json"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """Of a dataset, what the use of a model that was trained on it needs."""

    fingerprint: str
    """Of its shards."""
    classes: tuple[str, ...] = ()
    """Names of the classes by class index, of image datasets that have any."""
    tokenizer: Tokenizer | None = None
    """What is to be known of the tokenizer, of text datasets."""
    tokenizer_json: bytes = b""
    """Content of its file."""


def read_facts(dataset_dir: str, manifest: Manifest) -> DatasetFacts:
    """The facts of a dataset.

    Raises:
        FileNotFoundError, ValueError: its tokenizer is missing, or another than the manifest names.
    """
    described = manifest.tokenizer
    content = b"" if described is None else read_tokenizer_file(dataset_dir, described)
    return DatasetFacts(manifest.fingerprint, manifest.classes, described, content)


def keep_facts(facts: DatasetFacts, run_dir: Path) -> None:
    """Write them into the run folder, `dataset.json` last; rank 0 calls it."""
    tree = asdict(facts)
    del tree["tokenizer_json"]
    text = json.dumps(tree, indent=1, ensure_ascii=False) + "\n"
    path = run_dir / FILE
    if path.exists() and path.read_bytes() != text.encode():  # of a start on another dataset
        path.unlink()
    if facts.tokenizer is not None:
        write_durably(run_dir / TOKENIZER, facts.tokenizer_json)
    write_durably(path, text.encode())


def find_facts(checkpoint_dir: Path, config: TrainingConfig) -> DatasetFacts:
    """What the run of a checkpoint keeps, or, of an early one, what its dataset says.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: what the run keeps is damaged.
    """
    run_dir = checkpoint_dir.resolve().parents[1]
    if (run_dir / FILE).exists():
        return read_kept(run_dir)
    return _find_in_dataset(checkpoint_dir, config, run_dir)


def read_kept(run_dir: Path) -> DatasetFacts:
    """What a run keeps of its dataset.

    Raises:
        FileNotFoundError: it keeps nothing, or only half.
        ValueError: it is damaged.
    """
    path = run_dir / FILE
    try:
        tree = json.loads(path.read_bytes())
        described = None if tree["tokenizer"] is None else Tokenizer(**tree["tokenizer"])
        facts = DatasetFacts(tree["fingerprint"], tuple(tree["classes"]), described)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error})") from None
    if described is None:
        return facts
    content = (run_dir / TOKENIZER).read_bytes()
    if hashlib.sha256(content).hexdigest() != described.sha256:
        raise ValueError(f"{run_dir / TOKENIZER}: its sha256 is not that of {FILE}")
    return DatasetFacts(facts.fingerprint, facts.classes, described, content)


def find_tokenizer(checkpoint_dir: Path, config: TrainingConfig) -> tuple[bytes, Tokenizer]:
    """Of a run on text, as `find_facts` finds them: tokenizer.json, and what is to be known of it.

    Raises:
        ValueError: none is kept.
    """
    facts = find_facts(checkpoint_dir, config)
    if facts.tokenizer is None:
        raise ValueError(f"{checkpoint_dir}: its run keeps no tokenizer; is it one on text?")
    return facts.tokenizer_json, facts.tokenizer


def _find_in_dataset(checkpoint_dir: Path, config: TrainingConfig, run_dir: Path) -> DatasetFacts:
    order = checkpoint.read_state(checkpoint_dir).data_order
    looked = []
    for dataset_dir in _places(config, run_dir):
        try:
            manifest = load_manifest(dataset_dir)
        except FileNotFoundError:
            looked.append(f"not at {dataset_dir}")
            continue
        if is_order_of(order, manifest):
            return read_facts(dataset_dir, manifest)
        looked.append(f"not the one at {dataset_dir}, which has other shards")
    raise FileNotFoundError(
        f"{run_dir}: no {FILE}, in which a run keeps what is needed of its dataset, and the "
        f"dataset itself is {', '.join(looked)}; start in the folder where training was started, "
        "or bring the dataset back"
    )


def _places(config: TrainingConfig, run_dir: Path) -> list[str]:
    """Where the dataset may lie.

    A relative path is one of the folder where training was started, which the place of the run
    folder may tell, or else of ours.
    """
    typed = config.data.dataset_dir
    if not is_local(typed) or "://" in typed or Path(typed).is_absolute():
        return [typed]
    folders = [Path.cwd()]
    parts = Path(os.path.normpath(config.run_dir)).parts
    if run_dir.parts[-len(parts) :] == parts:
        folders.insert(0, Path(*run_dir.parts[: -len(parts)]))
    return list(dict.fromkeys(os.path.normpath(folder / typed) for folder in folders))
