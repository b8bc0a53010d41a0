"""What all tests share: hypothesis without a deadline, for a loaded machine is no failure."""

import signal

import pytest
from hypothesis import settings

settings.register_profile("millrace", deadline=None)
settings.load_profile("millrace")

# Where tests run in the background of a shell, SIGINT is ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# A minute to set up, so their tests share one worker; all others go by file.
_SHARED = ("two_ranks", "one_rank")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Divides tests among workers, and skips, saying so, what needs a GPU where there is none."""
    for item in items:
        shared = any(name in item.fixturenames for name in _SHARED)
        item.add_marker(pytest.mark.xdist_group("ranks" if shared else item.nodeid.split("::")[0]))
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting:
        import torch

        if not torch.cuda.is_available():
            for item in wanting:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, found none"))
