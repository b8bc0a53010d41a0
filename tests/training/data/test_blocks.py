"""Token blocks parsed from tar bytes, and what is refused."""

import io
import tarfile

import numpy as np
import pytest

from pipeline.blocks import cut_blocks
from training.data.blocks import parse_blocks


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tar(*members, kind=tarfile.REGTYPE):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            archive.addfile(info, io.BytesIO(content))
        end = archive.offset
    return file.getvalue()[:end]


def sample(key, tokens, docs, dtype="<u2"):
    return [
        (f"{key}.docs.npy", npy(np.array(docs, "<u4"))),
        (f"{key}.json", b"{}"),
        (f"{key}.tokens.npy", npy(np.array(tokens, dtype))),
    ]


def parse(content, num_samples=2, num_tokens=7, dtype="<u2"):
    return parse_blocks(
        content, dtype=np.dtype(dtype), num_samples=num_samples, num_tokens=num_tokens
    )


TWO = tar(*sample("a", [1, 2, 3], [0, 2]), *sample("b", [4, 5, 6, 7], [1]))


def test_samples_become_one_stream():
    blocks = parse(TWO)
    assert [blocks.words[place] for place in blocks.places] == [1, 4]
    assert blocks.starts.tolist() == [0, 3, 7]
    assert blocks.document_starts.tolist() == [0, 2, 4]


def test_documents_of_every_cut_of_the_stream():
    """The pipeline's own provenance: token i is the number of its document, whose key says so."""
    lengths = [1, 9, 3, 20, 2, 2, 2, 1]
    tokens = np.repeat(np.arange(len(lengths)), lengths).astype("<u2")
    starts = np.cumsum([0, *lengths[:-1]])
    keys = [f"{number:016x}" for number in range(len(lengths))]
    samples = list(cut_blocks("train-0", tokens, starts, keys, block_tokens=7))
    members = [(f"{s.key}.{name}", s.files[name]) for s in samples for name in sorted(s.files)]
    blocks = parse(tar(*members), num_samples=len(samples), num_tokens=len(tokens))
    for width in (1, 2, 5, 8, 30):
        for first in range(len(tokens) - width + 1):
            found = blocks.origins(np.array([first]), width)
            inside = range(first // 7, (first + width - 1) // 7 + 1)
            assert list(found) == [f"train-0-{block:06d}" for block in inside]
            documents = dict.fromkeys(key for of_block in found.values() for key in of_block)
            expected = dict.fromkeys(tokens[first : first + width].tolist())
            assert list(documents) == [f"{number:016x}" for number in expected]


def test_samples_without_provenance_have_no_documents():
    assert parse(TWO).origins(np.array([2, 0]), 3) == {"a": [], "b": []}


def test_every_cut_of_the_stream():
    blocks = parse(TWO)
    stream = np.arange(1, 8)
    for width in range(1, 8):
        firsts = np.arange(0, 8 - width)
        out = np.zeros((len(firsts), width), np.uint16)
        blocks.copy_to(out, np.arange(len(firsts)), firsts)
        assert out.tolist() == [stream[first : first + width].tolist() for first in firsts]
        starts = blocks.documents_in(firsts, width)
        expected = [[d - f for d in (0, 2, 4) if f <= d < f + width] for f in firsts]
        assert [row.tolist() for row in starts] == expected


def test_a_sequence_straddles_many_short_blocks():
    content = tar(*(member for n in range(5) for member in sample(f"s{n}", [n], [])))
    out = np.zeros((1, 4), np.uint16)
    parse(content, 5, 5).copy_to(out, np.array([0]), np.array([1]))
    assert out.tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar(*sample("a", [1, 2, 3], [0])), "holds 1 samples and 3 tokens, the manifest says 2"),
        (tar(*sample("a", [1], [0], "<u4")), "holds 1 x <u4, expected <u2"),
        (tar(*sample("a", [1], [1])), "document starts of a.tokens.npy do not ascend"),
        (tar(*sample("a", [1, 2, 3], [1, 1])), "document starts of a.tokens.npy do not ascend"),
        (tar(*sample("a", [1], [])[2:]), "has no docs.npy before it"),
        (tar(("a.docs.npy", b"\x80\x04pickle")), "is no npy file"),
        (tar(("a.docs.npy", npy(np.array([None])))), r"\|O, expected <u4"),
        (tar(("a.docs.npy", npy(np.zeros((2, 2), "<u4")))), "no npy header"),
        (tar(("a.docs.npy", npy(np.zeros(9, "<u4"))[:-4])), "holds 9 x <u4"),
        (TWO[:-600], "cut short"),
        (TWO[100:], "no regular USTAR member at byte 0"),
        (tar(("a", b""), kind=tarfile.SYMTYPE), "no regular USTAR member at byte 0"),
    ],
)
def test_refusals(content, message):
    with pytest.raises(ValueError, match=message):
        parse(content)
