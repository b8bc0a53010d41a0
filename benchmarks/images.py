"""Speed of preparing photographs: decode, shorter side 256, JPEG of quality 90, on one core.

    python benchmarks/images.py PHOTOS --img2dataset VENV/bin/python

PHOTOS is a folder of JPEG files or of tars of them. Beside a build's own way with an image, its
sandbox included, the same in plain loops over libraries: `pip install opencv-python-headless`. And
img2dataset's resizer, from a virtual environment of its own (`pip install img2dataset pillow`),
whose pins are not ours. What is not installed is left out of the table.

All alternate, pinned to one core. What counts is CPU time, to which other programs add little.
Quality is that of the stored files against a resize in float64, the Lanczos kernel by its formula.
"""

import argparse
import importlib.util
import io
import json
import math
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageCms

ROOT = Path(__file__).resolve().parent.parent
SIDE = 256
QUALITY = 90
SAME_QUALITY = 0.1
"""Decibels below ours that still count as the same."""

Loop = Callable[[list[bytes]], list[bytes]]
"""From stored files to those of the dataset."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder of JPEG files, or of tars of them")
    parser.add_argument("--img2dataset", help="a Python that has img2dataset")
    parser.add_argument("--rounds", type=int, default=9, help="of all, alternating")
    parser.add_argument("--serve", choices=LOOPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    photos = list(read_photos(arguments.photos))
    if not photos:
        parser.error(f"{arguments.photos}: no .jpg or .jpeg files, nor tars that hold some")
    if arguments.serve:
        serve(LOOPS[arguments.serve](), photos)
        return
    pythons = {name: sys.executable for name, modules in NEEDS.items() if have(modules)}
    if arguments.img2dataset:
        pythons[IMG2DATASET] = arguments.img2dataset
    print(f"{len(photos)} photographs, {sum(map(len, photos)) / len(photos) / 1000:.0f} KB each")
    print_table(measure(arguments.photos, pythons, arguments.rounds), photos)


def read_photos(place: Path) -> Iterator[bytes]:
    """JPEG files of a folder, of tars in it, or of one tar."""
    for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
        if path.suffix.lower() in (".jpg", ".jpeg"):
            yield path.read_bytes()
        if path.name.endswith((".tar", ".tar.gz")):
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.name.lower().endswith((".jpg", ".jpeg")):
                        yield tar.extractfile(member).read()  # type: ignore[union-attr]


def measure(
    folder: Path, pythons: dict[str, str], rounds: int
) -> dict[str, tuple[list[float], list[bytes]]]:
    """By loop, CPU seconds of each round, and the files that it made."""
    with tempfile.TemporaryDirectory() as made:
        servers = {name: start(name, python, folder) for name, python in pythons.items()}
        for server in servers.values():
            ask(server, made)  # the first round compiles, loads and is not counted
        files = {
            name: [Path(path).read_bytes() for path in sorted(Path(made).glob(f"{server.pid}-*"))]
            for name, server in servers.items()
        }
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, server in servers.items():
            seconds[name].append(ask(server, ""))
    for server in servers.values():
        server.stdin.close()  # type: ignore[union-attr]
        server.wait()
    return {name: (seconds[name], files[name]) for name in servers}


def start(name: str, python: str, folder: Path) -> "subprocess.Popen[str]":
    core = {max(os.sched_getaffinity(0))}
    return subprocess.Popen(
        [python, __file__, str(folder), "--serve", name],
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, core),
    )


def ask(server: "subprocess.Popen[str]", made: str) -> float:
    """Let a loop go through all photographs; its CPU seconds."""
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(made + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    if not answer:
        sys.exit(f"a loop ended: {' '.join(map(str, server.args))}")  # type: ignore[arg-type]
    return float(json.loads(answer))


def serve(loop: Loop, photos: list[bytes]) -> None:
    """The other side of `ask`; where a folder is named the files made are written there."""
    for line in sys.stdin:
        before = cpu_seconds()
        files = loop(photos)
        seconds = cpu_seconds() - before
        if folder := line.strip():
            for number, file in enumerate(files):
                Path(folder, f"{os.getpid()}-{number:06d}").write_bytes(file)
        print(json.dumps(seconds), flush=True)


def cpu_seconds() -> float:
    """Of this process and its children, living ones too."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    clocks = [(~int(child) << 3) | 2 for child in children]  # what clock_getcpuclockid(3) gives
    return time.process_time() + sum(time.clock_gettime(clock) for clock in clocks)


