"""A network's weights and recipe: what is damaged, foreign or forged is refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from lt_lightning.tickets.export.network_file import load_network, save_network

if TYPE_CHECKING:
    from tests.tickets.export.conftest import Export

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(export: Export, tmp_path: Path) -> Path:
    """A copy of an exported network."""
    for name in ("network.safetensors", "network.json"):
        shutil.copy(export("resnet8", "stream").output / name, tmp_path)
    return tmp_path


def blocks(of_layers: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "blocks", "granularity": "kernel_position", "blocks": of_layers}


def change(folder: Path, how: Change) -> None:
    recipe = json.loads((folder / "network.json").read_text())
    how(recipe)
    (folder / "network.json").write_text(json.dumps(recipe))


def refusal(folder: Path) -> str:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_network(folder)
    told = str(caught.value)
    assert "\n" not in told
    assert str(folder) in told
    return told


def test_the_weights_are_the_state_dict(folder: Path) -> None:
    network = load_network(folder)
    assert not network.training
    state = load_file(folder / "network.safetensors")
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_every_truncation_and_a_flip_of_any_byte_of_the_weights_is_noticed(folder: Path) -> None:
    path = folder / "network.safetensors"
    whole = path.read_bytes()
    for position in range(0, len(whole), len(whole) // 7):
        path.write_bytes(whole[:position])
        assert "is damaged or was altered" in refusal(folder)
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert "is damaged or was altered" in refusal(folder)


@pytest.mark.parametrize("name", ["network.safetensors", "network.json"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} is missing" in refusal(folder)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (lambda recipe: recipe.update(schema=99), "schema 99; this version reads 2 alone: upgrade"),
        (lambda recipe: recipe.update(schema=1), "schema 1; this version reads 2 alone: export the ticket again"),
        (lambda recipe: recipe.pop("schema"), "no recipe of a network: it has no schema version"),
        (lambda recipe: recipe.pop("model"), "makes no network that fits network.safetensors: 'model'"),
        (lambda recipe: recipe["model"].update(width=16), "makes no network that fits network.safetensors"),
        (lambda recipe: recipe["model"].update(depth=9), "depth=9: must be 6n + 2"),
        (lambda recipe: recipe.update(plan=None), "makes no network that fits network.safetensors"),
        (lambda recipe: recipe["plan"].update(kind="magic"), "no plan of the kind 'magic'"),
        (lambda recipe: recipe["plan"]["outputs"].update({"no.such": [0]}), "the plan names 'no.such'"),
        (lambda recipe: recipe["plan"]["outputs"].update({"stem.conv": [999]}), "plan of stem.conv"),
        (lambda recipe: recipe.update(plan={"kind": "n_m", "n": 2, "m": 4, "layers": ["no.such"]}), "'no.such'"),
        (lambda recipe: recipe.update(plan=blocks({"no.such": [[[0], [0]]]})), "'no.such'"),
        (lambda recipe: recipe.update(plan=blocks({"stem.conv": []})), "'stem.conv'"),
        (lambda recipe: recipe["model"].update(depth=6_000_002), "cannot be built"),
        (lambda recipe: recipe["model"].update(width=100_000), "cannot be built"),
        (lambda recipe: recipe["model"].update(width=10**9), "cannot be built"),
        (lambda recipe: recipe["model"].update(classes=10**9), "cannot be built"),
        (lambda recipe: recipe.update(shape=[1, 100_000, 100_000]), "shape=[1, 100000, 100000]"),
        (lambda recipe: recipe.update(shape=[-1]), "shape=[-1]"),
        (lambda recipe: recipe.update(shape="x"), "shape=x"),
        (lambda recipe: recipe["logits"].reverse(), "makes a network of other logits"),
        (lambda recipe: recipe["model"].update(_target_="os.system", command="false"), "the file names 'os.system'"),
    ],
)
def test_a_recipe_that_is_wrong(folder: Path, how: Change, told: str) -> None:
    change(folder, how)
    assert told in refusal(folder)


def test_a_recipe_that_is_no_json(folder: Path) -> None:
    (folder / "network.json").write_text("{")
    assert "it is not JSON" in refusal(folder)


def test_a_network_of_ones_own_must_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks_.py").write_text("from torch import nn\n\nclass Mine(nn.Conv2d): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    model = {"_target_": "my_networks_.Mine", "in_channels": 1, "out_channels": 2, "kernel_size": 3}
    network = torch.nn.Conv2d(1, 2, 3)
    save_network(tmp_path, network, model, (1, 3, 3))
    assert "the file names 'my_networks_.Mine'" in refusal(tmp_path)
    loaded = load_network(tmp_path, allow=["my_networks_"])
    assert type(loaded).__name__ == "Mine"
    assert torch.equal(loaded.weight, network.weight)  # type: ignore[arg-type]
