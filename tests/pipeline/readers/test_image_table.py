"""Tables of images: every format gives the same rows, and what is bad is told with its place."""

import base64
import datetime
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import Portion, list_files
from pipeline.readers import image_table

ROWS = [
    {"image": "a.jpg", "label": "cat", "text": 'a "red" cat, café', "source": "x"},
    {"image": "sub/b.jpg", "label": "dog", "text": " two dogs ", "source": "y"},
    {"image": "./sub/../c.jpg", "label": "cat", "text": "", "source": "x"},
]
FILES = {"a.jpg": b"image a", "sub/b.jpg": b"image b", "c.jpg": b"image c"}
COLUMNS = {"class_column": "label", "caption_column": "text", "metadata_columns": ("*",)}
EXPECTED = [
    (b"image a", "cat", 'a "red" cat, café', '{"source":"x"}', "a.jpg"),
    (b"image b", "dog", "two dogs", '{"source":"y"}', "sub/b.jpg"),
    (b"image c", "cat", "", '{"source":"x"}', "./sub/../c.jpg"),
]


def csv_of(rows, header=True):
    lines = [",".join(rows[0])] if header else []
    for row in rows:
        lines.append(",".join('"' + str(cell).replace('"', '""') + '"' for cell in row.values()))
    return "\r\n".join(lines).encode() + b"\r\n"


def tsv_of(rows):
    return "\n".join(
        "\t".join(line) for line in (rows[0], *(row.values() for row in rows))
    ).encode()


def jsonl_of(rows):
    return b"\n\n".join(json.dumps(row).encode() for row in rows)


def read(path, portion_bytes=None, **fields):
    config = image_table.Config(path=(str(path),), **fields)
    (file,) = list_files(config.path, image_table.EXTENSIONS)
    pieces = image_table.cut(file, config)
    if portion_bytes:
        bounds = [*range(0, file.bytes, portion_bytes), file.bytes]
        pieces = [(a, b, b - a) for a, b in zip(bounds, bounds[1:], strict=False)]
    batches = []
    for index, piece in enumerate(pieces):
        found = list(image_table.read(Portion(index, file, *piece), config))
        assert [batch.last for batch in found] == [False] * (len(found) - 1) + [True]
        assert sum(batch.read_bytes for batch in found) == piece[2]
        batches += found
    return batches


def rows(batches):
    found = [row for batch in batches for row in batch.documents.to_pylist()]
    return [tuple(row.values())[2:] for row in found]


def rejects(batches):
    found = [row for batch in batches for row in batch.rejects.to_pylist()]
    return [(row["reason"], row["position"]) for row in found]


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("t.csv", csv_of),
        ("t.csv", lambda rows: b"\xef\xbb\xbf" + csv_of(rows)),
        ("t.csv.gz", lambda rows: gzip.compress(csv_of(rows))),
        ("t.tsv", tsv_of),
        ("t.jsonl", jsonl_of),
        ("t.ndjson.gz", lambda rows: gzip.compress(jsonl_of(rows))),
    ],
)
def test_every_format_gives_the_same_rows(folder, name, make):
    (folder / name).write_bytes(make(ROWS))
    batches = read(folder / name, **COLUMNS)
    assert rows(batches) == EXPECTED
    assert rejects(batches) == []


def test_parquet_by_path_bytes_and_struct(folder):
    images = [FILES[name] for name in FILES]
    names = [row["image"] for row in ROWS]
    columns = {
        "path": pa.array(names),
        "bytes": pa.array(images, pa.binary()),
        "struct": [
            {"bytes": images[0], "path": names[0]},
            {"bytes": None, "path": names[1]},
            {"bytes": images[2], "path": None},
        ],
        **{name: [row[name] for row in ROWS] for name in ("label", "text", "source")},
    }
    pq.write_table(pa.table(columns), folder / "t.parquet", row_group_size=2)
    asked = {"class_column": "label", "caption_column": "text", "metadata_columns": ("source",)}
    names = {"path": names, "bytes": [None] * 3, "struct": [*names[:2], None]}
    for column, expected in names.items():
        batches = read(folder / "t.parquet", image_column=column, **asked)
        assert rows(batches) == [
            (*row[:4], name) for row, name in zip(EXPECTED, expected, strict=True)
        ]
        assert batches[0].documents.column("position").to_pylist() == [0, 1, 2]


def test_parquet_is_cut_at_row_groups(tmp_path):
    images = [bytes([number]) * 700_000 for number in range(6)]
    pq.write_table(
        pa.table({"image": pa.array(images, pa.binary())}),
        tmp_path / "t.parquet", row_group_size=1, compression="none", use_dictionary=False,
    )  # fmt: skip
    config = image_table.Config(path=(str(tmp_path),), portion_mib=2)
    (file,) = list_files(config.path, image_table.EXTENSIONS)
    assert [piece[:2] for piece in image_table.cut(file, config)] == [(0, 2), (2, 4), (4, 6)]
    batches = read(tmp_path / "t.parquet", portion_mib=2)
    assert [row[0] for row in rows(batches)] == images
    positions = [at for batch in batches for at in batch.documents.column("position").to_pylist()]
    assert positions == list(range(6))