def millrace() -> Loop:
    """Batches of 50 images through the sandbox, as the stage ProcessImages sends them."""
    from pipeline.images.process import Config, Processed, process
    from pipeline.images.sandbox import Limits, Sandbox

    config = Config()
    limits = Limits(config.decode.time_limit_seconds, config.decode.memory_mib)
    sandbox = Sandbox(partial(process, config=config), limits)

    def loop(photos: list[bytes]) -> list[bytes]:
        outcomes = [
            one for at in range(0, len(photos), 50) for one in sandbox.map(photos[at:][:50])
        ]
        return [one.encoded for one in outcomes if isinstance(one, Processed)]

    return loop


def pillow() -> Loop:
    def one(photo: bytes) -> bytes:
        image: PIL.Image.Image = PIL.Image.open(io.BytesIO(photo))
        profile = image.info.get("icc_profile")
        if (size := wished(image.size)) == image.size:
            return photo
        image.draft(image.mode, (2 * size[0], 2 * size[1]))
        image = in_srgb(image.resize(size, PIL.Image.Resampling.LANCZOS), profile)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        return file.getvalue()

    return lambda photos: [one(photo) for photo in photos]


def turbo(scale: Callable[[Any, tuple[int, int]], Any]) -> Loop:
    """libjpeg-turbo by simplejpeg, around a resize."""
    import simplejpeg

    def one(photo: bytes) -> bytes:
        height, width = simplejpeg.decode_jpeg_header(photo)[:2]
        if (size := wished((width, height))) == (width, height):
            return photo
        by = next((by for by in (8, 4, 2) if min(width, height) >= by * 2 * SIDE), 1)
        least = {"min_height": -(-height // by), "min_width": -(-width // by)} if by > 1 else {}
        pixels = scale(simplejpeg.decode_jpeg(photo, "RGB", **least), size)
        if b"ICC_PROFILE" in photo[:4096]:
            image: PIL.Image.Image = PIL.Image.open(io.BytesIO(photo))
            pixels = PIL.Image.fromarray(pixels).convert(image.mode)
            pixels = np.asarray(in_srgb(pixels, image.info.get("icc_profile")))
        encoded: bytes = simplejpeg.encode_jpeg(pixels, QUALITY, "RGB", "420")
        return encoded

    return lambda photos: [one(photo) for photo in photos]


def turbo_and_pillow() -> Loop:
    def scale(pixels: Any, size: tuple[int, int]) -> Any:
        image = PIL.Image.fromarray(pixels)
        return np.asarray(image.resize(size, PIL.Image.Resampling.LANCZOS))

    return turbo(scale)


def turbo_and_fast_resize() -> Loop:
    import cykooz_resizer as fast

    resizer = fast.Resizer()
    lanczos = fast.ResizeOptions(fast.ResizeAlg.convolution(fast.FilterType.lanczos3))

    def scale(pixels: Any, size: tuple[int, int]) -> Any:
        height, width = pixels.shape[:2]
        source = fast.ImageData(width, height, fast.PixelType.U8x3, pixels.tobytes())
        target = fast.ImageData(*size, fast.PixelType.U8x3)
        resizer.resize(source, target, lanczos)
        return np.frombuffer(target.get_buffer(), np.uint8).reshape(size[1], size[0], 3)

    return turbo(scale)


def opencv() -> Loop:
    import cv2

    cv2.setNumThreads(1)
    quality = [cv2.IMWRITE_JPEG_QUALITY, QUALITY]

    def one(photo: bytes) -> bytes:
        pixels = cv2.imdecode(np.frombuffer(photo, np.uint8), cv2.IMREAD_COLOR)
        height, width = pixels.shape[:2]
        if (size := wished((width, height))) == (width, height):
            return photo
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)  # its one antialiased way
        return bytes(cv2.imencode(".jpg", pixels, quality)[1])

    return lambda photos: [one(photo) for photo in photos]


def img2dataset() -> Loop:
    from img2dataset.resizer import Resizer  # type: ignore[import-not-found]

    resizer = Resizer(SIDE, "keep_ratio", resize_only_if_bigger=True, encode_quality=QUALITY)

    def one(photo: bytes) -> bytes:
        encoded, *_, error = resizer(io.BytesIO(photo))
        assert error is None, error
        return bytes(encoded)

    return lambda photos: [one(photo) for photo in photos]


MILLRACE = "Millrace"
IMG2DATASET = "img2dataset's resizer"
LOOPS: dict[str, Callable[[], Loop]] = {
    MILLRACE: millrace,
    "Pillow": pillow,
    "libjpeg-turbo, Pillow's resize": turbo_and_pillow,
    "libjpeg-turbo, fast_image_resize": turbo_and_fast_resize,
    "OpenCV, INTER_AREA": opencv,
    IMG2DATASET: img2dataset,
}
NEEDS = {name: ("cv2",) if name.startswith("OpenCV") else () for name in [*LOOPS][:-1]}
"""Modules beside those of the project."""


def have(modules: tuple[str, ...]) -> bool:
    return all(importlib.util.find_spec(module) for module in modules)


def wished(size: tuple[int, int]) -> tuple[int, int]:
    """The shorter side at 256, never enlarged."""
    scale = SIDE / min(size)
    return size if scale >= 1 else (round(size[0] * scale), round(size[1] * scale))


def in_srgb(image: PIL.Image.Image, profile: bytes | None) -> PIL.Image.Image:
    transform = transform_of(profile, image.mode) if profile else None
    return image.convert("RGB") if transform is None else transform.apply(image)


@lru_cache
def transform_of(profile: bytes, mode: str) -> PIL.ImageCms.ImageCmsTransform | None:
    source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if (source.profile.profile_description or "").startswith("sRGB"):
        return None
    srgb = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB"))
    return PIL.ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")


def print_table(found: dict[str, tuple[list[float], list[bytes]]], photos: list[bytes]) -> None:
    ours, _ = found[MILLRACE]
    ideal = [reference(photo) for photo in photos]
    quality = {name: decibels(files, ideal) for name, (_, files) in found.items()}
    print(f"{'':34}{'images/s':>9}{'of CPU':>8}{'PSNR, dB':>10}{'Millrace is':>14}")
    for name, (seconds, _) in found.items():
        rate = len(photos) / statistics.median(seconds)
        ratio = statistics.median(b / a for a, b in zip(ours, seconds, strict=True))
        equal = quality[name] >= quality[MILLRACE] - SAME_QUALITY
        note = "" if equal else " (lower quality)"
        print(f"{name:34}{rate:17.1f}{quality[name]:10.2f}{ratio:11.2f} x{note}")


def reference(photo: bytes) -> Any:
    """The photograph at its new size by float64 (height, width, 3), or None: bytes stay."""
    image: PIL.Image.Image = PIL.Image.open(io.BytesIO(photo))
    profile, size = image.info.get("icc_profile"), wished(image.size)
    if size == image.size:
        return None
    pixels = np.asarray(in_srgb(image, profile), np.float64)
    down, across = lanczos(image.height, size[1]), lanczos(image.width, size[0])
    return np.clip(np.einsum("yY,xX,YXc->yxc", down, across, pixels, optimize=True), 0, 255)


def lanczos(old: int, new: int) -> Any:
    """Weights (new, old): sinc(x) sinc(x / 3), as wide as the new pixels."""
    scale = old / new
    x = (np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * scale) / scale
    weights = np.sinc(x) * np.sinc(x / 3) * (abs(x) < 3)
    return weights / weights.sum(1, keepdims=True)


def decibels(files: list[bytes], ideal: list[Any]) -> float:
    """Mean peak signal-to-noise ratio of the images that were resized."""
    ratios = []
    for file, expected in zip(files, ideal, strict=True):
        if expected is not None:
            pixels = np.asarray(PIL.Image.open(io.BytesIO(file)).convert("RGB"), np.float64)
            ratios.append(10 * math.log10(255**2 / np.mean((pixels - expected) ** 2)))
    return statistics.mean(ratios)


if __name__ == "__main__":
    main()
