"""Samples of WebDataset tars: neighbouring members of one key, as every reader of them groups.

Up to the first dot behind the last `/` a name is the key, what follows is the extension, in lower
case: `train/0001.seg.png` is `seg.png` of `train/0001`. Members without one of the two, and names
like `__meta__`, belong to no sample. Nothing that a key has is taken for what it has not: a key
that comes again, or a sample in which the tar breaks off, is a bad record.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline.corpus import CorpusFile
from pipeline.images.archive import Member, read_tar
from pipeline.meter import Meter
from pipeline.records import BadRecord

EXTENSIONS_SHOWN = 10
"""So many extensions of a sample are told where it is refused."""

_META = re.compile(r"__[^/]*__($|/)")  # webdataset's own rule


@dataclass(slots=True)
class StoredSample:
    """A sample of a tar, of whose members the wanted ones are read."""

    key: str
    """As in the tar, with its folders."""
    position: int
    """Of its first member among all entries of the tar."""
    members: dict[str, Member] = field(default_factory=dict)
    """Those that were wanted, by extension."""
    others: list[str] = field(default_factory=list)
    """Extensions of the first few others."""
    size: int = 0
    """Bytes of all its members."""
    twice: str = ""
    """An extension that came a second time."""

    @property
    def extensions(self) -> str:
        """What it has, for a message."""
        shown = [*self.members, *self.others][:EXTENSIONS_SHOWN]
        return ", ".join(shown) or "nothing"

    def bad(self, reason: str, detail: str) -> BadRecord:
        """The sample as a reject."""
        return BadRecord(reason, self.position, f"{self.key}: {detail}", self.size, b"")


def read_samples(
    file: CorpusFile, *, wanted: Callable[[str], bool], max_bytes: int, meter: Meter
) -> Iterator[StoredSample | BadRecord]:
    """The samples of a tar in order; `wanted` tells of an extension whether it is read."""

    def is_wanted(name: str) -> bool:
        parts = split_name(name)
        return parts is not None and wanted(parts[1])

    seen: set[str] = set()
    sample: StoredSample | None = None
    for member in read_tar(file, wanted=is_wanted, max_bytes=max_bytes, meter=meter, others=True):
        if isinstance(member, BadRecord):
            if sample is not None:
                yield sample.bad(
                    "incomplete_sample", f"the tar breaks off behind {sample.extensions}"
                )
            yield member
            return
        parts = split_name(member.name)
        if parts is None:
            continue
        key, extension = parts
        if sample is None or key != sample.key:
            if sample is not None:
                yield _closed(sample, seen)
            sample = StoredSample(key, member.position)
        _add(sample, extension, member, is_read=wanted(extension))
    if sample is not None:
        yield _closed(sample, seen)


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member, or None where it belongs to no sample.

    a/b.c/1.seg.PNG -> a/b.c/1, seg.png
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or _META.match(name):
        return None
    return f"{folder}{slash}{stem}", extension.lower()


def _add(sample: StoredSample, extension: str, member: Member, *, is_read: bool) -> None:
    sample.size += member.size
    if extension in sample.members or extension in sample.others:
        sample.twice = extension
    elif is_read:
        sample.members[extension] = member
    elif len(sample.others) < EXTENSIONS_SHOWN:
        sample.others.append(extension)


def _closed(sample: StoredSample, seen: set[str]) -> StoredSample | BadRecord:
    """A sample behind whose last member another one begins."""
    if sample.key in seen:
        detail = f"{sample.extensions} stand apart from earlier members of the same key"
        return sample.bad("duplicate_key", detail)
    seen.add(sample.key)
    if sample.twice:
        return sample.bad("duplicate_key", f"has two members {sample.twice}")
    return sample
