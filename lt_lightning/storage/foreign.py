"""What files of others may have made: only what is allowed by name, and no larger than what lies in the files.

Every file that names classes as `_target_` (the configuration of a search, the recipe of an exported network) is read
and built here, and nowhere else. Nothing is imported or called before all of its names are allowed.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

if TYPE_CHECKING:
    from torch import Tensor, nn

MODELS: Final = "lt_lightning.models"
DATA: Final = "lt_lightning.data"


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a search, without looking at what it names.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no configuration of a search, or has an interpolation, which could call any function.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    try:
        values: Any = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # whatever the parser stumbles over
        raise ValueError(f"{path} is damaged: {_reason(error)}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no configuration of a search: it holds no options by name")
    try:
        list(targets(values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return values


def targets(value: Any) -> Iterator[Any]:
    """Yield every `_target_` at any depth.

    Raises:
        ValueError: if there is an interpolation.
    """
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


def allowed(target: Any, packages: Sequence[str]) -> Any:
    """Return the class or function that a file names, if it is of one of the packages.

    The name alone is no proof, since whatever a module has imported can be reached through it: where the object is
    defined must be within the packages, too.

    Args:
        target: dotted name.
        packages: packages or modules.

    Raises:
        ValueError: if it is of no such package, before anything outside of them is imported; or if it is not there.

    >>> allowed("os.system", ["lt_lightning.models"])
    Traceback (most recent call last):
    ValueError: the file names 'os.system', which is not of lt_lightning.models: allow its package if you trust it
    """
    if isinstance(target, str) and _within(target, packages):
        try:
            found = named(target)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"the file names {target!r}, which is not there: {_reason(error)}") from None
        home = getattr(found, "__module__", None)
        if isinstance(home, str) and _within(home, packages):
            return found
    raise ValueError(
        f"the file names {target!r}, which is not of {', '.join(packages)}: allow its package if you trust it"
    )


def named(target: str) -> Any:
    """Return what a dotted name stands for; it is imported, whatever it is, and nothing is logged.

    Raises:
        Exception: in one line, what importing it raises.
    """
    log = logging.getLogger("hydra.utils")  # it writes every error in four lines
    before, log.disabled = log.disabled, True
    try:
        return get_object(target)
    except ImportError as error:
        raise ImportError(_reason(error.__cause__ or error)) from None
    finally:
        log.disabled = before


def _within(name: str, packages: Sequence[str]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


# Networks


def build_network(
    model: Mapping[str, Any], allow: Sequence[str] = (), state: Mapping[str, Tensor] | None = None, times: int = 1
) -> nn.Module:
    """Instantiate a configuration node (`_target_` and arguments) whose origin need not be trusted.

    Args:
        model: JSON values.
        allow: packages or modules, besides `lt_lightning.models`, whose functions and classes it may name.
        state: parameters and buffers that lie in the file beside it; None if nothing is known of its size.
        times: how many times as large as these the network may be.

    Raises:
        ValueError: if it names anything else, before anything is imported or called; if it builds no network; or as
            soon as it makes more or larger tensors than the file has.

    >>> build_network({"_target_": "lt_lightning.models.vgg.VGG", "depth": 11, "classes": 10, "width": 2}).classifier
    Linear(in_features=16, out_features=10, bias=True)
    """
    from torch import nn  # slow; what only looks at results does without

    packages = (MODELS, *allow)
    for target in targets(model):
        allowed(target, packages)
    target = model.get("_target_")
    try:
        with _no_larger_than(state, times):
            network = instantiate(dict(model))
    except InstantiationException as error:
        raise ValueError(f"the network {target!r} cannot be built: {_reason(error.__cause__ or error)}") from None
    except (RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"the network {target!r} cannot be built: {_reason(error)}") from None
    if not isinstance(network, nn.Module):
        raise ValueError(f"the file names {target!r}, which makes no network")
    return network


# How many tensors, and elements, building a network may make beside its own, for initial values and schedules.
SPARE_TENSORS, SPARE_ELEMENTS = 1000, 1_000_000


@contextmanager
def _no_larger_than(state: Mapping[str, Tensor] | None, times: int) -> Iterator[None]:
    """Refuse to go on where more tensors, or more elements, are made than a network of this state needs."""
    from torch import Tensor  # slow; what only looks at results does without
    from torch.overrides import TorchFunctionMode

    if state is None:
        yield
        return
    known = len(state)
    tensors = 4 * known + SPARE_TENSORS
    elements = 4 * times * sum(value.numel() for value in state.values()) + SPARE_ELEMENTS

    class Counting(TorchFunctionMode):
        made = size = 0

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and not any(isinstance(each, Tensor) for each in args):  # a new one
                self.made += 1
                self.size += result.numel()
                if self.made > tensors or self.size > elements:
                    raise ValueError(f"it is larger than the {known} tensors in the file allow")
            return result

    with Counting():
        yield


def _reason(error: BaseException) -> str:
    """Return the first line of an error, or its kind."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
