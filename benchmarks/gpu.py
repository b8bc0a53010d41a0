"""Training on one GPU: speed, MFU and peak memory, case by case, beside what `plan` predicts.

    python -m benchmarks.gpu [--only CASE ...] [--product MODEL ...] [--nanogpt FOLDER]
                             [--profile TEXT] [--out TABLE.md]

Each case is a process of its own: the real engine on batches of random tokens or pixels, as many
micro batches a step as its global batch says; the median of the steps behind the first few counts.
MFU is 3 x the operations of a forward pass (2 for a weight and token, 4 for a feature and pair of
positions, half of the pairs where attention looks back alone, pairs of one document where it stays
inside documents; nothing that is computed again), against 989 TFLOP/s, an H100's dense bf16. Peak
is what torch's allocator says, the third step on.
Bars: 45 % MFU at a billion parameters and above, 33 % at 124 million; the peak within 5 %.

With the folder of nanoGPT's `model.py` (yours; nothing of it is copied) its model of 124 million
parameters takes the same steps, compiled as a whole, under bf16 autocast, with torch's fused AdamW.
"""

import argparse
import fcntl
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PEAK_FLOPS = 989e12
GIB = 2**30
DOCUMENTS = 4
"""Of one length in each sequence, where attention stays inside documents."""
WARM_UP, LEAST_STEPS, SECONDS = 3, 5, 1.0

GPT = "gpt2_124m task.chunk_tokens=2048 batch.micro_batch_size=16 batch.global_batch_size=64"
M350 = f"{GPT} model.d_model=1024 model.num_layers=24 model.num_heads=16"
B1_3 = (
    f"{GPT} model.d_model=2048 model.num_layers=24 model.num_heads=16 model.max_positions=2048 "
    "data.sequence_length=2048 batch.micro_batch_size=8 batch.global_batch_size=32"
)
LLAMA = "llama_1b batch.micro_batch_size=8 batch.global_batch_size=32"
B16 = "model.variant=B model.d_model=768 model.num_layers=12 model.num_heads=12 model.d_ff=3072"
L16 = "model.variant=L model.d_model=1024 model.num_layers=24 model.num_heads=16 model.d_ff=4096"
IMAGES = (
    "model.image_size=224 model.patch_size=16 engine.precision=bf16 engine.zero_stage=1 "
    "batch.micro_batch_size=128 batch.global_batch_size=256"
)
VIT_B = f"vit_small_cifar10 {IMAGES} {B16} model.num_classes=1000"
VIT_L = f"vit_small_cifar10 {IMAGES} {L16} model.num_classes=1000"
MAE = f"mae_small_cifar10 {IMAGES} {B16}"
WHOLE = " task.chunk_tokens=32768"
EAGER, BLOCKS = " engine.compile=none", " engine.compile=blocks"
FULL, SELECTIVE = (f" engine.activation_checkpointing={mode}" for mode in ("full", "selective"))
OFFLOAD = " engine.offload_optimizer=cpu"
OFFLOAD_BOTH = OFFLOAD + " engine.offload_parameters=cpu"
ZERO = tuple(f" engine.zero_stage={stage}" for stage in range(4))
CASES = {
    "GPT 124M, compiled": GPT + BLOCKS,
    "GPT 124M, compiled, whole logits": GPT + BLOCKS + WHOLE,
    "GPT 124M, compiled, whole logits, 2 x 32": GPT + BLOCKS + WHOLE + " batch.micro_batch_size=32",
    "GPT 124M": GPT + EAGER,
    "GPT 124M, ZeRO 0, compiled": GPT + BLOCKS + ZERO[0],
    "GPT 124M, ZeRO 2, compiled": GPT + BLOCKS + ZERO[2],
    "GPT 124M, ZeRO 2, full": GPT + EAGER + ZERO[2] + FULL,
    "GPT 124M, ZeRO 3": GPT + EAGER + ZERO[3],
    "GPT 124M, ZeRO 3, deepcompile": GPT + ZERO[3] + " engine.compile=deepcompile",
    "GPT 124M, fp32": GPT + EAGER + " engine.precision=fp32 batch.micro_batch_size=8",
    "GPT 124M, selective, dropout": GPT + EAGER + SELECTIVE + " model.dropout=0.1",
    "GPT 350M, compiled, whole logits": M350 + BLOCKS + WHOLE,
    "GPT 350M, compiled, full": M350 + BLOCKS + FULL,
    "GPT 350M, ZeRO 2, optimizer on the CPU": M350 + EAGER + ZERO[2] + OFFLOAD,
    "GPT 350M, ZeRO 3, optimizer and weights on the CPU": M350 + EAGER + ZERO[3] + OFFLOAD_BOTH,
    "GPT 350M, offload": M350 + EAGER + " engine.activation_checkpointing=offload",
    "GPT 1.3B, compiled, whole logits": B1_3 + BLOCKS + WHOLE,
    "GPT 1.3B": B1_3 + EAGER,
    "GPT 1.3B, compiled, full": B1_3 + BLOCKS + FULL + " batch.micro_batch_size=16",
    "GPT 1.3B, ZeRO 3, full": B1_3 + EAGER + ZERO[3] + FULL,
    "Llama 1.1B, compiled": LLAMA + BLOCKS,
    "Llama 1.1B, compiled, no masks": LLAMA + BLOCKS + " task.mask_documents=false",
    "Llama 1.1B, no masks, full": LLAMA + EAGER + FULL + " task.mask_documents=false",
    "ViT-B/16, compiled": VIT_B + BLOCKS,
    "ViT-B/16": VIT_B + EAGER,
    "ViT-L/16, compiled": VIT_L + BLOCKS,
    "ViT-L/16, ZeRO 2, full": VIT_L + EAGER + ZERO[2] + FULL,
    "MAE-B/16, compiled": MAE + BLOCKS,
}
MODELS = {
    "GPT 124M": GPT,
    "GPT 350M": M350,
    "GPT 1.3B": B1_3,
    "Llama 1.1B": LLAMA,
    "ViT-B/16": VIT_B,
    "ViT-L/16": VIT_L,
}


