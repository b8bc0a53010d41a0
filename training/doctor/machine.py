"""Devices, memory and disks of this machine."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from training.doctor.finding import Finding

DISK_BYTES = 256 * 2**20
"""Written and read to measure a disk."""


def check_devices() -> Iterator[Finding]:
    """Each GPU with its memory and precision, or the CPU."""
    if not torch.cuda.is_available():
        yield Finding("ok", "device", f"CPU, {os.cpu_count()} cores, {_host_gib():.0f} GiB")
        return
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        text = f"{properties.name}, {total / 2**30:.0f} GiB, {free / 2**30:.0f} free"
        used = free < 0.9 * total
        yield Finding(
            "note" if used else "ok",
            f"GPU {index}",
            f"{text}; something else uses its memory" if used else text,
        )
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            yield Finding("note", f"GPU {index}", "computes no bf16; use engine.precision=fp16")


def check_disk(folder: Path) -> Iterator[Finding]:
    """Speed and free space below a folder, which need not be there yet.

    The page cache is told to forget the file before it is read; where it does not, the reading is
    that of memory.
    """
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    free_gib = shutil.disk_usage(folder).free / 2**30
    if not os.access(folder, os.W_OK):
        yield Finding("fault", "disk", f"{folder}: no permission to write")
        return
    if free_gib * 2**30 < 2 * DISK_BYTES:
        yield Finding("fault", "disk", f"{folder}: {free_gib:.1f} GiB free")
        return
    write, read = _measure(folder)
    yield Finding(
        "ok",
        "disk",
        f"{folder}: {free_gib:.0f} GiB free, writes {write:.0f} MB/s, reads {read:.0f}",
    )


def _measure(folder: Path) -> tuple[float, float]:
    """MB/s of writing, until the disk has it, and of reading."""
    block = os.urandom(2**20)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
        started = time.perf_counter()
        for _ in range(DISK_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        written = time.perf_counter()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        while file.read(2**20):
            pass
        read = time.perf_counter()
    return DISK_BYTES / 1e6 / (written - started), DISK_BYTES / 1e6 / (read - written)


def _host_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
