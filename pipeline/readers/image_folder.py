"""A folder of images, one file each; the folder that holds an image may name its class."""

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.batch import Batch
from pipeline.corpus import CorpusConfig, CorpusFile, Portion
from pipeline.images.rows import ImageRecord, image_rows
from pipeline.records import BadRecord, gather_rows
from pipeline.urls import locate

KIND = "image"
FILE_IS_RECORD = True
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Config(CorpusConfig):
    """A corpus of image files."""

    classes: bool = True
    """The folder that directly holds an image is its class, as in train/cat/1.jpg; an image right
    under the path has none and is a reject. false: images without classes."""
    caption_extension: str = ""
    """The caption of 1.jpg is the text of the file 1 with this extension, as .txt; an image without
    one is a reject. Empty: images without captions."""


def members(config: Config) -> tuple[str, ...]:
    """What samples hold beside the image and its json."""
    named = {"cls": config.classes, "txt": bool(config.caption_extension)}
    return tuple(name for name, there in named.items() if there)


def read(portion: Portion, config: Config) -> Iterator[Batch]:
    """The images of the portion's files, at position 0 of each."""
    return gather_rows(portion, (_read(file, config) for file in portion.files), image_rows)


def _read(file: CorpusFile, config: Config) -> ImageRecord | BadRecord:
    limit = config.max_record_mib << 20
    if file.bytes > limit:
        found = f"{file.bytes} bytes; corpus.max_record_mib={config.max_record_mib} allows {limit}"
        return BadRecord("record_too_large", 0, found, file.bytes, b"", file.source)
    class_name = posixpath.basename(posixpath.dirname(file.source)) or None
    if config.classes and class_name is None:
        found = "lies in no class folder; corpus.classes=false reads it without a class"
        return BadRecord("missing_class", 0, found, file.bytes, b"", file.source)
    try:
        image = _content(file.url)
    except OSError as error:
        detail = " ".join(str(error).split())
        return BadRecord("unreadable_file", 0, detail, file.bytes, b"", file.source)
    caption = None
    if config.caption_extension:
        url = posixpath.splitext(file.url)[0] + config.caption_extension
        try:
            caption = _content(url).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            detail = " ".join(str(error).split())
            return BadRecord("missing_caption", 0, detail, file.bytes, b"", file.source)
    return ImageRecord(
        source=file.source,
        position=0,
        image=image,
        class_name=class_name if config.classes else None,
        caption=caption,
    )


def _content(url: str) -> bytes:
    fs, path = locate(url)
    content: bytes = fs.cat_file(path)
    return content
