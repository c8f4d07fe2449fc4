"""The benchmark's suite: every variant computes the same, and operations are counted on what runs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lt_lightning.measure.layers import FasterLayer
from lt_lightning.measure.networks import Setting
from lt_lightning.measure.suite import measure_network
from lt_lightning.models.vgg import VGG
from lt_lightning.structures.base import Structure
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup
from lt_lightning.structures.unstructured import Unstructured


def test_suite_measures_every_variant_in_every_setting() -> None:
    structures: dict[str, Structure] = {
        "masked": Unstructured(),
        "refill": Refill(round_to=2),
        "regroup": Regroup(columns="input_channel", group_size=4, clustering="kmeans"),
    }
    settings = [Setting(4, False), Setting(4, True)]
    rows = list(
        measure_network(
            "vgg", lambda: VGG(11, 10, width=8), (3, 32, 32), structures, 0.25, settings, samples=2, slot=0.001
        )
    )
    assert [row.variant for row in rows] == ["dense", *structures] * 2
    by_name = {row.variant: row for row in rows[:4]}
    assert by_name["dense"].speedup == 1.0
    assert by_name["masked"].ideal == 1.0
    assert math.isnan(by_name["masked"].share)
    assert 2.0 < by_name["refill"].ideal < 8.0
    assert by_name["refill"].parameters < 0.35 * by_name["dense"].parameters
    assert by_name["refill"].saved_megabytes < by_name["dense"].saved_megabytes
    assert all(row.difference < 1e-4 for row in rows)


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_is_replaced_only_by_a_faster_one(training: bool) -> None:
    layer, small, large = (nn.Conv2d(16, width, 3, padding=1) for width in (64, 4, 512))
    faster = FasterLayer({"a": (16, 16, 16)}, 8, training)
    assert faster("a", layer, small)
    assert not faster("a", layer, large)


def test_what_was_measured_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    faster = FasterLayer({"a": (2, 4, 4), "b": (2, 4, 4)}, 1, training=False)
    layer, small = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 2, 3)
    first = faster("a", layer, small)
    monkeypatch.setattr(FasterLayer, "_measure", lambda *_: pytest.fail("measured again"))
    assert faster("b", nn.Conv2d(2, 4, 3), nn.Conv2d(2, 2, 3)) is first
    assert torch.is_grad_enabled()
