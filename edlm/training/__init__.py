"""The training loop around one objective, its state, log and forecast."""
