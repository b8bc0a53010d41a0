import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
from tokenizers import Tokenizer

from configs import ConfigError, load
from pipeline.manifest import Tokenizer as Row
from pipeline.tokenizer import (
    Config,
    characters_tokenizer,
    describe_tokenizer,
    is_characters,
    main,
    parse_tokenizer,
    read_tokenizer,
    special_tokens,
    train_tokenizer,
    write_tokenizer,
)

END = "<|endoftext|>"
TEXTS = ["the cat sat on the mat, the cat sat", "naïve café — the mat\n\nthe end", "中文 the 猫"]


def test_trained_bpe_gives_texts_back():
    text = train_tokenizer(TEXTS, vocab_size=290, end_of_document=END)
    tokenizer = Tokenizer.from_str(text)
    assert tokenizer.get_vocab_size() == 290
    assert tokenizer.token_to_id(END) == 0
    for sample in [*TEXTS, "never seen: \x00 🦊\r\n\t"]:
        assert tokenizer.decode(tokenizer.encode(sample).ids) == sample


def test_vocabulary_ends_where_the_texts_give_no_more():
    row = describe_tokenizer(
        train_tokenizer([], vocab_size=5000, end_of_document=END), end_of_document=END
    )
    assert row.vocab_size == 257


@pytest.mark.slow
def test_bytes_depend_on_texts_alone():
    """Other hash seeds, thread counts and orders of the texts: the same file."""
    program = (
        "import sys, hashlib, random\n"
        "from pipeline.tokenizer import train_tokenizer\n"
        "words = [f'{a}{b}{c}' for a in 'abcdef' for b in 'ghijkl' for c in 'mnopqr']\n"
        "texts = [' '.join(words[i:] + words[:i]) for i in range(0, 200, 3)]\n"
        "random.Random(int(sys.argv[1])).shuffle(texts)\n"
        "text = train_tokenizer(texts, vocab_size=700, end_of_document='<|endoftext|>')\n"
        "print(hashlib.sha256(text.encode()).hexdigest())\n"
    )
    digests = set()
    for seed, threads in (("1", "1"), ("2", "2"), ("3", "7")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-c", program, seed]
        digests.add(subprocess.check_output(command, env=environment, text=True))
    assert len(digests) == 1


def test_characters_are_ids_in_order_of_code_points():
    text = characters_tokenizer("hello\n wörld é", end_of_document=END)
    tokenizer = Tokenizer.from_str(text)
    alphabet = sorted(set("hello\n wörld é"))
    assert [tokenizer.id_to_token(i) for i in range(len(alphabet) + 1)] == [*alphabet, END]
    sample = "\n\n höld é  "
    assert tokenizer.encode(sample).ids == [alphabet.index(c) for c in sample]
    assert tokenizer.decode(tokenizer.encode(sample).ids) == sample
    with pytest.raises(Exception, match="Missing"):
        tokenizer.encode("hex")
    assert is_characters(json.loads(text))
    assert not is_characters(json.loads(train_tokenizer([], vocab_size=257, end_of_document=END)))


def test_written_and_read_back_byte_for_byte(tmp_path):
    text = characters_tokenizer("aé\r\n", end_of_document=END)
    write_tokenizer(text, tmp_path / "tokenizer.json")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_bytes() == text.encode()
    assert read_tokenizer(str(tmp_path / "tokenizer.json"), end_of_document=END) == text


def test_row_of_the_manifest():
    text = characters_tokenizer("abc", end_of_document=END)
    digest = hashlib.sha256(text.encode()).hexdigest()
    expected = Row(file="tokenizer.json", sha256=digest, vocab_size=4, end_of_document=3)
    assert asdict(describe_tokenizer(text, end_of_document=END)) == asdict(expected)


def test_parsed_for_text_that_is_no_prompt():
    tree = json.loads(train_tokenizer(TEXTS, vocab_size=300, end_of_document=END))
    original = Tokenizer.from_str(json.dumps(tree))
    original.enable_truncation(3)
    original.enable_padding(length=5)
    parsed = parse_tokenizer(original.to_str())
    ids = parsed.encode(f"the cat{END}sat", add_special_tokens=False).ids
    assert 0 not in ids
    assert parsed.decode(ids) == f"the cat{END}sat"
    assert special_tokens(parsed) == {END: 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "no Hugging Face tokenizer.json"),
        (b"\xff\xfe", "no Hugging Face tokenizer.json"),
        (b'{"a": 1}', "no Hugging Face tokenizer.json"),
        (characters_tokenizer("ab", end_of_document="</s>").encode(), "one of: </s>$"),
    ],
)
def test_read_refuses(tmp_path, content, message):
    path = tmp_path / "given.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_tokenizer(str(path), end_of_document=END)
    assert str(path) in str(error.value)


def test_read_of_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_tokenizer(str(tmp_path / "none.json"), end_of_document=END)


NO_EFFECT = "has no effect with kind '{}', only with 'train'; leave it out, or set it to null"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("kind=load", "path: missing"),
        ("path=a.json", "path: kind 'train'"),
        ("kind=characters path=a.json", "path: kind 'characters'"),
        ("vocab_size=256", "at least 257"),
        ("sample_mib=0", "at least 1"),
        ("kind=load path=a.json vocab_size=999", f"vocab_size: 999 {NO_EFFECT.format('load')}"),
        ("kind=load path=a.json sample_mib=8", f"sample_mib: 8 {NO_EFFECT.format('load')}"),
        ("kind=characters vocab_size=999", f"vocab_size: 999 {NO_EFFECT.format('characters')}"),
        ("kind=characters sample_mib=8", f"sample_mib: 8 {NO_EFFECT.format('characters')}"),
        ("end_of_document=x", "at least two characters"),
        ("kind=words", "kind"),
        ("engine=slow", "engine"),
    ],
)
def test_config_refuses(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load(Config, None, overrides.split())


def test_config_of_each_kind():
    assert load(Config, None, []) == Config(kind="train", vocab_size=32_000, sample_mib=256)
    assert load(Config, None, ["kind=characters"]).vocab_size is None
    assert load(Config, None, ["kind=load", "path=a.json"]).path == "a.json"
    assert load(Config, None, ["kind=characters"]).kind == "characters"


def test_verb_shows_the_tokens_of_a_text(tmp_path, capsys):
    write_tokenizer(characters_tokenizer("abé", end_of_document=END), tmp_path / "tokenizer.json")
    main([str(tmp_path), "béa"])
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'tokenizer.json'}: WordLevel, 4 ids",
        f"special tokens: {END} (3)",
        "3 tokens for 4 bytes:",
        "       1 'b'",
        "       2 'é'",
        "       0 'a'",
    ]


@pytest.mark.slow
def test_verb_tells_a_mistake_in_a_line(tmp_path):
    (tmp_path / "a.json").write_text("{")
    command = [sys.executable, "-m", "pipeline.tokenizer", str(tmp_path / "a.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no Hugging Face tokenizer.json" in done.stderr
    assert len(done.stderr.splitlines()) == 1
