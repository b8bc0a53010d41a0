"""Paths and URLs as fsspec takes them; what a store or a missing package says is one line."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fsspec.core import split_protocol, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from configs.redact import redact_of

EXTRAS = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gcs",
    "gcs": "gcs",
    "http": "http",
    "https": "http",
}
"""Extra of this program by protocol."""

ADVICE = {
    "NoCredentialsError": "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or "
    "for a public bucket FSSPEC_S3_ANON=1",
    "DefaultCredentialsError": "; set GOOGLE_APPLICATION_CREDENTIALS",
}
"""What to do, by the class of what a store's package raises."""

FINAL_ERRORS = (
    FileNotFoundError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
    NotImplementedError,
    ImportError,
    TypeError,
    ValueError,
)
FINAL_NAMES = frozenset(
    {
        "DefaultCredentialsError",
        "NoCredentialsError",
        "ParamValidationError",
        "PartialCredentialsError",
        "ProfileNotFound",
    }
)
"""Of botocore and google.auth, whose errors have no class of Python's."""
FINAL_NUMBERS = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENAMETOOLONG})
"""What s3fs makes of the answers 400, 405, 416 and 501."""
PASSING_ANSWERS = frozenset({408, 425, 429})
"""Of HTTP, among 400 to 499: the same request may be answered later."""

for _name in ("aiobotocore", "botocore", "gcsfs", "google", "s3fs"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)  # what they log they raise too


class StoreError(OSError):
    """A store does not give what it was asked for; the message names the URL."""


class DeniedError(StoreError, PermissionError):
    """A store refuses, and would for ever."""


def is_local(place: str) -> bool:
    """Whether a path or URL is of this machine's own files."""
    return split_protocol(place)[0] in (None, "file", "local")


def local_path(place: str) -> Path:
    """A path or URL of this machine's own files as a path."""
    return Path(split_protocol(place)[1])


def locate(url: str, **options: Any) -> tuple[Any, str]:
    """The file system of a path or URL, made with these options, and the path on it.

    Raises:
        ValueError: the file system needs a package that is not installed, or is none of fsspec's.
        StoreError: it cannot be opened.
    """
    if url.startswith("/"):  # fsspec would take a file name with `::` for a chain
        local = LocalFileSystem(**options)
        return local, local._strip_protocol(url)
    try:
        with asking(url):
            fs, path = url_to_fs(url, **options)
    except ImportError as error:
        named = [EXTRAS.get(split_protocol(part)[0] or "") for part in url.split("::")]
        extra = next(filter(None, named), None)
        advice = f"; pip install 'millrace[{extra}]'" if extra else ""
        raise ValueError(f"{url}: {_words(error, url)}{advice}") from None
    return fs, path


@contextmanager
def asking(url: str) -> Iterator[None]:
    """Around calls of a file system: what a remote one raises becomes one line about the URL.

    Errors of this machine's own files name the file, and pass as they are.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no such URL can be.
        DeniedError: no credentials, no access, or what else no later attempt would mend.
        StoreError: no connection, or whatever else a store says.
    """
    try:
        yield
    except ImportError:
        raise
    except ValueError as error:
        raise ValueError(f"{url}: {_words(error, url)}") from None
    except FileNotFoundError as error:
        if error.filename is not None:
            raise
        said = _words(error, url)
        detail = "" if said in url else f" ({said})"
        raise FileNotFoundError(f"{url}: no such file or folder{detail}") from None
    # botocore's, google's and aiohttp's errors have no class in common
    except Exception as error:  # noqa: BLE001
        if isinstance(error, OSError) and error.filename is not None:
            raise
        name = type(error).__name__
        kind = DeniedError if is_final(error) else StoreError
        raise kind(f"{url}: {name}: {_words(error, url)}{ADVICE.get(name, '')}") from None


def is_final(error: Exception) -> bool:
    """Whether the same read would fail for ever."""
    if isinstance(error, FINAL_ERRORS) or type(error).__name__ in FINAL_NAMES:
        return True
    if isinstance(error, OSError) and error.errno in FINAL_NUMBERS:
        return True
    status = getattr(error, "status", None)  # of aiohttp's errors
    return isinstance(status, int) and 400 <= status < 500 and status not in PASSING_ANSWERS


def escaped(name: str) -> str:
    r"""A name as text: bytes that are not UTF-8, lone surrogates to Python, as backslash escapes.

    The name of the bytes `b"caf\xe9"` -> the seven characters of `caf\xe9`.
    """
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_url(url: str) -> bytes:
    """All of a small file.

    Raises:
        FileNotFoundError, ValueError, StoreError: see `locate` and `asking`.
    """
    fs, path = locate(url)
    with asking(url), fs.open(path, "rb") as file:
        content: bytes = file.read()
    return content


def member_url(fs: Any, name: str, pattern: str) -> str:
    """The URL of a file that the file system lists, in a chain as `zip://*.txt::/a.zip` is."""
    parts = pattern.split("::")
    if len(parts) == 1:
        return str(fs.unstrip_protocol(name))
    place = next((at for at, part in enumerate(parts) if "://" in part), len(parts) - 1)
    protocol = split_protocol(parts[place])[0]
    parts[place] = f"{protocol}://{name}" if protocol else name
    return "::".join(parts)


def _words(error: Exception, url: str) -> str:
    return redact_of(url, " ".join(str(error).split()))
