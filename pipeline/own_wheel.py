"""Workers that Beam sets up get the Millrace of the machine that submits, as a wheel.

Containers install what a job stages (`--extra_package`); worker pools (EXTERNAL) do not, which is
why they have Millrace already. The wheel is packed of the installed package: pip keeps none, and
building one would need a build system and the network.
"""

import base64
import hashlib
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from pipeline.engine_flags import read_flag

PACKAGES = ("configs", "launch", "pipeline", "training")
STORES = {"s3": "s3fs", "gcs": "gcsfs", "http": "aiohttp"}
"""Extras of stores by a package of theirs: workers get those of the machine that submits."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""Of all members: equal packages are equal wheels, which Beam uploads once."""
WHEEL = "Wheel-Version: 1.0\nGenerator: millrace\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@contextmanager
def staged(flags: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The flags; inside, with our wheel to be staged where containers of workers install it."""
    if not installs_packages(flags) or _brings_millrace(flags):
        yield tuple(flags)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield (*flags, f"--extra_package={pack(Path(folder))}")


def installs_packages(flags: Sequence[str]) -> bool:
    """Whether workers are containers of Beam's kind."""
    is_docker = (read_flag(flags, "environment_type") or "").upper() == "DOCKER"
    return is_docker or read_flag(flags, "runner") == "DataflowRunner"


def pack(folder: Path) -> Path:
    """Write the wheel of this installation into a folder."""
    version = metadata.version("millrace")
    path = folder / f"millrace-{version}-py3-none-any.whl"
    files = dict(_members())
    described = f"millrace-{version}.dist-info"
    files[f"{described}/METADATA"] = _metadata().encode()
    files[f"{described}/WHEEL"] = WHEEL.encode()
    record = f"{described}/RECORD"
    rows = [f"{name},sha256={_digest(files[name])},{len(files[name])}\n" for name in files]
    files[record] = ("".join(rows) + f"{record},,\n").encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED)
    return path


def _members() -> Iterator[tuple[str, bytes]]:
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{package}/{path.relative_to(root).as_posix()}", path.read_bytes()


def _metadata() -> str:
    """With what a worker needs as plain requirements: Beam installs a wheel without its extras."""
    distribution = metadata.distribution("millrace")
    # A wheel says METADATA, a checkout that pip links to PKG-INFO.
    text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    stores = [extra for extra, package in STORES.items() if find_spec(package)]
    for extra in ("pipeline", *stores):
        text = text.replace(f'; extra == "{extra}"', "")
    return text


def _digest(content: bytes) -> str:
    """As a wheel's record has it (PEP 427)."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _brings_millrace(flags: Sequence[str]) -> bool:
    """By a package, of which there may be several, or by a source tree of one's own."""
    names = [Path(flag.rpartition("=")[2]).name for flag in flags]
    is_given = any(name.startswith("millrace-") and name.endswith(".whl") for name in names)
    return is_given or read_flag(flags, "setup_file") is not None
