"""The rules of the house that a machine can hold: imports, sizes, names, shapes at line ends."""

import ast
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("configs", "pipeline", "training", "launch")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
STANDARD_LIBRARY = __import__("sys").stdlib_module_names

FORBIDDEN = {
    "configs": {"pipeline", "training", "launch", "torch", "deepspeed", "apache_beam"},
    "pipeline": {"torch", "deepspeed", "training", "launch"},
    "training": {"apache_beam", "launch", "transformers"},
    "launch": {"torch", "deepspeed", "apache_beam", "pipeline", "training"},
}
ALLOWED = {
    "configs": {"omegaconf", "yaml", "configs"},
    "training.layers": {"torch", "training.layers"},
    "training.models": {"torch", "training.layers", "training.models"},
    "training.augment": {
        "torch",
        "numpy",
        "PIL",
        "simplejpeg",
        "cykooz_resizer",
        "training.augment",
        "training.data.order",
    },
    "training.data": {
        "torch",
        "numpy",
        "fsspec",
        "configs.redact",
        "pipeline.manifest",
        "pipeline.urls",
        "training.augment",
        "training.data",
    },
    "training.tasks": {
        "torch",
        "numpy",
        "pipeline.manifest",
        "training.augment",
        "training.data",
        "training.layers.patches",
        "training.objective",
        "training.pictures",
        "training.tasks",
    },
    "training.huggingface": {
        "torch",
        "safetensors",
        "configs.plugins",
        "training.huggingface",
        "training.layers",
        "training.models",
    },
    "pipeline.manifest": set(),
    "pipeline.urls": {"fsspec", "configs.redact"},
}
SHAPE_CHANGES = re.compile(
    r"\.(view|reshape|transpose|permute|flatten|unflatten|unsqueeze|squeeze|expand)\("
    r"|einsum\(|torch\.(cat|stack)\("
)
OTHER_NAMES = {
    "sequence_length": {"block_size", "seqlen", "seq_len", "seq_length", "context_length"},
    "micro_batch_size": {"batch_size", "batch_size_per_gpu", "device_batch_size"},
    "global_batch_size": {"total_batch_size"},
    "gradient_accumulation_steps": {"grad_acc", "accumulate", "grad_accum_steps"},
    "step": {"iter", "iteration", "update", "num_iterations", "max_iters"},
    "epoch": {"pass"},
    "rank": {"global_rank", "process_index"},
    "local_rank": {"gpu_id"},
    "node_rank": {"host_id"},
    "world_size": {"num_gpus", "n_procs", "num_processes"},
    "num_nodes": {"num_hosts", "num_servers"},
    "augment": {"transform", "transforms"},
    "checkpoint": {"ckpt", "ckpt_dir", "snapshot"},
    "activation_checkpointing": {"recompute", "remat", "gradient_checkpointing"},
    "resume": {"restore", "reload"},
    "run_dir": {"experiment", "output_dir", "out_dir"},
    "task": {"objective"},
    "d_model": {"n_embd", "hidden_size", "dim", "embed_dim"},
    "num_layers": {"n_layer", "n_layers", "depth"},
    "num_heads": {"n_head", "n_heads"},
    "head_dim": {"dim_head"},
    "d_ff": {"mlp_dim", "intermediate_size", "hidden_dim"},
    "vocab_size": {"n_vocab"},
    "image_size": {"img_size", "resolution"},
    "learning_rate": {"lr", "max_lr", "min_lr", "peak_lr"},
    "warmup_steps": {"warmup_iters"},
    "max_grad_norm": {"clip", "grad_clip", "clip_norm"},
    "tokens_per_second": {"throughput", "tps"},
    "samples_seen": {"consumed", "processed", "consumed_samples"},
    "seed": {"random_state", "random_seed"},
    "split": {"subset", "fold"},
    "key": {"uid"},
}
"""Of fields: our name for a concept, and those that other projects use for it."""
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """Absolute dotted names that a file imports, also inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_below(module, package):
    return module == package or module.startswith(f"{package}.")


def is_shared(module):
    """Of the pipeline, what the training half imports, too."""
    return is_below(module, "pipeline.manifest") or is_below(module, "pipeline.urls")


def functions(path):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(TREES[path]) if isinstance(node, kinds)]


def test_there_is_something_to_check():
    assert {"configs", "pipeline", "training"} <= {name_of(path).split(".")[0] for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_forbidden_imports(path):
    package = name_of(path).split(".")[0]
    bad = [m for m in imports(path) for no in FORBIDDEN[package] if is_below(m, no)]
    allowed = package == "training" and all(map(is_shared, bad))
    assert not bad or allowed, f"{path}: may not import {bad}"


@pytest.mark.parametrize(
    "path", [p for p in FILES if name_of(p).startswith("training")], ids=name_of
)
def test_training_knows_of_the_pipeline_only_the_manifest_and_urls(path):
    ours = [module for module in imports(path) if is_below(module, "pipeline")]
    assert all(map(is_shared, ours))


@pytest.mark.parametrize("room", ALLOWED)
def test_rooms_import_only_what_they_may(room):
    files = [path for path in FILES if is_below(name_of(path), room)]
    assert files
    for path in files:
        for module in imports(path):
            allowed = module.split(".")[0] in STANDARD_LIBRARY or any(
                is_below(module, name) for name in ALLOWED[room]
            )
            assert allowed, f"{path}: {room} may not import {module}"


@pytest.mark.parametrize(
    ("library", "importer"), [("omegaconf", "configs"), ("deepspeed", "training.engine")]
)
def test_one_importer(library, importer):
    found = [name_of(p) for p in FILES if any(is_below(m, library) for m in imports(p))]
    assert found == [importer]


def test_the_engine_knows_neither_models_nor_data_nor_tasks():
    rooms = ("training.layers", "training.models", "training.data", "training.tasks")
    modules = imports(ROOT / "training/engine.py") | imports(ROOT / "training/trainer.py")
    assert not [module for module in modules for room in rooms if is_below(module, room)]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_file_size_and_name(path):
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in VAGUE_NAMES
    assert ast.get_docstring(TREES[path]), f"{path}: opens without a docstring"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_function_length(path):
    long = [node.name for node in functions(path) if node.end_lineno - node.lineno + 1 > 60]
    assert not long, f"{path}: above 60 lines: {long}"


def test_functions_are_small_on_the_whole():
    lengths = [n.end_lineno - n.lineno + 1 for path in FILES for n in functions(path)]
    assert statistics.median(lengths) <= 12
    assert statistics.quantiles(lengths, n=10)[-1] <= 40


@pytest.mark.parametrize(
    "path", [p for p in FILES if {"models", "layers"} & set(p.parts)], ids=name_of
)
def test_shapes_stand_at_line_ends(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if SHAPE_CHANGES.search(line):
            assert "# (" in line, f"{path}:{number}: changes a shape, say which: # (B, T, D)"


def test_entry_files_are_short_and_the_loop_fits_on_a_screen():
    for package in ("pipeline", "training"):
        assert len((ROOT / package / "__main__.py").read_text().splitlines()) <= 90
    (loop,) = [n for n in functions(ROOT / "training/trainer.py") if n.name == "fit"]
    assert loop.end_lineno - loop.lineno + 1 <= 50


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_ptransforms(path):
    for node in ast.walk(TREES[path]):
        if not isinstance(node, ast.ClassDef):
            continue
        bases = {ast.unparse(base).split("[")[0] for base in node.bases}
        if "beam.PTransform" not in bases:
            continue
        assert not re.search(r"(Transform|Source|Sink|Reader|Writer)$", node.name)
        fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
        assert not {"pipeline", "label"} & set(fields), f"{path}: Beam overwrites these fields"
        for method in node.body:
            if isinstance(method, ast.FunctionDef) and method.name == "expand":
                assert method.end_lineno - method.lineno + 1 <= 20, f"{path}: {node.name}.expand"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_loose_ends(path):
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text())


def is_frozen_dataclass(node):
    return any(
        "dataclass" in (text := ast.unparse(d)) and "frozen=True" in text
        for d in node.decorator_list
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_config_field_is_documented(path):
    for node in ast.walk(TREES[path]):
        if (
            isinstance(node, ast.ClassDef)
            and node.name.endswith("Config")
            and is_frozen_dataclass(node)
        ):
            for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign):
                    documented = isinstance(following, ast.Expr) and isinstance(
                        following.value, ast.Constant
                    )
                    assert documented, f"{path}: {node.name}.{statement.target.id} has no literal"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_concept_has_one_name(path):
    ours = {other: name for name, others in OTHER_NAMES.items() for other in others}
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.ClassDef) and any(
            "dataclass" in ast.unparse(decorator) for decorator in node.decorator_list
        ):
            fields = [n.target.id for n in node.body if isinstance(n, ast.AnnAssign)]
            bad = {field: ours[field] for field in fields if field in ours}
            assert not bad, f"{path}: {node.name}: our names for these are {bad}"


def test_no_name_of_ours_is_another_for_a_concept():
    others = [other for names in OTHER_NAMES.values() for other in names]
    assert not OTHER_NAMES.keys() & set(others)
    assert len(others) == len(set(others))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_step_of_an_expand_has_a_label_of_its_own(path):
    """Labels are the names in the runner's UI; Beam's own guesses change with the code."""
    for node in functions(path):
        if node.name != "expand":
            continue
        steps = [
            n.right
            for n in ast.walk(node)
            if isinstance(n, ast.BinOp) and isinstance(n.op, ast.BitOr)
        ]
        labels = []
        for step in steps:
            labelled = isinstance(step, ast.BinOp) and isinstance(step.op, ast.RShift)
            assert labelled, f"{path}:{step.lineno}: a step without a label"
            labels.append(ast.literal_eval(step.left))
        assert len(set(labels)) == len(labels)
        assert all(re.fullmatch(r"([A-Z][a-z0-9]*)+", label) for label in labels), labels