def test_lines_that_list_files_are_cut_finer(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(bytes(1 << 20))
    (file,) = list_files([str(tmp_path)], image_table.EXTENSIONS)
    for strings, portions in (("path", 256), ("base64", 1)):
        config = image_table.Config(path=("x",), strings=strings, portion_mib=1)
        assert len(image_table.cut(file, config)) == portions


@given(st.integers(1, 200), st.sampled_from(["t.csv", "t.tsv", "t.jsonl"]))
def test_one_portion_and_many_give_the_same_images(tmp_path_factory, portion_bytes, name):
    folder = tmp_path_factory.mktemp("many")
    (folder / "a.jpg").write_bytes(b"a")
    table = [{"image": "a.jpg", "number": str(number) * 3} for number in range(20)]
    make = {"t.csv": csv_of, "t.tsv": tsv_of, "t.jsonl": jsonl_of}[name]
    (folder / name).write_bytes(make(table))
    one = rows(read(folder / name, metadata_columns=("number",)))
    many = read(folder / name, portion_bytes, metadata_columns=("number",))
    assert rows(many) == one
    assert [row[3] for row in one] == [f'{{"number":"{str(number) * 3}"}}' for number in range(20)]
    assert rejects(many) == []


def test_base64(tmp_path):
    text = base64.b64encode(b"x" * 200_000).decode()
    lines = [{"image": text, "n": 1}, {"image": "no base64!"}, {"image": ""}, {"image": 7}]
    (tmp_path / "t.jsonl").write_bytes(jsonl_of(lines))
    batches = read(tmp_path / "t.jsonl", strings="base64", metadata_columns=("*",))
    assert rows(batches) == [(b"x" * 200_000, None, None, '{"n":1}', None)]
    assert [reason for reason, _ in rejects(batches)] == [
        "not_an_image",
        "missing_value",
        "not_an_image",
    ]
    (tmp_path / "t.csv").write_bytes(f"image,n\n{text},1\n".encode())
    assert rows(read(tmp_path / "t.csv", strings="base64"))[0][0] == b"x" * 200_000


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("../secret.jpg", "forbidden_path"),
        ("sub/../../secret.jpg", "forbidden_path"),
        ("{parent}/secret.jpg", "forbidden_path"),
        ("file://{parent}/secret.jpg", "forbidden_path"),
        ("filecache::file://{parent}/secret.jpg", "forbidden_path"),
        ("none.jpg", "missing_file"),
        ("sub", "missing_file"),
        ("a\0.jpg", "missing_file"),
        ("empty.jpg", "empty_file"),
        ("large.jpg", "record_too_large"),
        (None, "missing_value"),
        (["a.jpg"], "not_an_image"),
    ],
)
def test_bad_images(tmp_path, value, reason):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (folder / "empty.jpg").touch()
    (folder / "large.jpg").write_bytes(bytes(1 + (1 << 20)))
    (folder / "a.jpg").write_bytes(b"a")
    value = value.format(parent=tmp_path) if isinstance(value, str) else value
    (folder / "t.jsonl").write_bytes(jsonl_of([{"image": value}, {"image": "a.jpg"}]))
    batches = read(folder / "t.jsonl", max_record_mib=1)
    assert [row[0] for row in rows(batches)] == [b"a"]
    assert rejects(batches) == [(reason, 0)]
    if reason == "forbidden_path" and "filecache" not in value:
        batches = read(folder / "t.jsonl", allow_anywhere=True)
        assert [row[0] for row in rows(batches)] == [b"secret", b"a"]


def test_image_root(folder, tmp_path):
    import tarfile

    with tarfile.open(folder / "images.tar", "w") as tar:
        for name in FILES:
            tar.add(folder / name, name)
    (folder / "else").mkdir()
    (folder / "else/t.tsv").write_bytes(tsv_of(ROWS))
    for root in (str(folder), f"file://{folder}", f"tar://::{folder}/images.tar"):
        assert rows(read(folder / "else/t.tsv", image_root=root, **COLUMNS)) == EXPECTED
    for outside in ("../x.jpg", "/a.jpg"):
        (folder / "else/t.tsv").write_text(f"image\n{outside}\n")
        root = f"tar://::{folder}/images.tar"
        assert rejects(read(folder / "else/t.tsv", image_root=root)) == [("forbidden_path", 6)]


def test_rows_that_are_bad(folder):
    lines = [
        "image,label,text",
        "a.jpg,cat,one",
        'a.jpg,cat,"two',
        "a.jpg,cat",
        "a.jpg,,one",
        'a.jpg,cat,"a" b',
    ]
    content = "\n".join(lines).encode() + b"\na.jpg,cat,\xff\n\n"
    (folder / "t.csv").write_bytes(content)
    batches = read(folder / "t.csv", class_column="label", caption_column="text")
    assert [row[:3] for row in rows(batches)] == [(b"image a", "cat", "one")]
    starts = [content.index(line.encode(), 30) for line in lines[2:]]
    assert rejects(batches) == [
        ("invalid_csv", starts[0]),
        ("invalid_csv", content.index(b"a.jpg,cat\n")),
        ("missing_class", starts[2]),
        ("invalid_csv", starts[3]),
        ("invalid_utf8", content.index(b"\xff") - 10),
    ]


