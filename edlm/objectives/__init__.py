"""What is trained: losses, and the pipelines from data to a loss."""
