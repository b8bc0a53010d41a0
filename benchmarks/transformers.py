"""What a token costs and what a patch costs, in Transformers whose blocks are of one size.

    python -m benchmarks.transformers

The blocks are those of ViT-S (384 features, 12 blocks, 6 heads), a sample is 196 tokens or 14 x 14
patches, and each case is the loss of its task, forward and backward, in fp32 on one thread.
Operations are those of the forward pass, 2 for each weight that a number is multiplied by, from a
formula that has to equal torch's count of its matrix products. Memory is what autograd keeps for
the backward pass, without weights. Seconds are CPU time, the median of rounds that take the cases
in turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from training.augment.config import Config as AugmentConfig
from training.layers.image_encoder import VARIANTS
from training.models import mae, transformer, vit
from training.tasks import causal_lm, image_classification, masked_autoencoding

D_MODEL, NUM_LAYERS, NUM_HEADS = VARIANTS["S"]
SIDE, PATCH, NUM_CLASSES = 224, 16, 1000
UNITS = (SIDE // PATCH) ** 2
"""Tokens or patches of a sample."""
PARTS = ("input", "blocks", "attention", "head or decoder")


@dataclass(frozen=True)
class Case:
    """A model with its task and a micro batch."""

    name: str
    model: nn.Module
    loss: Callable[[], Tensor]
    operations: tuple[float, ...]
    """Of a sample's forward pass, by PARTS."""


def main() -> None:
    arguments = _parser().parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    samples, vocab_size = arguments.samples, arguments.vocab_size
    cases = [
        text_case(samples, vocab_size, mask_documents=False),
        text_case(samples, vocab_size, mask_documents=True),
        vit_case(samples),
        mae_case(samples),
    ]
    rounds = [[step_seconds(case) for case in cases] for _ in range(arguments.rounds + 1)]
    names = ("parameters, M", *(f"{part}, MFLOP" for part in PARTS), "forward, MFLOP")
    names += ("kept, KiB", "CPU, us")
    print(f"Per token or patch, of {samples} samples of {UNITS}:\n")
    print(f"| | {' | '.join(names)} |\n| --- |{' ---: |' * len(names)}")
    for case, seconds in zip(cases, zip(*rounds[1:], strict=True), strict=True):  # one warms up
        print(f"| {case.name} | {' | '.join(_cells(case, samples, seconds))} |", flush=True)


def text_case(samples: int, vocab_size: int, *, mask_documents: bool) -> Case:
    """A decoder of tied embeddings; masked, each sample is two documents."""
    model = transformer.Model(
        transformer.Config(
            vocab_size=vocab_size,
            d_model=D_MODEL,
            num_layers=NUM_LAYERS,
            num_heads=NUM_HEADS,
            max_positions=UNITS,
        )
    )
    task = causal_lm.Task(causal_lm.Config(), vocab_size=vocab_size, end_of_document=0)
    tokens = torch.randint(vocab_size, (samples, UNITS + 1))
    batch = {"tokens": tokens[:, :-1], "targets": tokens[:, 1:]}
    if mask_documents:
        place = torch.arange(UNITS).expand(samples, -1)  # (B, T)
        batch |= {"documents": place // (UNITS // 2), "positions": place % (UNITS // 2)}
    name = f"text, vocabulary {vocab_size:,}{', documents masked' if mask_documents else ''}"
    operations = (0, *trunk(UNITS), 2 * UNITS * D_MODEL * vocab_size)
    return Case(name, model, lambda: task.loss(model, batch)[0], operations)


def vit_case(samples: int) -> Case:
    """A classifier of 1,000 classes."""
    config = vit.Config(variant="S", image_size=SIDE, patch_size=PATCH, num_classes=NUM_CLASSES)
    classes = tuple(map(str, range(NUM_CLASSES)))
    task = image_classification.Task(
        image_classification.Config(), AugmentConfig(), classes=classes, model=config
    )
    model = vit.Model(config)
    batch = {**_images(samples), "classes": torch.randint(NUM_CLASSES, (samples,))}
    operations = (embedding(), *trunk(UNITS + 1), 2 * D_MODEL * NUM_CLASSES)
    return Case("ViT", model, lambda: task.loss(model, batch)[0], operations)


def mae_case(samples: int) -> Case:
    """An autoencoder that hides 75 %, with a decoder of a third of the width and of the blocks."""
    width, num_layers = D_MODEL // 3, NUM_LAYERS // 3
    config = mae.Config(
        variant="S",
        image_size=SIDE,
        patch_size=PATCH,
        decoder_d_model=width,
        decoder_num_layers=num_layers,
        decoder_num_heads=4,
    )
    task = masked_autoencoding.Task(
        masked_autoencoding.Config(), AugmentConfig(), classes=(), model=config
    )
    model = mae.Model(config)
    batch = {**_images(samples), "noise": torch.rand(samples, UNITS)}
    seen = config.num_visible(UNITS) + 1
    decoder = 2 * seen * D_MODEL * width + 2 * UNITS * width * 3 * PATCH**2
    decoder += sum(trunk(UNITS + 1, d_model=width, num_layers=num_layers))
    operations = (embedding(), *trunk(seen), decoder)
    return Case("masked autoencoder", model, lambda: task.loss(model, batch)[0], operations)


def trunk(
    positions: int, *, d_model: int = D_MODEL, num_layers: int = NUM_LAYERS
) -> tuple[int, int]:
    """Operations of blocks: their weights, and attention of every position to every one."""
    weights = num_layers * 12 * d_model**2  # queries, keys, values, output 4; feed-forward 8
    return 2 * positions * weights, 4 * positions**2 * num_layers * d_model


def embedding() -> int:
    """Operations of the projection of all patches."""
    return 2 * UNITS * 3 * PATCH**2 * D_MODEL


def count_operations(case: Case) -> int:
    """Torch's count of the matrix products of a forward pass, those of attention in full."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        case.loss()
    return counter.get_total_flops()


def kept_bytes(case: Case) -> int:
    """Memory that autograd keeps behind a forward pass, each piece once, without weights."""
    weights = {one.untyped_storage().data_ptr() for one in case.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = case.loss()
    total = sum(kept.values())
    del loss  # it holds what was counted, so that no address was used twice
    return total


def step_seconds(case: Case) -> float:
    """CPU time of loss and gradients."""
    case.model.zero_grad()
    start = time.process_time()
    case.loss().backward()
    return time.process_time() - start


def _images(samples: int) -> dict[str, Tensor]:
    pixels = torch.randint(256, (samples, SIDE, SIDE, 3), dtype=torch.uint8)
    return {"pixels": pixels, "weights": torch.ones(samples)}


def _cells(case: Case, samples: int, seconds: tuple[float, ...]) -> list[str]:
    expected, counted = samples * sum(case.operations), count_operations(case)
    assert expected == counted, f"{case.name}: {expected:,} by formula, {counted:,} by torch"
    parameters = sum(parameter.numel() for parameter in case.model.parameters())
    return [
        f"{parameters / 1e6:.2f}",
        *(f"{part / UNITS / 1e6:.2f}" for part in (*case.operations, sum(case.operations))),
        f"{kept_bytes(case) / samples / UNITS / 1024:,.0f}",
        f"{1e6 * statistics.median(seconds) / samples / UNITS:,.0f}",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transformers", description=__doc__)
    parser.add_argument("--samples", type=int, default=4, help="of a micro batch")
    parser.add_argument("--vocab-size", type=int, default=32_000, help="tokens of the text model")
    parser.add_argument("--rounds", type=int, default=5, help="behind one that warms up")
    return parser


if __name__ == "__main__":
    main()
