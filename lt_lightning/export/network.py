"""The network that a ticket executes as weights and a recipe: rebuilt anywhere, without the search that made it.

`network.safetensors` is the state dict. `network.json` tells how to make the module that it fits: the configuration of
the full network and the plan that makes it smaller.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lt_lightning.export.check import TOLERANCE, difference
from lt_lightning.export.plans import plan_from_json, plan_to_json
from lt_lightning.export.trusted import build
from lt_lightning.files import read_json, write_bytes
from lt_lightning.shrink.execute import execute
from lt_lightning.structures.base import Plan

SCHEMA = 1
WEIGHTS, RECIPE = "network.safetensors", "network.json"


def save_network(
    folder: Path,
    network: nn.Module,
    model: Mapping[str, Any],
    shape: tuple[int, ...],
    plan: Plan | None = None,
    choice: Mapping[str, str] | None = None,
) -> None:
    """Writes a network's weights and recipe.

    Args:
        folder: to write to.
        network: that executes the plan, on the CPU, in evaluation mode.
        model: configuration of the full network (`_target_` and arguments), resolved.
        shape: of one image.
        plan: that the network executes; None for the full network.
        choice: what computes each layer of a plan of blocks, see `shrink.shrunk.Shrunk`.
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
    """Rebuilds an exported network: an ordinary module on the CPU, in evaluation mode; it can be trained further.

    The files are data: nothing of them is executed but the constructor of the network that they name, which must be of
    `lt_lightning.models` or of a package that the caller allows. The result is checked to give the logits that the
    exported network gave.

    Args:
        folder: with `network.safetensors` and `network.json`.
        allow: packages whose classes and functions may make the network: those of a network of your own, for example.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: in one line, if a file is damaged, altered, of a newer schema, names anything that is not allowed,
            or if this version makes another network of it than the one that wrote it.
    """
    folder = Path(folder)
    recipe, weights = _read(folder)
    try:
        network = _rebuilt(recipe, safetensors.torch.load(weights), allow)
        with torch.no_grad():
            apart = difference(torch.tensor(recipe["logits"]), network(_probe(recipe["shape"]))[0])
    except ValueError as error:
        raise ValueError(f"{folder / RECIPE}: {error}") from None
    except Exception as error:  # whatever parts that do not fit each other make stumble
        told = str(error).strip().splitlines()[0]
        raise ValueError(f"{folder / RECIPE} makes no network that fits {WEIGHTS}: {told}") from None
    if apart > TOLERANCE:
        raise ValueError(
            f"{folder / RECIPE}: lt_lightning {version('lt-lightning')} makes a network of other logits than "
            f"{recipe['lt_lightning']}, which wrote it (they differ by {apart:.1e}): use the version that wrote it"
        )
    return network


def _read(folder: Path) -> tuple[dict[str, Any], bytes]:
    """The recipe and the content of the file of weights, which is the one that the recipe is for."""
    for path in (folder / RECIPE, folder / WEIGHTS):
        if not path.is_file():
            raise FileNotFoundError(f"there is no exported network in {folder}: {path.name} is missing")
    recipe = read_json(folder / RECIPE)
    schema = recipe.get("schema") if isinstance(recipe, dict) else None
    if type(schema) is not int:
        raise ValueError(f"{folder / RECIPE} is no recipe of a network: it has no schema version")
    if schema > SCHEMA:
        raise ValueError(f"{folder / RECIPE} has the schema {schema}; this version reads up to {SCHEMA}: upgrade")
    weights = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(weights).hexdigest() != recipe.get("weights"):
        raise ValueError(f"{folder / WEIGHTS} is damaged or was altered: its content does not match {RECIPE}")
    return recipe, weights


def _rebuilt(recipe: Mapping[str, Any], state: Mapping[str, Tensor], allow: Sequence[str]) -> nn.Module:
    network = build(recipe["model"], allow).eval()
    plan = plan_from_json(recipe["plan"])
    if plan is not None:
        shrunk = execute(network, plan, {}, torch.zeros(1, *recipe["shape"]), choice=recipe["choice"])
        assert shrunk is not None
        network = shrunk.network
    network.load_state_dict(dict(state))
    return network.eval()


def _probe(shape: Sequence[int]) -> Tensor:
    """An image that is the same on every machine and in every version."""
    pixels = torch.Size(shape).numel()
    return torch.arange(pixels, dtype=torch.float64).sin().float().view(1, *shape)
