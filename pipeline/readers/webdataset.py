"""WebDataset tars (plain, .gz, .zst), as img2dataset, webdataset and this program write them.

A sample is an image with its class, caption and metadata. What lies beside the tars, as the tables
and statistics of img2dataset, is not read. Members that are not asked for are passed over, and a
line of the log at the end of each tar counts them by extension. One worker reads a tar.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.batch import Batch
from pipeline.corpus import CorpusConfig, CorpusFile, Portion
from pipeline.images import rows
from pipeline.images.archive import TAR_EXTENSIONS, Member
from pipeline.images.class_names import read_class_names
from pipeline.images.rows import ImageRecord, as_metadata, image_documents
from pipeline.images.tar_samples import StoredSample, read_samples
from pipeline.meter import Meter
from pipeline.records import BadRecord, gather

KIND = "image"
EXTENSIONS = TAR_EXTENSIONS
ABSENT = ("missing_image", "missing_class", "missing_caption")

IMAGES = tuple(extension.removeprefix(".") for extension in rows.EXTENSIONS)
"""Extensions of images."""

_LOG = logging.getLogger(__name__)

_MAX_DIGITS = 10
_EXTENSIONS_COUNTED = 20
"""Of members that are passed over; a tar whose names have dots elsewhere has millions."""


@dataclass(frozen=True, kw_only=True)
class Config(CorpusConfig):
    """A corpus of WebDataset tars."""

    image_members: tuple[str, ...] = ()
    """Extensions of the image, as `rgb.png`, of which a sample has one; empty: jpg, png, webp and
    whatever else is a format of images."""
    class_member: str = ""
    """Extension of the member that holds the class, as `cls`; empty for none."""
    class_names: str = ""
    """File that names the classes, where `class_member` holds their numbers: the `manifest.json`
    of a dataset, or a text with a name in each line; empty: the number is the name."""
    caption_member: str = ""
    """Extension of the member that holds the caption, as `txt`; empty for none."""
    metadata_members: tuple[str, ...] = ("json",)
    """Extensions of members that are kept in the metadata of samples that have them: the fields of
    an object in `json` as they are, others under their extension."""
    keep_key: bool = False
    """Keep the key of the sample in the metadata as `key`."""

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        super().__post_init__()
        if self.class_names and not self.class_member:
            raise ValueError("class_names: names classes by number; class_member is empty")
        wrong = [one for one in self.wanted if one.startswith(".") or one != one.lower()]
        if wrong:
            raise ValueError(f"'{wrong[0]}': an extension has no dot in front and no capitals")
        again = [one for one, times in Counter(self.wanted).items() if times > 1]
        if again:
            raise ValueError(f"'{again[0]}': a member has one use, this one is named for two")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Extensions of members that are read."""
        said = (self.class_member, self.caption_member)
        return (*(self.image_members or IMAGES), *filter(None, said), *self.metadata_members)

    @property
    def resources(self) -> tuple[str, ...]:
        """The names of the classes."""
        return (self.class_names,) if self.class_names else ()


def cut(file: CorpusFile, config: Config) -> list[tuple[int, int, int]]:
    """The whole tar."""
    del config
    return [(0, file.bytes, file.bytes)]


def members(config: Config) -> tuple[str, ...]:
    """What samples hold beside the image and its json."""
    named = {"cls": config.class_member, "txt": config.caption_member}
    return tuple(name for name, member in named.items() if member)


def read(portion: Portion, config: Config) -> Iterator[Batch]:
    """The images of a tar; `position` is the number of a sample's first member among all entries.

    Raises:
        ValueError, OSError: `class_names` cannot be read.
    """
    meter = Meter(portion.bytes)
    records = _records(portion.file, config, meter)
    return gather(portion, records, meter, documents=image_documents)


