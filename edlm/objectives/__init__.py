"""Training objectives: losses, and the pipelines from data to a loss."""
