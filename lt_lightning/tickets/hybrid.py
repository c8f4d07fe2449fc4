"""A structure that is asked for a time, or another cost, and chooses channels and blocks that meet it."""

from __future__ import annotations

import glob
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from lt_lightning.execution.cost import Setting, flops, parameters, time_ratio
from lt_lightning.execution.execute import execute
from lt_lightning.execution.form_choice import choose_forms
from lt_lightning.execution.layer_costs import COUNTED, Counted, CountedCosts, TimedCosts, memory
from lt_lightning.execution.shrink_channels import keep_channels
from lt_lightning.network_graph.graph import Liveness
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.examples import copied, map_tensors
from lt_lightning.pruning.layers import Layer
from lt_lightning.pruning.masks import Masks, count_kept
from lt_lightning.structures.base import (
    Form,
    LayerReport,
    Structure,
    StructureInput,
    StructureResult,
    retained_magnitude,
)
from lt_lightning.structures.channel_choice import (
    ChannelChoice,
    Coupling,
    Floats,
    channel_masks,
    channel_plan,
    executed_weights,
)
from lt_lightning.structures.clustering import Method
from lt_lightning.structures.hybrid_choice import SHARES, HybridChoice, LayerCosts, Solution, masses_of
from lt_lightning.structures.matrices import matrices_of
from lt_lightning.structures.plan import (
    BlockPlan,
    ChannelPlan,
    Granularity,
    HybridPlan,
    Plan,
    blocks_in_full,
    masks_of_blocks,
)
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup

Of = Literal["inference", "training"]
Part = Literal["channels", "blocks"]

_ATTEMPTS = 6
_NEAR, _WRONG, _NARROW = 0.02, 0.05, 0.002  # parts of what was asked
_EFFORT = (9, 0.05, 0.05)  # turns, their seconds, and the spread above which a time is measured again


