"""Models: one file each with `Config`, `Model`, `Block` and parts; single-device code.

Every line that changes a shape ends with the shape that it makes, in the letters of the project:
B batch, T positions, S positions of a source, D d_model, H heads, G key and value heads,
K head dim, F d_ff, V vocabulary, C channels, Y and X image rows and columns.
"""
