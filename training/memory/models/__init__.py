"""Models on a tape, a module for each of `training/models/`."""
