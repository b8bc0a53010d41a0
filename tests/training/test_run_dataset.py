"""What a run keeps of its dataset, and where an early run that kept nothing finds it."""

import json
import re
import shutil
from dataclasses import asdict

import pytest

import configs
from training.config import TrainingConfig
from training.data.config import describe_order
from training.data.shards import load_manifest
from training.run_dataset import FILE, TOKENIZER, DatasetFacts, find_facts, keep_facts, read_facts


def facts_of(dataset_dir):
    return read_facts(str(dataset_dir), load_manifest(str(dataset_dir)))


@pytest.fixture
def project(tmp_path, dataset_dir, write_config, state_of):
    """`project/runs/a` is a run on `project/datasets/b`; training was started in `project`."""
    folder = tmp_path / "project"
    shutil.copytree(dataset_dir, folder / "datasets/b")
    overrides = ["run_dir=runs/a", "data.dataset_dir=datasets/b"]
    config = configs.load(TrainingConfig, write_config(), overrides)
    checkpoint = folder / "runs/a/checkpoints/step-00000001"
    checkpoint.mkdir(parents=True)
    order = describe_order(config.data, load_manifest(str(dataset_dir)))
    (checkpoint / "state.json").write_text(json.dumps(asdict(state_of(1, data_order=order))))
    return folder, checkpoint, config


def test_text_is_kept_whole(project, dataset_dir):
    folder, checkpoint, config = project
    expected = facts_of(dataset_dir)
    assert expected.tokenizer_json == (dataset_dir / "tokenizer.json").read_bytes()
    keep_facts(expected, folder / "runs/a")
    keep_facts(expected, folder / "runs/a")  # the run goes on
    shutil.rmtree(folder / "datasets")
    shutil.move(folder, folder.with_name("elsewhere"))
    assert find_facts(folder.with_name("elsewhere") / checkpoint.relative_to(folder), config) == (
        expected
    )


def test_classes_are_kept(project, image_dir):
    folder, checkpoint, config = project
    keep_facts(facts_of(image_dir), folder / "runs/a")
    assert not (folder / "runs/a" / TOKENIZER).exists()
    found = find_facts(checkpoint, config)
    assert (found, found.classes) == (facts_of(image_dir), ("dark", "bright"))


def test_a_start_that_was_killed_leaves_no_half(project, dataset_dir, monkeypatch):
    """On another dataset than an earlier start: no old description of a new tokenizer."""
    folder, _, _ = project
    run_dir = folder / "runs/a"
    keep_facts(DatasetFacts("another"), run_dir)
    written = []

    def killed(path, content):
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        path.write_bytes(content)

    monkeypatch.setattr("training.run_dataset.write_durably", killed)
    with pytest.raises(KeyboardInterrupt):
        keep_facts(facts_of(dataset_dir), run_dir)
    assert written == [TOKENIZER]
    assert not (run_dir / FILE).exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (FILE, b"{", "dataset.json: damaged (JSONDecodeError: "),
        (FILE, b'{"tokenizer": null, "classes": []}', "damaged (KeyError: 'fingerprint')"),
        (FILE, b'{"tokenizer": {"file": "x"}}', "damaged (TypeError: "),
        (TOKENIZER, b"{}", "tokenizer.json: its sha256 is not that of dataset.json"),
    ],
)
def test_damage(project, dataset_dir, name, content, message):
    folder, checkpoint, config = project
    keep_facts(facts_of(dataset_dir), folder / "runs/a")
    (folder / "runs/a" / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        find_facts(checkpoint, config)


def test_an_early_run_finds_its_dataset_from_any_folder(project, dataset_dir, monkeypatch):
    folder, checkpoint, config = project
    monkeypatch.chdir("/")
    assert find_facts(checkpoint, config) == facts_of(dataset_dir)
    monkeypatch.chdir(folder)
    assert find_facts(checkpoint, config) == facts_of(dataset_dir)
    shutil.move("runs/a", folder.parent / "moved")  # then the folder counts in which we are
    moved = folder.parent / "moved/checkpoints" / checkpoint.name
    assert find_facts(moved, config) == facts_of(dataset_dir)


def test_another_dataset_in_its_place_is_not_taken(project, image_dir, tmp_path, monkeypatch):
    folder, checkpoint, config = project
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(folder / "datasets/b")
    shutil.copytree(image_dir, folder / "datasets/b")
    message = (
        f"{folder}/runs/a: no dataset.json, in which a run keeps what is needed of its dataset, "
        f"and the dataset itself is not the one at {folder}/datasets/b, which has other shards, "
        f"not at {tmp_path}/datasets/b; start in the folder where training was started, "
        "or bring the dataset back"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        find_facts(checkpoint, config)


def test_a_dataset_without_its_tokenizer(dataset_dir, tmp_path):
    folder = shutil.copytree(dataset_dir, tmp_path / "dataset")
    (folder / TOKENIZER).unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json, which its manifest names"):
        facts_of(folder)
