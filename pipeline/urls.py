"""Paths and URLs as fsspec takes them; a package that one of them needs is told in one line."""

from typing import Any

from fsspec.core import split_protocol, url_to_fs

EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "http": "http",
    "https": "http",
}
"""Extra of this program by protocol."""


def locate(url: str) -> tuple[Any, str]:
    """The file system of a path or URL, and the path on it.

    Raises:
        ValueError: the file system needs a package that is not installed, or is none of fsspec's.
    """
    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        named = [EXTRAS.get(split_protocol(part)[0] or "") for part in url.split("::")]
        extra = next(filter(None, named), None)
        advice = f"; pip install 'millrace[{extra}]'" if extra else ""
        raise ValueError(f"{url}: {' '.join(str(error).split())}{advice}") from None
    except ValueError as error:
        raise ValueError(f"{url}: {error}") from None
    return fs, path


def member_url(fs: Any, name: str, pattern: str) -> str:
    """The URL of a file that the file system lists, in a chain as `zip://*.txt::/a.zip` is."""
    parts = pattern.split("::")
    if len(parts) == 1:
        return str(fs.unstrip_protocol(name))
    place = next((at for at, part in enumerate(parts) if "://" in part), len(parts) - 1)
    protocol = split_protocol(parts[place])[0]
    parts[place] = f"{protocol}://{name}" if protocol else name
    return "::".join(parts)
