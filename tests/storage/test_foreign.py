"""A file can name a network, and run nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lt_lightning.storage.foreign import build_network

VGG: dict[str, Any] = {"_target_": "lt_lightning.models.vgg.VGG", "depth": 11, "classes": 3, "width": 2}


def test_a_network_of_ours_is_built() -> None:
    network = build_network(VGG)
    assert type(network).__name__ == "VGG"
    assert isinstance(network.classifier, nn.Linear)
    assert network.classifier.out_features == 3


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "lt_lightning.modelsX.VGG",
        "lt_lightning.models.common.math.sqrt",  # reached through what a module of ours has imported
        "lt_lightning.models.vgg.nn.Linear",
        "lt_lightning.models.vgg.nn.modules.module.warnings.warn",
        "lt_lightning.models.vgg._WIDTHS.count",
        "lt_lightning.models.vgg.no_such_thing",
        "lt_lightning.models",
        "lt_lightning.training.callback.LotteryTicketPruning",
        "",
        None,
        ["lt_lightning.models.vgg.VGG"],
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_anything_else_is_refused(target: Any, deep: bool) -> None:
    node: dict[str, Any] = {"_target_": target}
    with pytest.raises(ValueError, match=re.escape(f" {target!r}, ")):
        build_network({**VGG, "channels": [{"deeper": node}]} if deep else node)


def test_nothing_of_it_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    attack = {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [str(mark)]}}
    with pytest.raises(ValueError, match=r"'pathlib\.Path\.touch'"):
        build_network({**VGG, "channels": attack})
    assert not mark.exists()
    build_allowed = {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": [str(mark)]}]}
    with pytest.raises(ValueError, match=r"'pathlib\.Path\.touch'"):
        build_network(build_allowed, allow=["pathlib"])
    assert mark.exists()  # so the attack above would have worked


@pytest.mark.parametrize("value", ["${oc.env:HOME}", "a ${b}"])
def test_interpolations_are_refused(value: str) -> None:
    """What resolves them can be any function that the process has registered."""
    with pytest.raises(ValueError, match=re.escape(repr(value))):
        build_network({**VGG, "channels": {"x": [value]}})


def test_what_cannot_be_built_is_told_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"\bdepth=12: .*11, 13, 16, 19") as caught:
        build_network({**VGG, "depth": 12})
    assert "\n" not in str(caught.value)


def test_a_function_that_makes_no_network() -> None:
    with pytest.raises(ValueError, match=r"'lt_lightning\.models\.common\.positive'"):
        build_network({"_target_": "lt_lightning.models.common.positive", "width": 1})
