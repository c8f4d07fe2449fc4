"""Rewinding: a moment of training, and everything that goes back to it."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lt_lightning.pruning.masks import Masks
from lt_lightning.storage.files import write_tensors

Mode = Literal["weights", "weights_only", "learning_rate", "none"]
REWINDS_WEIGHTS: tuple[Mode, ...] = ("weights", "weights_only")
Refilled = Literal["last", "rewind", "zero"]


class Stateful(Protocol):
    """An optimizer or a schedule, of which nothing but its state matters."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as PyTorch names it."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take such a state back."""


@dataclass(frozen=True)
class Step:
    """A moment of training, counted from its start in epochs (`8ep`) or optimizer steps (`500it`), or a share (`5%`).

    >>> Step.parse("8ep").split(steps_per_epoch=100)
    (8, 0)
    >>> Step.parse("250it").split(steps_per_epoch=100)
    (2, 50)
    >>> str(Step.parse("5%").within(epochs=160))
    '8ep'
    """

    count: int
    unit: Literal["ep", "it", "%"]

    @classmethod
    def parse(cls, text: str | int) -> Step:
        """Read `8ep`, `500it` or `5%`; a bare number is a number of epochs.

        Raises:
            ValueError: if the text is none of them.
        """
        match = re.fullmatch(r"(\d+)(ep|it|%)?", str(text).strip())
        if match is None:
            raise ValueError(
                f"rewind={text!r}: must be a step: epochs as '8ep', optimizer steps as '500it', or a share of the "
                "training as '5%'"
            )
        unit: Any = match[2] or "ep"
        return cls(int(match[1]), unit)

    def within(self, epochs: int) -> Step:
        """Return the step itself; for a share the nearest whole epoch in a training of so many epochs."""
        return self if self.unit != "%" else Step(round(self.count * epochs / 100), "ep")

    def split(self, steps_per_epoch: int) -> tuple[int, int]:
        """Return whole epochs before the step, and optimizer steps after them; of a share, call `within` first."""
        return (self.count, 0) if self.unit == "ep" else divmod(self.count, steps_per_epoch)

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"


@dataclass
class RewindPoint:
    """The state of a training at one step, by value: later training does not change it.

    Attributes:
        network: parameters and buffers (BatchNorm statistics included) by name.
        optimizers: state dicts of the optimizers, momentum included.
        schedules: state dicts of the learning-rate schedules.
        names: names of each optimizer's parameters, in the order in which its state numbers them, see
            `parameter_names`.
        beside: parameters and buffers of the module that the network belongs to, without the network's, by name.
    """

    network: dict[str, Tensor]
    optimizers: list[dict[str, Any]]
    schedules: list[dict[str, Any]]
    names: list[list[str]]
    beside: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def capture(
        cls,
        network: nn.Module,
        optimizers: Sequence[Stateful],
        schedules: Sequence[Stateful],
        module: nn.Module | None = None,
    ) -> RewindPoint:
        """Copy everything, so that nothing in the point is shared with the training.

        Args:
            network: the network.
            optimizers: optimizers, of the network's parameters and of others of the module.
            schedules: learning-rate schedules.
            module: module that the network belongs to; None if there is nothing else to train.
        """
        module = network if module is None else module
        return cls(
            copied_values(network.state_dict()),
            [copy.deepcopy(optimizer.state_dict()) for optimizer in optimizers],
            [copy.deepcopy(schedule.state_dict()) for schedule in schedules],
            [parameter_names(network, optimizer, module) for optimizer in optimizers],
            copied_values(state_beside(network, module)),
        )

    def with_start(self, start: RewindPoint) -> RewindPoint:
        """Return the point with the optimizers and schedules of another, that of the training's start."""
        return replace(self, optimizers=start.optimizers, schedules=start.schedules)

    def restore_beside(self, module: nn.Module) -> None:
        """Copy back what is beside the network."""
        load_beside(module, self.beside)

    def restore_schedule(
        self, optimizers: Sequence[Stateful], schedules: Sequence[Stateful], momentum: bool = True
    ) -> None:
        """Take optimizers and schedules back.

        Args:
            optimizers: optimizers in the order of the capture.
            schedules: schedules in the order of the capture.
            momentum: whether the optimizers' running averages go back too; else they start anew (for weights that
                are not rewound the averages of an early step mean nothing).
        """
        # `load_state_dict` keeps the tensors it is given where it can: give it a copy.
        for optimizer, state in zip(optimizers, self.optimizers, strict=True):
            optimizer.load_state_dict(copy.deepcopy(state if momentum else {**state, "state": {}}))
        for schedule, state in zip(schedules, self.schedules, strict=True):
            schedule.load_state_dict(copy.deepcopy(state))

    def state_dict(self) -> dict[str, Any]:
        """Return the point as tensors and builtins only, so that it can be loaded weights-only."""
        return dict(vars(self))


