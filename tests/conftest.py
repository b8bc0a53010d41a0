"""What all tests share: hypothesis without a deadline, for a loaded machine is no failure."""

import signal

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

settings.register_profile("millrace", deadline=None)
settings.load_profile("millrace")

# Where tests run in the background of a shell, SIGINT is ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


class ByFile(LoadScopeScheduling):
    """Tests of a file go to one worker of pytest-xdist, since they share what they set up.

    Its marker for groups does nothing under pytest 9.2.
    """

    def _split_scope(self, nodeid):
        # What the engine does on two ranks takes two minutes to set up, for the tests of two files.
        return nodeid.split("::")[0].replace("test_engine_options.py", "test_engine.py")


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


@pytest.fixture
def memory_store(monkeypatch):
    """An empty store in memory, `memory://`, which is asked again without waiting."""
    from fsspec.implementations.memory import MemoryFileSystem

    from pipeline import store

    monkeypatch.setattr(store.time, "sleep", lambda _: None)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    yield
    MemoryFileSystem.store.clear()


def pytest_collection_modifyitems(items):
    """Tests that need a GPU are skipped, saying so, where there is none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting:
        import torch

        if not torch.cuda.is_available():
            for item in wanting:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, found none"))
