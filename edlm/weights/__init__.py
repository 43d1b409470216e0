"""Networks on disk: ours, published ones, large ones, and those that a config names."""