def _records(file: CorpusFile, config: Config, meter: Meter) -> Iterator[ImageRecord | BadRecord]:
    class_names = read_class_names(config.class_names) if config.class_names else ()
    wanted, others = frozenset(config.wanted), Counter[str]()
    max_bytes = config.max_record_mib << 20
    for sample in read_samples(file, wanted=wanted.__contains__, max_bytes=max_bytes, meter=meter):
        if isinstance(sample, BadRecord):
            yield sample
            continue
        for extension in sample.others:
            known = extension in others or len(others) < _EXTENSIONS_COUNTED
            others[extension if known else "others"] += 1
        yield _record(file, sample, config, class_names)
    if others:
        counts = ", ".join(f"{number} {extension}" for extension, number in others.most_common())
        _LOG.info("%s: members that are passed over: %s", file.source, counts)


def _record(
    file: CorpusFile, sample: StoredSample, config: Config, class_names: Sequence[str]
) -> ImageRecord | BadRecord:
    """The image of a sample with what is said of it; raises nothing for what its members hold."""
    try:
        image = _image(sample, config)
        class_name = _class_name(sample, config, class_names)
        caption = _caption(sample, config)
        metadata = as_metadata(_metadata(sample, config))
    except _BadMemberError as error:
        return sample.bad(error.reason, error.detail)
    except ValueError as error:
        return sample.bad("invalid_json", str(error))
    return ImageRecord(
        file.source,
        sample.position,
        image.data,
        class_name,
        caption,
        metadata,
        image.name.removeprefix("./"),
    )


class _BadMemberError(Exception):
    """A member that does not hold what it is named for."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def _image(sample: StoredSample, config: Config) -> Member:
    names = config.image_members or IMAGES
    found = [sample.members[name] for name in names if name in sample.members]
    if not found:
        wanted = f"none of {', '.join(names)}; has {sample.extensions}"
        raise _BadMemberError("missing_image", f"{wanted}; see corpus.image_members")
    if len(found) > 1:
        detail = f"has {sample.extensions}; corpus.image_members tells which is the image"
        raise _BadMemberError("several_images", detail)
    if not found[0].size:
        raise _BadMemberError("empty_file", f"{found[0].name}: 0 bytes")
    _check(found[0])
    return found[0]


def _class_name(sample: StoredSample, config: Config, class_names: Sequence[str]) -> str | None:
    if not config.class_member:
        return None
    text = _text(sample, config.class_member)
    if not text:
        detail = f"no {config.class_member}, or nothing in it; has {sample.extensions}"
        raise _BadMemberError("missing_class", detail)
    if not class_names:
        return text
    is_number = text.isascii() and text.isdigit() and len(text) < _MAX_DIGITS
    if not is_number or int(text) >= len(class_names):
        detail = f"{config.class_member} holds '{text[:50]}', no number below {len(class_names)}"
        raise _BadMemberError("missing_class", f"{detail}, the classes of {config.class_names}")
    return class_names[int(text)]


def _caption(sample: StoredSample, config: Config) -> str | None:
    if not config.caption_member:
        return None
    if config.caption_member not in sample.members:
        detail = f"no {config.caption_member}; has {sample.extensions}"
        raise _BadMemberError("missing_caption", detail)
    return _text(sample, config.caption_member)


def _metadata(sample: StoredSample, config: Config) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for extension in config.metadata_members:
        if extension not in sample.members:
            continue
        value: Any = _text(sample, extension)
        if extension.rpartition(".")[2] == "json":
            value = _parsed(value, extension)
        tree |= value if extension == "json" and isinstance(value, dict) else {extension: value}
    return {**tree, "key": sample.key.removeprefix("./")} if config.keep_key else tree


def _parsed(text: str, extension: str) -> Any:
    """What JSON says; NaN and infinities, which img2dataset may write, are allowed."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _BadMemberError("invalid_json", f"{extension}: {error}") from None


def _text(sample: StoredSample, extension: str) -> str:
    """The text of a member, without white space around it; nothing where it is absent."""
    if extension not in sample.members:
        return ""
    _check(sample.members[extension])
    try:
        return sample.members[extension].data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        detail = f"{extension}: {error.reason} at byte {error.start}"
        raise _BadMemberError("invalid_utf8", detail) from None


def _check(member: Member) -> None:
    """Refuse a member that could not be read, as one above the limit."""
    if member.bad is not None:
        raise _BadMemberError(member.bad.reason, f"{member.name}: {member.bad.detail}")
