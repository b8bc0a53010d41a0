"""Whether the packages are there, and what else keeps a run from starting."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement

from training.doctor.finding import Finding

EXTRA = "training"


def check_installation() -> Iterator[Finding]:
    """Python, packages against their lower bounds, compiler, and locks that a kill left behind."""
    yield Finding("ok", "Python", sys.version.split()[0])
    for requirement in _requirements():
        yield _check_package(requirement)
    yield _check_compiler()
    yield from _check_locks()


def _requirements() -> list[Requirement]:
    """Of this project for training; empty where it runs from a checkout that is not installed."""
    try:
        lines = metadata.requires("millrace") or []
    except metadata.PackageNotFoundError:
        return []
    found = [Requirement(line) for line in lines]
    return [each for each in found if not each.marker or each.marker.evaluate({"extra": EXTRA})]


def _check_package(requirement: Requirement) -> Finding:
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Finding("fault", requirement.name, f"missing, needs {requirement.specifier}")
    if not requirement.specifier.contains(version, prereleases=True):
        return Finding("fault", requirement.name, f"{version}, needs {requirement.specifier}")
    return Finding("ok", requirement.name, version)


def _check_compiler() -> Finding:
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler:
        return Finding("ok", "C++ compiler", compiler)
    needs = (
        "engine.compile on a CPU and offload to nvme need one: install g++, for nvme also "
        "libaio-dev"
    )
    return Finding("note", "C++ compiler", f"none; {needs}")


def _check_locks() -> Iterator[Finding]:
    """A compilation that was killed leaves a lock, and every later start waits for it, silently."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "torch_extensions"
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", default))
    for lock in sorted(folder.rglob("lock")):
        yield Finding(
            "note",
            "compilation lock",
            f"{lock}: unless something compiles now, remove it; runs would wait for it for ever",
        )


def describe_torch() -> Finding:
    """The build of torch, and what it drives."""
    cuda = torch.version.cuda
    if cuda and not torch.cuda.is_available():
        return Finding("note", "CUDA", f"torch is built for CUDA {cuda}, but finds no device")
    return Finding("ok", "CUDA", cuda or "not of this build of torch")
