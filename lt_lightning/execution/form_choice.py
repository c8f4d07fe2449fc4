"""Which form computes each layer: by a rule, as this machine remembers it, or by measuring.

Forms sum in different orders, so that the choice reaches the last bits of what is trained. Where PyTorch is to be
deterministic (`torch.use_deterministic_algorithms`, which `trainer.deterministic` sets) the choice follows from the
plan and the shapes alone, by `form_rule`. Else the fastest form is measured once for each processor, number of threads,
precision, layer and version of PyTorch, and remembered in the user's cache folder for all later runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from lt_lightning.execution.execute import DENSE_FORM, Forms, first_forms, forms_of, planned_layers
from lt_lightning.execution.form_rule import form_by_rule
from lt_lightning.execution.remembered import Question, machine_facts, remember, remembered
from lt_lightning.execution.shrink_channels import shrink_channels
from lt_lightning.execution.timing import Shape, time_layers
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.evaluation import evaluating
from lt_lightning.pruning.examples import Example, call_network, tensors_in
from lt_lightning.structures.plan import ChannelPlan, HybridPlan, NMPlan, Plan

DecidedBy = Literal["rule", "remembered", "measured"]


@dataclass(frozen=True)
class FormChoice:
    """What computes each layer of a plan.

    Attributes:
        forms: form by layer.
        decided_by: what decided it, by layer: the plan and a rule, a measurement of an earlier run on this machine, or
            one of this run.
    """

    forms: Mapping[str, str]
    decided_by: Mapping[str, DecidedBy]

    @classmethod
    def by_rule(cls, forms: Mapping[str, str]) -> FormChoice:
        """Return a choice that no measurement has part in."""
        return cls(forms, dict.fromkeys(forms, "rule"))


def choose_forms(
    network: nn.Module,
    plan: Plan | None,
    example: Example,
    batch_size: int | None = None,
    training: bool = False,
    device: str = "cpu",
    bfloat16: bool = False,
    traced: TracedNetwork | None = None,
) -> FormChoice:
    """Choose the form of every layer of a plan of blocks or of n:m weights; other plans leave no choice.

    Args:
        network: network with the ticket's values.
        plan: plan of the ticket.
        example: an input batch of the true shape.
        batch_size: number of images for which the fastest form is wanted, the dense layer included; None takes the
            first form of every layer that has one, in plain PyTorch if possible.
        training: whether training steps are to be fast, rather than inference.
        device: device that computes.
        bfloat16: whether it computes in bfloat16 rather than float32.
        traced: the network, or another of its kind, whose channels are known already.
    """
    if plan is None or isinstance(plan, ChannelPlan):
        return FormChoice({}, {})
    if isinstance(plan, HybridPlan):
        small = shrink_channels(network, plan.channels, example, traced).network
        return choose_forms(small, plan.blocks, example, batch_size, training, device, bfloat16)
    if isinstance(plan, NMPlan):
        if training or not bfloat16 or torch.device(device).type != "cuda":
            return FormChoice.by_rule(first_forms(network, plan))
    elif batch_size is None:
        return FormChoice.by_rule(first_forms(network, plan))
    forms = {name: forms_of(network, plan, name) for name in planned_layers(plan)}
    if batch_size is None or torch.are_deterministic_algorithms_enabled():
        return FormChoice.by_rule({
            name: form_by_rule(network.get_submodule(name), plan, name, list(of_layer), training)
            for name, of_layer in forms.items()
        })  # fmt: skip
    fastest = FastestForm(input_shapes(network, list(forms), example), batch_size, training, device, bfloat16)
    chosen = {name: fastest(name, network.get_submodule(name), of_layer) for name, of_layer in forms.items()}
    return FormChoice(
        {name: form for name, (form, _) in chosen.items()}, {name: by for name, (_, by) in chosen.items()}
    )


def input_shapes(network: nn.Module, names: Sequence[str], example: Example) -> dict[str, Shape]:
    """Return the shape of one sample of every named layer's input, at the network's true shapes."""
    shapes: dict[str, Shape] = {}
    with evaluating(network), ExitStack() as hooks:
        for name in names:

            def note(_: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], name: str = name) -> None:
                shapes[name] = tuple(next(tensors_in((inputs, named))).shape[1:])

            hooks.enter_context(network.get_submodule(name).register_forward_pre_hook(note, with_kwargs=True))
        call_network(network, example)
    return shapes


# The fastest form, measured once and remembered.


@dataclass
class FastestForm:
    """Finds the fastest form of a layer.

    Attributes:
        shapes: shape of one sample of each layer's input, by layer name.
        batch_size: number of samples.
        training: whether forward and backward are timed, or forward alone.
        device: device to measure on.
        bfloat16: precision, as `time_layers` explains.
    """

    shapes: Mapping[str, Shape]
    batch_size: int
    training: bool
    device: torch.device | str = "cpu"
    bfloat16: bool = False
    _known: dict[str, tuple[str, DecidedBy]] = field(default_factory=dict)

    def __call__(self, name: str, layer: nn.Module, forms: Forms) -> tuple[str, DecidedBy]:
        """Return the name of the fastest form, `DENSE_FORM` where that is the layer as it is, and what decided it."""
        if not forms:
            return DENSE_FORM, "rule"
        question = self._question(layer, forms, self.shapes[name])
        key = json.dumps(question, sort_keys=True)
        if key not in self._known:
            self._known[key] = self._found(question, layer, forms, self.shapes[name])
        return self._known[key]

    def _found(self, question: Question, layer: nn.Module, forms: Forms, shape: Shape) -> tuple[str, DecidedBy]:
        contenders = {DENSE_FORM: layer, **forms}
        if (known := remembered("forms", question)) and known.keys() == contenders.keys():
            return _fastest(known), "remembered"
        seconds = self._measure(contenders, shape)
        known = remembered("forms", question)  # by another process meanwhile
        if known and known.keys() == contenders.keys():
            return _fastest(known), "remembered"
        remember("forms", question, seconds)
        return _fastest(seconds), "measured"

    def _measure(self, contenders: Forms, shape: Shape) -> dict[str, float]:
        layers = {name: (form, shape) for name, form in contenders.items()}
        timings = time_layers(layers, self.batch_size, self.training, self.bfloat16, self.device, samples=5, slot=0.01)
        return {name: timing.median for name, timing in timings.items()}

    def _question(self, layer: nn.Module, forms: Forms, shape: Shape) -> Question:
        """Return all that the answer depends on."""
        return {
            "layer": str(layer),
            "forms": {name: str(form) for name, form in forms.items()},
            "shape": list(shape),
            "batch_size": self.batch_size,
            "training": self.training,
            "bfloat16": self.bfloat16,
            **machine_facts(self.device),
        }


def _fastest(seconds: Mapping[str, float]) -> str:
    return min(seconds, key=lambda name: seconds[name])
