"""The rule by which forms are chosen is what the committed measurements say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.forms import learned, rows_for, time_lost
from benchmarks.jobs import jobs_in, rows_of
from lt_lightning.execution.form_rule import CONVOLUTION, LINEAR, BlockTime

RESULTS = Path(__file__).parents[2] / "results" / "forms_cpu.json"


@pytest.mark.parametrize(("kind", "rules"), [("convolution", CONVOLUTION), ("linear", LINEAR)])
@pytest.mark.parametrize("training", [False, True])
def test_the_rule_is_learned_from_the_committed_measurements(
    kind: str, rules: dict[bool, BlockTime], training: bool
) -> None:
    rows = rows_for(rows_of(jobs_in([RESULTS]), "forms"), kind, training)
    assert learned(rows) == rules[training]
    assert time_lost(rows, rules[training]) < 0.02


def test_least_squares_find_what_the_times_were_made_of() -> None:
    true = BlockTime(0.1, 1.25, 40)
    rows = [
        {
            "inputs": inputs, "kernel": kernel, "density": share,
            "microseconds": {"dense": 200.0, "blocks": 200 * true(share, inputs, max(kernel, 1) ** 2)},
        }
        for inputs in (16, 100) for kernel in (0, 3) for share in (0.1, 0.5, 0.9)
    ]  # fmt: skip
    assert learned(rows) == true
    assert time_lost(rows, true) == 0
    assert time_lost(rows[:1], BlockTime(0, 0, 0)) == pytest.approx(200 * true(0.1, 16, 1) / 200 - 1)
