"""The network that a ticket executes as weights and a recipe: it can be rebuilt without the search that made it.

`network.safetensors` is the state dict. `network.json` says how to make the module that it fits: the configuration of
the full network and the plan that makes it smaller.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor, nn

from lt_lightning.execution.execute import execute
from lt_lightning.pruning.evaluation import relative_difference
from lt_lightning.storage.files import read_json, write_bytes
from lt_lightning.storage.foreign import build_network
from lt_lightning.structures.plan import Plan, check_plan, plan_from_json, plan_to_json

# The two files.

SCHEMA = 2
WEIGHTS, RECIPE = "network.safetensors", "network.json"
# What a recipe may ask for at most: a full network of so many times the elements in the file, an input of so many.
MOST_TIMES, MOST_INPUTS = 1000, 1 << 22


def save_network(
    folder: Path,
    network: nn.Module,
    model: Mapping[str, Any],
    shape: tuple[int, ...],
    plan: Plan | None = None,
    choice: Mapping[str, str] | None = None,
) -> None:
    """Write a network's weights and recipe.

    Args:
        folder: folder to write to.
        network: network that executes the plan, on the CPU, in evaluation mode.
        model: resolved configuration of the full network (`_target_` and arguments).
        shape: shape of one image.
        plan: plan that the network executes; None for the full network.
        choice: form of each layer of a plan of blocks, see `execution.form_choice.choose_forms`.
    """
    state = {name: value.detach().contiguous().clone() for name, value in network.state_dict().items()}
    weights = safetensors.torch.save(state)
    with torch.no_grad():
        logits: Tensor = network(_probe(shape))
    recipe = {
        "schema": SCHEMA,
        "lt_lightning": version("lt-lightning"),
        "model": dict(model),
        "shape": list(shape),
        "plan": plan_to_json(plan),
        "choice": dict(choice or {}),
        "weights": hashlib.sha256(weights).hexdigest(),
        "logits": logits[0].tolist(),
    }
    write_bytes(folder / WEIGHTS, weights)
    write_bytes(folder / RECIPE, json.dumps(recipe).encode())


def load_network(folder: Path | str, allow: Sequence[str] = ()) -> nn.Module:
    """Rebuild an exported network: an ordinary module on the CPU, in evaluation mode; it can be trained further.

    The files are data: nothing of them is executed but the constructor of the network that they name, which must be of
    `lt_lightning.models` or of a package that the caller allows, and stays within what the sizes of the weights allow.
    The result is checked to give the logits that the exported network gave.

    Args:
        folder: folder with `network.safetensors` and `network.json`.
        allow: packages whose classes and functions may make the network: those of a network of your own, for example.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: in one line, if a file is damaged, altered, of another schema, names anything that is not allowed,
            or if this version makes another network of it than the one that wrote it.
    """
    folder = Path(folder)
    recipe, weights = _read(folder)
    try:
        network = _rebuilt(recipe, safetensors.torch.load(weights), allow)
        with torch.no_grad():
            apart = relative_difference(network(_probe(recipe["shape"]))[0], torch.tensor(recipe["logits"]))
    except ValueError as error:
        raise ValueError(f"{folder / RECIPE}: {error}") from None
    except Exception as error:  # whatever parts that do not fit each other make stumble
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{folder / RECIPE} makes no network that fits {WEIGHTS}: {reason}") from None
    if apart > TOLERANCE:
        raise ValueError(
            f"{folder / RECIPE}: lt_lightning {version('lt-lightning')} makes a network of other logits than "
            f"{recipe['lt_lightning']}, which wrote it (they differ by {apart:.1e}): use the version that wrote it"
        )
    return network


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return the recipe and the content of the file of weights, after checking that they belong together."""
    for path in (folder / RECIPE, folder / WEIGHTS):
        if not path.is_file():
            raise FileNotFoundError(f"there is no exported network in {folder}: {path.name} is missing")
    recipe = read_json(folder / RECIPE)
    schema = recipe.get("schema") if isinstance(recipe, dict) else None
    if type(schema) is not int:
        raise ValueError(f"{folder / RECIPE} is no recipe of a network: it has no schema version")
    if schema != SCHEMA:
        remedy = "upgrade" if schema > SCHEMA else "export the ticket again"
        raise ValueError(f"{folder / RECIPE} has the schema {schema}; this version reads {SCHEMA} alone: {remedy}")
    weights = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != recipe.get("weights"):
        raise ValueError(f"{folder / WEIGHTS} is damaged or was altered: its content does not match {RECIPE}")
    return recipe, weights


def _rebuilt(recipe: Mapping[str, Any], state: Mapping[str, Tensor], allow: Sequence[str]) -> nn.Module:
    plan = plan_from_json(recipe["plan"])
    _check_shape(recipe["shape"])
    network = build_network(recipe["model"], allow, state, 1 if plan is None else MOST_TIMES).eval()
    check_plan(plan, {name: value.shape for name, value in network.state_dict().items()})
    if plan is not None:
        shrunk = execute(network, plan, {}, torch.zeros(1, *recipe["shape"]), choice=recipe["choice"])
        assert shrunk is not None
        network = shrunk.network
    network.load_state_dict(dict(state))
    return network.eval()


def _check_shape(shape: Any) -> None:
    numbers = isinstance(shape, list) and all(type(size) is int and size > 0 for size in shape)
    if not numbers or math.prod(shape) > MOST_INPUTS:
        raise ValueError(f"shape={str(shape)[:80]}: must be the shape of one image, at most {MOST_INPUTS} numbers")


def _probe(shape: Sequence[int]) -> Tensor:
    """Return an image that is the same on every machine and in every version."""
    pixels = torch.Size(shape).numel()
    return torch.arange(pixels, dtype=torch.float64).sin().float().view(1, *shape)


# The check that what was written computes the same logits.

BATCHES: Final = (1, 3)
TOLERANCE: Final = 1e-4
"""Difference that rounding of float32 may make over a network; an error of ours is of the order of the logits."""

Call = Callable[[Tensor], Tensor]


def checked(what: str, call: Call, reference: Call, shape: tuple[int, ...]) -> float:
    """Return the largest difference over batches of one and of several random images.

    Raises:
        RuntimeError: if it is more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    with torch.no_grad():
        for batch in BATCHES:
            images = torch.randn(batch, *shape, generator=generator)
            worst = max(worst, relative_difference(call(images), reference(images)))
    if worst > TOLERANCE:
        raise RuntimeError(
            f"{what} computes other logits than the masked network: they differ by {worst:.1e} of the largest"
        )
    return worst
