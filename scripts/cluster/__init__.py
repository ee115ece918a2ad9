"""The library's exchange in clusters that are simulated by SimGrid."""
