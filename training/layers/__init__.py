"""Parts that models share: attention, feed-forward, block, linear layers, positions."""
