import json

import pyarrow as pa

from pipeline.batch import ENCODED
from pipeline.images.samples import ImageSamples, render_metadata


def rows(*cells):
    """Rows of key byte, class and caption."""
    names = [*ENCODED.names, "class", "caption", "metadata"]
    types = [*ENCODED.types, pa.string(), pa.string(), pa.string()]
    columns = zip(
        *(
            ("s", 0, bytes(15) + bytes([key]), 3, 3, b"jpeg", name, caption, "{}")
            for key, name, caption in cells
        ),
        strict=True,
    )
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, names=names)


def test_classes_are_indices_and_copies_are_numbered(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(["cat", "dog"]))
    cutter = ImageSamples("jpg", ("cls", "txt"), str(path))
    documents = rows((1, "dog", "a dog"), (2, "cat", "é"), (2, "cat", "again"), (2, "cat", ""))
    samples = list(cutter.samples("train-000000", documents))
    key = "0" * 31
    assert [sample.key for sample in samples] == [f"{key}1", f"{key}2", f"{key}2-1", f"{key}2-2"]
    assert [sample.files["cls"] for sample in samples] == [b"1", b"0", b"0", b"0"]
    assert samples[1].files == {"jpg": b"jpeg", "json": b"{}", "cls": b"0", "txt": "é".encode()}


def test_members_are_those_that_were_asked_for(tmp_path):
    (sample,) = ImageSamples("png", (), "").samples("train-000000", rows((1, None, None)))
    assert sample.files == {"png": b"jpeg", "json": b"{}"}


def test_metadata_has_sorted_keys_and_the_size():
    rendered = render_metadata('{"z": 1, "a": "é"}', width=4, height=3)
    assert rendered == '{"a":"é","height":3,"width":4,"z":1}'
    assert render_metadata(None, width=4, height=3) == '{"height":3,"width":4}'


def test_what_the_corpus_says_under_our_names_stays_under_another():
    said = '{"width": "3 cm", "height": 3, "corpus_width": 1}'
    assert json.loads(render_metadata(said, width=4, height=3)) == {
        "width": 4,
        "height": 3,
        "corpus_width": 1,
        "corpus_corpus_width": "3 cm",
    }
    again = render_metadata(render_metadata(said, width=4, height=3), width=4, height=3)
    assert json.loads(again) == json.loads(render_metadata(said, width=4, height=3))