def test_line_feeds_in_quotes(folder):
    content = b'image,text\na.jpg,"one\r\n""two"""\nc.jpg,three\na.jpg,"open\nc.jpg,end\n'
    (folder / "t.csv").write_bytes(content)
    batches = read(folder / "t.csv", caption_column="text", line_feeds=True)
    assert [row[:3] for row in rows(batches)] == [
        (b"image a", None, 'one\r\n"two"'),
        (b"image c", None, "three"),
    ]
    assert rejects(batches) == [("invalid_csv", content.index(b'a.jpg,"open'))]


def test_integer_classes_lists_of_captions_and_odd_metadata(folder):
    day = datetime.date(2026, 11, 24)
    table = {
        "image": ["a.jpg", "c.jpg", "a.jpg", "a.jpg"],
        "label": [3, 12, None, 1],
        "text": [["one", "two"], ["three"], ["four"], []],
        "when": [day] * 4,
        "score": [float("nan"), 0.5, 0.5, 0.5],
        "raw": [b"\0\1"] * 4,
        "captions": ["own"] * 4,
    }
    pq.write_table(pa.table(table), folder / "t.parquet")
    batches = read(folder / "t.parquet", **COLUMNS)
    said = [(row[1], row[2], json.loads(row[3])) for row in rows(batches)]
    other = {"when": "2026-11-24", "raw": "AAE="}
    assert said == [
        (
            "3",
            "one",
            {"score": None, "captions": ["one", "two"], "corpus_captions": "own", **other},
        ),
        ("12", "three", {"score": 0.5, "captions": "own", **other}),
    ]
    assert rejects(batches) == [("missing_class", 2), ("missing_caption", 3)]


def test_groups(folder, caplog):
    """Rows of an image need not be neighbours; a row that is not wanted is none of its group."""
    table = [
        ("a.jpg", "one", "match"), ("c.jpg", "two", "match"), ("a.jpg", "odd", "no-match"),
        ("a.jpg", "three", "match"), ("none.jpg", "four", "match"),
    ]  # fmt: skip
    (folder / "t.tsv").write_text("\n".join(map("\t".join, table)))
    asked = {"header": ("image", "text", "match"), "caption_column": "text"}
    grouped = {"rows_per_image": "group", "metadata_columns": ("match",), "portion_mib": 1}
    with caplog.at_level("INFO"):
        batches = read(folder / "t.tsv", where=("match=match",), **asked, **grouped)
    assert [(*row[:3], json.loads(row[3])) for row in rows(batches)] == [
        (b"image a", None, "one", {"captions": ["one", "three"], "match": ["match"] * 2}),
        (b"image c", None, "two", {"captions": ["two"], "match": ["match"]}),
    ]
    assert rejects(batches) == [("missing_file", 69)]
    assert caplog.messages == ["t.tsv: 1 rows are not of match=match, passed over"]
    everything = rows(read(folder / "t.tsv", **asked, **grouped))[0]
    assert json.loads(everything[3])["match"] == ["match", "no-match", "match"]
    assert [row[2] for row in rows(read(folder / "t.tsv", **asked))] == [
        "one", "two", "odd", "three",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet"])
def test_wrong_columns_are_told_before_the_build(folder, name):
    if name == "t.parquet":
        pq.write_table(pa.table({"a": ["x"], "b": ["y"]}), folder / name)
    else:
        (folder / name).write_text("a,b\nx,y\n" if name == "t.csv" else "a\tb\nx\ty\n")
    for fields in ({}, {"image_column": "a", "class_column": "c"}, {"where": ("d=1",)}):
        with pytest.raises(ValueError, match=rf"{name}: no column '\w+'; there are: a, b"):
            read(folder / name, **fields)


def test_json_rows_without_a_column(folder):
    (folder / "t.jsonl").write_text('{"image": "a.jpg"}\n{"path": "a.jpg"}\n[1]\n{bad\n')
    batches = read(folder / "t.jsonl")
    assert [row[0] for row in rows(batches)] == [b"image a"]
    expected = [("missing_column", 19), ("invalid_json", 37), ("invalid_json", 41)]
    assert rejects(batches) == expected


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_empty_files(tmp_path, name):
    (tmp_path / name).touch()
    assert rejects(read(tmp_path / name)) == [("empty_file", 0)]


def test_damaged_files(folder):
    (folder / "t.parquet").write_bytes(b"PAR1 no parquet")
    assert rejects(read(folder / "t.parquet")) == [("unreadable_file", 0)]
    whole = gzip.compress(jsonl_of(ROWS))
    (folder / "t.jsonl.gz").write_bytes(whole[:-12])
    assert [reason for reason, _ in rejects(read(folder / "t.jsonl.gz"))] == ["truncated_file"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_column": ""}, "image_column: is empty"),
        ({"where": ("match",)}, "where: is 'match'; it must be column=value"),
        ({"header": ("a", "b", "a")}, "header: has a name twice"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        image_table.Config(path=("x",), **fields)
