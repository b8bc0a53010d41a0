"""Validation loss of Millrace and of nanoGPT on nanoGPT's own split of Tiny Shakespeare.

    python -m benchmarks.nanogpt_quality --checkout PATH_OF_A_NANOGPT_CHECKOUT

The first 90 % of the characters train, the last 10 % validate. Both train nanoGPT's CPU recipe for
2,000 steps in one process; both losses are means over the whole validation text in windows of 64,
of the best of eight evaluations. Ours predicts one token more, the end of the text. With
`--init-std 0.02` our model starts from nanoGPT's initial weights.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.manifest import read_manifest

ROOT = Path(__file__).parent.parent
CORPUS = ROOT / "configs/corpora/tiny_shakespeare.txt"
NANOGPT = (
    "--device=cpu --compile=False --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 "
    "--n_embd=128 --dropout=0.0 --eval_iters=20 --eval_interval=250 --max_iters=2000 "
    "--lr_decay_iters=2000 --learning_rate=1e-3 --log_interval=500"
).split()
WHOLE_SPLIT = """
import sys, numpy, torch
from model import GPT, GPTConfig
saved = torch.load(sys.argv[1], weights_only=False)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
model.eval()
tokens = numpy.fromfile("data/shakespeare_char/val.bin", numpy.uint16)
text = torch.from_numpy(tokens.astype(numpy.int64))
windows = (len(text) - 1) // 64
x, y = text[: windows * 64].view(-1, 64), text[1 : windows * 64 + 1].view(-1, 64)
with torch.no_grad():
    losses = [model(a, b)[1].item() * len(a) for a, b in zip(x.split(64), y.split(64))]
print("whole split", sum(losses) / windows)
"""


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        ours = _millrace(work, arguments.init_std)
        theirs = _nanogpt(arguments.checkout, work / "nanogpt")
    sys.stdout.write(f"Millrace {ours:.4f} (init_std {arguments.init_std}), nanoGPT {theirs:.4f}\n")


def _millrace(work: Path, init_std: float) -> float:
    """Best validation loss, nats per token."""
    text = CORPUS.read_text()
    cut = int(0.9 * len(text))
    (work / "corpus").mkdir()
    (work / "corpus/train.txt").write_text(text[:cut])
    (work / "corpus/validation.txt").write_text(text[cut:])
    dataset_dir = _dataset_with_the_last_part_as_validation(work, len(text) - cut)
    overrides = [f"data.dataset_dir={dataset_dir}", f"run_dir={work / 'run'}"]
    overrides += ["batch.micro_batch_size=12", "engine.zero_stage=0", f"model.init_std={init_std}"]
    overrides += ["evaluation.every_steps=250", "samples.every_steps=0"]
    _run(["-m", "training", "configs/training/tiny_shakespeare.yaml", *overrides], ROOT)
    rows = (work / "run/evaluation.jsonl").read_text().splitlines()
    return min(float(json.loads(row)["loss"]) for row in rows)


def _dataset_with_the_last_part_as_validation(work: Path, characters: int) -> Path:
    """The split is by hash, so try seeds until it takes the last part: one in two does."""
    for seed in range(32):
        dataset_dir = work / f"dataset-{seed}"
        overrides = [f"corpus.path=[{work / 'corpus'}]", "corpus.documents=file"]
        overrides += ["split.documents=1", f"split.seed={seed}", f"dataset_dir={dataset_dir}"]
        _run(["-m", "pipeline", "configs/pipeline/tiny_shakespeare.yaml", *overrides], ROOT)
        (shard,) = read_manifest(dataset_dir).splits["validation"]
        if shard.tokens <= characters + 1:
            return dataset_dir
    raise RuntimeError("32 seeds have all taken the first part for validation")


def _nanogpt(checkout: Path, out_dir: Path) -> float:
    """Loss of its best checkpoint over the whole validation split, nats per character."""
    arguments = ["config/train_shakespeare_char.py", *NANOGPT, f"--out_dir={out_dir}"]
    _run(["train.py", *arguments], checkout)
    output = _run(["-c", WHOLE_SPLIT, str(out_dir / "ckpt.pt")], checkout)
    return float(re.findall(r"whole split ([\d.]+)", output)[0])


def _run(arguments: list[str], folder: Path) -> str:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=Path, required=True, help="folder of nanoGPT's train.py")
    parser.add_argument("--init-std", type=float, default=0.06, help="of our initial weights")
    return parser.parse_args()


if __name__ == "__main__":
    main()
