"""Clusters of images that look the same: by the stage, over sketch files of several portions."""

import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest

from pipeline.exclude import read_excluded, read_table, write_table
from pipeline.images import clusters, near_duplicates
from pipeline.images.appearance import appearance
from pipeline.images.clusters import SKETCHES, Config, find_clusters, sketch_rows
from pipeline.images.hash_pairs import HashPairs
from pipeline.images.near_duplicates import FindNearDuplicates, compare_hashes
from pipeline.images.similar import band_values, bands
from pipeline.split import MARK
from pipeline.work import WorkFolder

CONFIG = Config(enabled=True)


def picture(seed, size=(320, 240)):
    values = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), np.uint8)
    return PIL.Image.fromarray(values).resize(size, PIL.Image.Resampling.BICUBIC)


def mirror(image):
    return image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)


def crop(image, pixels):
    return image.crop((pixels, pixels, image.width - pixels, image.height - pixels))


def name(number):
    return number.to_bytes(16, "big")


def write(work, portion, images, validates=None):
    """A portion of (number, image): its sketches."""
    keys = pa.array([name(number) for number, _ in images], SKETCHES.field("key").type)
    seen = [appearance(np.asarray(image), image.size).pack() for _, image in images]
    rows = sketch_rows(keys, np.arange(len(images)) + 1, seen)
    if validates is not None:
        rows = rows.append_column(MARK, pa.array([validates] * len(images)))
    write_table(work.sketch(portion), rows)


@pytest.fixture
def work(tmp_path):
    folder = WorkFolder(str(tmp_path / ".work"))
    folder.create()
    return folder


def run(work, num_portions, config=CONFIG, finished=()):
    """{excluded: (kept, distance)} by the stage."""
    import apache_beam as beam

    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = pipeline | beam.Create(list(finished)) | FindNearDuplicates(config, work, num_portions)
    found = {}
    for row in read_excluded(work.excluded).rows.to_pylist():
        words = row["detail"].replace(",", "").split()
        assert row["reason"] == "near_duplicate" and words[3:] == ["of", "64", "bits"]
        key = int.from_bytes(row["key"], "big")
        found[key] = (int(words[1], 16), int(words[2]))
    return found


def test_the_largest_stays_then_that_of_the_smallest_key(work):
    write(work, 0, [(5, picture(0)), (3, picture(1)), (8, picture(2)), (2, picture(9))])
    write(work, 2, [(4, picture(0, (640, 480))), (1, picture(1)), (7, mirror(picture(2)))])
    assert run(work, 3) == {5: (4, 0), 3: (1, 0), 8: (7, 0)}
    told = json.loads(work.comparison.read_text())["summary"]
    assert (told["clusters"], told["images"]) == (3, 6)
    assert [(one["kept"], one["others"]) for one in told["largest"]] == [
        (name(1).hex(), [name(3).hex()]),
        (name(4).hex(), [name(5).hex()]),
        (name(7).hex(), [name(8).hex()]),
    ]
    assert all(one["thumbnail"].startswith("data:image/png;base64,") for one in told["largest"])


def test_validation_keeps_what_training_has_too(work):
    """Where the corpus is divided: neither a larger nor an equal image of training stays."""
    write(work, 0, [(1, picture(0, (640, 480))), (2, picture(1)), (7, picture(2))], validates=False)
    write(work, 1, [(5, picture(0)), (2, picture(1)), (6, mirror(picture(1)))], validates=True)
    assert run(work, 2) == {1: (5, 0), 6: (2, 0)}


def test_mirror_images_by_choice(work):
    write(work, 0, [(1, picture(2)), (2, mirror(picture(2)))])
    assert run(work, 1, Config(enabled=True, mirrored=False)) == {}
    assert run(work, 1) == {2: (1, 0)}


