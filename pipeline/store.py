"""A dataset folder behind a URL, as builds, uploads and checks use it: files go there and come
back, asked again where a later attempt may do better.

A store has no rename: who writes a dataset sends its manifest last, and before everything else a
mark, by which the same command knows later what lies there unfinished.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from configs.redact import redact, redact_of
from pipeline.transfer import bytes_progress
from pipeline.urls import StoreError, asking, is_final, locate

MARK = "upload.json"
"""Object beside an unfinished dataset: whose it is."""
NUM_TRANSFERS = 8
"""Files under way at once."""
START_PAUSES = (1, 2, 4, 8, 15)
"""Seconds behind each attempt of a first question that failed, on top of what the store's package
tries itself: half a minute, in which who typed a wrong name still waits."""
PAUSES = (*START_PAUSES, *[20] * 13)
"""The same later on: five minutes, as training waits."""
TOLD = 3
"""A line tells of so many failures in a row."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Store:
    """What lies below a URL."""

    url: str
    fs: Any
    path: str

    @classmethod
    def open(cls, url: str) -> "Store":
        """The folder; nothing is asked yet.

        Raises:
            ValueError: the URL is none, or the package of its store is missing.
            StoreError: it cannot be opened.
        """
        return cls(url.rstrip("/"), *locate(url))

    def sizes(self, pauses: Iterable[float] = PAUSES) -> dict[str, int]:
        """Bytes of each object below the folder, by its path in it."""

        def ask() -> dict[str, Any]:
            self.fs.invalidate_cache()
            return dict(self.fs.find(self.path, detail=True))

        found = self._persist(ask, pauses=pauses)
        return {
            str(name).removeprefix(self._at("")): int(row["size"]) for name, row in found.items()
        }

    def size(self, name: str) -> int | None:
        """Bytes of an object, or None where there is none."""

        def ask() -> int:
            self.fs.invalidate_cache()
            return int(self.fs.info(self._at(name))["size"])

        try:
            return int(self._persist(ask, name=name))
        except FileNotFoundError:
            return None

    def read(self, name: str, pauses: Iterable[float] = PAUSES) -> bytes:
        """All of a small object."""
        content = self._persist(lambda: self.fs.cat_file(self._at(name)), name=name, pauses=pauses)
        return bytes(content)

    def fetch(self, name: str, path: Path, size: int) -> None:
        """An object of this size into a file."""

        def ask() -> None:
            self.fs.get_file(self._at(name), str(path))
            if _size(path) != size:
                raise OSError(f"got {_size(path):,} of {size:,} bytes")

        self._persist(ask, name=name)

    def fetch_files(self, files: Mapping[str, Path], sizes: Mapping[str, int]) -> None:
        """Objects into files, several at once."""
        with transfers() as pool:
            for one in [pool.submit(self.fetch, *item, sizes[item[0]]) for item in files.items()]:
                one.result()

    def send(self, name: str, path: Path) -> None:
        """A file, of which the store has every byte when this returns."""
        self._persist(lambda: self.fs.put_file(str(path), self._at(name)), name=name)
        self._check_size(name, path.stat().st_size)

    def send_bytes(self, name: str, content: bytes) -> None:
        """Some bytes, all of them."""
        self._persist(lambda: self.fs.pipe_file(self._at(name), content), name=name)
        self._check_size(name, len(content))

    def send_files(self, files: Mapping[str, Path], console: Console | None) -> None:
        """Files by their names there, several at once."""
        with bytes_progress(console) as progress:
            bar = progress.add_task("uploading", total=sum(map(_size, files.values())))
            with transfers() as pool:
                sent = {pool.submit(self.send, *item): _size(item[1]) for item in files.items()}
                for future in as_completed(sent):
                    future.result()
                    progress.advance(bar, sent[future])

    def remove(self, names: Iterable[str]) -> None:
        """Objects; one that is gone already is no error."""
        with transfers() as pool:
            for future in [pool.submit(self._remove, name) for name in names]:
                future.result()

    def _remove(self, name: str) -> None:
        try:
            self._persist(lambda: self.fs.rm_file(self._at(name)), name=name)
        except FileNotFoundError:
            return

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def _check_size(self, name: str, size: int) -> None:
        found = self.size(name)
        if found != size:
            told = "is not there" if found is None else f"has {found} bytes"
            raise StoreError(f"{redact(self.url)}/{name}: {told}, {size} were sent")

    def _persist(
        self, ask: Callable[[], Any], *, name: str = "", pauses: Iterable[float] = PAUSES
    ) -> Any:
        """What the store answers, asked again where a later attempt may do better."""
        where = f"{self.url}/{name}" if name else self.url
        for number, pause in enumerate([*pauses, None], start=1):
            try:
                return ask()
            except Exception as error:  # noqa: BLE001 - every store has classes of its own
                if pause is None or is_final(error):
                    with asking(where):
                        raise
                if number == TOLD:
                    told = " ".join(f"{type(error).__name__}: {error}".split())
                    _LOG.warning("%s: %s; asked again", redact(where), redact_of(where, told))
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")


@contextmanager
def transfers() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests; behind an error those that did not begin never do."""
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _size(path: Path) -> int:
    return path.stat().st_size
