"""The compiled kernel of block convolutions on the CPU."""