def test_radius_and_correlation_have_their_effect(work):
    cropped = crop(picture(3), 5)
    write(work, 0, [(1, picture(3)), (2, cropped)])
    pair = [appearance(np.asarray(image), (1, 1)) for image in (picture(3), cropped)]
    distance = (pair[0].hash ^ pair[1].hash).bit_count()
    assert distance == 2
    assert run(work, 1) == {2: (1, 2)}
    assert run(work, 1, Config(enabled=True, radius=1)) == {}
    assert run(work, 1, Config(enabled=True, min_correlation=1.0)) == {}


def test_no_images(work):
    assert run(work, 3) == {}
    told = json.loads(work.comparison.read_text())["summary"]
    assert told == {"clusters": 0, "images": 0, "largest": []}
    assert read_table(work.excluded).num_rows == 0


def test_a_collision_of_hashes_drops_nothing(work):
    """Equal hashes, other thumbnails."""
    write(work, 0, [(1, picture(0)), (2, picture(1)), (3, picture(0)), (4, picture(1))])
    rows = read_table(work.sketch(0))
    same = pa.array([42] * 4, pa.uint64())
    columns = [same if "hash" in field.name else rows.column(field.name) for field in SKETCHES]
    write_table(work.sketch(0), pa.RecordBatch.from_arrays(columns, schema=SKETCHES))
    assert run(work, 1) == {3: (1, 0), 4: (2, 0)}


def test_copies_count_once_and_by_the_larger_original(work):
    """A key in several portions, of originals of several sizes."""
    write(work, 0, [(1, picture(0)), (2, picture(0, (400, 300)))])
    write(work, 1, [(1, picture(0, (640, 480))), (1, picture(0))])
    assert run(work, 2) == {2: (1, 0)}


def test_what_hangs_together_is_one_cluster(work):
    """The ends of a chain are farther apart than its neighbours."""
    chain = [crop(picture(9, (640, 480)), 8 * step) for step in range(5)]
    write(work, 0, list(enumerate(chain)))
    found = run(work, 1)
    assert {key: kept for key, (kept, _) in found.items()} == dict.fromkeys(range(1, 5), 0)
    ends = [appearance(np.asarray(image), (1, 1)).hash for image in (chain[0], chain[-1])]
    assert found[4][1] == (ends[0] ^ ends[1]).bit_count() > CONFIG.radius


