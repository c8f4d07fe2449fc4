"""A ticket retrained as the smaller network learns as the masked one does."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from lt_lightning.execution.cost import Setting
from lt_lightning.execution.form_choice import FastestForm
from lt_lightning.execution.timing import TimeRatio
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run import run_task
from lt_lightning.results.records import Result
from lt_lightning.tickets.ticket import Ticket
from tests.cases import slow_but
from tests.runs import MEASURED, REFILL, SMALL, run_of

OPTIONS = (*SMALL, *REFILL, "trainer.max_epochs=3", "trainer.precision=64-true")


def curve(root: Path, result: Result) -> list[dict[str, float]]:
    with (root / result.place / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("coupling", "decay"),
    slow_but([("independent", "weights")], product(("stream", "independent"), ("all", "weights"))),
)
def test_shrunk_training_equals_masked_training(
    coupling: str, decay: str, composed: Callable[..., DictConfig], tmp_path: Path
) -> None:
    options = (*OPTIONS, f"structure.refill.coupling={coupling}", f"classifier.decay={decay}")
    masked, shrunk = (run_of(composed(*options, f"execution={how}"))[-1] for how in ("masked", "shrunk"))
    assert masked.place != shrunk.place
    assert masked.accuracy == shrunk.accuracy

    root = tmp_path / "runs"
    for expected, row in zip(curve(root, masked), curve(root, shrunk), strict=True):
        assert row == pytest.approx(expected, abs=1e-7)
    tickets = [Ticket.load(root / result.place / "ticket") for result in (masked, shrunk)]
    assert [ticket.card["execution"] for ticket in tickets] == ["masked", "shrunk"]
    first, second = (ticket.trained for ticket in tickets)
    assert first is not None
    assert second is not None
    assert set(first) == set(second)
    for name, mask in tickets[0].masks.items():
        torch.testing.assert_close(second[name][mask], first[name][mask], rtol=0, atol=1e-9)
        assert not second[name][~mask].any()


@pytest.mark.parametrize(
    ("precision", "bfloat16"), slow_but([("32-true", False)], [("bf16-mixed", True), ("32-true", False)])
)
def test_forms_are_chosen_and_timed_in_the_precision_of_the_training(
    precision: str, bfloat16: bool, composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[bool, bool]] = []

    def watched(*arguments: Any) -> FastestForm:
        form = FastestForm(*arguments)
        measured.append((form.training, form.bfloat16))
        return form

    timed: list[Setting] = []

    def time_ratio(*arguments: Any) -> TimeRatio:
        timed.append(arguments[3])
        return TimeRatio(1.0, 0.0, 2)

    monkeypatch.setattr("lt_lightning.execution.form_choice.FastestForm", watched)
    monkeypatch.setattr("lt_lightning.execution.cost.time_ratio", time_ratio)
    blocks = ("structure.regroup.group_size=4", "structure.regroup.clustering=random")
    run_of(composed(*SMALL, "structure=[regroup]", *blocks, f"trainer.precision={precision}", MEASURED))
    assert measured == [(True, bfloat16), (False, bfloat16), (True, bfloat16)]  # for the training; for both times
    assert [(setting.training, setting.bfloat16) for setting in timed] == [(False, bfloat16), (True, bfloat16)]


def test_unknown_execution_is_refused(composed: Callable[..., DictConfig]) -> None:
    with pytest.raises(ValueError, match=r"execution='sparse'.*shrunk, masked"):
        run_of(composed(*OPTIONS, "execution=sparse"))


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_a_test_leaves_the_network_that_is_looked_at_in_its_precision(
    precision: str, composed: Callable[..., DictConfig]
) -> None:
    experiment = Experiment.from_config(
        composed(*SMALL, f"trainer.precision={precision}", "+trainer.limit_test_batches=1")
    )
    state = experiment.spare_classifier().network.state_dict()
    run_task.evaluate(experiment, Ticket({}, dict(state), dict(state)))
    assert {value.dtype for value in experiment.spare_classifier().network.parameters()} == {torch.float32}
