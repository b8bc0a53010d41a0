"""What all tests share: hypothesis without a deadline, for a loaded machine is no failure."""

from hypothesis import settings

settings.register_profile("millrace", deadline=None)
settings.load_profile("millrace")
