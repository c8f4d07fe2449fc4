"""The time of every layer of a network, and of what executes it in a ticket, at the shapes that it runs at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from benchmarks.network_costs import share_of_ideal
from benchmarks.variants import Effort, Tickets, Variant
from lt_lightning.execution.cost import Setting, flops
from lt_lightning.execution.execute import DENSE_FORM, forms_of
from lt_lightning.execution.form_choice import input_shapes
from lt_lightning.execution.shrink_channels import Cut, Shrunk
from lt_lightning.execution.timing import time_layers
from lt_lightning.pruning.evaluation import relative_difference
from lt_lightning.structures.plan import BlockPlan

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class LayerMeasurement:
    """The time of one layer in one form.

    Attributes:
        layers: names of the layers of this geometry, of which the first was measured.
        form: form of the layer that runs: `channels` (fewer of them), or the fastest of `execute.forms_of`.
        variant: name of the structure.
        density: density of every prunable layer.
        setting: batch size, training, precision.
        input_shape: shape of one image at the dense layer.
        dense_milliseconds: median of the dense layer.
        milliseconds: median of the form.
        speedup: ratio of these two.
        ideal: ratio of the numbers of operations.
        share: part of the ideal saving that is reached, see `share_of_ideal`.
        difference: largest difference to the masked layer's result, relative.
    """

    layers: Sequence[str]
    form: str
    variant: str
    density: float
    setting: Mapping[str, object]
    input_shape: Sequence[int]
    dense_milliseconds: float
    milliseconds: float
    speedup: float
    ideal: float
    share: float
    difference: float


@dataclass(frozen=True)
class _Form:
    """A layer that can replace another; `inputs` and `outputs` are its channels among the full layer's."""

    module: nn.Module
    inputs: Tensor | None = None
    outputs: Tensor | None = None

    def shape(self, full: tuple[int, ...]) -> tuple[int, ...]:
        return full if self.inputs is None else (len(self.inputs), *full[1:])

    def difference(self, masked: nn.Module, full: tuple[int, ...]) -> float:
        """Return the difference to the masked layer, on images whose missing channels are zero, as in the network."""
        images = torch.randn(2, *full, generator=torch.Generator().manual_seed(0))
        if self.inputs is not None:
            absent = torch.ones(full[0], dtype=torch.bool)
            absent[self.inputs] = False
            images[:, absent] = 0
        with torch.inference_mode():
            expected: Tensor = masked(images)
            got: Tensor = self.module(images if self.inputs is None else images[:, self.inputs])
        return relative_difference(got, expected if self.outputs is None else expected[:, self.outputs])


def measure_layers(
    tickets: Tickets,
    variants: Mapping[str, Variant],
    densities: Sequence[float],
    setting: Setting,
    effort: Effort,
    device: str = "cpu",
    only: Sequence[str] = (),
    size: int | None = None,
) -> list[LayerMeasurement]:
    """Time one layer of every geometry, and its forms in every ticket, of which the fastest counts.

    Args:
        tickets: tickets of the network.
        variants: variants by name; those whose tickets have no plan are left out.
        densities: densities of every prunable layer.
        setting: batch size, training (forward and backward) and precision.
        effort: how much is measured.
        device: device to measure on.
        only: names of layers; empty takes all that are prunable.
        size: height and width of images at every layer, instead of the true ones.

    Raises:
        RuntimeError: if a form does not compute what the masked layer does.
    """
    names = list(only) or [name for name, layer in tickets.layers.items() if not layer.roles & {"stem", "classifier"}]
    shapes = input_shapes(tickets.network, names, tickets.example)
    if size is not None:
        shapes = {name: (shape[0], size, size) for name, shape in shapes.items()}
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(f"{tickets.network.get_submodule(name)} {shapes[name]}", []).append(name)
    rows = []
    for same in alike.values():
        rows += _measure_layer(tickets, variants, densities, setting, device, effort, same, shapes[same[0]])
    return rows


def _measure_layer(
    tickets: Tickets,
    variants: Mapping[str, Variant],
    densities: Sequence[float],
    setting: Setting,
    device: str,
    effort: Effort,
    names: Sequence[str],
    shape: tuple[int, ...],
) -> list[LayerMeasurement]:
    name, dense = names[0], tickets.network.get_submodule(names[0])
    forms: dict[tuple[str, float], dict[str, _Form]] = {}
    differences: dict[tuple[str, float], float] = {}
    for variant in variants:
        for density in densities:
            structure = variants[variant].structure
            masked = tickets.masked(structure, density).get_submodule(name)
            possible = _forms(tickets, variants[variant], density, name)
            if possible is None:
                continue
            forms[variant, density] = possible
            worst = max((form.difference(masked, shape) for form in possible.values()), default=0.0)
            if not worst <= _TOLERANCE:
                raise RuntimeError(f"{name} as {variant} at density {density} differs by {worst:.1e}")
            differences[variant, density] = worst
    contenders = {
        f"{variant} {density} {form}": (one.module, one.shape(shape))
        for (variant, density), possible in forms.items()
        for form, one in possible.items()
    }
    timings = time_layers(
        {"dense": (dense, shape), **contenders},
        setting.batch_size,
        setting.training,
        setting.bfloat16,
        device,
        effort.samples,
        effort.slot,
        effort.limit,
    )
    rows = []
    for (variant, density), possible in forms.items():
        best = min(possible, key=lambda form: timings[f"{variant} {density} {form}"].median, default=None)
        if best is None:
            continue
        seconds = timings[f"{variant} {density} {best}"].median
        speedup = timings["dense"].median / seconds
        ideal = operations(dense, shape) / max(1, operations(possible[best].module, possible[best].shape(shape)))
        rows.append(
            LayerMeasurement(
                names,
                best,
                variant,
                density,
                asdict(setting),
                shape,
                timings["dense"].median * 1e3,
                seconds * 1e3,
                speedup,
                ideal,
                share_of_ideal(speedup, ideal),
                differences[variant, density],
            )
        )
    return rows


