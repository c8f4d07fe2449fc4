"""The options of `LotteryTicketPruning`: their types and defaults, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import update_wrapper
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar, get_args

from lt_lightning.pruning.criteria import Criterion, Magnitude
from lt_lightning.pruning.densities import densities, descending
from lt_lightning.pruning.rewinding import REWINDS_WEIGHTS, Mode, Refilled, Step
from lt_lightning.pruning.selection import Scope
from lt_lightning.pruning.sparsifiers import Sparsifier
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED
from lt_lightning.structures.base import Structure

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OnCollapse = Literal["warn", "stop"]
ScoresFrom = Literal["trained", "dense", "rewound"]


# What may differ where a search is resumed: folders, what is told, and what is made of a round's masks beside training.
APART = frozenset({"directory", "imp", "facts", "on_collapse", "structures", "gradient_batches", "verbose"})


@dataclass(frozen=True)
class PruningOptions:
    """What `LotteryTicketPruning` is called with; it explains each option.

    Raises:
        ValueError: if an option is out of range, or does not go with another; the message names them.
    """

    rounds: int
    directory: Path | str
    rate: float = 0.2
    density: float | Sequence[float] | None = None
    scope: Literal[Scope, "imp"] = "global"
    imp: Path | str | None = None
    criterion: Criterion | None = None
    sparsifier: Sparsifier | None = None
    scores_from: ScoresFrom = "trained"
    rewind: str | int = "0ep"
    mode: Mode = "weights"
    refilled: Refilled = "last"
    exempt: Sequence[str] = ("stem", "classifier")
    structures: Mapping[str, Structure] = field(default_factory=dict)
    next_round_from: str = UNSTRUCTURED
    gradient_batches: int = 0
    on_collapse: OnCollapse = "warn"
    monitor: str | None = None
    monitor_mode: Literal["max", "min"] = "max"
    network: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    verbose: bool = True

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_choices()
        self._check_facts()
        self._check_scoring()
        self._check_rounds()

    # What the options come to

    @property
    def densities(self) -> list[float]:
        """The density that each round prunes to."""
        return densities(self.rounds, self.rate, self.density, at_once=self.scores_from != "trained")

    @property
    def step(self) -> Step:
        """The step to rewind to."""
        return Step.parse(self.rewind)

    @property
    def scoring(self) -> Criterion:
        """The criterion, or the default one."""
        return self.criterion or Magnitude()

    @property
    def compared_in(self) -> Scope:
        """The scope in which scores are compared; within layers whose densities are another search's it has no say."""
        return "global" if self.scope == "imp" else self.scope

    @property
    def determining(self) -> dict[str, Any]:
        """What determines the rounds, as builtins: a search that is resumed must have the same."""
        own = {each.name: _plain(getattr(self, each.name)) for each in fields(self) if each.name not in APART}
        return own | {"next_round_from": [self.next_round_from, _plain(self.structures.get(self.next_round_from))]}

    # What is refused

    def _check_ranges(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds={self.rounds}: must be 0 or more")
        asked = [] if self.density is None else descending(self.density)
        if self.density is not None and not (asked and all(0 < each < 1 for each in asked)):
            raise ValueError(f"density={self.density}: must be a share in (0, 1), or a list of them")
        if not 0 < self.rate < 1:
            raise ValueError(f"rate={self.rate}: must be a share in (0, 1)")
        if self.gradient_batches < 0:
            raise ValueError(f"gradient_batches={self.gradient_batches}: must be 0 or more")
        Step.parse(self.rewind)

    def _check_choices(self) -> None:
        if reserved := {UNSTRUCTURED, DENSE} & set(self.structures):
            raise ValueError(
                f"structures={sorted(self.structures)}: {reserved.pop()!r} is reserved, choose another name"
            )
        choices: dict[str, Sequence[str]] = {
            "scope": (*get_args(Scope), "imp"),
            "scores_from": get_args(ScoresFrom),
            "mode": get_args(Mode),
            "refilled": get_args(Refilled),
            "on_collapse": get_args(OnCollapse),
            "next_round_from": (UNSTRUCTURED, *self.structures),
            "monitor_mode": ("max", "min"),
        }
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")

    def _check_facts(self) -> None:
        try:
            json.dumps(dict(self.facts))
        except TypeError as error:
            raise ValueError(f"facts={self.facts}: cannot go on a ticket's card, {error}") from None

    def _check_scoring(self) -> None:
        """What scores the weights, and in which scope."""
        if self.sparsifier is not None and self.criterion is not None:
            raise ValueError(
                f"sparsifier={_name(self.sparsifier)}: scores weights itself, in place of "
                f"criterion={_name(self.criterion)}; set one of the two to None"
            )
        if self.scope == "imp" and self.sparsifier is not None:
            raise ValueError(f"scope='imp': goes with a criterion, not with sparsifier={_name(self.sparsifier)}")
        if self.scope == "imp" and self.scoring.chooses_layer_densities:
            raise ValueError(
                f"scope='imp': gives layers the densities of another search, and criterion={_name(self.scoring)} "
                "chooses them itself; set scope='global'"
            )
        if self.rounds and (self.scope == "imp") != (self.imp is not None):
            raise ValueError(
                f"scope={self.scope!r} and imp={self.imp}: the scope 'imp', and no other, goes with the directory of "
                "a search"
            )

    def _check_rounds(self) -> None:
        """How rounds follow each other, and what structures need of them."""
        needy = [name for name, structure in self.structures.items() if structure.needs_gradients]
        if needy and not self.gradient_batches:
            raise ValueError(
                f"gradient_batches=0: {', '.join(needy)} needs gradients; give the number of batches to sum them over"
            )
        anew = self.scores_from != "trained" and self.sparsifier is None
        if anew and self.mode not in REWINDS_WEIGHTS and len(self.densities) > 1:
            raise ValueError(
                f"scores_from={self.scores_from!r}: prunes anew in every round, and mode={self.mode!r} goes on from "
                "the round before; set rounds=1, or mode='weights'"
            )
        if self.scores_from == "trained" and self.density is not None and self.next_round_from != UNSTRUCTURED:
            raise ValueError(
                f"density={self.density}: cannot be hit with next_round_from={self.next_round_from!r}, which has a "
                "density of its own; set rounds, or next_round_from='unstructured'"
            )


def _name(part: object) -> str:
    return type(part).__name__


def _plain(value: Any, depth: int = 3) -> Any:
    """Return a value as builtins: of an object its class and its public attributes."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each, depth) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each, depth) for each in value]
    attributes = getattr(value, "__dict__", {}) if depth else {}
    public = {name: _plain(each, depth - 1) for name, each in attributes.items() if not name.startswith("_")}
    return {"class": type(value).__name__, **public}


P = ParamSpec("P")
Owner = TypeVar("Owner")
Options = TypeVar("Options", bound="DataclassInstance")


def arguments_of(
    options: Callable[P, Options],
) -> Callable[[Callable[[Owner, Options], None]], Callable[Concatenate[Owner, P], None]]:
    """Give a constructor that takes options their arguments instead: `A(rate=0.2)` for `A(Options(rate=0.2))`.

    The constructor's signature and annotations are those of the options, for people, type checkers and whatever else
    reads them, such as LightningCLI.
    """

    def decorate(construct: Callable[[Owner, Options], None]) -> Callable[Concatenate[Owner, P], None]:
        def __init__(self: Owner, /, *args: P.args, **kwargs: P.kwargs) -> None:  # noqa: N807
            construct(self, options(*args, **kwargs))

        update_wrapper(__init__, options.__init__)
        __init__.__signature__ = _with_plain_defaults(options)  # type: ignore[attr-defined]
        return __init__

    return decorate


def _with_plain_defaults(options: Any) -> Signature:
    """Return the signature of a dataclass's constructor, in which a default that is made anew each time is a value."""
    known = signature(options.__init__)
    made = {each.name: each.default_factory() for each in fields(options) if each.default_factory is not MISSING}
    parameters = known.parameters.values()
    return known.replace(parameters=[each.replace(default=made.get(each.name, each.default)) for each in parameters])
