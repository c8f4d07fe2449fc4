"""Measures the project itself; not shipped.

`python -m benchmarks` times tickets of real networks, `python -m benchmarks.training` times training steps, rounds and
searches, and `python -m benchmarks.evidence` keeps the results of an experiment in a file and makes tables of it.
"""
