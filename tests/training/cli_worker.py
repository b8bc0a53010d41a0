"""Runs command lines read from stdin, one JSON object a line, in this process; answers in JSON."""

import contextlib
import io
import json
import os
import resource
import runpy
import sys
import traceback
from unittest import mock

import fsspec


def main():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints past sys.stdout is no answer
    for line in sys.stdin:
        request = json.loads(line)
        limit_files(request["file_bytes"])
        with (
            mock.patch.dict(os.environ, request["variables"] or {}),
            contextlib.chdir(request["folder"]),
        ):
            answer = run(request["module"], request["argv"])
        limit_files(None)
        if request["variables"]:
            fsspec.get_filesystem_class("s3").clear_instance_cache()  # they hold credentials
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def limit_files(num_bytes):
    """The soft limit alone, which is lifted again; Python ignores the signal that comes with it."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if num_bytes is None else num_bytes, hard))


def run(module, argv):
    out, err = io.StringIO(), io.StringIO()
    code = 0
    sys.argv = [module, *argv]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code or 0
        except BaseException:  # noqa: BLE001  (told as the exit of a process)
            code = 1
            traceback.print_exc()
    return {"code": code, "stdout": out.getvalue(), "stderr": err.getvalue()}


if __name__ == "__main__":
    main()
