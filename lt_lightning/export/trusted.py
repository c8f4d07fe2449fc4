"""Building a network that a file names, without letting the file run anything else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from torch import nn

OURS = "lt_lightning.models"


def build(model: Mapping[str, Any], allow: Sequence[str] = ()) -> nn.Module:
    """Instantiates a configuration node (`_target_` and arguments) whose origin need not be trusted.

    Args:
        model: JSON values.
        allow: packages or modules, besides `lt_lightning.models`, whose functions and classes it may name.

    Raises:
        ValueError: if it names anything else, before anything is imported or called, or if it builds no network.

    >>> build({"_target_": "lt_lightning.models.vgg.VGG", "depth": 11, "classes": 10, "width": 2}).classifier
    Linear(in_features=16, out_features=10, bias=True)
    >>> build({"_target_": "os.system", "command": "echo hello"})
    Traceback (most recent call last):
    ValueError: the file names 'os.system', which is not of lt_lightning.models: allow its package if you trust it
    """
    packages = (OURS, *allow)
    for target in targets(model):
        _check(target, packages)
    try:
        network = instantiate(dict(model))
    except InstantiationException as error:
        told = str(error.__cause__ or error).strip().splitlines()[0]
        raise ValueError(f"the network {model.get('_target_')!r} cannot be built: {told}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"the file names {model.get('_target_')!r}, which makes no network")
    return network


def targets(value: Any) -> Iterator[Any]:
    """Every `_target_` at any depth."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield value["_target_"]
        for inner in value.values():
            yield from targets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from targets(inner)
    elif isinstance(value, str) and "${" in value:  # resolvers can be any function
        raise ValueError(f"the file's configuration has the interpolation {value!r}: it must be resolved")


def _check(target: Any, packages: Sequence[str]) -> None:
    """Raises ValueError unless a target is of the packages, by its name and by where it is defined.

    The name alone does not tell: whatever a module has imported can be reached through it.
    """
    if isinstance(target, str) and _within(target, packages):
        try:
            home = getattr(get_object(target), "__module__", None)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"the file names {target!r}, which is not there: {error}") from None
        if isinstance(home, str) and _within(home, packages):
            return
    raise ValueError(
        f"the file names {target!r}, which is not of {', '.join(packages)}: allow its package if you trust it"
    )


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)
