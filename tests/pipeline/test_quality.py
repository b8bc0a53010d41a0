"""The Gopher quality filter: one tiny document for each reason, the order, every threshold."""

import dataclasses

import pyarrow as pa
import pytest

from pipeline.batch import DOCUMENTS, REJECTS, Batch, Count
from pipeline.quality import Config, FilterQuality

# 51 words of 3.06 characters on average, all of the stop words among them.
GOOD = "the man and the dog that have to be with you over a hill of corn " * 3 + "and that is"


def _batch(*texts: str) -> Batch:
    source = pa.array(["a.txt"] * len(texts), pa.string()).dictionary_encode()
    raw = pa.array([text.encode() for text in texts], pa.large_binary())
    columns = [source, pa.array(range(len(texts)), pa.int64()), raw]
    documents = pa.RecordBatch.from_arrays(columns, schema=DOCUMENTS)
    return Batch(3, documents, pa.RecordBatch.from_pylist([], schema=REJECTS), (), last=True)


def _verdict(text: str, **thresholds: object) -> tuple[str, str] | None:
    result = Config(**thresholds).apply(_batch("x", text))
    rows = [row for row in result.rejects.to_pylist() if row["position"] == 1]
    kept = result.documents.column("position").to_pylist()
    assert (1 in kept) == (not rows)
    return (rows[0]["reason"], rows[0]["detail"]) if rows else None


@pytest.mark.parametrize(
    ("text", "reason", "detail"),
    [
        ("the and of", "gopher_short_doc", "words 3 < 50"),
        ("the and " * 50_001, "gopher_long_doc", "words 100002 > 100000"),
        ("a to be " * 20, "gopher_below_avg_threshold", "mean_word_length 1.66667 < 3"),
        (
            "the internationalization " * 30,
            "gopher_above_avg_threshold",
            "mean_word_length 11.5 > 10",
        ),
        (GOOD + " #" * 6, "gopher_too_many_hashes", "hash_ratio 0.105263 > 0.1"),
        (GOOD + " ..." * 3 + "\u2026" * 3, "gopher_too_many_ellipsis", "ellipsis_ratio 0.105"),
        (
            "\n".join(["- with that", " \u2022 have the"] * 25),
            "gopher_too_many_bullets",
            "bullet_lines_ratio 1 > 0.9",
        ),
        (
            f"{GOOD}...\n{GOOD}\u2026 \n{GOOD}",
            "gopher_too_many_end_ellipsis",
            "ellipsis_lines_ratio 0.666667 > 0.3",
        ),
        (GOOD + " 1234" * 13, "gopher_below_alpha_threshold", "alphabetic_ratio 0.796875 < 0.8"),
        ("The cats " * 30 + "the", "gopher_enough_stop_words", "stop_words 1 < 2"),
    ],
)
def test_one_document_for_each_reason(text, reason, detail):
    found = _verdict(text)
    assert found is not None
    assert found[0] == reason
    assert found[1].startswith(detail)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        " ".join(["the", "and"] * 25),  # 50 words, 3 characters each, 2 stop words
        ("the and " * 50_000).strip(),  # 100,000 words
        ("thirteenchars and is " * 3 + GOOD),
        GOOD + " #" * 5,  # 5 of 56 tokens
        "\n".join(
            [*["- with that and the dog"] * 27, "the man", "of the", "end it"]
        ),  # 27 of 30 lines
        f"{GOOD}...\n{GOOD}\u2026\n{GOOD}...\n" + f"{GOOD}\n" * 7,  # 3 of 10 lines
        (GOOD + " 1234" * 12 + " and"),  # 52 of 64 tokens
    ],
)
def test_at_the_threshold_a_document_is_kept(text):
    assert _verdict(text) is None


def test_the_first_rule_that_fails_is_the_reason():
    text = "# ... 1 " * 20
    assert _verdict(text) == ("gopher_short_doc", "words 20 < 50")
    assert _verdict(text, min_words=0)[0] == "gopher_below_avg_threshold"
    looser = {"min_words": 0, "min_mean_word_length": 0}
    assert _verdict(text, **looser)[0] == "gopher_too_many_hashes"
    looser["max_hash_ratio"] = 1
    assert _verdict(text, **looser)[0] == "gopher_too_many_ellipsis"
    looser["max_ellipsis_ratio"] = 1
    assert _verdict(text, **looser)[0] == "gopher_below_alpha_threshold"
    looser["min_alphabetic_ratio"] = 0
    assert _verdict(text, **looser)[0] == "gopher_enough_stop_words"
    assert _verdict(text, **looser, min_stop_words=0) is None


TIGHTER = {
    "min_words": 52,
    "max_words": 50,
    "min_mean_word_length": 4.0,
    "max_mean_word_length": 3.05,
    "max_hash_ratio": -1.0,
    "max_ellipsis_ratio": -1.0,
    "max_bullet_lines_ratio": -1.0,
    "max_ellipsis_lines_ratio": -1.0,
    "min_alphabetic_ratio": 1.1,
    "min_stop_words": 8,
    "stop_words": ("nowhere", "never"),
}


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Config)])
def test_every_threshold_has_an_effect(name):
    text = GOOD.replace("corn", "beans").replace("have", "had")
    assert _verdict(text) is None
    assert _verdict(text, **{name: TIGHTER[name]}) is not None


def test_stop_words_are_a_choice():
    assert _verdict(GOOD, stop_words=("hill", "corn")) is None
    assert _verdict(GOOD, stop_words=("hill", "Corn"))[1] == "stop_words 1 < 2"


def test_nothing_to_divide_by():
    loose = {"min_words": 0, "min_mean_word_length": 0, "min_alphabetic_ratio": 0}
    assert _verdict("", **loose, min_stop_words=0) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_words": 9, "max_words": 8}, "min_words: 9 is above max_words 8"),
        ({"min_mean_word_length": 11}, "min_mean_word_length: 11 is above max_mean_word_length 10"),
        ({"min_stop_words": 9}, "min_stop_words: 9, but stop_words has only 8"),
        ({"stop_words": tuple(map(str, range(64)))}, "stop_words: 64, at most 63"),
    ],
)
def test_config_checks(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_counts_and_rejects_add_up():
    result = Config().apply(_batch("short", GOOD, "tiny"))
    size = len(GOOD)
    assert result.counts == (Count("quality", 3, size + 9, 1, size),)
    assert result.documents.column("text").to_pylist() == [GOOD.encode()]
    assert result.rejects.to_pylist() == [
        {
            "stage": "quality",
            "reason": "gopher_short_doc",
            "detail": "words 1 < 50",
            "source": "a.txt",
            "position": position,
            "bytes": len(text),
            "excerpt": text,
        }
        for position, text in ((0, "short"), (2, "tiny"))
    ]


def test_batch_without_documents():
    result = Config().apply(_batch())
    assert (result.documents.num_rows, result.rejects.num_rows, result.last) == (0, 0, True)


def test_stage_by_piping_a_list():
    batches = [_batch(GOOD, "short"), _batch("tiny")]
    found = batches | FilterQuality(thresholds=Config(min_words=51))
    assert sorted(
        (
            batch.documents.column("position").to_pylist(),
            batch.rejects.column("excerpt").to_pylist(),
        )
        for batch in found
    ) == [([], ["tiny"]), ([0], ["short"])]