@pytest.mark.parametrize("at_once", [1, 1024])
def test_any_order_and_cut_give_the_same(work, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(clusters, "VERIFIED_AT_ONCE", at_once)
    images = [(number, picture(number // 3)) for number in range(30)]
    write(work, 0, images)
    whole = run(work, 1)
    assert len(whole) == 20
    other = WorkFolder(str(tmp_path / "other"))
    other.create()
    shuffled = [images[i] for i in np.random.default_rng(0).permutation(30)]
    for portion in range(4):
        write(other, portion, shuffled[portion::4])
    assert run(other, 4, finished=(1, 3)) == whole
    for path in ("excluded", "comparison"):
        assert getattr(work, path).read_bytes() == getattr(other, path).read_bytes()


def test_many_different_images_of_one_hash_have_a_bound(work, monkeypatch):
    """Behind the limit images stay in the dataset."""
    monkeypatch.setattr(clusters, "MAX_LEADERS", 3)
    write(work, 0, [(number, picture(number % 5)) for number in range(10)])
    rows = read_table(work.sketch(0))
    same = pa.array([42] * 10, pa.uint64())
    columns = [same if "hash" in field.name else rows.column(field.name) for field in SKETCHES]
    write_table(work.sketch(0), pa.RecordBatch.from_arrays(columns, schema=SKETCHES))
    found = find_clusters([work.sketch(0)], HashPairs.joined([]), CONFIG)
    assert found.groups == ((0, 5), (1, 6), (2, 7))


def test_compared_are_images_with_images_and_with_mirror_images():
    plain, mirrored = np.array([0b0, 0b1, 0xFFF], np.uint64), np.array([0b0, 0b11], np.uint64)
    found = compare_hashes(plain, mirrored, radius=1)
    assert found.plain.tolist() == [[0, 1]]
    assert found.mirrored.tolist() == [[0, 0], [1, 0], [1, 0b11]]


@pytest.mark.parametrize("radius", [1, 3, 8])
def test_each_close_pair_is_found_in_one_band(radius):
    """Of hashes that agree in several bands, as those of real near-duplicates do."""
    draw = np.random.default_rng(radius)
    flips = draw.integers(0, 2, (2, 300, radius), np.uint64)  # 0 flips nothing
    flips <<= draw.integers(0, 64, (2, 300, radius), np.uint64)
    plain, mirrored = (np.unique(np.bitwise_xor.reduce(one, axis=1)) for one in flips)
    whole = compare_hashes(plain, mirrored, radius)
    parts = [
        compare_hashes(plain[own == value], mirrored[other == value], radius, number)
        for number, band in enumerate(bands(radius))
        for own, other in [[band_values(one, band) for one in (plain, mirrored)]]
        for value in np.unique(np.concatenate([own, other]))
    ]
    assert len(whole.plain) > 50 and len(whole.mirrored) > 50
    for kind in ("plain", "mirrored"):
        found = sorted(tuple(pair) for part in parts for pair in getattr(part, kind).tolist())
        assert found == sorted(map(tuple, getattr(whole, kind).tolist()))


@pytest.mark.parametrize("lengths", [(2, 3), (0, 1), (4, 0), (0, 0)])
def test_close_pairs_are_read_as_they_were_written(tmp_path, lengths):
    draw = np.random.default_rng(0)
    plain, mirrored = (draw.integers(0, 2**64, (n, 2), np.uint64) for n in lengths)
    HashPairs(plain, mirrored).write(tmp_path / "1.arrow")
    HashPairs(mirrored, plain).write(tmp_path / "2.arrow")
    found = HashPairs.joined([tmp_path / "1.arrow", tmp_path / "2.arrow"])
    assert found.plain.tolist() == [*plain.tolist(), *mirrored.tolist()]
    assert found.mirrored.tolist() == [*mirrored.tolist(), *plain.tolist()]


def test_pairs_of_an_earlier_comparison_are_not_used(work):
    """Files of groups that this one has not."""
    one, other = picture(1), picture(2)
    write(work, 0, [(0, one), (1, one), (2, other)])
    hashes = np.asarray(read_table(work.sketch(0)).column("hash"))
    stale = HashPairs(np.array([[hashes[0], hashes[2]]]), np.empty((0, 2), np.uint64))
    stale.write(work.pairs / "8-127-0.arrow")
    assert {key: kept for key, (kept, _) in run(work, 1).items()} == {1: 0}


def test_pairs_that_were_found_are_not_looked_for_again(work, monkeypatch):
    """A build that was killed in its comparison; groups that changed are compared."""
    write(work, 0, [(0, picture(1)), (1, picture(1)), (2, picture(2)), (3, picture(7))])
    whole = run(work, 1)
    made = {path.name: path.stat().st_ino for path in work.pairs.iterdir()}
    lost = sorted(made)[::3]
    for name in lost:
        (work.pairs / name).unlink()
    compared = []
    again = near_duplicates.compare_hashes
    monkeypatch.setattr(
        near_duplicates, "compare_hashes", lambda *one: compared.append(1) or again(*one)
    )
    assert run(work, 1) == whole
    assert len(compared) == len(lost) > 0
    left = {path.name: path.stat().st_ino for path in work.pairs.iterdir()}
    assert left.keys() == made.keys()
    assert all(left[name] == made[name] for name in made if name not in lost)
    write(work, 0, [(0, picture(1)), (1, picture(3)), (2, picture(2)), (3, picture(7))])
    assert run(work, 1) == {}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"radius": 17}, "radius: 17; 0 to 16"),
        ({"radius": -1}, "radius: -1"),
        ({"min_correlation": 0.4}, "min_correlation: 0.4; 0.5 to 1"),
        ({"min_correlation": float("nan")}, "min_correlation: nan"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(ValueError, match=message):
        Config(**values)