@dataclass(frozen=True)
class Hybrid(Structure):
    """Keeps channels of some layers and blocks of others, as many as a budget of the whole network allows.

    For every group of channels it chooses how many are kept, and for every layer whether it computes all of what is
    left or blocks of it, so that the product, over the layers, of the shares of surviving magnitude that are retained
    is large; see `HybridChoice`. The round's mask says which weights survive, and not how many are kept. The network
    that comes out is measured, and the choice is corrected until it has what was asked for.

    Attributes:
        budget: `time:0.5` is half of the dense network's time, on the machine and with the number of threads that
            structure the mask; likewise `flops:0.5`, `params:0.5` and `memory:0.5` (bytes that a training step keeps;
            see `layer_costs.memory`).
        of: whether the time of `inference` or of a `training` step is meant.
        batch_size: number of samples of that, and of `memory`.
        bfloat16: whether it computes in bfloat16.
        device: device that is measured; `auto`: a GPU where there is one.
        parts: what may be left out: `channels`, `blocks`, or both.
        coupling: which channels are chosen together; see `Refill`.
        round_to: number of which kept channels are multiples; see `Refill`.
        granularity: what a column of a block is; see `Regroup`.
        group_size: least number of filters in a group of blocks, or several, of which each layer takes one.
        clustering: method that finds the groups; see `clustering.cluster`.
        seed: seed of the clustering.

    Raises:
        ValueError: on construction, for a value out of range; on the call, if nothing meets the budget.
    """

    budget: str
    of: Of = "inference"
    batch_size: int = 128
    bfloat16: bool = False
    device: str = "auto"
    parts: Sequence[Part] = ("channels", "blocks")
    coupling: Coupling = "stream"
    round_to: int = 16
    granularity: Granularity = "kernel_position"
    group_size: int | Sequence[int] = 32
    clustering: Method = "best"
    seed: int = 0

    needs_batches: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self._asked()
        for name, allowed in (("of", Of), ("coupling", Coupling), ("granularity", Granularity), ("clustering", Method)):
            if getattr(self, name) not in get_args(allowed):
                raise ValueError(f"{name}={getattr(self, name)!r}: must be one of {', '.join(get_args(allowed))}")
        for name in ("batch_size", "round_to"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not self.parts or not set(self.parts) <= set(get_args(Part)):
            raise ValueError(f"parts={list(self.parts)}: must be channels, blocks, or both")
        if min(self._group_sizes, default=0) < 1:
            raise ValueError(f"group_size={self.group_size}: must be at least 1")

    def _asked(self) -> tuple[str, float]:
        """Return the kind of the budget and its share."""
        kind, _, number = str(self.budget).partition(":")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        kinds = ("time", *COUNTED)
        if kind not in kinds or not 0 < share <= 1:
            raise ValueError(
                f"budget={self.budget!r}: must be a cost and a share of it in (0, 1], such as time:0.5; costs are "
                f"{', '.join(kinds)}"
            )
        return kind, share

    @property
    def _group_sizes(self) -> list[int]:
        return [self.group_size] if isinstance(self.group_size, int) else list(self.group_size)

    @property
    def _device(self) -> str:
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    def check(self, traced: TracedNetwork) -> None:
        """Look whether the budget can be measured, and channels may be dropped.

        Raises:
            ValueError: if a time is asked for where nothing may depend on the clock, if the network takes anything but
                one tensor, or if no channel may be dropped and blocks are not wanted.
        """
        if self._asked()[0] == "time" and torch.are_deterministic_algorithms_enabled():
            raise ValueError(
                f"budget={self.budget!r}: a measured time decides, and nothing deterministic may depend on "
                "that; ask for flops, params or memory, or do without deterministic"
            )
        if not isinstance(traced.example, Tensor):
            raise ValueError(f"budget={self.budget!r}: needs a network of one tensor, to measure it")
        if "blocks" not in self.parts:
            Refill(coupling=self.coupling).check(traced)

    def __call__(self, given: StructureInput) -> StructureResult:
        """Structure one round's mask.

        Raises:
            ValueError: if the budget cannot be met.
        """
        kind, asked = self._asked()
        # 1. Price what layers cost at any number of channels, and in blocks.
        network, example = _on_the_cpu(given)
        costs = self._costs(kind, network, example, given.layers)
        # 2. Choose the channels and blocks that retain most within the budget.
        choice = HybridChoice(self._channels(given), given.layers, masses_of(given), self._curves(given), costs)
        # 3. Make that network and look what it costs; correct the limit by what it was wrong, until it is met.
        tried: list[tuple[float, Solution]] = []
        low, limit, high = 0.0, asked, math.inf  # limits below and above: their networks cost too little, too much
        while len(tried) < _ATTEMPTS and high - low > _NARROW * asked:
            solution = choice.within(limit * choice.whole.cost)
            share = next((share for share, other in tried if other == solution), None)
            if share is None:
                # Which filters a group has does not change what it costs.
                sketch = self._structured(given, network, choice, solution, "random")
                share = self._share(kind, network, example, sketch, given.traced)
                tried.append((share, solution))
            if abs(share - asked) <= _NEAR * asked:
                break
            low, high = (low, limit) if share > asked else (limit, high)
            corrected = limit * asked / share
            limit = corrected if low < corrected < high else (low + high) / 2
        met = [each for each in tried if each[0] <= asked * (1 + _WRONG)]
        if not met:
            least = min(share for share, _ in tried)
            raise ValueError(
                f"budget={self.budget!r}: {least:.2f} of the dense network's {kind} is the least that is left"
            )
        share, solution = min(met, key=lambda each: abs(each[0] - asked))
        if share < asked * (1 - _WRONG):
            warnings.warn(
                f"budget={self.budget!r}: the ticket has {share:.2f} of the dense network's {kind}; the choices near "
                f"{asked:.2f} were dearer",
                stacklevel=2,
            )
        return self._structured(given, network, choice, solution, self.clustering)

    # What there is to choose from

    def _channels(self, given: StructureInput) -> ChannelChoice | None:
        """Return the groups of channels, ranked as refill does; None if none may be dropped."""
        if "channels" not in self.parts:
            return None
        try:
            return Refill(coupling=self.coupling, round_to=self.round_to).choose(given)
        except ValueError:
            if "blocks" in self.parts:
                return None
            raise

    def _curves(self, given: StructureInput) -> dict[str, dict[int, Floats]]:
        """Return what layers retain in blocks of each of `SHARES`, by group size, by name."""
        if "blocks" not in self.parts:
            return {}
        return {
            matrix.layer.name: {
                size: self._regroup(size, self.clustering).retained(matrix, given, SHARES.tolist())
                for size in self._group_sizes
            }
            for matrix in matrices_of(given, self.granularity)
        }

    def _regroup(self, group_size: int | dict[str, int], clustering: Method) -> Regroup:
        return Regroup(self.granularity, group_size, clustering, seed=self.seed)

    def _costs(self, kind: str, network: nn.Module, example: Tensor, layers: Mapping[str, Layer]) -> LayerCosts:
        if kind != "time":
            return CountedCosts(cast(Counted, kind), self.batch_size)
        return TimedCosts(network, example, layers, self._setting, self.granularity, self._device)

    @property
    def _setting(self) -> Setting:
        return Setting(self.batch_size, self.of == "training", self.bfloat16)

    # The network of a choice

    def _share(
        self, kind: str, network: nn.Module, example: Tensor, result: StructureResult, traced: TracedNetwork
    ) -> float:
        """Return what the network that executes a result costs, over what the dense one does."""
        if result.plan is None:
            return 1.0
        setting = self._setting
        batch_size = self.batch_size if kind == "time" else None
        how = (batch_size, setting.training, self._device, self.bfloat16, traced)
        choice = choose_forms(network, result.plan, example, *how)
        small = execute(network, result.plan, result.masks, example, choice.forms, traced)
        assert small is not None
        match kind:
            case "time":
                return time_ratio(network, small.network, example, setting, self._device, *_EFFORT).ratio
            case "flops":
                return flops(small.network, example) / flops(network, example)
            case "params":
                return parameters(small.network) / parameters(network)
            case _:
                return memory(small.network, example, self.batch_size) / memory(network, example, self.batch_size)

    def _structured(
        self, given: StructureInput, network: nn.Module, choice: HybridChoice, solution: Solution, clustering: Method
    ) -> StructureResult:
        """Return masks, reports and plan of a choice."""
        liveness = choice.liveness(solution) or given.graph.propagate({})
        small = keep_channels(network, given.graph, liveness)
        left = StructureInput(
            TracedNetwork(small.network, map_tensors(given.traced.example, Tensor.cpu)),
            small.slices.take_known(given.masks),
            small.slices.take_known(given.weights),
        )
        forms = {name: form for name, form in solution.forms.items() if form.group_size}
        sizes = {glob.escape(name): form.group_size for name, form in forms.items()}
        shares = {name: float(SHARES[form.share]) for name, form in forms.items()}
        rest = self._regroup(sizes, clustering).in_blocks(left, shares)
        masks = dict(channel_masks(given, liveness))
        plan = _plan(channel_plan(liveness), rest.plan)
        if isinstance(plan, HybridPlan | BlockPlan):
            shapes = {name: mask.shape for name, mask in given.masks.items()}
            masks |= masks_of_blocks(blocks_in_full(plan, shapes) if isinstance(plan, HybridPlan) else plan, shapes)
        reports = {
            # An attention with fewer heads is no layer of what is left.
            name: _report(layer, given, masks, liveness, rest.layers.get(name, _dense(layer)))
            for name, layer in given.layers.items()
        }
        return StructureResult(masks, reports, plan)


def _on_the_cpu(given: StructureInput) -> tuple[nn.Module, Tensor]:
    """Return a copy of the network with the given values, and its example, both on the CPU."""
    network = copied(given.network).cpu()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(given.weights[name])
    example = given.traced.example
    assert isinstance(example, Tensor)
    return network, example.cpu()


def _plan(channels: ChannelPlan, blocks: Plan | None) -> Plan | None:
    dropped = bool(channels.outputs or channels.inputs)
    if isinstance(blocks, BlockPlan):
        return HybridPlan(channels, blocks) if dropped else blocks
    return channels if dropped else None


def _dense(layer: Layer) -> LayerReport:
    return LayerReport(layer.size, layer.size, layer.size, layer.size, layer.positions, "dense")


def _report(layer: Layer, given: StructureInput, masks: Masks, liveness: Liveness, rest: LayerReport) -> LayerReport:
    """Return the report of a layer, given that of what is left of it."""
    before, after = given.masks.get(layer.weight), masks.get(layer.weight)
    left = int(executed_weights(layer, liveness))
    form: Form = rest.form if rest.form in ("blocks", "unstructured") else "channels" if left < layer.size else "dense"
    kept = layer.size if after is None else count_kept(after)
    return LayerReport(
        size=layer.size,
        target=layer.size if before is None else count_kept(before),
        kept=kept,
        executed=rest.executed if form == "blocks" else left,
        positions=layer.positions,
        form=form,
        retained_magnitude=1.0
        if before is None or after is None or kept == layer.size
        else retained_magnitude(given.weights[layer.weight], before, after),
        note=rest.note if before is not None else "",
    )
