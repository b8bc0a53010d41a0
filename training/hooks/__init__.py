"""Hooks: what happens beside training, one concern a file."""
