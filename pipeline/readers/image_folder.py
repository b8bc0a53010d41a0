"""Image files in folders, one image a file; the folder may name the class, a file the caption."""

import posixpath
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pipeline.batch import EXCERPT_BYTES, Batch
from pipeline.byte_range import Line, open_corpus_file
from pipeline.corpus import CorpusConfig, CorpusFile, Portion
from pipeline.images.beside import Versions, digest
from pipeline.images.rows import EXTENSIONS as IMAGE_EXTENSIONS
from pipeline.images.rows import ImageRecord, as_metadata, class_of, image_documents
from pipeline.meter import Meter
from pipeline.records import BadRecord, gather, too_large
from pipeline.urls import asking, locate

KIND = "image"
EXTENSIONS = IMAGE_EXTENSIONS
FILE_IS_RECORD = True


@dataclass(frozen=True, kw_only=True)
class Config(CorpusConfig):
    """A corpus of image files."""

    classes: bool = False
    """The folder that directly holds an image names its class: `train/cat/1.jpg` is a `cat`."""
    caption_extension: str = ""
    """Extension of the file beside an image that holds its caption, as `.txt`; empty for none."""
    keep_name: bool = False
    """Keep the name of the file, relative to the corpus, in the metadata as `file`."""

    def __post_init__(self) -> None:
        """Check the fields against each other."""
        super().__post_init__()
        extension = self.caption_extension
        if extension and (not extension.startswith(".") or extension.lower() in EXTENSIONS):
            raise ValueError(
                f"caption_extension: is '{extension}'; it must begin with a dot and be none of "
                f"{', '.join(EXTENSIONS)}"
            )


def members(config: Config) -> tuple[str, ...]:
    """What samples hold beside the image and its json."""
    named = {"cls": config.classes, "txt": bool(config.caption_extension)}
    return tuple(name for name, is_there in named.items() if is_there)


def companions(config: Config) -> tuple[str, ...]:
    """Extensions of files that belong to images."""
    return (config.caption_extension.lower(),) if config.caption_extension else ()


def read(portion: Portion, config: Config) -> Iterator[Batch]:
    """The image of each file of the portion, still encoded; `position` is 0.

    With `classes`, an image in no folder below `path` is the reject `missing_class`; with
    `caption_extension`, one without its caption file is `missing_caption`.
    """
    meter = Meter(portion.bytes)
    records = (_record(file, config, meter) for file in portion.files)
    return gather(portion, records, meter, documents=image_documents)


def beside(portions: Sequence[Portion], config: Config) -> list[str]:
    """For each portion what changes when one of its captions does."""
    versions = Versions()
    if not config.caption_extension:
        return [""] * len(portions)
    return [
        digest(versions.of(*_caption_place(file, config)) for file in portion.files)
        for portion in portions
    ]


def _record(file: CorpusFile, config: Config, meter: Meter) -> ImageRecord | BadRecord:
    meter.add(file.bytes)
    max_bytes, class_name = config.max_record_mib << 20, class_of(file.source)
    if not file.bytes:
        return BadRecord("empty_file", 0, "0 bytes", 0, b"", file.source)
    if config.classes and class_name is None:
        detail = "in no folder below corpus.path that would name its class"
        return BadRecord("missing_class", 0, detail, file.bytes, b"", file.source)
    try:
        with asking(file.url), closing(open_corpus_file(file)) as opened:
            image = opened.read(file.bytes if file.bytes <= max_bytes else EXCERPT_BYTES)
    except (OSError, EOFError) as error:
        detail = " ".join(str(error).split())
        return BadRecord("unreadable_file", 0, detail, file.bytes, b"", file.source)
    if file.bytes > max_bytes:
        bad = too_large(Line(0, image, file.bytes), what="file", max_bytes=max_bytes)
        return bad._replace(source=file.source)
    caption = _caption(file, config)
    if isinstance(caption, BadRecord):
        return caption
    return ImageRecord(
        file.source,
        0,
        image,
        class_name if config.classes else None,
        caption,
        as_metadata({"file": file.source} if config.keep_name else {}),
    )


def _caption_place(file: CorpusFile, config: Config) -> tuple[Any, str]:
    """The file system of the caption, and its path there."""
    fs, path = locate(file.url)
    return fs, posixpath.splitext(path)[0] + config.caption_extension


def _caption(file: CorpusFile, config: Config) -> str | None | BadRecord:
    """The text of the file beside, without white space around it."""
    if not config.caption_extension:
        return None
    fs, path = _caption_place(file, config)
    max_bytes = config.max_record_mib << 20
    try:
        with asking(file.url), fs.open(path, "rb") as opened:
            text = opened.read(max_bytes + 1)
        if len(text) > max_bytes:
            detail = f"a caption above {max_bytes} bytes"
            return BadRecord("record_too_large", 0, detail, file.bytes, b"", file.source)
        return str(text.decode("utf-8-sig").strip())
    except UnicodeDecodeError as error:
        reason, detail = "invalid_utf8", f"caption: {error.reason} at byte {error.start}"
    except OSError as error:
        reason, detail = "missing_caption", " ".join(str(error).split())
    return BadRecord(reason, 0, detail, file.bytes, b"", file.source)
