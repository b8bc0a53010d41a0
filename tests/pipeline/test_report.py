import hashlib
import json

import pytest

from pipeline.report import main, print_report, write_report
from pipeline.report_html import render_html

EVIL = "<script>alert('x')</script>&\ud800"
REPORT = {
    "kind": "text",
    "request": "r",
    "seconds": 2.0,
    "stage_seconds": {"ReadCorpus": 1.5, "SpreadShards": 0.01},
    "corpus": {"files": 2, "bytes": 3_000_000},
    "funnel": [
        {"stage": "read", "records_in": 12345, "bytes_in": 100, "records_out": 9, "bytes_out": 50},
        {"stage": "quality", "records_in": 9, "bytes_in": 50, "records_out": 0, "bytes_out": 0},
    ],
    "rejects": [
        {
            "stage": "read",
            "reason": EVIL,
            "records": 3,
            "bytes": 50,
            "examples": [{"source": EVIL, "position": 7, "detail": EVIL, "excerpt": EVIL}],
        }
    ],
    "splits": {"train": {"documents": 1, "text_bytes": 1, "tokens": 7, "shards": 1, "bytes": 9}},
    "lengths": [0, 5, 3],
    "shards": [{"name": "train-000000", "documents": 1, "tokens": 7, "samples": 1, "bytes": 1024}],
}


def test_everything_from_the_corpus_is_escaped():
    page = render_html(REPORT)
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;&amp;") == 4


def test_the_page_shows_every_part():
    page = render_html(REPORT)
    for part in ("12,345", "train-000000", "2 to 3", "4 to 7", "3 records, 50 bytes", "1,024"):
        assert part in page


IMAGES = {
    **REPORT,
    "kind": "image",
    "near_duplicates": {
        "clusters": 1234,
        "images": 5678,
        "largest": [
            {"images": 77, "kept": "ab12", "others": ["cd34", EVIL], "thumbnail": 'data:x"><script'}
        ],
    },
}


def test_the_page_of_images_speaks_of_images():
    page = render_html(IMAGES)
    assert "tokens" not in page and "documents" not in page
    assert "<th>bytes</th><th>images</th>" in page  # the histogram
    assert "<h2>Sizes of samples in the shards, bytes</h2>" in page  # with class, json, tar headers
    for part in ("1,234 clusters of 5,678 images", "ab12", "cd34 &lt;script&gt;", ">77<"):
        assert part in page
    assert "<script" not in page


@pytest.mark.parametrize(
    ("took", "shown"),
    [({"ReadCorpus": 1.5, "PlanShards": 0.05}, True), ({"ReadCorpus": 0.05}, False)],
)
def test_the_verb_tells_stages_of_a_tenth_of_a_second(tmp_path, capsys, took, shown):
    """The demo takes less: there is no empty table."""
    tree = {**REPORT, "stage_seconds": took}
    (tmp_path / "report.json").write_text(json.dumps(tree).replace("\\ud800", ""))
    main([str(tmp_path)])
    out = capsys.readouterr().out
    assert ("Time of stages, all workers" in out) == ("ReadCorpus" in out) == shown
    assert "PlanShards" not in out


def test_the_verb_tells_the_clusters(tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps(IMAGES).replace("\\ud800", ""))
    main([str(tmp_path)])
    out = capsys.readouterr().out
    assert "1,234 clusters of 5,678 images that look the same, one of each stays" in out
    assert "train: 1 images, 1 shards" in out


def test_an_empty_report_is_a_page():
    empty = {**REPORT, "funnel": [], "rejects": [], "splits": {}, "lengths": [], "shards": []}
    assert "None." in render_html(empty)


def test_files_and_the_verb(tmp_path, capsys):
    clean = json.loads(json.dumps(REPORT).replace("\\ud800", ""))
    write_report(clean, tmp_path)
    page = hashlib.sha256((tmp_path / "report.html").read_bytes()).hexdigest()
    expected = clean | {"page_sha256": page}
    assert json.loads((tmp_path / "report.json").read_text()) == expected
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    main([str(tmp_path)])
    out = capsys.readouterr().out
    for part in ("read", "12,345", "quality", "train: 1 documents, 7 tokens", "1.5 MB/s"):
        assert part in out
    assert out.split().count("ReadCorpus") == 1 and "SpreadShards" not in out


def test_no_report(tmp_path):
    with pytest.raises(FileNotFoundError, match="no report; is this a dataset"):
        print_report(tmp_path)


DAMAGED = {
    "cut": "{",
    "empty": "",
    "no fields": "{}",
    "a list": "[]",
    "nothing": "null",
    "nested": "[" * 10**6,
    "no text": "\ud800",
    **{
        f"{name} {value}": json.dumps({**REPORT, name: value})
        for name, value in [
            ("funnel", [{}]),
            ("funnel", 1),
            ("rejects", [{"stage": 1}]),
            ("splits", []),
            ("splits", {"train": {}}),
            ("corpus", None),
            ("seconds", "2"),
        ]
    },
    "a stage that is no text": json.dumps(
        {**REPORT, "funnel": [{**REPORT["funnel"][0], "stage": {}}]}
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_report_is_one_line(tmp_path, capsys, name):
    (tmp_path / "report.json").write_bytes(DAMAGED[name].encode("utf-8", "surrogatepass"))
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path)])
    out, err = capsys.readouterr()
    assert (stopped.value.code, out, err.count("\n")) == (2, "", 1)
    assert "damaged report" in err
