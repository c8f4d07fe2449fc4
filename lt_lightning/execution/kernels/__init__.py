"""Kernels of block convolutions: a reference by dense ones, the CPU's, CUDA's."""
