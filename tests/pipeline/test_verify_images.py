import io
import json

import PIL.Image
import pytest

from pipeline.tar import Sample, write_shard
from pipeline.verify_images import ImageRules
from pipeline.verify_shard import verify_shard

RULES = ImageRules(num_classes=2)


def jpeg(width=8, height=6, mode="RGB"):
    file = io.BytesIO()
    PIL.Image.new(mode, (width, height)).save(file, "JPEG")
    return file.getvalue()


def faults(tmp_path, **changes):
    """Rule and message of each fault of a shard with one whole sample and a changed one."""
    files = {
        "cls": b"1",
        "jpg": jpeg(),
        "json": json.dumps({"width": 8, "height": 6}).encode(),
        "txt": "café".encode(),
    }
    samples = [Sample("a", files), Sample("b", {**files, **changes})]
    path = tmp_path / "train-000000.tar"
    findings = verify_shard(path, write_shard(path, samples), RULES)
    assert findings.checked["image"] == findings.checked["class"] == 2
    return [(fault.rule, fault.where, fault.message) for fault in findings.faults]


def test_whole_samples_have_no_fault(tmp_path):
    assert faults(tmp_path) == []


def test_grey_is_allowed(tmp_path):
    assert faults(tmp_path, jpg=jpeg(mode="L")) == []


def test_an_image_above_the_limit_of_pillow_has_no_fault(tmp_path):
    """It warns from 89 megapixels on; a build takes 100 and more, by its config."""
    big = io.BytesIO()
    PIL.Image.new("L", (9500, 9500)).save(big, "JPEG")
    size = json.dumps({"width": 9500, "height": 9500}).encode()
    assert faults(tmp_path, jpg=big.getvalue(), json=size) == []


@pytest.mark.parametrize(
    ("changes", "rule", "message"),
    [
        ({"jpg": jpeg()[:300]}, "image", "jpg: OSError: "),
        ({"jpg": jpeg()[:-8] + b"\xff\xd9"}, "image", "jpg: OSError: truncated: "),
        ({"jpg": b"no image"}, "image", "jpg: UnidentifiedImageError"),
        ({"jpg": jpeg(mode="CMYK")}, "image", "jpg: pixels of mode CMYK; RGB or grey"),
        ({"jpg": jpeg(9)}, "metadata", "says 8 x 6 pixels, the image has 9 x 6"),
        ({"json": b"[]"}, "metadata", "json: is no object"),
        ({"json": b"{"}, "metadata", "json: Expecting property name"),
        ({"cls": b"2"}, "class", "cls: 2 of 2 classes"),
        ({"cls": b"01"}, "class", "cls: b'01' is no index"),
        ({"cls": b"cat"}, "class", "cls: b'cat' is no index"),
        ({"txt": b"\xff"}, "caption", "txt: 'utf-8' codec can't decode"),
    ],
)
def test_each_damage_is_one_fault(tmp_path, changes, rule, message):
    ((found, where, text),) = faults(tmp_path, **changes)
    assert (found, where) == (rule, "train-000000.tar: b")
    assert message in text


def test_a_sample_without_an_image(tmp_path):
    path = tmp_path / "train-000000.tar"
    shard = write_shard(path, [Sample("a", {"json": b"{}", "gif": b""})])
    ((fault,)) = verify_shard(path, shard, RULES).faults
    assert fault.message == "has gif, json; must have one of jpg, png, webp, and json"
