"""Times that are measured after everything is trained."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from lt_lightning.experiment.run import run_task
from tests.runs import BOTH, MEASURED, SMALL, run_of

Compose = Callable[..., DictConfig]


def test_the_same_command_times_what_was_trained_without(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*SMALL, *BOTH, "data.limit=0.1", "report=false")
    before = run_of(composed(*options))
    structured = {result.place for result in before if result.structure in ("refill", "regroup")}
    assert {result.place for result in before if math.isnan(result.time_ratio_training)} == structured

    def refuse(*_: object) -> None:
        raise AssertionError("it was trained again")

    monkeypatch.setattr(run_task, "fit_ticket", refuse)
    monkeypatch.setattr(run_task, "fit_rounds", refuse)
    capsys.readouterr()
    after = run_of(composed(*options, MEASURED))
    assert capsys.readouterr().out.count("timed: ") == len(structured) == 2
    for old, new in zip(before, after, strict=True):
        assert (old.place, old.accuracy) == (new.place, new.accuracy)
        assert 0 < new.time_ratio_inference < 100
        assert 0 < new.time_ratio_training < 100
        assert (new.time_samples > 0) == (new.place in structured)
    with (tmp_path / "runs" / "summary.csv").open() as file:
        table = {row["place"]: float(row["time_ratio_training"]) for row in csv.DictReader(file)}
    assert table == pytest.approx({result.place: result.time_ratio_training for result in after})
    assert run_of(composed(*options, MEASURED)) == after
    assert "timed: " not in capsys.readouterr().out
