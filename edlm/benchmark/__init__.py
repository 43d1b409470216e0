"""Speed and memory, measured beside code as it is usually written."""