def _product(model: str) -> dict[str, str]:
    """Every ZeRO stage with every way to keep activations, uncompiled and compiled."""
    return {
        f"{model}, ZeRO {stage}, {mode}, {compiled}": f"{MODELS[model]}{ZERO[stage]}"
        f" engine.activation_checkpointing={mode} engine.compile={compiled}"
        for stage in range(4)
        for mode in ("none", "full", "every_n", "selective", "offload")
        for compiled in ("none", "blocks" if stage < 3 else "deepcompile")
    }


PRODUCTS = {name: words for model in MODELS for name, words in _product(model).items()}
NANOGPT = "nanoGPT 124M, compiled"


def main() -> None:
    arguments = _arguments()
    if arguments.case:
        print(json.dumps(_measure_alone(arguments)), flush=True)
        return
    names = [*CASES, *([NANOGPT] if arguments.nanogpt else [])]
    if unknown := set(arguments.only) - {*names, *PRODUCTS}:
        sys.exit(f"no case {', '.join(unknown)}; there are: {'; '.join([*names, *PRODUCTS])}")
    wished = [*arguments.only, *(name for one in arguments.product for name in _product(one))]
    wished = wished or names
    _check_device()
    lines = [
        "| case | micro batches | per second | MFU | peak GiB | predicted | error |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    print(*lines, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.jobs) as pool:
        for row in pool.map(lambda name: _run_case(name, arguments, scratch), wished):
            lines.append(row)
            print(row, flush=True)
    if arguments.out:
        Path(arguments.out).write_text("\n".join(lines) + "\n")


def _check_device() -> None:
    import torch  # noqa: PLC0415

    if not torch.cuda.is_available():
        sys.stderr.write("benchmarks/gpu.py measures a GPU, and this machine has none\n")
        sys.exit(2)


def _run_case(name: str, arguments: argparse.Namespace, scratch: str) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", "--case", name, "--scratch", scratch]
    command += ["--nanogpt", arguments.nanogpt] if arguments.nanogpt else []
    command += ["--profile", arguments.profile] if arguments.profile in name else []
    # By itself each case would start as many compilers as there are cores.
    threads = str(max(1, (os.cpu_count() or 1) // arguments.jobs))
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": threads},
        capture_output=True,
        text=True,
        check=False,
    )
    if arguments.profile and arguments.profile in name or run.returncode:
        sys.stderr.write(f"== {name}\n{run.stderr[-12000:]}\n")
    if run.returncode:
        return f"| {name} | failed | | | | | |"
    return _row(name, json.loads(run.stdout.splitlines()[-1]))


def _row(name: str, found: dict[str, Any]) -> str:
    seconds, peak = found["seconds"], found["peak"] / GIB
    speed = f"{found['units'] / seconds:,.0f} {found['unit']}"
    mfu = f"{found['flops'] / seconds / PEAK_FLOPS:.1%}"
    predicted, error = "", ""
    if found["predicted"]:
        predicted = f"{found['predicted'] / GIB:.2f}"
        error = f"{found['predicted'] / found['peak'] - 1:+.1%}"
    micro = f"{found['accumulation']} x {found['micro_batch_size']}"
    return f"| {name} | {micro} | {speed} | {mfu} | {peak:.2f} | {predicted} | {error} |"


def _measure_alone(arguments: argparse.Namespace) -> dict[str, Any]:
    """Cases start and warm up beside one another; each is measured by itself."""
    import torch  # noqa: PLC0415

    prepare = _prepare_nanogpt if arguments.case == NANOGPT else _prepare_millrace
    start = prepare(arguments)
    with _device(arguments.scratch, fcntl.LOCK_SH):
        step, facts = start()
        for _ in range(WARM_UP):
            step()
        torch.cuda.synchronize()
    with _device(arguments.scratch, fcntl.LOCK_EX):
        return facts | _time(step, profile=bool(arguments.profile))


def _prepare_millrace(arguments: argparse.Namespace) -> Callable[[], tuple[Any, dict[str, Any]]]:
    from configs import load  # noqa: PLC0415
    from training import engine as engines  # noqa: PLC0415
    from training.config import TrainingConfig  # noqa: PLC0415
    from training.memory import probe  # noqa: PLC0415
    from training.memory.cost import sample_work  # noqa: PLC0415
    from training.memory.prediction import predict  # noqa: PLC0415
    from training.memory.zero import Ranks  # noqa: PLC0415

    file, *overrides = (CASES | PRODUCTS)[arguments.case].split()
    config: Any = load(TrainingConfig, ROOT / f"configs/training/{file}.yaml", overrides)
    predicted = predict(config, Ranks(1)).peak.num_bytes
    samples, is_text = config.batch.global_batch_size, config.task.module.KIND == "text"
    flops = samples * _flops(sample_work(config, 2))
    if getattr(config.task.config, "mask_documents", False):
        length = config.data.sequence_length // DOCUMENTS
        document = replace(config, data=replace(config.data, sequence_length=length))
        flops = DOCUMENTS * samples * _flops(sample_work(document, 2))

    def start() -> tuple[Callable[[], object], dict[str, Any]]:
        engines.initialize_distributed()
        engine, batches = probe.build(config)
        batches = [_fill(batch, config) for batch in batches]
        facts = {
            "unit": "tokens" if is_text else "images",
            "units": samples * (config.data.sequence_length if is_text else 1),
            "flops": flops,
            "predicted": predicted,
            "accumulation": len(batches),
            "micro_batch_size": config.batch.micro_batch_size,
        }
        return lambda: engine.train_step(batches, learning_rate=1e-4), facts

    return start


def _flops(work: Any) -> float:
    """Of a sample forward and backward."""
    return 3 * (work.block_flops + work.head_flops)


def _fill(batch: dict[str, Any], config: Any) -> dict[str, Any]:
    """A batch of zeros with random content: every token alike would be no batch."""
    import torch  # noqa: PLC0415

    model = config.model.config
    limits = {"tokens": "vocab_size", "targets": "vocab_size", "classes": "num_classes"}
    for name, limit in limits.items():
        if name in batch and hasattr(model, limit):
            batch[name] = torch.randint(getattr(model, limit), batch[name].shape)
    if "pixels" in batch:
        batch["pixels"] = torch.randint(256, batch["pixels"].shape, dtype=torch.uint8)
        batch["noise"] = torch.rand(batch["noise"].shape)
    if "documents" in batch:
        positions = torch.arange(batch["tokens"].shape[1]).expand_as(batch["tokens"])  # (B, T)
        length = positions.shape[1] // DOCUMENTS
        batch["documents"], batch["positions"] = positions // length, positions % length
        begins = torch.arange(0, positions.shape[1], length, dtype=torch.int32)  # (N)
        batch["document_begins"] = begins.expand(len(positions), -1)
    return {name: tensor.contiguous().pin_memory() for name, tensor in batch.items()}


def _prepare_nanogpt(arguments: argparse.Namespace) -> Callable[[], tuple[Any, dict[str, Any]]]:
    """The loop of nanoGPT's `train.py`: four micro batches, clipping, AdamW."""
    sys.path.insert(0, arguments.nanogpt)
    import model as nanogpt  # type: ignore[import-not-found]  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from configs import load  # noqa: PLC0415
    from training.config import TrainingConfig  # noqa: PLC0415
    from training.memory.cost import sample_work  # noqa: PLC0415

    file, *overrides = GPT.split()
    ours: Any = load(TrainingConfig, ROOT / f"configs/training/{file}.yaml", overrides)
    size, length, accumulation = 16, 1024, 4

    def start() -> tuple[Callable[[], object], dict[str, Any]]:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        shape = nanogpt.GPTConfig(vocab_size=50304, dropout=0.0, bias=True)
        model = nanogpt.GPT(shape).cuda()
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cuda")
        compiled = torch.compile(model)
        batches = [torch.randint(50257, (size, length + 1)).pin_memory() for _ in range(4)]

        def step() -> None:
            for batch in batches:
                tokens = batch.cuda(non_blocking=True)  # (B, T + 1)
                with torch.autocast("cuda", dtype=torch.bfloat16):
                    _, loss = compiled(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
                (loss / accumulation).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        facts = {
            "unit": "tokens",
            "units": accumulation * size * length,
            "flops": accumulation * size * _flops(sample_work(ours, 2)),
            "predicted": 0,
            "accumulation": accumulation,
            "micro_batch_size": size,
        }
        return step, facts

    return start


def _time(step: Callable[[], object], *, profile: bool) -> dict[str, Any]:
    """Median seconds of a step, and the peak of its memory."""
    import torch  # noqa: PLC0415

    torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    while len(times) < LEAST_STEPS or sum(times) < SECONDS:
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated()
    if profile:
        _profile(step)
    return {"seconds": statistics.median(times), "peak": peak}


def _profile(step: Callable[[], object]) -> None:
    """To standard error: what of one step the device does, and for how long."""
    import torch  # noqa: PLC0415

    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    events = profiler.key_averages()
    kernels = [event for event in events if event.device_type.name == "CUDA"]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    busy = sum(event.self_device_time_total for event in kernels) / 1e6
    sys.stderr.write(f"a step of {seconds * 1e3:.1f} ms, the device busy {busy * 1e3:.1f} ms\n")
    for event in kernels[:40]:
        share = event.self_device_time_total / 1e6 / busy
        milliseconds = event.self_device_time_total / 1e3
        sys.stderr.write(
            f"{milliseconds:9.2f} ms {share:6.1%} {event.count:6} x {event.key[:110]}\n"
        )
    others = sorted(events, key=lambda event: -event.self_cpu_time_total)[:12]
    for event in others:
        milliseconds = event.self_cpu_time_total / 1e3
        sys.stderr.write(f"CPU {milliseconds:9.2f} ms {event.count:6} x {event.key[:100]}\n")


@contextmanager
def _device(scratch: str, how: int) -> Iterator[None]:
    """Inside, no other case uses the device, or those alone that share it."""
    with Path(scratch, "device").open("w") as lock:
        fcntl.flock(lock, how)
        yield


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="CASE", help="names of cases; else all"
    )
    parser.add_argument(
        "--product",
        nargs="*",
        default=[],
        choices=MODELS,
        metavar="MODEL",
        help="every ZeRO stage x activation checkpointing x compilation of a model: "
        + ", ".join(MODELS),
    )
    parser.add_argument("--nanogpt", default="", metavar="FOLDER", help="of nanoGPT's model.py")
    parser.add_argument("--profile", default="", metavar="TEXT", help="cases to profile, too")
    parser.add_argument("--jobs", type=int, default=1, help="cases in the device's memory at once")
    parser.add_argument("--out", default="", metavar="FILE", help="write the table there, too")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", default=tempfile.gettempdir(), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
