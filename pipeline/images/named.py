"""The image that a row of a table holds or names; a table is data, and data is not trusted.

A path stays below its root, whatever `..` it has, and is no URL, unless that is allowed.
"""

import base64
import posixpath
from dataclasses import dataclass
from typing import Any

from pipeline.byte_range import Line
from pipeline.corpus import CorpusFile
from pipeline.records import BadRecord, too_large
from pipeline.urls import asking, locate


@dataclass(frozen=True, slots=True)
class Finder:
    """Where the images of a table are."""

    fs: Any
    """File system of the images."""
    root: str
    """Its folder below which paths lie."""
    strings: str
    """What strings are: path or base64."""
    anywhere: bool
    """Paths may be absolute, or URLs."""
    max_bytes: int
    """Of an image."""


def images_root(table: CorpusFile, root: str) -> tuple[Any, str]:
    """File system and folder at which the paths in a table begin; empty: the table's own folder.

    Raises:
        ValueError, OSError: there is none.
    """
    fs, path = locate(root or table.url)
    return fs, path if root else posixpath.dirname(path)


def find_image(value: Any, position: int, finder: Finder) -> bytes | BadRecord:
    """The encoded image of a value: bytes, a string, or Hugging Face's struct of bytes and path."""
    if _is_struct(value):
        value = value["path"] if value["bytes"] is None else value["bytes"]
    if isinstance(value, str) and value and finder.strings == "path":
        return _read(value, position, finder)
    image = _decoded(value) if isinstance(value, str) else value
    if image is None:
        return BadRecord("missing_value", position, "no image", 0, b"")
    if not isinstance(image, bytes):
        detail = f"holds {type(value).__name__}; bytes, or a {finder.strings} is needed"
        return BadRecord("not_an_image", position, detail, 0, b"")
    return _checked(image, position, len(image), "", finder)


def name_of(value: Any, finder: Finder) -> str | None:
    """The path in a value, where it has one."""
    if _is_struct(value):
        value = value["path"]
    return value if isinstance(value, str) and finder.strings == "path" else None


def _is_struct(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"bytes", "path"}


def _decoded(text: str) -> bytes | str | None:
    """The bytes of base64; the text itself where it is none."""
    try:
        return base64.b64decode(text, validate=True) if text else None
    except ValueError:
        return text


def place_of(path: str, finder: Finder) -> tuple[Any, str] | None:
    """The file system and the path there of an image that a table lists; None if it is forbidden.

    Raises:
        ValueError, OSError: no such URL can be, or it cannot be opened.
    """
    is_url = "://" in path or "::" in path
    leaves = is_url or path.startswith("/") or posixpath.normpath(path).split("/")[0] == ".."
    if leaves and not finder.anywhere:
        return None
    if is_url:
        return locate(path)
    return finder.fs, posixpath.join(finder.root, posixpath.normpath(path))


def _read(path: str, position: int, finder: Finder) -> bytes | BadRecord:
    try:
        found = place_of(path, finder)
        if found is None:
            detail = f"{path}: leaves the folder of images; corpus.allow_anywhere=true allows it"
            return BadRecord("forbidden_path", position, detail, 0, b"")
        fs, place = found
        with asking(path), fs.open(place, "rb") as opened:
            image: bytes = opened.read(finder.max_bytes + 1)
            size = opened.seek(0, 2) if len(image) > finder.max_bytes else len(image)
    except FileNotFoundError:
        return BadRecord("missing_file", position, f"{path}: no such file", 0, b"")
    except (OSError, EOFError, ValueError) as error:
        detail = f"{path}: {' '.join(str(error).split())}"
        return BadRecord("missing_file", position, detail, 0, b"")
    return _checked(image, position, size, f"{path}: ", finder)


def _checked(
    image: bytes, position: int, size: int, where: str, finder: Finder
) -> bytes | BadRecord:
    if not image:
        return BadRecord("empty_file", position, f"{where}0 bytes", 0, b"")
    if size > finder.max_bytes:
        return too_large(Line(position, b"", size), what="image", max_bytes=finder.max_bytes)
    return image
