"""Images: kernels without Beam, and the stages that are theirs alone."""
