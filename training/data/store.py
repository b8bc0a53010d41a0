"""Section `data.store`, and the file system behind a URL as training asks it.

Only one layer makes reads again, `Patience`: those inside of s3fs and botocore are switched off,
for what they do is neither counted nor told, and five times five attempts outlast every limit.
"""

import math
from dataclasses import dataclass
from typing import Any

import fsspec

from pipeline.urls import locate


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Section `data.store`: how a dataset behind a URL is read; a dataset on a disk needs none."""

    num_requests: int = 16
    """Chunks that each rank asks for at once."""
    request_seconds: float = 60.0
    """A chunk that takes longer is asked for again."""
    retry_seconds: float = 300.0
    """A read that fails for longer ends the run, which goes on later from its last checkpoint."""
    cache_dir: str = ""
    """Folder of each node for chunks that its ranks have read; empty: no cache."""
    cache_gib: float = 64.0
    """Chunks in that folder take at most so much; the least recently used make room."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if self.num_requests < 1:
            raise ValueError(f"num_requests must be at least 1, found {self.num_requests}")
        for name in ("request_seconds", "cache_gib"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0, found {getattr(self, name)}")
        if not 0 <= self.retry_seconds < math.inf:
            raise ValueError(f"retry_seconds must be 0 or more, found {self.retry_seconds}")


class Store:
    """What lies below a URL, read once: who calls it has patience."""

    def __init__(self, url: str, config: StoreConfig) -> None:
        """Open it; nothing is asked yet.

        Raises:
            ValueError: a package is missing, or the URL is none.
            StoreError: it cannot be opened.
        """
        protocol = fsspec.core.split_protocol(url)[0]
        is_s3 = protocol in ("s3", "s3a")
        options = _s3_options(config) if is_s3 else {}
        self.fs, self.path = locate(url, **options)
        self.url = url
        self._seconds = config.request_seconds
        if is_s3:
            self.fs.retries = 1

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes of an object, or of a part of it.

        Raises:
            OSError: no answer in time, a body that is cut short, or whatever the store says.
        """
        limits: dict[str, Any] = {} if start is None else {"start": start, "end": stop}
        content = bytes(self._ask("cat_file", f"{self.path}/{name}", **limits))
        if start is not None and stop is not None and len(content) != stop - start:
            raise OSError(f"got only {len(content)} of {stop - start} bytes")
        return content

    def sizes(self) -> dict[str, int | None]:
        """By name, as far as a listing tells them; it may be stale, or forbidden."""
        entries = self._ask("ls", self.path, detail=True)
        return {entry["name"].rsplit("/", 1)[-1]: entry.get("size") for entry in entries}

    def size(self, name: str) -> int:
        """The size of one object."""
        return int(self._ask("info", f"{self.path}/{name}")["size"])

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        if getattr(self.fs, "async_impl", False):
            options["timeout"] = self._seconds
        try:
            return getattr(self.fs, method)(*arguments, **options)
        except TimeoutError as error:
            raise TimeoutError(f"no answer within {self._seconds:g} s") from error


def _s3_options(config: StoreConfig) -> dict[str, Any]:
    """Beside what FSSPEC_S3_... of the environment says of the connection."""
    ours = {
        "retries": {"max_attempts": 0},
        "connect_timeout": min(config.request_seconds, 10.0),
        "read_timeout": config.request_seconds,
        "max_pool_connections": max(config.num_requests, 10),
    }
    theirs = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
    # one request for a whole object: no question for its size before it
    return {"config_kwargs": theirs | ours, "max_concurrency": 1}
