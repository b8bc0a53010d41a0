"""Data of the training stage: from a manifest and a position to this rank's micro batches."""
