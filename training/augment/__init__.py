"""Augmentations: images modified in training, by seed and position of the sample alone."""
