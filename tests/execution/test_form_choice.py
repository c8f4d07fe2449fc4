"""Which form computes a layer follows from the plan where PyTorch is deterministic; else it is measured once."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from lt_lightning.execution.execute import DENSE_FORM, execute
from lt_lightning.execution.form_choice import FastestForm, FormChoice, choose_forms, input_shapes
from lt_lightning.execution.form_rule import CONVOLUTION, form_by_rule
from lt_lightning.execution.remembered import remember, remembered
from lt_lightning.execution.timing import by_clock
from lt_lightning.models.vgg import VGG
from lt_lightning.structures.plan import Block, BlockPlan, ChannelPlan, Granularity, NMPlan

EXAMPLE = torch.zeros(1, 4, 8, 8)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LT_LIGHTNING_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """The times that are taken one after the other, when layers are to be timed; there is none at first."""
    times: list[dict[str, float]] = []
    monkeypatch.setattr(FastestForm, "_measure", lambda *_: times.pop(0))
    return times


def network_of(width: int = 128, filters: int = 64) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, width, 1), nn.Conv2d(width, filters, 3, padding=1))


def plan_of(
    share: float, width: int = 128, filters: int = 64, granularity: Granularity = "kernel_position"
) -> BlockPlan:
    """Two blocks of half of the filters, each with a share of the columns of the second layer."""
    columns = torch.arange(round(share * width * (9 if granularity == "kernel_position" else 1)))
    halves = torch.arange(filters).chunk(2)
    return BlockPlan(granularity, {"1": [Block(rows, columns) for rows in halves]})


def chosen(plan: BlockPlan, training: bool = False, bfloat16: bool = False) -> FormChoice:
    return choose_forms(network_of(), plan, EXAMPLE, 2, training, bfloat16=bfloat16)


# By rule


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("granularity", ["kernel_position", "input_channel"])
@pytest.mark.parametrize("training", [False, True])
def test_where_pytorch_is_deterministic_nothing_is_measured_nor_remembered(
    training: bool, granularity: Granularity, measured: list[dict[str, float]], tmp_path: Path
) -> None:
    for share, form in ((0.25, "blocks"), (0.97, DENSE_FORM)):
        choice = chosen(plan_of(share, granularity=granularity), training=training)
        assert choice == FormChoice({"1": form}, {"1": "rule"})
        assert chosen(plan_of(share, granularity=granularity), training=training, bfloat16=True) == choice
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("training", [False, True])
def test_the_rule_takes_the_kernel_below_the_share_at_which_its_time_is_the_dense_layers(training: bool) -> None:
    time_of = CONVOLUTION[training]
    for width in (64, 128, 256):
        least = (1 - time_of.least - time_of.of_size / (3 * width)) / time_of.of_share
        for share, form in ((least - 0.02, "blocks"), (least + 0.02, DENSE_FORM)):
            layer = network_of(width).get_submodule("1")
            assert form_by_rule(layer, plan_of(share, width), "1", ["blocks"], training) == form
            assert form_by_rule(layer, plan_of(share, width), "1", [], training) == DENSE_FORM


def test_two_of_four_weights_are_computed_as_such_where_there_is_a_form_of_them() -> None:
    layer, plan = nn.Linear(64, 32), NMPlan(2, 4, ("",))
    assert form_by_rule(layer, plan, "", ["semi_structured"], training=False) == "semi_structured"
    assert form_by_rule(layer, plan, "", [], training=False) == DENSE_FORM


def test_a_small_layer_stays_dense() -> None:
    plan = plan_of(0.1, 8, 8)
    assert form_by_rule(network_of(8, 8).get_submodule("1"), plan, "1", ["blocks"], training=True) == DENSE_FORM


def test_without_a_batch_size_each_layer_takes_its_first_form() -> None:
    network, plan = network_of(), plan_of(0.97, granularity="input_channel")
    choice = choose_forms(network, plan, EXAMPLE)
    made = execute(network, plan, {}, EXAMPLE)
    assert made is not None
    assert choice == FormChoice({"1": "grouped"}, {"1": "rule"})
    assert choice.forms == made.choice
    for other in (None, ChannelPlan({}, {})):
        assert choose_forms(network, other, EXAMPLE) == FormChoice({}, {})


# Measured, and remembered


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_is_replaced_by_its_fastest_form_if_that_is_faster(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lt_lightning.execution.timing.stopwatch", lambda _: by_clock(time.process_time))
    layer, small, middle, large = (nn.Conv2d(16, width, 3, padding=1) for width in (256, 4, 128, 1024))
    fastest = FastestForm({"a": (16, 16, 16)}, 8, training)
    assert fastest("a", layer, {"middle": middle, "small": small, "large": large}) == ("small", "measured")
    assert fastest("a", layer, {"large": large}) == (DENSE_FORM, "measured")
    assert fastest("a", layer, {}) == (DENSE_FORM, "rule")


def test_what_was_measured_is_used_by_every_later_run(measured: list[dict[str, float]]) -> None:
    plan = plan_of(0.5)
    measured.append({"dense": 2.0, "blocks": 1.0})
    assert chosen(plan) == FormChoice({"1": "blocks"}, {"1": "measured"})
    assert chosen(plan) == FormChoice({"1": "blocks"}, {"1": "remembered"})


@pytest.mark.parametrize(
    "change",
    ["share", "training", "bfloat16", "threads", "processor", "version"],
)
def test_it_is_remembered_for_one_shape_and_setting(
    change: str, measured: list[dict[str, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured += [{"dense": 2.0, "blocks": 1.0}, {"dense": 1.0, "blocks": 2.0}]
    assert chosen(plan_of(0.5)).forms == {"1": "blocks"}
    if change == "threads":
        monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    elif change == "processor":
        monkeypatch.setattr("lt_lightning.execution.remembered.processor", lambda _: "another")
    elif change == "version":
        monkeypatch.setattr("lt_lightning.execution.remembered._versions", lambda: {"torch": "1.0"})
    how = (plan_of(0.6 if change == "share" else 0.5), change == "training", change == "bfloat16")
    assert chosen(*how) == FormChoice({"1": DENSE_FORM}, {"1": "measured"})
    assert chosen(*how) == FormChoice({"1": DENSE_FORM}, {"1": "remembered"})


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _of_another(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "question": {}}))


def _unknown(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": {"dense": 2.0, "gone": 1.0}}))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_cut, _of_another, _unknown, _folder, lambda path: path.write_text("[]")])
def test_what_cannot_be_read_is_measured_anew(
    damage: Callable[[Path], None], measured: list[dict[str, float]], tmp_path: Path
) -> None:
    measured += [{"dense": 2.0, "blocks": 1.0}, {"dense": 1.0, "blocks": 2.0}]
    assert chosen(plan_of(0.5)).forms == {"1": "blocks"}
    (path,) = (tmp_path / "cache").rglob("*.json")
    damage(path)
    assert chosen(plan_of(0.5)) == FormChoice({"1": DENSE_FORM}, {"1": "measured"})


def test_without_a_folder_it_is_measured_each_time(measured: list[dict[str, float]], tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    for _ in range(2):
        measured.append({"dense": 2.0, "blocks": 1.0})
        assert chosen(plan_of(0.5)) == FormChoice({"1": "blocks"}, {"1": "measured"})


def test_of_two_that_measure_at_once_the_first_to_end_decides_for_all_that_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def while_another_ends(fastest: FastestForm, *_: object) -> dict[str, float]:
        monkeypatch.setattr(FastestForm, "_measure", lambda *_: {"dense": 1.0, "blocks": 2.0})
        assert chosen(plan_of(0.5)).decided_by == {"1": "measured"}
        return {"dense": 2.0, "blocks": 1.0}

    monkeypatch.setattr(FastestForm, "_measure", while_another_ends)
    assert chosen(plan_of(0.5)) == FormChoice({"1": DENSE_FORM}, {"1": "remembered"})


def test_writers_and_readers_at_the_same_time_see_whole_answers(tmp_path: Path) -> None:
    question = {"layer": "a" * 10_000}

    def work(_: int) -> dict[str, float] | None:
        remember("forms", question, {"blocks": 1.0})
        return remembered("forms", question)

    with ThreadPoolExecutor(8) as pool:
        assert all(known == {"blocks": 1.0} for known in pool.map(work, range(80)))
    assert len(list((tmp_path / "cache").rglob("*"))) == 2  # a folder and a file


def test_input_shapes_are_those_of_the_run() -> None:
    network = copy.deepcopy(VGG(11, 10, width=8)).train()
    shapes = input_shapes(network, ["stages.1.conv1", "classifier"], torch.zeros(1, 3, 32, 32))
    assert shapes == {"stages.1.conv1": (8, 16, 16), "classifier": (64,)}
    assert network.training
