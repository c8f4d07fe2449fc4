"""The ticket: masks, values to restart from, trained weights, and a card that says what was run; and its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, cast, get_args

import torch
from torch import Tensor, nn

from lt_lightning.pruning.examples import Example, copied
from lt_lightning.pruning.masks import Masks, digest, pack, unpack
from lt_lightning.storage.files import write_json
from lt_lightning.structures.base import Form, LayerReport
from lt_lightning.structures.plan import Plan, check_plan, plan_from_json, plan_to_json
from lt_lightning.tickets.card_file import RefusedError, check_digest, check_fit, read_card_file, write_card_file
from lt_lightning.tickets.shrinking import ShrunkNetwork, shrink_to_plan

SCHEMA = 2
Values = Literal["rewind", "trained"]


class Card(TypedDict, total=False):
    """The card of a ticket: what was run. Every ticket has the first five; whoever makes tickets may add facts.

    Attributes:
        structure: `dense`, `unstructured`, or the name of the structure.
        target_density: see `making.Ratios`, as for `density`, `params_ratio` and `flops_ratio`.
        prunable: names of the layers that are pruned.
        mask_digest: digest of the masks.
        round: round of the search.
        rewind: step that the search rewinds to.
        mode: what goes back to that step.
        data: name of the data set.
        model: name of the network.
        seed: seed of the search.
        epochs: number of epochs of the training.
        total_epochs: number of epochs that the ticket and its ancestors were trained: those tickets that its masks and
            its values to restart from follow from, in their search and alone.
        best_epoch: best epoch of the ticket's training.
        metrics: metrics of the validation in that epoch.
        train_seconds: duration of the training.
        execution: whether the ticket was trained `shrunk` or `masked`.
        choice: which form computes each layer.
        decided_by: what decided that form: `rule`, `remembered` or `measured`; see `execution.form_choice.FormChoice`.
        distillation: share and temperature of the soft labels in its training, if there were any; see
            `training.distillation.Distillation`.
        copies: number of its trainings in other data orders, if there were several; see `experiment.run.averaging`.
        barrier: highest error barrier between two of these.
        averaged: whether its weights are the mean of theirs, or those of the best.
        left_dense: layers that run dense although the plan has a structure for them.
        kept_whole: operations that the analysis does not know, whose channels are kept.
        control: which control of a ticket it is.
        control_seed: seed of the control's values and permutations.
        width: width of the network, if it is another than the search's.
        origin: data set whose search found the masks.
        environments: versions and device of all that took part in its training.
        transferred_from: search, data, model, seed and round of a transferred ticket, and what was initialised anew.
        group_penalty: strength of the group lasso in its training, if there was any.
        first_epoch: number of epochs that its ancestors were trained, where its training goes on from theirs.
        cycles: number of trainings that its training consists of, if more than one.
        starts_from: how the ticket is trained, if not as the search's own; see `training.retraining.restart_for`.
    """

    structure: str
    target_density: float
    density: float
    params_ratio: float
    flops_ratio: float
    prunable: list[str]
    mask_digest: str
    round: int
    rewind: str
    mode: str
    data: str
    model: str
    seed: int
    epochs: int
    total_epochs: int
    best_epoch: int
    metrics: dict[str, float]
    train_seconds: float
    execution: Literal["shrunk", "masked"]
    choice: dict[str, str]
    decided_by: dict[str, str]
    distillation: dict[str, float]
    group_penalty: float
    copies: int
    barrier: float
    averaged: bool
    left_dense: list[str]
    kept_whole: list[str]
    control: str
    control_seed: int
    width: int
    origin: str
    environments: list[dict[str, str]]
    transferred_from: dict[str, Any]
    first_epoch: int
    cycles: int
    starts_from: Literal["initial", "schedule"]


def make_card(facts: Mapping[str, Any]) -> Card:
    """Return facts, among which may be a user's own, as a card."""
    return cast(Card, dict(facts))


