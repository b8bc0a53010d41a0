"""Speed of preparation on one core: jsonl -> shards, beside the tokenizer alone.

    python benchmarks/prepare.py NOVELS_DIR

Novels are cut into documents of about 3,000 characters, a tokenizer of 32,000 tokens is trained
once, which also compiles all modules; then builds of one worker and encoding alone alternate,
each child process on one core.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT_CHARACTERS = 3000
END = "<|endoftext|>"
ENVIRONMENT = {
    "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # compiled modules are kept; some containers forbid it
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("novels", type=Path, help="folder of .txt files")
    parser.add_argument("--rounds", type=int, default=3, help="builds and encodings, alternating")
    parser.add_argument("--vocab-size", type=int, default=32_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        corpus = work / "novels.jsonl"
        write_jsonl(arguments.novels, corpus)
        tokenizer = train(corpus, work, arguments.vocab_size)
        rows = [measure(corpus, tokenizer, work) for _ in range(arguments.rounds)]
    print_table(rows, megabytes=rows[0]["megabytes"])


def write_jsonl(novels: Path, corpus: Path) -> None:
    with corpus.open("wb") as file:
        for path in sorted(novels.glob("*.txt")):
            for text in cut(path.read_text(encoding="utf-8-sig")):
                line = json.dumps({"text": text}, ensure_ascii=False)
                file.write(line.encode() + b"\n")


def cut(text: str) -> list[str]:
    documents, current = [], ""
    for paragraph in re.split(r"\n\s*\n", text):
        current += paragraph + "\n\n"
        if len(current) >= DOCUMENT_CHARACTERS:
            documents.append(current)
            current = ""
    return [*documents, current] if current.strip() else documents


def train(corpus: Path, work: Path, vocab_size: int) -> Path:
    made = work / "trained"
    prepare(corpus, made, f"tokenizer.vocab_size={vocab_size}")
    return made / "tokenizer.json"


def prepare(corpus: Path, dataset_dir: Path, *overrides: str) -> tuple[float, float]:
    """Seconds and CPU seconds of one build, process start included."""
    config = dataset_dir.with_suffix(".yaml")
    config.write_text(f"dataset_dir: {dataset_dir}\ncorpus: {{format: jsonl, path: [{corpus}]}}\n")
    return run([sys.executable, "-m", "pipeline", str(config), "num_workers=1", *overrides])


def run(command: list[str]) -> tuple[float, float]:
    core = {min(os.sched_getaffinity(0))}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(  # noqa: S603
        command,
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **ENVIRONMENT},
        preexec_fn=lambda: os.sched_setaffinity(0, core),
    )
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu


def measure(corpus: Path, tokenizer: Path, work: Path) -> dict[str, float]:
    dataset_dir = Path(tempfile.mkdtemp(dir=work)) / "dataset"
    seconds, cpu = prepare(
        corpus, dataset_dir, "tokenizer.kind=load", f"tokenizer.path={tokenizer}"
    )
    report = json.loads((dataset_dir / "report.json").read_text())
    encoding = dataset_dir.with_name("encoding.json")
    run([sys.executable, "-c", ENCODE, str(corpus), str(tokenizer), str(encoding)])
    text_bytes, encode_seconds = json.loads(encoding.read_text())
    return {
        "megabytes": text_bytes / 1e6,
        "command": seconds,
        "cpu": cpu,
        "build": report["seconds"],
        "encode": encode_seconds,
    }


ENCODE = """
import json, sys, time
import fastokens
corpus, tokenizer, out = sys.argv[1:]
texts = [json.loads(line)["text"] for line in open(corpus, encoding="utf-8")]
encoder = fastokens.Tokenizer.from_json_str(open(tokenizer, encoding="utf-8").read())
started = time.perf_counter()
for at in range(0, len(texts), 1000):
    encoder.encode_batch_flat(texts[at : at + 1000], split_special_tokens=True)
seconds = time.perf_counter() - started
json.dump([sum(len(text.encode()) for text in texts), seconds], open(out, "w"))
"""


def print_table(rows: list[dict[str, float]], *, megabytes: float) -> None:
    names = {
        "command": "python -m pipeline, process start included",
        "cpu": "the same in CPU seconds",
        "build": "the build alone, as the report says",
        "encode": "fastokens alone",
    }
    print(f"{megabytes:.1f} MB of text, one core, median of {len(rows)}")
    print(f"{'':44}{'seconds':>9}{'MB/s':>9}")
    for key, name in names.items():
        seconds = statistics.median(row[key] for row in rows)
        print(f"{name:44}{seconds:9.2f}{megabytes / max(seconds, 1e-9):9.1f}")


if __name__ == "__main__":
    main()
