"""Tasks: what a model is taught. One file each with `Config` and `Task`: collate, targets, loss."""
