"""Near-duplicates of images: how many planted ones are found, how many images are wrongly out.

    python benchmarks/image_duplicates.py PHOTOS_DIR [--distinct DIR_OR_TAR]

Of every photo a version of each kind is planted beside it, one build per kind. The originals alone,
and the images of `--distinct` (10,000 tiny ones are the hardest case), tell what is wrongly out:
look at the pairs that are listed, for real collections hold real duplicates.
"""

import argparse
import gzip
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps

ROOT = Path(__file__).resolve().parent.parent
SHOWN = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photos", type=Path, help="folder of JPEG files")
    parser.add_argument("--distinct", type=Path, help="images that differ: a folder, tar or zip")
    parser.add_argument("overrides", nargs="*", help="of the build, e.g. near_duplicates.radius=6")
    arguments = parser.parse_args()
    endings = (".jpg", ".jpeg")
    photos = [path for path in arguments.photos.rglob("*") if path.suffix.lower() in endings]
    photos.sort()
    if not photos:
        parser.error(f"{arguments.photos}: no .jpg or .jpeg files there; unpack archives first")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        alone = plant(photos, None, "jpg", work / "originals")
        out = duplicates(alone, work, arguments.overrides)
        show(f"{len(photos)} originals alone", out)
        print(f"{'planted':28} {'found':>6} {'of':>6} {'recall':>8}")
        for name, (change, extension) in PLANTED.items():
            corpus = plant(photos, change, extension, work / name.replace("/", "_"))
            found = len(duplicates(corpus, work, arguments.overrides)) - len(out)
            print(f"{name:28} {found:6} {len(photos):6} {found / len(photos):8.3f}", flush=True)
        if arguments.distinct:
            out = duplicates(arguments.distinct, work, arguments.overrides)
            show(arguments.distinct.name, out)


def resized(share: float) -> Callable[[PIL.Image.Image], PIL.Image.Image]:
    def change(image: PIL.Image.Image) -> PIL.Image.Image:
        size = max(1, round(image.width * share)), max(1, round(image.height * share))
        return image.resize(size, PIL.Image.Resampling.LANCZOS)

    return change


def cropped(share: float) -> Callable[[PIL.Image.Image], PIL.Image.Image]:
    """So much of each side is cut off in all, half of it at either end."""

    def change(image: PIL.Image.Image) -> PIL.Image.Image:
        x, y = round(image.width * share / 2), round(image.height * share / 2)
        return image.crop((x, y, image.width - x, image.height - y))

    return change


def unchanged(image: PIL.Image.Image) -> PIL.Image.Image:
    return image


def brighter(image: PIL.Image.Image) -> PIL.Image.Image:
    return PIL.ImageEnhance.Brightness(image).enhance(1.2)


PLANTED: dict[str, tuple[Callable[[PIL.Image.Image], PIL.Image.Image], str]] = {
    "resized to 3/4": (resized(0.75), "jpg"),
    "resized to 1/2": (resized(0.5), "jpg"),
    "resized to 1/4": (resized(0.25), "jpg"),
    "recompressed, JPEG 75": (unchanged, "75.jpg"),
    "recompressed, JPEG 30": (unchanged, "30.jpg"),
    "as PNG": (unchanged, "png"),
    "as WebP 80": (unchanged, "80.webp"),
    "greyscale": (PIL.ImageOps.grayscale, "jpg"),
    "20 % brighter": (brighter, "jpg"),
    "mirrored": (PIL.ImageOps.mirror, "jpg"),
    "2 % of each side cut off": (cropped(0.02), "jpg"),
    "5 % of each side cut off": (cropped(0.05), "jpg"),
    "10 % of each side cut off": (cropped(0.1), "jpg"),
}
"""What is planted: the change, and the quality and extension of the file."""


def plant(
    photos: list[Path],
    change: Callable[[PIL.Image.Image], PIL.Image.Image] | None,
    ending: str,
    corpus: Path,
) -> Path:
    corpus.mkdir()
    *quality, extension = ending.split(".")
    for path in photos:
        (corpus / f"{path.stem}-original.jpg").write_bytes(path.read_bytes())
        if change is not None:
            file = io.BytesIO()
            image = change(PIL.Image.open(path).convert("RGB"))
            image.save(
                file,
                PIL.Image.registered_extensions()[f".{extension}"],
                quality=int(quality[0]) if quality else 95,
            )
            (corpus / f"{path.stem}-planted.{extension}").write_bytes(file.getvalue())
    return corpus


def duplicates(corpus: Path, work: Path, overrides: list[str]) -> list[str]:
    """What a build tells of each image that it leaves out as a copy, exact or near."""
    dataset_dir = work / f"dataset-{corpus.name}"
    reader = "image_folder" if corpus.is_dir() else "image_archive"
    config = dataset_dir.with_suffix(".yaml")
    config.write_text(f"corpus: {{format: {reader}, path: ['{corpus.resolve()}']}}\n")
    command = [sys.executable, "-m", "pipeline", str(config), f"dataset_dir={dataset_dir}"]
    command += ["near_duplicates.enabled=true", "num_workers=2", "split.fraction=0", *overrides]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"the build failed:\n{done.stderr[-2000:]}")
    rows = [
        json.loads(line)
        for path in sorted((dataset_dir / "rejects").rglob("*.gz"))
        for line in gzip.decompress(path.read_bytes()).splitlines()
    ]
    return [
        f"{Path(row['source']).name}, byte {row['position']}: {row['reason']} {row['detail']}"
        for row in rows
        if row["reason"] in ("duplicate", "near_duplicate")
    ]


def show(what: str, out: list[str]) -> None:
    print(f"{what}: {len(out)} out")
    for line in out[:SHOWN]:
        print(f"  {line}")
    if len(out) > SHOWN:
        print(f"  and {len(out) - SHOWN} more")


if __name__ == "__main__":
    main()
