import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COUNT = """
import pyarrow as pa
from pipeline.word_statistics import word_statistics
texts = pa.array([b"one two"], pa.large_binary())
documents = pa.RecordBatch.from_arrays([texts], names=["text"])
print(word_statistics(documents, stop_words=("one",))["words"].tolist())
"""


@pytest.mark.slow
@pytest.mark.parametrize("has_temporary", [True, False])
def test_without_a_home_compiled_code_is_kept_elsewhere(tmp_path, has_temporary):
    nowhere = "/proc/self/nothing"
    # a test may run as root, who may write beside the source
    locators = "UserProvidedCacheLocator,UserWideCacheLocator"
    environment = {**os.environ, "HOME": nowhere, "NUMBA_CACHE_LOCATOR_CLASSES": locators}
    environment |= {"TMPDIR": str(tmp_path), "XDG_CACHE_HOME": nowhere, "NUMBA_CACHE_DIR": ""}
    folder = tmp_path / f"millrace-numba-{os.getuid()}"
    if not has_temporary:
        folder.symlink_to(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", COUNT], env=environment, cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "[2]\n", done.stderr
    kept = [] if folder.is_symlink() else list(folder.rglob("*.nbi"))
    assert bool(kept) is has_temporary
