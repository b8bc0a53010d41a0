"""What of Beam 2.77 and of Python the pipeline stays away from, and why.

Elsewhere are tested: flags that engines need (test_engine_flags.py), keys, coders and nothing of
`__main__` in a job (test_job.py), memory of a shuffle (test_shuffle.py), elements that no engine
could send (test_corpus.py: `max_record_mib`).
"""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "pipeline"
FILES = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*.py"))}
TRAPS = {
    "hash()": "of a text it is another one in each process: a key would differ between workers",
    "Reshuffle": "gives elements random keys: order and bundles differ from run to run; `Spread`",
    "BatchElements": "cuts where a bundle ends, of small bundles small batches; readers make them",
    "WriteToFiles": "takes `shards` for spilled records alone, names files in order of arrival",
    "WriteToText": "gives content another name in each run, removes what an earlier run finished",
    "FileBasedSink": "as WriteToText",
    "DirectRunner": "downloads a binary, Prism, where it can, and then has one worker process",
    "AsList": "each worker process holds a copy of a side input; `AsIter` of few rows is read once",
    "AsDict": "as AsList",
    "get_all_options": "options do not reach the local runner's workers; stages carry settings",
}
READ_OPTIONS = {"beam_flags.py", "runner.py"}
"""Of the driver; a stage that read options would find none."""
VERBS = {"build.py", "index.py", "tokenizer.py", "upload.py", "report.py", "verify.py"}
"""These speak to the user, in the driver."""


def names(path):
    """Every name and attribute that is used in a file; of a function that is called with ()."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield f"{node.func.id}()"
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.rsplit(".", 1)[-1]


@pytest.mark.parametrize("trap", TRAPS)
def test_no_file_steps_into(trap):
    found = [name for name, path in FILES.items() if trap in set(names(path))]
    assert not found, f"{trap} {TRAPS[trap]}"


def test_only_the_driver_reads_options():
    assert {
        name for name, path in FILES.items() if "PipelineOptions" in names(path)
    } <= READ_OPTIONS


def test_workers_print_nothing():
    """Nobody reads the pipe of a worker pool's workers: 64 KiB later they would wait for ever."""
    spoken = {name for name, path in FILES.items() if {"print()", "stdout"} & set(names(path))}
    assert (
        spoken - {"images/sandbox.py", "images/sandbox_child.py"} <= VERBS
    )  # have pipes of theirs
