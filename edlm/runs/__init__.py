"""What every recipe needs around its story: settings, the way in, processes, files, clocks."""