def operations(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Count the floating-point operations of a module for one sample of a shape."""
    return flops(module, torch.zeros(1, *shape))


def _forms(tickets: Tickets, variant: Variant, density: float, name: str) -> dict[str, _Form] | None:
    """Return what may run a layer of a ticket: nothing where the layer is gone; None where tickets have no plan."""
    plan = tickets.ticket(variant.structure, density).plan
    masked = tickets.masked(variant.structure, density)
    if isinstance(plan, BlockPlan):
        layer = masked.get_submodule(name)
        possible = forms_of(masked, plan, name) if name in plan.blocks else {}
        return {form: _Form(module) for form, module in (possible or {DENSE_FORM: layer}).items()}
    shrunk = tickets.whole(variant.structure, density)
    return None if shrunk is None else _smaller(shrunk, masked.get_submodule(name), name)


def _smaller(shrunk: Shrunk, masked: nn.Module, name: str) -> dict[str, _Form]:
    """Return the layer of fewer channels."""
    if f"{name}.weight" not in shrunk.slices.parts:
        return {}
    _, cut = shrunk.slices.parts[f"{name}.weight"]
    assert isinstance(cut, Cut)
    outputs, inputs = (*cut.index, None, None)[:2]
    if isinstance(masked, nn.Conv2d) and masked.groups > 1 and outputs is not None:  # depthwise
        repeat = masked.out_channels // masked.in_channels
        inputs = outputs[::repeat] // repeat
    return {"channels": _Form(shrunk.network.get_submodule(name), inputs, outputs)}


# The paper's own protocol of timing, so that its table can be compared with ours.

_SIZE = 127


@dataclass(frozen=True)
class PaperMeasurement:
    """The time of all convolutions by the paper's protocol.

    Attributes:
        protocol: the protocol, in words.
        variant: name of the structure.
        density: density of every prunable layer.
        dense_milliseconds: sum over the dense network's convolutions.
        milliseconds: sum over the ticket's convolutions.
        saved: share of the time that is saved.
        ideal_saved: share of the operations that is saved.
    """

    protocol: str
    variant: str
    density: float
    dense_milliseconds: float
    milliseconds: float
    saved: float
    ideal_saved: float


def measure_by_paper(
    tickets: Tickets,
    variants: Mapping[str, Variant],
    densities: Sequence[float],
    effort: Effort,
    batch_size: int = 64,
    device: str = "cpu",
) -> list[PaperMeasurement]:
    """Time convolutions alone, each with images of 127 x 127, inference in float32 (Chen et al., ICML 2022, section 5).

    What a network saves at its true shapes is less: the paper's inputs are larger than any of the CIFAR networks'
    own, and BatchNorm, activations and additions are left out. Ours differs in that cuDNN may use workspace.

    Args:
        tickets: tickets of the network.
        variants: variants by name.
        densities: densities of every prunable layer.
        effort: how much is measured.
        batch_size: number of images, 64 in the paper.
        device: device to measure on.
    """
    names = [name for name in tickets.layers if isinstance(tickets.network.get_submodule(name), nn.Conv2d)]
    setting = Setting(batch_size, training=False)
    rows = measure_layers(tickets, variants, densities, setting, effort, device, names, _SIZE)
    protocol = f"convolutions only, {_SIZE}x{_SIZE} inputs, batch {batch_size}, fp32, inference (the paper's)"
    sums = []
    for variant in variants:
        for density in densities:
            mine = [row for row in rows if (row.variant, row.density) == (variant, density)]
            if not mine:
                continue
            dense = sum(row.dense_milliseconds * len(row.layers) for row in mine)
            # A layer that is faster dense runs dense, as in the network.
            time = sum(min(row.milliseconds, row.dense_milliseconds) * len(row.layers) for row in mine)
            operations = _dense_operations(tickets, mine)
            kept = sum(whole / row.ideal for whole, row in zip(operations, mine, strict=True))
            sums.append(
                PaperMeasurement(protocol, variant, density, dense, time, 1 - time / dense, 1 - kept / sum(operations))
            )
    return sums


def _dense_operations(tickets: Tickets, rows: Sequence[LayerMeasurement]) -> list[int]:
    return [
        operations(tickets.network.get_submodule(row.layers[0]), tuple(row.input_shape)) * len(row.layers)
        for row in rows
    ]
