"""The frame of every recipe: settings, entry point, processes, files, clocks."""
