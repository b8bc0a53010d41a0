"""`python -m training.embed RUN IMAGES [--out FILE.parquet]`: a vector for each image."""

if __name__ == "__main__":  # Ctrl-C during the imports below, which take seconds
    from configs import interrupts

    interrupts.expect()

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from configs import interrupts
from configs.command import run
from training.augment.on_device import normalise
from training.config import ImageTrainingConfig
from training.image_files import (
    Decoded,
    Listed,
    add_max_pixels,
    decode_images,
    find_images,
)
from training.output import choose_output
from training.run_dir import load_image_model

OUT = "embeddings.parquet"


def main() -> None:
    """Parse the command line, load the run, write the vectors."""
    interrupts.hand_over()
    arguments = _parser().parse_args()
    if arguments.micro_batch_size < 1:
        raise ValueError(f"micro_batch_size is {arguments.micro_batch_size}; at least 1 is allowed")
    out = choose_output(arguments.out, OUT)
    images = find_images(arguments.images)
    first = next(images, None)  # what is not there is told before seconds of loading
    if first is None:
        raise ValueError(f"{', '.join(arguments.images)}: no image there")
    model, config = load_image_model(arguments.run, averaged=arguments.ema)
    decoded = decode_images(
        chain([first], images),
        config,
        micro_batch_size=arguments.micro_batch_size,
        max_pixels=arguments.max_pixels,
    )
    num_images, num_bad = _write(out, embed(model, config, decoded))
    skipped = f"; bad images skipped: {num_bad:,}" if num_bad else ""
    sys.stdout.write(f"{num_images:,} vectors in {out}{skipped}\n")


def embed(
    model: nn.Module, config: ImageTrainingConfig, batches: Iterator[Decoded]
) -> Iterator[tuple[pa.Table, list[str]]]:
    """Tables of `key`, `split`, `class` and `vector`, and the faults of images left out."""
    for batch in batches:
        if batch.images:
            yield _table(batch.images, vectors(model, config, batch.pixels)), batch.faults
        else:
            yield _table([], torch.empty(0, config.model.config.d_model)), batch.faults


@torch.no_grad()
def vectors(model: nn.Module, config: ImageTrainingConfig, pixels: Tensor) -> Tensor:
    """Vectors (B, D) in fp32 of 8-bit pixels (B, size, size, 3)."""
    device = next(model.parameters()).device
    normal = normalise(pixels.to(device), mean=config.augment.mean, std=config.augment.std)
    embedded: Tensor = model.embed(normal)  # type: ignore[operator]
    return embedded.float().cpu()


def _table(images: list[Listed], of_images: Tensor) -> pa.Table:
    flat = pa.array(of_images.flatten().numpy())
    return pa.table(
        {
            "key": pa.array([image.key for image in images], pa.string()),
            "split": pa.array([image.split for image in images], pa.string()),
            "class": pa.array([image.class_name for image in images], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(flat, of_images.shape[1]),
        }
    )


def _write(path: Path, tables: Iterator[tuple[pa.Table, list[str]]]) -> tuple[int, int]:
    """Write all or nothing; vectors written, and bad images, which are told one by one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    num_images = num_bad = 0
    writer: pq.ParquetWriter | None = None
    try:
        with _progress() as progress:
            task = progress.add_task("embed", total=None)
            for table, faults in tables:
                writer = writer or pq.ParquetWriter(temporary, table.schema)
                writer.write_table(table)
                for fault in faults:
                    progress.console.print(f"skipped: {fault}", markup=False, highlight=False)
                num_images, num_bad = num_images + len(table), num_bad + len(faults)
                progress.update(task, completed=num_images)
        if writer is not None:
            writer.close()
        if num_images == 0:
            raise ValueError(f"none of {num_bad} images can be decoded; nothing is written")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return num_images, num_bad


def _progress() -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} images"), TimeElapsedColumn())
    console = Console(stderr=True, soft_wrap=True)
    return Progress(*columns, console=console, transient=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.embed", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="run folder, or one of its checkpoints")
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="files, folders, or dataset folders"
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help=f"parquet file, which is replaced; default: {OUT} in this folder, if it is free",
    )
    parser.add_argument("--micro-batch-size", type=int, default=64, help="images per forward pass")
    add_max_pixels(parser)
    parser.add_argument("--ema", action="store_true", help="take the average of the weights")
    return parser


if __name__ == "__main__":
    run(main)
