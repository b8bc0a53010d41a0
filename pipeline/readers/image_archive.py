"""Images in tar (plain, .gz, .zst) and zip archives; the folder in the archive may name the class.

Members that are no images by their extension, hidden ones, and links and devices are passed over:
they are no records, so neither counts nor rejects know them, and a line of the log at the end of
each archive tells how many members there were that are no images.
"""

import fnmatch
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.batch import Batch
from pipeline.corpus import CorpusConfig, CorpusFile, Portion
from pipeline.images import archive
from pipeline.images.archive import Member, read_members
from pipeline.images.rows import ImageRecord, as_metadata, class_of, image_documents, is_image
from pipeline.meter import Meter
from pipeline.records import BadRecord, gather

KIND = "image"
EXTENSIONS = archive.EXTENSIONS

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Config(CorpusConfig):
    """A corpus of archives of images."""

    include: str = "*"
    """Glob of the names of members that are read, as `train/*`; `*` matches `/` too."""
    classes: bool = False
    """The folder that directly holds an image names its class: `train/cat/1.jpg` is a `cat`."""
    keep_name: bool = False
    """Keep the name of the member in the metadata as `file`."""

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        super().__post_init__()
        if not self.include:
            raise ValueError("include: is empty; `*` takes all members")


def cut(file: CorpusFile, config: Config) -> list[tuple[int, int, int]]:
    """The whole archive."""
    del config
    return [(0, file.bytes, file.bytes)]


def members(config: Config) -> tuple[str, ...]:
    """What samples hold beside the image and its json."""
    return ("cls",) if config.classes else ()


def read(portion: Portion, config: Config) -> Iterator[Batch]:
    """The images of an archive; `position` is the number of the member among all its entries."""
    meter = Meter(portion.bytes)
    records = _records(portion.file, config, meter)
    return gather(portion, records, meter, documents=image_documents)


def _records(file: CorpusFile, config: Config, meter: Meter) -> Iterator[ImageRecord | BadRecord]:
    others = 0

    def wanted(name: str) -> bool:
        nonlocal others
        if not fnmatch.fnmatchcase(_plain(name), config.include):
            return False
        others += not is_image(name)
        return is_image(name)

    max_bytes = config.max_record_mib << 20
    for member in read_members(file, wanted=wanted, max_bytes=max_bytes, meter=meter):
        yield member if isinstance(member, BadRecord) else _record(file, member, config)
    if others:
        _LOG.info("%s: %d members are no images and are passed over", file.source, others)


def _record(file: CorpusFile, member: Member, config: Config) -> ImageRecord | BadRecord:
    position, name, data = member.position, _plain(member.name), member.data
    if member.bad is not None:
        return member.bad
    if not data:
        return BadRecord("empty_file", position, f"{name}: 0 bytes", 0, b"")
    class_name = class_of(name) if config.classes else None
    if config.classes and class_name is None:
        detail = f"{name}: in no folder of the archive that would name its class"
        return BadRecord("missing_class", position, detail, len(data), b"")
    metadata = as_metadata({"file": name} if config.keep_name else {})
    return ImageRecord(file.source, position, data, class_name, None, metadata, name)


def _plain(name: str) -> str:
    return name.removeprefix("./")
