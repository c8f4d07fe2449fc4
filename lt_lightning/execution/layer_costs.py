"""What the layers of a network cost if they compute fewer channels, or blocks: operations, parameters, memory, time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, cast

import numpy as np
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor, nn

from lt_lightning.execution.cost import Setting, inputs_like, network_call
from lt_lightning.execution.execute import forms_of
from lt_lightning.execution.form_choice import input_shapes
from lt_lightning.execution.remembered import machine_facts, remember, remembered
from lt_lightning.execution.timing import Shape, interleaved, stopwatch, time_layers
from lt_lightning.pruning.evaluation import evaluating, forked_random
from lt_lightning.pruning.examples import call_network, copied, several, tensors_in
from lt_lightning.pruning.layers import Layer, why_not_plain
from lt_lightning.structures.channel_choice import Floats
from lt_lightning.structures.hybrid_choice import SHARES
from lt_lightning.structures.matrices import group_count
from lt_lightning.structures.plan import Block, BlockPlan, Granularity

COUNTED = ("flops", "params", "memory")
Counted = Literal["flops", "params", "memory"]

_BYTES = 4
_KEPT = 3  # of every weight a training step keeps its value, its gradient and its momentum


@dataclass(frozen=True)
class CountedCosts:
    """Costs that follow from shapes.

    Attributes:
        kind: `flops`: multiply-adds of a sample; `params`: weights; `memory`: bytes that a training step keeps.
        batch_size: number of samples, for `memory`.
    """

    kind: Counted
    batch_size: int = 1

    def dense(self, layer: Layer, outputs: Floats, inputs: Floats) -> Floats:
        """Return the cost of a layer that computes so many of its outputs and inputs; see `LayerCosts`."""
        return self._cost(layer, outputs, _weights(layer, outputs, inputs))

    def blocks(self, layer: Layer, outputs: Floats, inputs: Floats, group_size: int) -> Floats:
        """Return the cost of a layer in blocks that hold each of `SHARES` of what is left; see `LayerCosts`."""
        return self._cost(layer, outputs[:, None], _weights(layer, outputs, inputs)[:, None] * SHARES)

    def _cost(self, layer: Layer, outputs: Floats, weights: Floats) -> Floats:
        match self.kind:
            case "flops":
                return weights * layer.positions
            case "params":
                return weights
            case "memory":
                return _BYTES * (_KEPT * weights + outputs * layer.positions * self.batch_size)


def _weights(layer: Layer, outputs: Floats, inputs: Floats) -> Floats:
    """Return the number of weights of a layer with so many outputs and inputs."""
    if layer.groups > 1:  # a group's inputs go with its outputs
        return outputs * layer.size / layer.shape[layer.output_dim]
    return outputs * inputs * layer.size / (layer.shape[0] * layer.shape[1])


def memory(network: nn.Module, example: Tensor, batch_size: int) -> int:
    """Return the bytes that a training step keeps: weights, gradients and momentum, and tensors for its backward pass.

    Args:
        network: any module; it is left as it was.
        example: an input batch of the true shape.
        batch_size: number of samples of the step.

    >>> memory(nn.Linear(4, 2), torch.zeros(1, 4), batch_size=10)  # 10 weights, three times, and 40 inputs
    280
    """
    mine = copied(network)
    weights = {parameter.untyped_storage().data_ptr() for parameter in mine.parameters()}
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if (storage := tensor.untyped_storage()).data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with evaluating(mine):
        batch = several(mine, example)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = call_network(mine.train(), batch)
    del kept
    samples = len(next(iter(tensors_in(batch))))
    of_weights = sum(parameter.numel() * parameter.element_size() for parameter in mine.parameters())
    return _KEPT * of_weights + sum(saved.values()) * batch_size // samples


# Measured times

WIDTHS = (0.25, 0.5, 1.0)  # shares of outputs, and of inputs, at which a dense layer is timed
HELD = (0.125, 0.25, 0.5)  # shares of its weights that blocks hold when they are timed


@dataclass
class TimedCosts:
    """Seconds of layers, interpolated between measurements of this machine, which remembers them.

    What stands between the layers takes the rest of the network's time; it is shared out by the size of their outputs.

    Attributes:
        network: dense network.
        example: an input batch of the true shape.
        layers: its layers, by name.
        setting: what is timed.
        granularity: of blocks.
        device: device to measure on.
    """

    network: nn.Module
    example: Tensor
    layers: Mapping[str, Layer]
    setting: Setting
    granularity: Granularity
    device: str = "cpu"
    _tables: dict[str, RegularGridInterpolator] = field(default_factory=dict)
    _curves: dict[tuple[str, int], Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        timed = {name: module for name, layer in self.layers.items() if (module := self._module(layer)) is not None}
        shapes = input_shapes(self.network, list(timed), self.example)
        self._shapes = {name: shape for name, shape in shapes.items() if name in timed}
        self._modules = {name: timed[name] for name in self._shapes}
        asked = {"network": str(self.network), "input": list(self.example.shape[1:])}
        whole = self._seconds(asked, self._whole)["dense"]
        self._full = {name: float(self._table(name)((1.0, 1.0))) for name in self._modules}
        others = [layer for layer in self.layers.values() if layer.name not in self._modules]
        operations = sum(self.layers[name].size * self.layers[name].positions for name in self._modules)
        self._rate = sum(self._full.values()) / max(operations, 1)  # of layers that cannot be timed alone
        layers = sum(self._full.values()) + self._rate * sum(layer.size * layer.positions for layer in others)
        outputs = sum(layer.shape[layer.output_dim] * layer.positions for layer in self.layers.values())
        self._rest = max(whole - layers, 0.0) / outputs

    def dense(self, layer: Layer, outputs: Floats, inputs: Floats) -> Floats:
        """Return the time of a layer that computes so many of its outputs and inputs; see `LayerCosts`."""
        return self._alone(layer, outputs, inputs) + self._between(layer, outputs)

    def blocks(self, layer: Layer, outputs: Floats, inputs: Floats, group_size: int) -> Floats:
        """Return the time of a layer in blocks that hold each of `SHARES` of what is left; see `LayerCosts`."""
        alone = self._alone(layer, outputs, inputs)[:, None] * self._curve(layer.name, group_size)
        return alone + self._between(layer, outputs)[:, None]

    def _alone(self, layer: Layer, outputs: Floats, inputs: Floats) -> Floats:
        wide = layer.shape[1 - layer.output_dim] * (layer.groups if layer.output_dim == 0 else 1)
        shares = outputs / layer.shape[layer.output_dim], inputs / wide
        if layer.name not in self._modules:
            both = shares[0] * shares[1] if layer.groups == 1 else shares[0]
            return self._rate * layer.size * layer.positions * both
        if layer.groups > 1:
            shares = shares[0], shares[0]
        seconds: Floats = np.maximum(self._table(layer.name)(np.stack(shares, axis=-1)), 0.0)
        return seconds

    def _between(self, layer: Layer, outputs: Floats) -> Floats:
        return self._rest * layer.positions * outputs

    # What is measured

    def _module(self, layer: Layer) -> nn.Module | None:
        """Return the module of a layer, if it can be timed alone."""
        match dict(self.network.named_modules()).get(layer.name):
            case nn.Linear() as module if not why_not_plain(module):
                return module
            case nn.Conv2d() as module if not why_not_plain(module):
                depthwise = module.groups == module.in_channels == module.out_channels
                return module if module.groups == 1 or depthwise else None
            case _:
                return None

    def _table(self, name: str) -> RegularGridInterpolator:
        """Return the function that gives a layer's seconds for the shares of its outputs and inputs that are left."""
        if name not in self._tables:
            module, shape = self._modules[name], self._shapes[name]

            def measure() -> dict[str, float]:
                return self._timed({
                    f"{outputs} {inputs}": narrowed(module, shape, outputs, inputs)
                    for outputs, inputs in product(WIDTHS, WIDTHS)
                })  # fmt: skip

            seconds = self._seconds({"layer": str(module), "shape": list(shape), "widths": list(WIDTHS)}, measure)
            values = np.array([[seconds[f"{outputs} {inputs}"] for inputs in WIDTHS] for outputs in WIDTHS])
            self._tables[name] = RegularGridInterpolator((WIDTHS, WIDTHS), values, bounds_error=False, fill_value=None)
        return self._tables[name]

    def _curve(self, name: str, group_size: int) -> Floats:
        """Return the time of blocks at each of `SHARES`, over that of the dense layer."""
        if (name, group_size) not in self._curves:
            module, shape = self._modules[name], self._shapes[name]

            def measure() -> dict[str, float]:
                layers = {"dense": (module, shape)}
                for held in HELD:
                    blocks = some_blocks(module, self.granularity, group_size, held)
                    forms = forms_of(module, BlockPlan(self.granularity, {"": blocks}), "")
                    layers |= {f"{held} {form}": (layer, shape) for form, layer in forms.items()}
                return self._timed(layers)

            question = {"layer": str(module), "shape": list(shape), "granularity": self.granularity,
                        "group_size": group_size, "held": list(HELD)}  # fmt: skip
            seconds = self._seconds(question, measure)
            fastest = [
                min((time for form, time in seconds.items() if form.startswith(f"{held} ")), default=np.inf)
                for held in HELD
            ]
            self._curves[name, group_size] = _line(HELD, np.array(fastest) / seconds["dense"], SHARES)
        return self._curves[name, group_size]

    def _timed(self, layers: Mapping[str, tuple[nn.Module, Shape]]) -> dict[str, float]:
        how = (self.setting.batch_size, self.setting.training, self.setting.bfloat16, self.device)
        return {name: each.median for name, each in time_layers(layers, *how, samples=5, slot=0.01).items()}

    def _whole(self) -> dict[str, float]:
        images = inputs_like(self.example, self.setting, self.device)
        call = network_call(copied(self.network).to(self.device), images, self.setting)
        return {"dense": interleaved({"dense": call}, stopwatch(self.device), samples=5)["dense"].median}

    def _seconds(self, question: Mapping[str, object], measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Return what was measured: now, or by an earlier run on this machine."""
        asked = {**question, "setting": str(self.setting), **machine_facts(self.device)}
        if (known := remembered("times", asked)) is None:
            with forked_random(self.device):  # what is trained next is the same, measured or remembered
                known = measure()
            remember("times", asked, known)
        return known


def narrowed(module: nn.Module, shape: Shape, outputs: float, inputs: float) -> tuple[nn.Module, Shape]:
    """Return a layer with shares of a layer's outputs and inputs, and the shape of one sample of its input.

    Raises:
        TypeError: if the layer is neither linear nor a 2-D convolution.

    >>> narrowed(nn.Conv2d(8, 16, 3), (8, 5, 5), outputs=0.25, inputs=0.5)
    (Conv2d(4, 4, kernel_size=(3, 3), stride=(1, 1)), (4, 5, 5))
    """
    match module:
        case nn.Linear():
            count = _part(module.in_features, inputs)
            made: nn.Module = nn.Linear(count, _part(module.out_features, outputs), module.bias is not None)
            return made, (*shape[:-1], count)
        case nn.Conv2d():
            count = _part(module.in_channels, outputs if module.groups > 1 else inputs)
            groups = count if module.groups > 1 else 1
            into = count if module.groups > 1 else _part(module.out_channels, outputs)
            stride, padding, dilation = (cast(Any, each) for each in (module.stride, module.padding, module.dilation))
            kernel = cast(Any, module.kernel_size)
            made = nn.Conv2d(count, into, kernel, stride, padding, dilation, groups, module.bias is not None)
            return made, (count, *shape[1:])
    raise TypeError(f"{type(module).__name__}: only linear layers and 2-D convolutions are narrowed")


def _part(count: int, share: float) -> int:
    return max(1, round(share * count))


def some_blocks(module: nn.Module, granularity: Granularity, group_size: int, share: float) -> list[Block]:
    """Return blocks of a layer with random columns that hold a share of its weights, always the same."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    filters = len(weight)
    columns = weight.shape[1] if granularity == "input_channel" else weight[0].numel()
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(filters, generator=generator).view(group_count(filters, group_size), -1)
    count = _part(columns, share)
    return [
        Block(each.sort().values, torch.randperm(columns, generator=generator)[:count].sort().values) for each in rows
    ]


def _line(at: Sequence[float], values: Floats, wanted: Floats) -> Floats:
    """Interpolate between values, and extrapolate the first and the last two."""
    known = RegularGridInterpolator((at,), values, bounds_error=False, fill_value=None)
    line: Floats = np.maximum(known(wanted[:, None]), 0.0)
    return line
