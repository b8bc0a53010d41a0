"""The rules that every tar of a dataset keeps, whatever its samples hold, checked on one tar."""

import hashlib
import mmap
import tarfile
import zlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Protocol

from pipeline.manifest import Shard
from pipeline.tar import Member, index_path, name_fault, render_header, render_index, scan

RULES = {
    "bytes": "tars have the size of the manifest",
    "sha256": "tars have the sha256 of the manifest",
    "crc32": "chunks have the crc32 of the manifest",
    "tar": "tars are whole: headers, members, end of the archive",
    "headers": "members are plain USTAR files of mtime 0, fixed owner and mode",
    "names": "names are ASCII, of at most 100 bytes, without spaces and /",
    "adjacent": "the members of a sample lie side by side",
    "sorted": "the members of a sample are sorted, and none is there twice",
    "extensions": "all samples have the same members",
    "samples": "tars hold the samples of the manifest, at least one",
    "index": "the index holds the offset of each sample and the end",
    "chunks": "chunks are whole samples, as many as the manifest says",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One broken rule."""

    rule: str
    """Its name."""
    where: str
    """File, and sample if there is one."""
    message: str
    """What was found."""


@dataclass(slots=True)
class Findings:
    """What was checked and what was found."""

    faults: list[Fault] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    """How often each rule was checked."""
    keys: list[str] = field(default_factory=list)
    """Keys of the samples."""
    extensions: tuple[str, ...] = ()
    """Of the first sample."""

    def add(self, rule: str, where: str, message: str) -> None:
        """Add a fault, printable whatever bytes a damaged name holds."""
        where, message = (
            text.encode("utf-8", "backslashreplace").decode() for text in (where, message)
        )
        self.faults.append(Fault(rule, where, message))

    def extend(self, other: "Findings") -> None:
        """Add the faults and counts of a part of the dataset."""
        self.faults += other.faults
        self.checked += other.checked


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample in its tar."""

    members: tuple[Member, ...]

    @property
    def key(self) -> str:
        return self.members[0].key

    @property
    def offset(self) -> int:
        """Of its first header."""
        return self.members[0].offset

    @property
    def extensions(self) -> tuple[str, ...]:
        return tuple(member.extension for member in self.members)

    def contents(self, tar: memoryview) -> dict[str, memoryview]:
        """The content of each member by its extension."""
        return {m.extension: tar[m.start : m.start + m.size] for m in self.members}


class SampleRules(Protocol):
    """Rules for the contents of one kind of samples."""

    @property
    def extensions(self) -> tuple[str, ...]:
        """The members that every sample has; none: those of the first sample."""
        ...

    def check(
        self, samples: list[StoredSample], tar: memoryview, name: str, findings: Findings
    ) -> list[int]:
        """Check the samples of one shard, in order; returns the tokens of each."""
        ...


def verify_shard(path: Path, shard: Shard, rules: SampleRules | None) -> Findings:
    """Check one tar, its index and its row of the manifest."""
    findings = Findings()
    with path.open("rb") as file, memoryview(_map(file.fileno(), path)) as tar:
        if _checksums_apply(tar, shard, findings):
            _check_sums(tar, shard, findings)
        members = _scan(path, shard.name, findings)
        if members is None:
            return findings
        _check_members(members, shard.name, findings)
        samples = _group(members)
        tokens = _check_samples(samples, tar, shard, rules, findings)
    _check_index(path, samples, findings)
    _check_chunks(samples, tokens, shard, findings)
    return findings


def _map(descriptor: int, path: Path) -> mmap.mmap | bytes:
    size = path.stat().st_size  # a file of no bytes cannot be mapped
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if size else b""


def _checksums_apply(tar: memoryview, shard: Shard, findings: Findings) -> bool:
    findings.checked["bytes"] += 1
    if len(tar) == shard.bytes:
        return True
    findings.add("bytes", shard.name, f"has {len(tar)} bytes, the manifest says {shard.bytes}")
    return False


def _check_sums(tar: memoryview, shard: Shard, findings: Findings) -> None:
    findings.checked["sha256"] += 1
    found = hashlib.sha256(tar).hexdigest()
    if found != shard.sha256:
        findings.add("sha256", shard.name, f"has {found}, the manifest says {shard.sha256}")
    chunks = shard.chunks
    findings.checked["crc32"] += len(chunks)
    for index, (start, stop) in enumerate(zip(chunks.start, chunks.stop, strict=True)):
        crc32 = zlib.crc32(tar[start:stop])
        if crc32 != chunks.crc32[index]:
            first = chunks.first_sample[index]
            message = (
                f"has crc32 {crc32}, the manifest says {chunks.crc32[index]}: the damage is in "
                f"samples {first} to {first + chunks.samples[index] - 1}"
            )
            findings.add("crc32", f"{shard.name}: chunk {index}", message)


def _scan(path: Path, name: str, findings: Findings) -> list[Member] | None:
    findings.checked["tar"] += 1
    try:
        return list(scan(path))
    except ValueError as error:
        findings.add("tar", name, str(error))
        return None


def _check_members(members: list[Member], shard_name: str, findings: Findings) -> None:
    for member in members:
        where = f"{shard_name}: {member.name}"
        findings.checked["names"] += 1
        findings.checked["headers"] += 1
        if fault := name_fault(member.name):
            findings.add("names", where, fault)
        elif member.header != render_header(member.name, member.size):
            findings.add("headers", where, _header_fault(member))


def _header_fault(member: Member) -> str:
    """The first field of a header that is not what it must be."""
    found = tarfile.TarInfo.frombuf(member.header, "utf-8", "surrogateescape")
    expected = tarfile.TarInfo.frombuf(render_header(member.name, member.size), "utf-8", "strict")
    for name in ("type", "mtime", "mode", "uid", "gid", "uname", "gname", "linkname"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        if ours != theirs:
            return f"{name} is {ours!r}, must be {theirs!r}"
    return f"is no plain USTAR header: magic and version are {member.header[257:265]!r}"


def _group(members: list[Member]) -> list[StoredSample]:
    """Runs of members with one key, as every reader of WebDataset groups them."""
    return [StoredSample(tuple(run)) for _, run in groupby(members, lambda member: member.key)]


def _check_adjacent(samples: list[StoredSample], shard_name: str, findings: Findings) -> set[str]:
    """Keys of which one run has what another lacks; of equal runs the key itself is there twice."""
    findings.checked["adjacent"] += len(samples)
    seen: dict[str, set[str]] = {}
    apart: set[str] = set()
    for sample in samples:
        before = seen.setdefault(sample.key, set())
        if before and before.isdisjoint(sample.extensions):
            apart.add(sample.key)
            message = f"{', '.join(sample.extensions)} lie apart from {', '.join(sorted(before))}"
            findings.add("adjacent", f"{shard_name}: {sample.key}", message)
        before.update(sample.extensions)
    return apart


def _check_samples(
    samples: list[StoredSample],
    tar: memoryview,
    shard: Shard,
    rules: SampleRules | None,
    findings: Findings,
) -> list[int]:
    """Check the samples, then what they hold if all are whole; returns the tokens of each."""
    findings.checked["samples"] += 1
    if len(samples) != shard.samples or not samples:
        message = f"holds {len(samples)} samples, the manifest says {shard.samples}"
        findings.add("samples", shard.name, message if samples else "is empty")
    apart = _check_adjacent(samples, shard.name, findings)
    expected = (rules.extensions if rules else ()) or _extensions(samples)
    whole = [
        sample
        for sample in samples
        if sample.key not in apart and _is_whole(sample, expected, shard.name, findings)
    ]
    findings.keys = [sample.key for sample in samples if sample.key not in apart] + sorted(apart)
    findings.extensions = expected if samples else ()
    if rules is None or len(whole) < len(samples):
        return []
    return rules.check(samples, tar, shard.name, findings)


def _extensions(samples: list[StoredSample]) -> tuple[str, ...]:
    return tuple(sorted(set(samples[0].extensions))) if samples else ()


def _is_whole(
    sample: StoredSample, expected: tuple[str, ...], shard_name: str, findings: Findings
) -> bool:
    """Whether a sample has all members and no other; their order is checked, too."""
    where = f"{shard_name}: {sample.key}"
    findings.checked["sorted"] += 1
    findings.checked["extensions"] += 1
    found = tuple(sorted(set(sample.extensions)))
    if sample.extensions != found:
        findings.add("sorted", where, f"has {', '.join(sample.extensions)}")
    if found != expected:
        message = f"has {', '.join(found)}; must have {', '.join(expected)}"
        findings.add("extensions", where, message)
    return found == expected


def _offsets(samples: list[StoredSample]) -> list[int]:
    end = samples[-1].members[-1].stop if samples else 0
    return [*(sample.offset for sample in samples), end]


def _check_index(path: Path, samples: list[StoredSample], findings: Findings) -> None:
    index = index_path(path)
    if not index.is_file():
        return  # its absence is a fault of the rule `files`
    findings.checked["index"] += 1
    found, expected = index.read_bytes(), render_index(_offsets(samples))
    if len(found) != len(expected):
        message = f"has {len(found)} bytes; {len(samples)} samples need {len(expected)}"
        findings.add("index", index.name, message)
    elif found != expected:
        at = next(i for i in range(0, len(found), 8) if found[i : i + 8] != expected[i : i + 8])
        values = [int.from_bytes(part[at : at + 8], "little") for part in (found, expected)]
        message = f"entry {at // 8} is {values[0]}, the tar says {values[1]}"
        findings.add("index", index.name, message)


def _check_chunks(
    samples: list[StoredSample], tokens: list[int], shard: Shard, findings: Findings
) -> None:
    chunks, offsets = shard.chunks, _offsets(samples)
    if len(samples) != shard.samples:
        return  # a fault of the rule `samples` already
    first = 0
    for index in range(len(chunks)):
        findings.checked["chunks"] += 1
        stop = first + chunks.samples[index]
        expected = {"first_sample": first, "start": offsets[first], "stop": offsets[stop]}
        if tokens:
            expected["tokens"] = sum(tokens[first:stop])
        for column, value in expected.items():
            listed = getattr(chunks, column)[index]
            if listed != value:
                message = f"{column} is {value}, the manifest says {listed}"
                findings.add("chunks", f"{shard.name}: chunk {index}", message)
        first = stop
