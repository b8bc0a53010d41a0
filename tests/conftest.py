"""What all tests share: hypothesis without a deadline, for a loaded machine is no failure."""

import signal

import pytest
from hypothesis import settings

settings.register_profile("millrace", deadline=None)
settings.load_profile("millrace")

# Where tests run in the background of a shell, SIGINT is ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Tests that need a GPU are skipped, saying so, where there is none."""
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting:
        import torch

        if not torch.cuda.is_available():
            for item in wanting:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, found none"))
