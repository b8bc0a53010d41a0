import pytest

from configs.command import fail
from configs.redact import redact, redact_of


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://me:word@host/a: no", "ftp://me:***@host/a: no"),
        ("'http://:w@rd@host:80/a'", "'http://:***@host:80/a'"),
        ("https://ghp_secret@host/a", "https://***@host/a"),
        ("(https://host/a.gz?X-Amz-Signature=1&b=2)", "(https://host/a.gz?***)"),
        ("https://host/a?sig=1:2: no", "https://host/a?***: no"),
        ("url='https://host/a?sig=1', status", "url='https://host/a?***', status"),
        ("s3://bucket/a@b/*.jsonl?x", "s3://bucket/a@b/*.jsonl?x"),
        ("abfs://container@account.dfs/a:b@c", "abfs://container@account.dfs/a:b@c"),
        ("http://host:8080/a and me@host: b", "http://host:8080/a and me@host: b"),
        ("zip://*.txt::https://me:word@host/a.zip", "zip://*.txt::https://me:***@host/a.zip"),
    ],
)
def test_credentials_are_taken_out(text, shown):
    assert redact(text) == shown
    assert redact(shown) == shown


def test_no_error_of_a_verb_shows_them(capsys):
    with pytest.raises(SystemExit):
        fail("error: ftp://me:word@host/a: no such file")
    assert capsys.readouterr().err == "error: ftp://me:***@host/a: no such file\n"


def test_a_password_is_taken_out_wherever_it_stands():
    text = "s3://me:w%40rd@b/a: invalid bucket name 'me:w@rd@b'"
    assert (
        redact_of("s3://me:w%40rd@b/a", text) == "s3://me:***@b/a: invalid bucket name 'me:***@b'"
    )
    assert redact_of("s3://b/a", "wrong") == "wrong"