BESIDE = "beside:"  # in front of the names of parameters that are not the network's


def parameter_names(network: nn.Module, optimizer: Stateful, module: nn.Module) -> list[str]:
    """Return the names of an optimizer's parameters, in the order in which its state numbers them.

    Args:
        network: the network; its parameters have their names in it.
        optimizer: the optimizer.
        module: module that the network belongs to; further parameters have their names in it, after `beside:`.
    """
    names = {parameter: f"{BESIDE}{name}" for name, parameter in module.named_parameters()}
    names |= {parameter: name for name, parameter in network.named_parameters()}
    groups: list[dict[str, Any]] = getattr(optimizer, "param_groups", [])
    return [names.get(parameter, BESIDE) for group in groups for parameter in group["params"]]


def copied_values(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy parameters and buffers by value."""
    return {name: value.detach().clone() for name, value in values.items()}


def state_beside(network: nn.Module, module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module without those of a network in it, by name."""
    own = {id(value) for value in network.state_dict(keep_vars=True).values()}
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if id(value) not in own}


@torch.no_grad()
def load_beside(module: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values that `state_beside` returned back in place, as far as the module has such names."""
    own = module.state_dict(keep_vars=True)
    for name in own.keys() & values.keys():
        own[name].copy_(values[name])


def when_alive(state: Mapping[str, Tensor], masks: Masks, before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a trained state with, in place of its pruned weights, their values when they were last alive.

    Args:
        state: parameters and buffers after a training.
        masks: masks that were enforced in it.
        before: the same values from the time before that training.

    >>> state, before = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([5.0, 7.0])}
    >>> when_alive(state, {"w": torch.tensor([True, False])}, before)["w"]
    tensor([1., 7.])
    """
    return _where_kept(masks, state, before)


def _where_kept(masks: Masks, state: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with other values where a mask prunes; a parameter with several names has them under each."""
    changed = {}
    for name, mask in masks.items():
        value = state[name]
        kept, elsewhere = mask.to(value.device), other[name].to(value.device, value.dtype)
        changed[_place(value)] = torch.where(kept, value, elsewhere)
    return {name: changed.get(_place(value), value) for name, value in state.items()}


def _place(value: Tensor) -> tuple[int, torch.Size]:
    return value.data_ptr(), value.shape


@dataclass
class Restart:
    """How the training of a ticket begins, and for how long it goes on.

    Attributes:
        mode: `weights` takes weights, optimizer and schedule back to the point (Frankle et al. 2020, the paper's);
            `weights_only` the weights, while optimizer and schedule start anew for all epochs (the paper's released
            code); `learning_rate` only the schedule (Renda et al. 2020); `none` nothing: it goes on at the last
            learning rate (fine-tuning).
        point: moment to go back to.
        epochs: number of epochs of one training after the restart.
        last_rates: learning rates of the dense training's last step, by optimizer and parameter group.
        refilled: what a weight restarts from that the unstructured mask prunes and a structure refills, where weights
            are not rewound: its value when it was `last` alive, its value at the `rewind` point, or `zero`.
    """

    mode: Mode
    point: RewindPoint
    epochs: int
    last_rates: list[list[float]]
    refilled: Refilled = "last"

    def values(self, last: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
        """Return the values that the training of a ticket restarts from, on the CPU.

        Args:
            last: every parameter and buffer as it was trained last; of pruned weights the values when they were alive.
            masks: unstructured masks of the ticket.
        """
        if self.mode in REWINDS_WEIGHTS:
            return _on_cpu(self.point.network)
        if self.refilled == "last":
            return _on_cpu(last)
        refilled = self.point.network if self.refilled == "rewind" else dict.fromkeys(masks, torch.tensor(0.0))
        return _on_cpu(_where_kept(masks, last, refilled))

    def restore(self, optimizers: Sequence[Stateful], schedules: Sequence[Stateful]) -> None:
        """Take optimizers and schedules back, as the mode says."""
        self.point.restore_schedule(optimizers, schedules, momentum=self.mode in REWINDS_WEIGHTS)

    def fix_rates(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """Set the last learning rates where the mode is `none`; to be called before every step."""
        if self.mode != "none":
            return
        for optimizer, rates in zip(optimizers, self.last_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def save(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        write_tensors(path, self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Return the restart as tensors and builtins only."""
        point = self.point.state_dict()
        return {**vars(self), "point": point}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Restart:
        """Make a restart from its `state_dict`."""
        return cls(**{**state, "point": RewindPoint(**state["point"])})

    @classmethod
    def load(cls, path: Path | str) -> Restart:
        """Read what `save` wrote, on the CPU; code is never executed.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if the file is damaged or something else.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no rewind point at {path}")
        try:
            return cls.from_state(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # whatever the unpickler stumbles over
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ValueError(f"{path} is damaged or no rewind point: {reason}") from None


def _on_cpu(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in values.items()}
