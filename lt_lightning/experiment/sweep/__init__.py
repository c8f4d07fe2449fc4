"""A multirun as its jobs see it, and its end."""
