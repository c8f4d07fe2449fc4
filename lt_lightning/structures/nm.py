"""N:M sparsity: keep the n largest of every m weights in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.layers import Layer
from lt_lightning.structures.base import (
    LayerReport,
    Structure,
    StructureInput,
    StructureResult,
    retained_magnitude,
)
from lt_lightning.structures.channel_choice import outputs_first
from lt_lightning.structures.executable import computes_two_of_four, why_irreplaceable
from lt_lightning.structures.plan import NMPlan


@dataclass(frozen=True)
class NM(Structure):
    """Keeps the n largest of each m consecutive input channels, for every filter and kernel position on its own.

    Source: Mishra et al., 2021 (arXiv 2104.08378), for 2:4. Every layer's density is n/m whatever the round's mask
    keeps: weights that the mask keeps come first, by magnitude; where fewer than n of m survive, pruned ones are
    refilled, since they cost nothing. So it compares with others at the round whose density is about n/m.

    What hardware can skip is little: 2:4 in linear layers and 1x1 convolutions, on CUDA, in half precision, in
    inference. The plan names those layers; each runs sparse only where that is measured faster. A ticket does not
    know where it will run, so its reports count no weight as skipped: layers with the pattern are reported as
    unstructured ones, which keep that share and run whole.

    A layer whose inputs (of a group) are no multiple of m stays dense, and so does one that does not compute PyTorch's
    own function of a weight of its own.

    Attributes:
        n: number of weights kept of each m.
        m: number of consecutive input channels.

    Raises:
        ValueError: on construction, unless 1 <= n < m; on the call, for weights that are not finite.
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ValueError(f"n={self.n}, m={self.m}: n must be at least 1 and below m")

    needs_batches: ClassVar[bool] = False

    def check(self, traced: TracedNetwork) -> None:
        """Look for a layer that can have the pattern.

        Raises:
            ValueError: if there is none.
        """
        if not any(self._fits(layer) for layer in traced.layers.values()):
            raise ValueError(f"m={self.m}: no layer of the network has a multiple of {self.m} inputs")

    def __call__(self, given: StructureInput) -> StructureResult:
        """Structure one round's mask."""
        masks = {name: torch.ones_like(mask) for name, mask in given.masks.items()}
        why_dense = {layer.name: self._why_dense(layer, given.network) for layer in given.layers.values()}
        for layer in given.prunable:
            if not why_dense[layer.name]:
                mask = nm_mask(outputs_first(layer, self._scores(layer, given)), self.n, self.m)
                masks[layer.weight] = outputs_first(layer, mask)  # and back
        executable = tuple(layer.name for layer in given.prunable if self._is_executable(layer, given.network))
        reports = {}
        for name, layer in given.layers.items():
            note = why_dense[name] or self._pattern_note(name in executable)
            reports[name] = self._report(layer, given, masks.get(layer.weight), note, bool(why_dense[name]))
        return StructureResult(masks, reports, NMPlan(self.n, self.m, executable) if executable else None)

    def _fits(self, layer: Layer) -> bool:
        return _inputs(layer) % self.m == 0

    def _why_dense(self, layer: Layer, network: nn.Module) -> str:
        if not self._fits(layer):
            return f"{_inputs(layer)} inputs are no multiple of {self.m}"
        return why_irreplaceable(network, layer.name)

    def _is_executable(self, layer: Layer, network: nn.Module) -> bool:
        return (self.n, self.m) == (2, 4) and computes_two_of_four(network, layer.name)

    def _scores(self, layer: Layer, given: StructureInput) -> Tensor:
        """Return magnitudes, with those of pruned weights, mostly zero, below all that survive."""
        magnitude = given.weights[layer.weight].detach().double().abs()
        if not bool(magnitude.isfinite().all()):
            raise ValueError(f"{layer.weight}: holds values that are not finite, so none of them can be chosen")
        return magnitude + (magnitude.max() + 1) * given.masks[layer.weight]

    def _report(self, layer: Layer, given: StructureInput, mask: Tensor | None, note: str, dense: bool) -> LayerReport:
        before = given.masks.get(layer.weight)
        if before is None or mask is None:
            return LayerReport(layer.size, layer.size, layer.size, layer.size, layer.positions, "dense")
        return LayerReport(
            size=layer.size,
            target=int(before.count_nonzero()),
            kept=int(mask.count_nonzero()),
            executed=layer.size,
            positions=layer.positions,
            form="dense" if dense else "unstructured",
            retained_magnitude=retained_magnitude(given.weights[layer.weight], before, mask),
            note=note,
        )

    def _pattern_note(self, executable: bool) -> str:
        pattern = f"{self.n}:{self.m}"
        if executable:
            return f"{pattern}: runs sparse on CUDA, in half precision and inference, where that is measured faster"
        return f"{pattern}: runs whole, as no kernel is there for it"


def _inputs(layer: Layer) -> int:
    """Return the number of inputs of each output; those of a transposed convolution come first, group after group."""
    return layer.shape[0] // layer.groups if layer.output_dim == 1 else layer.shape[1]


def nm_mask(scores: Tensor, n: int, m: int) -> Tensor:
    """Return the mask of the n highest of each m consecutive scores along dimension 1; of equal ones the first.

    Args:
        scores: a score for every weight, (outputs, inputs, *kernel).
        n: number of weights kept of each m.
        m: divisor of the number of inputs.

    >>> nm_mask(torch.tensor([[1.0, 9.0, 3.0, 2.0, 5.0, 5.0, 5.0, 0.0]]), 2, 4).int()
    tensor([[0, 1, 1, 0, 1, 1, 0, 0]], dtype=torch.int32)
    """
    groups = scores.reshape(len(scores), -1, m, *scores.shape[2:])
    best = groups.argsort(dim=2, descending=True, stable=True).narrow(2, 0, n)
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(2, best, True).flatten(1, 2)
