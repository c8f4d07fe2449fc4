"""One call for a trained model without a search: the smaller network of it, what went and what stayed, and its file."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor, nn

from lt_lightning.execution.cost import flops, parameters
from lt_lightning.execution.execute import execute
from lt_lightning.execution.shrink_channels import Shrunk, Slices, follow_plan
from lt_lightning.network_graph.compare import compare_networks
from lt_lightning.network_graph.graph import ChannelGraph
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.enforcement import EnforcedMasks
from lt_lightning.pruning.examples import Example, copied
from lt_lightning.pruning.layers import ROLES, Layer, full_masks, matches
from lt_lightning.pruning.masks import Masks, size
from lt_lightning.pruning.selection import prune
from lt_lightning.structures.base import LayerReport, Structure, StructureInput, StructureResult
from lt_lightning.structures.channel_choice import ChannelChoice, ChannelStructure
from lt_lightning.structures.filters import Filters
from lt_lightning.structures.plan import ChannelPlan, HybridPlan, Plan, check_plan, plan_from_json, plan_to_json
from lt_lightning.tickets.card_file import RefusedError, check_digest, check_fit, read_card_file, write_card_file
from lt_lightning.tickets.hybrid import Hybrid

Budget = Literal["parameters", "flops", "time", "memory"]

SCHEMA = 1
_WIDTH = 80  # columns of the table
_NEAR = 0.005  # a search for a density ends when its share is this near below the one asked for, as a part of it
_ATTEMPTS = 14


@dataclass(frozen=True)
class Change:
    """A number before and after.

    >>> str(Change(4096, 1024)), str(Change(1, 1))
    ('4,096 -> 1,024', '1')
    """

    before: int
    after: int

    @property
    def share(self) -> float:
        """The share that is left; 1 if there was nothing before."""
        return self.after / self.before if self.before else 1.0

    def __str__(self) -> str:
        return f"{self.before:,}" if self.before == self.after else f"{self.before:,} -> {self.after:,}"


@dataclass(frozen=True)
class ShrunkLayer:
    """What became of a layer.

    Attributes:
        name: its name in the model.
        outputs: number of its outputs.
        units: number of what was chosen among: outputs, or wholes that several of them make, such as attention heads.
        weights: number of its weights that are computed with.
        why: why all of its outputs stayed, if there is a reason besides the choice.
    """

    name: str
    outputs: Change
    units: Change
    weights: Change
    why: str


@dataclass(frozen=True, eq=False, repr=False)
class ShrunkNetwork:
    """A smaller network, and what it came from. Printed, it is a table.

    Attributes:
        network: a module of the model's class that can be trained, compiled and exported as any other.
        layers: what became of every layer, in the order in which they run.
        params: number of parameters.
        flops: floating-point operations for the example, two for a multiply-add.
        slices: where the network's values stand in the full model: `model.load_state_dict(slices.put(
            network.state_dict(), model.state_dict()))` makes that a model of full size that computes the same.
        plan: what is computed.
        choice: form of each layer that computes blocks; see `execution.form_choice.choose_forms`.
        full: type and shape of every parameter and buffer of the full model, in words, by name.
    """

    network: nn.Module
    layers: tuple[ShrunkLayer, ...]
    params: Change
    flops: Change
    slices: Slices
    plan: Plan
    choice: Mapping[str, str]
    full: Mapping[str, str]

    def table(self) -> str:
        """Return a table, of 80 columns, of what became of every layer, and the reasons for which some stayed whole."""
        rows = [_columns("layer", "outputs", "units", "weights")]
        for layer in self.layers:
            units = "" if layer.units == layer.outputs else str(layer.units)
            rows.append(_columns(layer.name, str(layer.outputs), units, f"{layer.weights.share:.0%}"))
        reasons: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.why:
                reasons.setdefault(layer.why, []).append(layer.name)
        if reasons:
            rows += ["", "Layers that stayed whole, and why:"]
        for why, names in reasons.items():
            told = f"- {why}: {', '.join(names)}"
            rows += textwrap.wrap(told, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
        return "\n".join(rows)

    def __repr__(self) -> str:
        """Return the totals and the table."""
        totals = (("parameters", self.params), ("operations", self.flops))
        told = [f"{name}: {change} ({change.share:.1%})" for name, change in totals]
        return "\n".join([type(self.network).__name__, *told, "", self.table()])

    def save(self, path: Path | str) -> None:
        """Write the network's present values and its plan as one safetensors file, for `load_shrunk`.

        Args:
            path: where to write; `.safetensors` is added if it is missing.
        """
        card = {
            "shrunk": SCHEMA,
            "plan": plan_to_json(self.plan),
            "choice": dict(self.choice),
            "full": dict(self.full),
            "layers": [asdict(layer) for layer in self.layers],
            "params": asdict(self.params),
            "flops": asdict(self.flops),
        }
        write_card_file(path, self.network.state_dict(), card)


def _columns(name: str, outputs: str, units: str, weights: str) -> str:
    numbers = f"{outputs:>15}{units:>10}{weights:>9}"
    most = _WIDTH - len(numbers)
    return f"{name if len(name) <= most else '…' + name[1 - most :]:<{most}}{numbers}"


# From a model


def shrink(
    model: nn.Module,
    example: Example,
    keep: float | Mapping[str, float] = 0.5,
    *,
    of: Budget = "parameters",
    ignore: Sequence[str] = (),
    structure: Structure | None = None,
) -> ShrunkNetwork:
    """Make a smaller network of a trained model: it computes what the model does with the weakest channels at zero.

    The result needs some training before it is as accurate as the model: `shrink` chooses by the weights alone.

    Args:
        model: any module; it is left as it was.
        example: one batch of the true shape: a tensor, a tuple of arguments, or a dict of named ones.
        keep: what is to be left, in (0, 1]. A number is a share of the whole model, by parameters or by operations:
            the smaller network has no more, and nearly as much. A dict has shares of the layers' outputs (channels,
            heads) by pattern of layer name, such as `{"layer1.*": 0.75, "*": 0.5}`; the first pattern that matches
            counts. Outputs that several layers write together, as those of a residual stream, keep the largest share
            that is asked for one of these layers; where nothing is asked, all stay.
        of: what a number in `keep` is a share of: `parameters`, or `flops` for the example; or, of 128 samples, `time`
            in inference, measured here, or `memory` of a training step, for which `Hybrid` chooses.
        ignore: layers that keep all of their outputs: patterns of names (`encoder.layers.0.*`), or `stem`,
            `classifier`, `depthwise`, `linear`. They lose the inputs that nobody writes any more.
        structure: says what can be left out and how it is scored; `Filters()` if None: whole channels and heads by the
            mean magnitude of their weights, the same share of every group. `Filters(scope="global")` compares them over
            the network, `Filters(coupling="inner")` leaves residual streams whole, `Filters(round_to=8)` keeps
            multiples of eight. `Refill` and `Regroup` are given a mask of the largest weights. `Hybrid` has a budget of
            its own, and `keep` does not count.

    Raises:
        ValueError: if the model does not run on the example, nothing of it can be left out, or an argument is not
            possible.
        RuntimeError: if the smaller network does not compute the same.

    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    >>> small = shrink(model, torch.zeros(1, 1, 8, 8), keep={"*": 0.5})
    >>> small.network[2]
    Conv2d(8, 8, kernel_size=(3, 3), stride=(1, 1))
    >>> small.params
    Change(before=3060, after=956)
    """
    if of not in get_args(Budget):
        raise ValueError(f"of={of!r}: must be one of {', '.join(get_args(Budget))}")
    traced = TracedNetwork(model, example)
    _check_patterns("ignore", ignore, traced)
    for group in traced.graph.groups:
        if found := [each for name in group.rows for each in _matching(name, traced, ignore)]:
            traced.graph.freeze(group, f"ignore={found[0]!r}")
    given = _given(traced, ignore)
    if of in ("time", "memory"):
        structure = structure or Hybrid(f"{of}:{_checked(keep, f'keep={keep!r}')}")
        if not isinstance(structure, Hybrid):
            raise ValueError(f"of={of!r}: needs Hybrid, and {structure} counts no {of}")
    structure = structure or Filters()
    if isinstance(structure, Hybrid):  # which has a budget of its own
        structure.check(traced)
        structured = structure(given)
    elif isinstance(keep, Mapping):
        structured = _by_layer(given, keep, structure)
    else:
        structured = _within(given, _checked(keep, f"keep={keep!r}"), of, structure)
    return _follow(traced, _plan_of(structured, structure), structured.masks, structured.layers)


def _given(traced: TracedNetwork, ignore: Sequence[str]) -> StructureInput:
    """Return the model's layers, under masks that keep everything, as structures are given them."""
    state = {name: value.detach().cpu() for name, value in traced.network.state_dict().items()}
    layers = [layer for name, layer in traced.layers.items() if not (layer.tied_to or _matching(name, traced, ignore))]
    if not layers:
        raise ValueError(f"ignore={list(ignore)}: leaves no layer of the model to shrink ({', '.join(traced.layers)})")
    return StructureInput(traced, full_masks(layers), state)


def _plan_of(structured: StructureResult, structure: Structure) -> Plan:
    if structured.plan is None:
        raise ValueError(f"structure={structure}: leaves nothing out: take Filters, Refill or Regroup")
    return structured.plan


def _checked(share: Any, told: str) -> float:
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError(f"{told}: must be a share in (0, 1]")
    return share


def _check_patterns(argument: str, patterns: Sequence[str], traced: TracedNetwork) -> None:
    if isinstance(patterns, str):
        raise ValueError(f"{argument}={patterns!r}: must be a list of patterns")
    names = list(dict.fromkeys([*traced.layers, *traced.graph.rows]))
    for pattern in patterns:
        if not any(_matching(name, traced, [pattern]) for name in names):
            raise ValueError(
                f"{argument}={list(patterns)}: {pattern!r} is neither a role ({', '.join(ROLES)}) nor matches a layer "
                f"of the model ({', '.join(names)})"
            )


def _matching(name: str, traced: TracedNetwork, patterns: Sequence[str]) -> list[str]:
    """Return the patterns that match a layer, or whatever else writes channels, such as an embedding."""
    layer: Layer | None = traced.layers.get(name)
    return [each for each in patterns if (matches(layer, each) if layer else fnmatchcase(name, each))]


def _by_layer(given: StructureInput, keep: Mapping[str, float], structure: Structure) -> StructureResult:
    """Keep shares of the layers' outputs."""
    if not isinstance(structure, ChannelStructure):
        raise ValueError(f"keep={dict(keep)}: needs a structure that keeps channels, and {structure} does not")
    for pattern, share in keep.items():
        _checked(share, f"keep[{pattern!r}]={share!r}")
    _check_patterns("keep", list(keep), given.traced)
    choice: ChannelChoice = structure.choose(given)
    counts = []
    for group in choice.groups:
        found = [_matching(name, given.traced, list(keep)) for name in group.rows]
        share = max((keep[patterns[0]] for patterns in found if patterns), default=1.0)
        counts.append(group.rounded(share * group.channels))
    return choice.result(counts)


def _within(given: StructureInput, keep: float, of: Budget, structure: Structure) -> StructureResult:
    """Keep as much as there is room for within a share of the model's parameters or operations.

    A search finds the density that structures are given, since what a model has besides the layers that are pruned, and
    what a structure makes of a density, are its own.
    """
    measure: Callable[[nn.Module], int] = (
        parameters if of == "parameters" else lambda network: flops(network, given.traced.example)
    )
    whole = measure(given.network)
    magnitudes = {name: given.weights[name].abs() for name in given.masks}

    def attempt(density: float) -> tuple[float, StructureResult]:
        masks = prune(given.masks, magnitudes, max(density, 1 / size(given.masks)))
        structured = structure(StructureInput(given.traced, masks, given.weights))
        small = _executed(given.network, given.traced, _plan_of(structured, structure), structured.masks)
        return measure(small.network) / whole, structured

    best: tuple[float, StructureResult] | None = None
    low, high = (0.0, 0.0), (1.0, 1.0)  # densities and shares between which the share asked for lies
    density = keep
    for number in range(_ATTEMPTS):
        share, structured = attempt(density)
        if share > keep:
            high = density, share
        else:
            low = density, share
            best = (share, structured) if best is None or share > best[0] else best
            if share >= keep * (1 - _NEAR):
                break
        part = (keep * (1 - _NEAR / 2) - low[1]) / (high[1] - low[1]) if number % 2 == 0 else 0.5
        density = low[0] + part * (high[0] - low[0])
    if best is None:
        best = attempt(0.0)
    if best[0] > keep:
        raise ValueError(
            f"keep={keep}: {best[0]:.3f} of the model's {of} is the least that {structure} leaves; what stays whole: "
            f"{_what_stays(given.graph)}"
        )
    return best[1]


def _what_stays(graph: ChannelGraph) -> str:
    reasons = {group.frozen: group.writers[0] for group in graph.groups if group.frozen}
    return "; ".join(f"{name} ({why})" for why, name in reasons.items()) or "one channel of each layer"


# From a plan


def shrink_to_plan(
    masked: nn.Module, plan: Plan, masks: Masks, reports: Mapping[str, LayerReport], example: Example
) -> ShrunkNetwork:
    """Make the smaller network that a ticket executes.

    Args:
        masked: network with the ticket's values.
        plan: plan of the ticket.
        masks: its masks.
        reports: what the structure said of each layer.
        example: one batch of the true shape.

    Raises:
        ValueError: if the network does not run on the example, or the plan does not fit it.
        RuntimeError: if the smaller network does not compute the same.
    """
    return _follow(TracedNetwork(masked, example), plan, masks, reports)


def _follow(traced: TracedNetwork, plan: Plan, masks: Masks, reports: Mapping[str, LayerReport]) -> ShrunkNetwork:
    masked = _masked(traced.network, masks)
    shrunk = _executed(masked, traced, plan, masks)
    compare_networks(masked, shrunk.network, traced.example)
    return ShrunkNetwork(
        shrunk.network,
        tuple(_layers(traced, plan, reports, shrunk)),
        Change(parameters(masked), parameters(shrunk.network)),
        Change(flops(masked, traced.example), flops(shrunk.network, traced.example)),
        shrunk.slices,
        plan,
        shrunk.choice,
        _described(masked.state_dict()),
    )


def _masked(network: nn.Module, masks: Masks) -> nn.Module:
    masked = copied(network)
    EnforcedMasks(masked, masks).zero_weights()
    return masked


def _executed(
    network: nn.Module, traced: TracedNetwork, plan: Plan, masks: Masks, choice: Mapping[str, str] | None = None
) -> Shrunk:
    """Make the network that a plan describes, with copies of the values that `network` has."""
    shrunk = execute(network, plan, masks, traced.example, choice, traced)
    assert shrunk is not None
    return shrunk


def _layers(traced: TracedNetwork, plan: Plan, reports: Mapping[str, LayerReport], shrunk: Shrunk) -> list[ShrunkLayer]:
    channels = plan.channels if isinstance(plan, HybridPlan) else plan
    if not isinstance(channels, ChannelPlan):
        return [_of_blocks(traced.layers[name], report) for name, report in reports.items() if name in traced.layers]
    graph = traced.graph
    liveness = follow_plan(graph, channels)
    in_blocks = plan.blocks.blocks if isinstance(plan, HybridPlan) else {}
    full, small = (dict(each.named_parameters(remove_duplicate=False)) for each in (traced.network, shrunk.network))
    layers = []
    for name, part in graph.rows.items():
        kept = liveness.kept[part]
        groups = [group for group in graph.groups if name in group.rows]
        units = [len(np.unique(rows[kept & (rows >= 0)])) for rows in (group.rows[name] for group in groups)]
        outputs = Change(part.size, int(kept.sum()))
        left = reports[name].executed if name in in_blocks else small[part.parameter].numel()
        weights = Change(full[part.parameter].numel(), left)
        why = "; ".join(dict.fromkeys(group.frozen for group in groups if group.frozen))
        chosen = Change(sum(group.channels for group in groups), sum(units))
        layers.append(ShrunkLayer(name, outputs, chosen, weights, why if outputs.before == outputs.after else ""))
    return layers


def _of_blocks(layer: Layer, report: LayerReport) -> ShrunkLayer:
    outputs = Change(layer.shape[layer.output_dim], layer.shape[layer.output_dim])
    return ShrunkLayer(layer.name, outputs, outputs, Change(report.size, report.executed), report.note)


# From a file


def load_shrunk(path: Path | str, model: nn.Module, example: Example) -> ShrunkNetwork:
    """Make the smaller network again that was saved. Nothing of the file is executed.

    Args:
        path: file that `ShrunkNetwork.save` wrote.
        model: the full model, newly made: its values do not matter, and it is left as it was.
        example: one batch of the true shape, as for `shrink`.

    Raises:
        FileNotFoundError: if there is no file.
        ValueError: in one line, if the file is damaged or altered, or the model is another one than was shrunk.
    """

    tensors, card, plan = read_card_file(path, "shrunk network", _parse)
    check_fit(f"file {path}", model, _described(model.state_dict()), card["full"])
    check_plan(plan, {name: value.shape for name, value in model.state_dict().items()})
    shrunk = _executed(model, TracedNetwork(model, example), plan, {}, card["choice"])
    check_fit(f"file {path}", shrunk.network, _described(shrunk.network.state_dict()), _described(tensors))
    shrunk.network.load_state_dict(tensors)
    layers = (ShrunkLayer(**_with_changes(values)) for values in card["layers"])
    totals = Change(**card["params"]), Change(**card["flops"])
    return ShrunkNetwork(shrunk.network, tuple(layers), *totals, shrunk.slices, plan, card["choice"], card["full"])


def _parse(tensors: dict[str, Tensor], card: Any) -> tuple[dict[str, Tensor], dict[str, Any], Plan]:
    schema = card.get("shrunk") if isinstance(card, dict) else None
    if schema != SCHEMA:
        raise RefusedError(f"is no shrunk network that this version reads: its schema is {schema}, not {SCHEMA}")
    check_digest(tensors, card)
    plan = plan_from_json(card["plan"])
    if plan is None:
        raise ValueError("it has no plan")
    return tensors, card, plan


def _with_changes(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: Change(**value) if isinstance(value, dict) else value for key, value in values.items()}


def _described(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return type and shape of every tensor.

    >>> import torch
    >>> _described({"bias": torch.zeros(3)})
    {'bias': 'float32 (3,)'}
    """
    return {name: f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}" for name, value in state.items()}