@dataclass(frozen=True)
class Ticket:
    """A sparse sub-network that can be trained alone.

    All names are those of the network's parameters and buffers; all tensors are on the CPU.

    Attributes:
        masks: mask of every pruned parameter; a parameter that is not named is kept whole.
        rewind: value that training restarts from of every parameter and buffer, before masking.
        trained: value of every parameter and buffer after training the ticket; None before.
        plan: way to execute the ticket on a smaller network; None if nothing can be skipped.
        layers: report of every layer.
        card: facts on what was run, JSON values only (structure, round, density, data, metrics, ...).
    """

    masks: Masks
    rewind: Mapping[str, Tensor]
    trained: Mapping[str, Tensor] | None = None
    plan: Plan | None = None
    layers: Mapping[str, LayerReport] = field(default_factory=dict)
    card: Card = field(default_factory=Card)

    def __repr__(self) -> str:
        facts = [f"{key} {self.card[key]}" for key in ("round", "density") if key in self.card]
        layers = f"{len(self.masks)} layers pruned"
        trained = "trained" if self.trained is not None else "not trained yet"
        return f"Ticket({', '.join([self.card.get('structure', 'masks'), *facts, layers, trained])})"

    @property
    def epochs_before(self) -> int:
        """Number of epochs that the ancestors of the ticket were trained, its own training left out."""
        return self.card.get("total_epochs", 0) - self.card.get("epochs", 0)

    # Using

    def apply(self, network: nn.Module, values: Values = "rewind") -> nn.Module:
        """Put the ticket's values into a network, in place, with pruned weights at zero.

        Args:
            network: any module with the ticket's parameters and buffers.
            values: which values: those that training restarts from (`rewind`), or those after training (`trained`).

        Returns:
            the network.

        Raises:
            ValueError: if the network has other parameters, named in the message, or the ticket was not trained.
        """
        state = self.rewind if values == "rewind" else self.trained
        if state is None:
            raise ValueError("the ticket holds no trained weights: it was not trained yet")
        own, theirs = ({name: str(tuple(each[name].shape)) for name in each} for each in (network.state_dict(), state))
        check_fit("ticket", network, own, theirs)
        network.load_state_dict(dict(state))
        with torch.no_grad():
            for name, parameter in network.named_parameters(remove_duplicate=False):
                if name in self.masks:
                    parameter.mul_(self.masks[name].to(parameter.device))
        return network

    def shrink(self, network: nn.Module, example: Example, values: Values = "trained") -> ShrunkNetwork:
        """Return the smaller network that the ticket executes.

        Args:
            network: any module with the ticket's parameters and buffers; it is left as it was.
            example: one batch of the true shape: a tensor, a tuple of arguments, or a dict of named ones.
            values: which values it has; see `apply`.

        Raises:
            ValueError: if the ticket is for another network, was not trained, or has no plan.
        """
        if self.plan is None:
            raise ValueError(
                f"the ticket has no plan by which anything is left out (its structure is "
                f"{self.card.get('structure')!r}): take one that a structure such as Refill or Regroup made"
            )
        return shrink_to_plan(self.apply(copied(network), values), self.plan, self.masks, self.layers, example)

    def with_training(self, trained: Mapping[str, Tensor], **facts: Any) -> Ticket:
        """Return the ticket with its trained weights, and further facts on its card."""
        return replace(self.with_facts(**facts), trained=trained)

    def with_facts(self, **facts: Any) -> Ticket:
        """Return the ticket with further facts on its card."""
        return replace(self, card=make_card({**self.card, **facts}))

    # On disk

    def save(self, path: Path | str) -> None:
        """Write everything to `path` (safetensors), and the card beside it as JSON, for people to read.

        The file is whole or not there. A digest over all tensors and the card is part of it.
        """
        path, card = write_card_file(path, self._tensors(), self._full_card())
        kind = card["plan"] and card["plan"]["kind"]  # without its indices, which are no reading
        write_json(path.with_suffix(".json"), {**card, "plan": kind, "layers": self._readable_layers()})

    @classmethod
    def load(cls, path: Path | str) -> Ticket:
        """Read a ticket. Code is never executed, and no more memory taken than a few times the file's size.

        A digest is no signature: anyone can write a ticket. So its parts are checked for being consistent, and one that
        is not fails here, in one line.

        Raises:
            FileNotFoundError: if there is none.
            OSError: if it cannot be read.
            ValueError: if the file is truncated, altered, no ticket, or of another schema; the message names it.
        """
        return read_card_file(path, "ticket", cls._from_parts)

    @classmethod
    def _from_parts(cls, tensors: dict[str, Tensor], card: Any) -> Ticket:
        schema = card.get("schema") if isinstance(card, dict) else None
        if type(schema) is not int or schema < 1:
            raise RefusedError("is no ticket: its card has no schema version")
        if schema != SCHEMA:
            remedy = "upgrade" if schema > SCHEMA else "make the ticket again"
            raise RefusedError(f"has the schema {schema}, and this version reads {SCHEMA} alone: {remedy}")
        check_digest(tensors, card)
        parts = _by_part(tensors)
        shapes: dict[str, list[int]] = card.pop("shapes")
        _agree("the masks on the card", shapes, parts["mask"])
        masks = {name: unpack(parts["mask"][name], tuple(shape)) for name, shape in shapes.items()}
        layers = {name: _report(report) for name, report in card.pop("layers").items()}
        plan = plan_from_json(card.pop("plan"))
        del card["schema"]
        ticket = cls(masks, parts["rewind"], parts["trained"] or None, plan, layers, card)
        ticket._check()
        return ticket

    def _check(self) -> None:
        """Raise ValueError if the parts do not fit each other."""
        shapes = {name: value.shape for name, value in self.rewind.items()}
        for name, mask in self.masks.items():
            if mask.shape != shapes.get(name):
                raise ValueError(f"the mask of {name} has no value of its shape {tuple(mask.shape)} to restart from")
        if self.trained is not None:
            _agree("the trained values", self.trained, shapes)
            if wrong := [name for name, value in self.trained.items() if value.shape != shapes[name]]:
                raise ValueError(f"the trained values of {wrong[0]} have another shape than those to restart from")
        if self.card.get("mask_digest") not in (None, digest(self.masks)):
            raise ValueError("its masks are not those that its card tells of")
        check_plan(self.plan, shapes)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"mask/{name}": pack(mask) for name, mask in self.masks.items()}
        tensors |= {f"rewind/{name}": value for name, value in self.rewind.items()}
        tensors |= {f"trained/{name}": value for name, value in (self.trained or {}).items()}
        return tensors

    def _readable_layers(self) -> dict[str, Any]:
        return {
            name: {"target_density": report.target / report.size, "density": report.density, **asdict(report)}
            for name, report in self.layers.items()
        }

    def _full_card(self) -> dict[str, Any]:
        return {
            **self.card,
            "schema": SCHEMA,
            "plan": plan_to_json(self.plan),
            "shapes": {name: list(mask.shape) for name, mask in self.masks.items()},
            "layers": {name: asdict(report) for name, report in self.layers.items()},
        }


def _agree(what: str, names: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    if odd := sorted(set(names) ^ set(others)):
        raise ValueError(f"{what} are not those in the file: {odd[0]} is in one of them alone")


def _report(values: Mapping[str, Any]) -> LayerReport:
    report = LayerReport(**values)
    counts = (report.size, report.target, report.kept, report.executed, report.positions)
    numbers = all(type(count) is int and count >= 0 for count in counts)
    if not numbers or report.size == 0 or report.form not in get_args(Form):
        raise ValueError(f"a layer's report cannot be true: {report}")
    return report


def _by_part(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {"mask": {}, "rewind": {}, "trained": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return parts
