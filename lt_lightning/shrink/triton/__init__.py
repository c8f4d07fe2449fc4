"""Regrouped convolution on CUDA (grain `kernel_position`), in Triton. Needs the package `triton`."""

from lt_lightning.shrink.triton.launch import forward as forward
from lt_lightning.shrink.triton.launch import input_gradient as input_gradient
from lt_lightning.shrink.triton.launch import to_batch_innermost as to_batch_innermost
from lt_lightning.shrink.triton.launch import weight_gradient as weight_gradient
