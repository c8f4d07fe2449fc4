"""Which networks lose channels exactly, and how many, beside Torch-Pruning: `python -m benchmarks.compatibility`."""
