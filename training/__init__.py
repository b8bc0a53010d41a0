"""Training: a dataset of WebDataset tars to weights, with PyTorch under DeepSpeed ZeRO."""
