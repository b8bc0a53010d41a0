"""Builds of images without near-duplicates: whichever way, the same bytes; none straddles."""

import gzip
import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import webdataset

from configs import load
from pipeline.build import build
from pipeline.config import PipelineConfig
from pipeline.verify import verify


def picture(seed, size=(160, 120)):
    values = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return PIL.Image.fromarray(values).resize(size, PIL.Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """50 pictures, 30 of them in three more versions of which the largest is not the first."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(50):
        picture(number).save(folder / f"{number:02d}.jpg", quality=95)
    for number in range(30):
        picture(number, (240, 180)).save(folder / f"{number:02d}-large.jpg", quality=80)
        turned = picture(number).transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
        turned.save(folder / f"{number:02d}-mirrored.png")
        picture(number, (120, 90)).convert("L").save(folder / f"{number:02d}-grey.webp")
    (folder / "copy.jpg").write_bytes((folder / "03.jpg").read_bytes())
    return folder


def overrides_of(corpus, dataset_dir, *overrides):
    return [
        f"dataset_dir={dataset_dir}",
        "corpus.format=image_folder",
        f"corpus.path=[{corpus}]",
        "near_duplicates.enabled=true",
        "images.resize.mode=none",
        "images.encode.format=PNG",
        "num_workers=1",
        "split.documents=10",
        "shards.target_mib=0.3",
        "shards.chunk_mib=0.1",
        *overrides,
    ]


def make(corpus, dataset_dir, *overrides, **arguments):
    config = load(PipelineConfig, None, overrides_of(corpus, dataset_dir, *overrides))
    return build(config, **arguments)


def sums(dataset):
    kept = [*dataset.glob("*.tar"), *dataset.glob("*.idx"), *dataset.rglob("*.gz")]
    kept.append(dataset / "manifest.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


@pytest.fixture(scope="module")
def built(corpus, tmp_path_factory):
    return make(corpus, tmp_path_factory.mktemp("built") / "dataset")


def samples_of(dataset, split):
    urls = sorted(map(str, dataset.glob(f"{split}-*.tar")))
    return list(webdataset.WebDataset(urls, shardshuffle=False))


def pixels(image):
    return np.asarray(image.convert("RGB")).tobytes()


def test_one_of_each_stays_and_it_is_the_largest(built, corpus):
    train, validation = samples_of(built, "train"), samples_of(built, "validation")
    assert (len(train), len(validation)) == (40, 10)
    names = [f"{n:02d}-large" if n < 30 else f"{n:02d}" for n in range(50)]
    expected = {pixels(PIL.Image.open(corpus / f"{name}.jpg")) for name in names}
    found = [
        np.asarray(PIL.Image.open(io.BytesIO(one["png"]))).tobytes()
        for one in (*train, *validation)
    ]
    assert len(found) == 50 and set(found) == expected
    assert verify(built) == []


def test_every_other_one_is_a_reject_that_names_the_one_that_stays(built):
    with gzip.open(built / "rejects/deduplicate.jsonl.gz") as file:
        rows = list(map(json.loads, file))
    assert sum(row["reason"] == "duplicate" for row in rows) == 1
    assert [row["detail"] for row in rows if row["reason"] == "duplicate"] == [
        "same image as 03.jpg at 0"
    ]
    near = {
        row["source"]: row["detail"].split()[1].strip(",")
        for row in rows
        if row["reason"] == "near_duplicate"
    }
    kept = {one["__key__"] for split in ("train", "validation") for one in samples_of(built, split)}
    ends = (".jpg", "-mirrored.png", "-grey.webp")
    assert set(near) == {f"{n:02d}{end}" for n in range(30) for end in ends}
    for n in range(30):
        named = {
            near[f"{n:02d}{end}"].strip(",") for end in (".jpg", "-mirrored.png", "-grey.webp")
        }
        assert len(named) == 1 and named < kept


def test_the_report_tells_the_clusters(built):
    report = json.loads((built / "report.json").read_text())
    told = report["near_duplicates"]
    assert (told["clusters"], told["images"]) == (30, 120)
    assert {one["images"] for one in told["largest"]} == {4}
    by_stage = {row["stage"]: row for row in report["funnel"]}
    assert by_stage["deduplicate"]["records_in"] == 141
    assert by_stage["deduplicate"]["records_out"] == by_stage["pack"]["records_in"] == 50
    assert by_stage["pack"]["records_out"] == 50
    page = (built / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 20


def test_workers_and_ways_give_the_same_bytes(built, corpus, tmp_path):
    two = make(corpus, tmp_path / "two", "num_workers=2")
    keyed = make(corpus, tmp_path / "keyed", spills=False)
    assert sums(two) == sums(keyed) == sums(built)


def test_a_divided_corpus_does_not_leak(corpus, tmp_path):
    """The mirrored versions validate: of each cluster that has one, that stays."""
    divided = ("split.documents=null", "split.validation_paths=['*-mirrored.png']")
    dataset = make(corpus, tmp_path / "dataset", *divided)
    assert len(samples_of(dataset, "validation")) == 30
    assert len(samples_of(dataset, "train")) == 20
    assert verify(dataset) == []
    keyed = make(corpus, tmp_path / "keyed", *divided, "num_workers=2", spills=False)
    assert sums(keyed) == sums(dataset)


def test_a_rerun_after_a_kill_gives_the_same_bytes(built, corpus, tmp_path):
    """Killed at several moments: sketches of finished portions are taken up again."""
    overrides = overrides_of(corpus, tmp_path / "dataset")
    (tmp_path / "config.yaml").write_text("shuffle_seed: 0\n")
    command = [sys.executable, "-m", "pipeline", str(tmp_path / "config.yaml"), *overrides]
    work = tmp_path / "dataset/.work"
    moments = ("portions/*.json", "pairs/*.arrow", "compares/*/excluded.arrow", "shards/*/*.json")
    for moment in moments:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
            end = time.monotonic() + 60
            while not list(work.glob(moment)) and time.monotonic() < end and run.poll() is None:
                time.sleep(0.001)
            assert run.poll() is None, "the build was over before it was killed"
            run.send_signal(signal.SIGKILL)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sums(tmp_path / "dataset") == sums(built)


def test_a_comparison_that_is_finished_is_not_repeated(built, corpus, tmp_path):
    config = load(PipelineConfig, None, overrides_of(corpus, tmp_path / "dataset"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.build.publish", lambda *arguments: None)
        build(config)
    for row in (tmp_path / "dataset/.work/shards").rglob("*.json"):
        row.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.images.near_duplicates.exclude", None)  # nothing that is called
        build(config)
    assert sums(tmp_path / "dataset") == sums(built)


def test_a_lost_sketch_is_made_again(built, corpus, tmp_path):
    dataset = tmp_path / "dataset"
    config = load(PipelineConfig, None, overrides_of(corpus, dataset))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.build.publish", lambda *arguments: None)
        build(config)
    for sketch in (dataset / ".work/sketches").iterdir():
        sketch.write_bytes(sketch.read_bytes()[:-10])
    build(config)
    assert sums(dataset) == sums(built)


def test_switched_off_all_stay(corpus, tmp_path):
    dataset = make(corpus, tmp_path / "dataset", "near_duplicates.enabled=false")
    report = json.loads((dataset / "report.json").read_text())
    assert "near_duplicates" not in report
    assert sum(one["documents"] for one in report["splits"].values()) == 140


def test_near_duplicates_need_deduplication(tmp_path):
    with pytest.raises(ValueError, match="near_duplicates.enabled=true with deduplicate=false"):
        make(Path("corpus"), tmp_path / "dataset", "deduplicate=false")
    assert list(tmp_path.iterdir()) == []
