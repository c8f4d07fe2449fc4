"""Layers that compute only their blocks."""
