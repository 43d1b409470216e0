"""Speed and memory, measured against code as it is usually written."""
