"""The loop around one objective, and what goes with it."""
