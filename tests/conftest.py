"""What all tests share: hypothesis without a deadline, for a loaded machine is no failure."""

import signal

from hypothesis import settings

settings.register_profile("millrace", deadline=None)
settings.load_profile("millrace")

# Where tests run in the background of a shell, SIGINT is ignored, and children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
