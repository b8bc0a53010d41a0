"""Predicted and measured peak memory on a GPU, configuration by configuration.

  python benchmarks/memory.py [--out TABLE.md]

Each configuration runs in a process of its own: three optimizer steps on a batch of zeros, of which
the third is measured (`torch.cuda.max_memory_allocated`). Bar: within 5 % on every one.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
GPT, LLAMA = "configs/training/gpt2_124m.yaml", "configs/training/llama_1b.yaml"
VIT, MAE = "configs/training/vit_small_cifar10.yaml", "configs/training/mae_small_cifar10.yaml"
FULL = "engine.activation_checkpointing=full"
CASES = {
    "GPT 124M, ZeRO 1": (GPT, "batch.global_batch_size=32"),
    "GPT 124M, ZeRO 2, full": (GPT, f"engine.zero_stage=2 batch.global_batch_size=32 {FULL}"),
    "GPT 124M, ZeRO 3": (GPT, "engine.zero_stage=3 batch.global_batch_size=16"),
    "GPT 124M, fp32": (GPT, "engine.precision=fp32 batch.global_batch_size=16"),
    "GPT 124M, autocast": (GPT, "engine.zero_stage=0 batch.global_batch_size=16"),
    "GPT 124M, selective, dropout": (
        GPT,
        "engine.activation_checkpointing=selective model.dropout=0.1 batch.global_batch_size=16",
    ),
    "GPT 124M, whole logits": (GPT, "task.chunk_tokens=100000 batch.global_batch_size=16"),
    "Llama 1.1B, ZeRO 2, full": (LLAMA, f"batch.global_batch_size=16 {FULL}"),
    "Llama 1.1B, no masks": (
        LLAMA,
        "task.mask_documents=false batch.micro_batch_size=4 batch.global_batch_size=8",
    ),
    "ViT-B/16": (
        VIT,
        "model.variant=B model.d_model=768 model.num_layers=12 model.num_heads=12 model.d_ff=3072 "
        "model.image_size=224 model.patch_size=16 batch.micro_batch_size=64 "
        "batch.global_batch_size=64",
    ),
    "MAE-B/16": (
        MAE,
        "model.variant=B model.d_model=768 model.num_layers=12 model.num_heads=12 model.d_ff=3072 "
        "model.image_size=224 model.patch_size=16 batch.micro_batch_size=64 "
        "batch.global_batch_size=64",
    ),
}
RESULT = re.compile(r"measured ([\d.]+) GiB, predicted ([\d.]+) GiB, ([+-][\d.]+%)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="", metavar="FILE", help="write the table there, too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.stderr.write("benchmarks/memory.py measures a GPU, and this machine has none\n")
        sys.exit(2)
    device = torch.cuda.get_device_name()
    lines = [f"| on {device} | measured GiB | predicted GiB | error |", "|---|---|---|---|"]
    print(*lines, sep="\n", flush=True)
    for name, (config, overrides) in CASES.items():
        lines.append(f"| {name} | {' | '.join(measure(config, overrides))} |")
        print(lines[-1], flush=True)
    if arguments.out:
        Path(arguments.out).write_text("\n".join(lines) + "\n")


def measure(config: str, overrides: str) -> tuple[str, str, str]:
    """Measured, predicted and the error, as the probe prints them; or why it failed."""
    command = [sys.executable, "-m", "training.plan", config, "--probe", *overrides.split()]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = RESULT.search(run.stdout)
    if found is None:
        fault = run.stderr.strip().splitlines() or ["no result"]
        return ("failed", fault[-1][:80].replace("|", "/"), "")
    return (found[1], found[2], found[3])


if __name__ == "__main__":
    main()
