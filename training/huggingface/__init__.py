"""Weights in the layouts of Hugging Face transformers: written by `export`, read by `init_from`.

`layouts/` says how our weights and configs are called there, one file for each architecture, and
is the one place that does. Folders are of safetensors alone, and transformers is not imported.
"""
