"""Peak memory and CPU time of the loss of a micro batch, whole and in chunks of tokens.

    python -m benchmarks.chunked_loss --tokens 4096 --vocab-size 50304 --d-model 768

Each row is a process of its own: forward and backward from features to their gradients and the
head's, in fp32. Memory is the growth of the process's peak resident size over its size with
features, head and both gradients in place; the chunked loss is the task's own.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from training.tasks.causal_lm import chunked_cross_entropy

MIB = 2**20


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.child is not None:
        measure(arguments, chunk_tokens=arguments.child)
        return
    logits_mib = 4 * arguments.tokens * arguments.vocab_size / MIB
    print(
        f"{arguments.tokens} tokens x {arguments.vocab_size} vocabulary, d_model "
        f"{arguments.d_model}: fp32 logits of the whole batch are {logits_mib:,.0f} MiB"
    )
    print(
        "| loss | peak memory, MiB | CPU seconds | loss per token |\n| --- | ---: | ---: | ---: |"
    )
    for chunk_tokens in [0, *arguments.chunks]:
        command = [sys.executable, "-m", "benchmarks.chunked_loss", *sys.argv[1:]]
        command += ["--child", str(chunk_tokens)]
        root = Path(__file__).parent.parent
        row = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
        name = f"chunks of {chunk_tokens}" if chunk_tokens else "whole"
        print(f"| {name} | {row.strip()} |", flush=True)


def measure(arguments: argparse.Namespace, *, chunk_tokens: int) -> None:
    """Print one row: MiB, CPU seconds, loss per token."""
    torch.manual_seed(0)
    model = Head(arguments.d_model, arguments.vocab_size)
    shape = (1, arguments.tokens, arguments.d_model)
    features = torch.randn(shape, requires_grad=True)
    targets = torch.randint(arguments.vocab_size, shape[:2])
    for tensor in (features, model.head.weight):
        tensor.grad = torch.full_like(tensor, 0.0) + 0.0  # touched, so resident
    _loss(model, features[:, :8], targets[:, :8], chunk_tokens=0).backward()  # libraries are loaded
    before = _peak_bytes()
    start = time.process_time()
    loss = _loss(model, features, targets, chunk_tokens=chunk_tokens)
    loss.backward()
    seconds = time.process_time() - start
    grown = (_peak_bytes() - before) / MIB
    print(f"{grown:,.0f} | {seconds:.1f} | {loss.item() / arguments.tokens:.6f}")


class Head(nn.Module):
    """The part of a model that the loss calls."""

    def __init__(self, d_model: int, vocab_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(d_model, vocab_size, bias=False)

    def logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.head(features)
        return logits


def _loss(model: Head, features: Tensor, targets: Tensor, *, chunk_tokens: int) -> Tensor:
    if chunk_tokens:
        return chunked_cross_entropy(model, features, targets, chunk_tokens=chunk_tokens)
    logits = model.logits(features).flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), reduction="sum")


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chunked_loss", description=__doc__)
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of the micro batch")
    parser.add_argument("--vocab-size", type=int, default=50304, help="tokens")
    parser.add_argument("--d-model", type=int, default=768, help="features")
    parser.add_argument(
        "--chunks", type=int, nargs="*", default=[2048, 1024, 256], help="chunk sizes, tokens"
    )
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
