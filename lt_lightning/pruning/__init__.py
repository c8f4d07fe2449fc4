"""Masks, scores, densities and the rewind point: mathematics on tensors, nothing of Lightning."""
