"""Losses on a tape, a module for each of `training/tasks/`."""
