"""Options of a wrong type, told by their key before anything is built."""

from __future__ import annotations

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, Unpack, get_args, get_origin, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lt_lightning.results.verdict import Rule

NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
LARGEST_SEED = 2**32 - 1


def check_basics(config: DictConfig) -> None:
    """Checks what places and counts of a job follow from.

    Raises:
        ValueError: naming the key, its value and what it must be.
    """
    rounds, chosen, seed = config.pruning.rounds, config.retrain_rounds, config.seed
    if not _is_whole(rounds) or rounds < 0:
        raise ValueError(f"pruning.rounds={rounds}: must be a whole number of at least 0")
    _check_shares("rate", [config.pruning.rate])
    if (density := config.pruning.get("density")) is not None:
        if OmegaConf.is_list(density) and not density:
            raise ValueError("pruning.density=[]: must be a share, a list of shares, or null")
        _check_shares("density", density if OmegaConf.is_list(density) else [density])
    if not _is_whole(seed) or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed={seed}: must be a whole number from 0 to {LARGEST_SEED}")
    if chosen is not None and not (OmegaConf.is_list(chosen) and all(map(_is_whole, chosen))):
        raise ValueError(f"retrain_rounds={chosen}: must be a list of rounds, [1,2] for instance, or null")
    sources = ("unstructured", *config.structure)
    if (source := config.pruning.next_round_from) not in sources:
        raise ValueError(f"pruning.next_round_from={source!r} is not one of {', '.join(sources)}")
    _check_trainer(config.trainer)
    _check_measure(config.measure)
    _check_verdict(config.verdict)
    for key, value in config.checkpoint.items():
        if not fits(value, float):
            raise ValueError(f"checkpoint.{key}={value!r}: must be a number")


def _check_shares(key: str, values: Iterable[Any]) -> None:
    for value in values:
        if not fits(value, float):
            raise ValueError(f"pruning.{key}={value!r}: must be a number")
        if not 0 < value < 1:
            raise ValueError(f"pruning.{key}={value} is not a share in (0, 1)")


def _check_trainer(trainer: Any) -> None:
    for key in ("max_epochs", "accumulate_grad_batches"):
        value = trainer.get(key, 1)
        if not _is_whole(value) or value < 1:
            raise ValueError(f"trainer.{key}={value}: must be a whole number of at least 1")
    for key in ("gradient_clip_val", "limit_train_batches"):
        value = trainer.get(key)
        if value is not None and not (fits(value, float) and value > 0):
            raise ValueError(f"trainer.{key}={value}: must be positive, or null")


def _check_measure(measure: Any) -> None:
    if measure is None:
        return
    if not OmegaConf.is_dict(measure):
        raise ValueError(f"measure={measure}: must be null, or have batch_size, samples and slot")
    for key in ("batch_size", "samples"):
        if not _is_whole(measure[key]) or measure[key] < 1:
            raise ValueError(f"measure.{key}={measure[key]!r}: must be a whole number of at least 1")
    if not fits(measure.slot, float) or not 0 < measure.slot < math.inf:
        raise ValueError(f"measure.slot={measure.slot!r}: must be a positive number of seconds")


def _check_verdict(verdict: Any) -> None:
    if not OmegaConf.is_dict(verdict) or set(verdict) != {"margin", "confidence"}:
        raise ValueError(f"verdict={verdict}: must have margin and confidence")
    for key, value in verdict.items():
        if not fits(value, float):
            raise ValueError(f"verdict.{key}={value!r}: must be a number")
    Rule(**verdict)


def check_options(config: DictConfig) -> None:
    """Compares the options of everything that is named by a `_target_` with the annotations of what it names.

    Raises:
        ValueError: naming the key, its value and what it must be.
    """
    _check("", OmegaConf.to_container(config, resolve=True))


def _check(path: str, node: Any) -> None:
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        _check_target(path, node)
    for key, value in node.items():
        _check(f"{path}.{key}" if path else str(key), value)


def _check_target(path: str, node: Mapping[str, Any]) -> None:
    name = node["_target_"]
    try:
        target = get_object(name)
    except Exception as error:  # whatever importing it raises
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path}._target_={name}: cannot be imported ({reason})") from None
    known, others = annotated(target)
    for key, value in node.items():
        if key.startswith("_"):
            continue
        if key not in known and not others:
            raise ValueError(f"{path}.{key}={value!r}: {target.__name__} has no such option; it has {', '.join(known)}")
        if not fits(value, known.get(key, Any)):
            raise ValueError(f"{path}.{key}={value!r}: must be {told(known[key])}")


def annotated(target: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Type of every argument, and whether there may be others."""
    function = target.__init__ if inspect.isclass(target) else target
    try:
        hints = get_type_hints(function)
        parameters = inspect.signature(target).parameters.values()
    except (NameError, TypeError, ValueError):  # names that are there for type checkers only, functions written in C
        return {}, True
    known: dict[str, Any] = {}
    others = False
    for parameter in parameters:
        hint = hints.get(parameter.name, Any)
        if parameter.kind != parameter.VAR_KEYWORD:
            known[parameter.name] = hint
        elif get_origin(hint) is Unpack:
            known |= get_type_hints(get_args(hint)[0])
        else:
            others = True
    return known, others


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from a YAML file can be given where that type is annotated; what cannot be told fits.

    >>> fits(3, float), fits("3", float), fits(["a"], Sequence[str]), fits("a", Sequence[str])
    (True, False, True, False)
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in arguments)
    if origin is Literal:
        return any(value == each and type(value) is type(each) for each in arguments)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return _is_whole(value)
    if hint in NAMES:
        return isinstance(value, hint)
    if _is_list(hint):
        inner = [each for each in arguments if each is not Ellipsis][:1] or [Any]
        return isinstance(value, list) and all(fits(each, inner[0]) for each in value)
    if inspect.isclass(origin or hint) and getattr(hint, "__module__", "").startswith("lt_lightning"):
        return isinstance(value, Mapping) and "_target_" in value
    return True


def told(hint: Any) -> str:
    """A type, for people.

    >>> told(Literal["a", "b"] | None), told(Sequence[float])
    ('one of a, b or null', 'a list')
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(told(each) for each in arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else str(arguments[0])
    if hint in NAMES:
        return NAMES[hint]
    if hint is Path:
        return "a path"
    return "a list" if _is_list(hint) else f"a node with a _target_ ({getattr(hint, '__name__', hint)})"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(hint: Any) -> bool:
    origin = get_origin(hint) or hint
    return inspect.isclass(origin) and issubclass(origin, typing.Sequence) and origin is not str
