"""The same masks executed by others: Torch-Pruning's networks, PyTorch's sparse weights."""

from __future__ import annotations

import copy
import importlib
import warnings
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lt_lightning.pruning.masks import Masks
from lt_lightning.structures.base import Structure, StructureInput, StructureResult, Unstructured
from lt_lightning.structures.plan import ChannelPlan

_SQUARE = 16


@dataclass(frozen=True)
class SquareBlocks(Structure):
    """Keeps the squares of a weight matrix (filters x inputs and kernel positions) with the largest magnitudes.

    PyTorch's block-sparse weights need such masks. There are as many squares as the round's mask has weights for; a
    layer that does not divide into squares keeps its mask.

    Attributes:
        size: number of rows and of columns of a square.
    """

    size: int = _SQUARE

    def __call__(self, given: StructureInput) -> StructureResult:
        unstructured = Unstructured()(given)
        masks = dict(unstructured.masks)
        for layer in given.prunable:
            mask = masks[layer.weight]
            if len(mask) % self.size == 0 and mask[0].numel() % self.size == 0:
                masks[layer.weight] = self._squares(given.weights[layer.weight], int(mask.count_nonzero()))
        return StructureResult(masks, unstructured.layers)

    def _squares(self, weight: Tensor, keep: int) -> Tensor:
        size, rows = self.size, len(weight) // self.size
        blocks = weight.reshape(rows, size, -1, size)
        sums = blocks.abs().sum((1, 3)).flatten()
        kept = torch.zeros_like(sums, dtype=torch.bool)
        kept[sums.topk(max(1, keep // size**2)).indices] = True
        return kept.reshape(rows, 1, -1, 1).expand_as(blocks).reshape(weight.shape).clone()


class SparseConv2d(nn.Module):
    """A convolution as a product of a sparse weight matrix and the unfolded images; inference only."""

    rows: Tensor
    columns: Tensor
    values: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, layout: torch.layout) -> None:
        """Take the convolution (groups=1, padded with zeros) and the layout, `torch.sparse_csr` or `sparse_bsr`."""
        super().__init__()
        assert conv.groups == 1
        assert isinstance(conv.padding, tuple)
        matrix = conv.weight.detach().flatten(1).contiguous()
        self.size, self.layout = matrix.shape, layout
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*Sparse .* tensor support is in beta state.*")
            sparse = matrix.to_sparse(
                layout=layout, blocksize=None if layout == torch.sparse_csr else (_SQUARE, _SQUARE)
            )
        # A sparse tensor can be neither copied with its module nor saved: keep its parts.
        self.register_buffer("rows", sparse.crow_indices())
        self.register_buffer("columns", sparse.col_indices())
        self.register_buffer("values", sparse.values())
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach())
        self.windows = (conv.kernel_size, conv.dilation, conv.padding, conv.stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, filters, oh, ow)."""
        sizes = [
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, kernel, dilation, padding, stride in zip(x.shape[2:], *self.windows, strict=True)
        ]
        weight = torch.sparse_compressed_tensor(
            self.rows, self.columns, self.values, self.size, layout=self.layout, check_invariants=False
        )
        patches = F.unfold(x, *self.windows).transpose(0, 1).flatten(1)  # (c * kh * kw, n * oh * ow)
        y = (weight @ patches).reshape(-1, len(x), *sizes).transpose(0, 1)
        return y if self.bias is None else y + self.bias.reshape(1, -1, 1, 1)


def with_sparse_weights(network: nn.Module, masks: Masks, layout: torch.layout) -> nn.Module:
    """Return the masked network with sparse weights in every pruned convolution that can have them.

    Args:
        network: network with pruned weights at zero; it is left as it was.
        masks: masks of the weights that are pruned.
        layout: `torch.sparse_csr` or `torch.sparse_bsr` (squares as in `SquareBlocks`).
    """
    sparse = copy.deepcopy(network)
    for name in masks:
        path = name.rpartition(".")[0]
        layer = network.get_submodule(path)
        if isinstance(layer, nn.Conv2d) and layer.groups == 1 and _divides(layer, layout):
            sparse.set_submodule(path, SparseConv2d(layer, layout))
    return sparse


def _divides(conv: nn.Conv2d, layout: torch.layout) -> bool:
    return layout == torch.sparse_csr or (len(conv.weight) % _SQUARE == 0 and conv.weight[0].numel() % _SQUARE == 0)


def prune_by_torch_pruning(network: nn.Module, plan: ChannelPlan, example: Tensor) -> nn.Module:
    """Return Torch-Pruning's network with the same channels; its dependency graph finds what is coupled.

    Args:
        network: the full network; it is left as it was.
        plan: channels to keep; those of coupled layers must agree (coupling `stream` or `inner`).
        example: an image.

    Raises:
        ImportError: if the package torch-pruning is not installed.
    """
    pruning = importlib.import_module("torch_pruning")
    small = copy.deepcopy(network).eval()
    graph = pruning.DependencyGraph().build_dependency(small, example_inputs=example)
    for name, kept in plan.outputs.items():
        layer = small.get_submodule(name)
        if not isinstance(layer, nn.Conv2d) or layer.out_channels == len(kept):  # pruned with another of its group
            continue
        dropped = sorted(set(range(layer.out_channels)) - set(kept.tolist()))
        graph.get_pruning_group(layer, pruning.prune_conv_out_channels, idxs=dropped).prune()
    return small
