"""Every precision that Lightning's trainer accepts, on the CPU: a job runs in it, or is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
from lightning_fabric.plugins.precision.precision import _PRECISION_INPUT
from omegaconf import DictConfig

from lt_lightning.experiment.parts import Experiment
from lt_lightning.results.failures import EXPECTED, one_line
from tests.runs import REFILL, SMALL, run_of

Compose = Callable[..., DictConfig]
ACCEPTED = sorted({str(name) for kind in get_args(_PRECISION_INPUT) for name in get_args(kind) or [kind]})
ONE_BATCH = tuple(f"+trainer.limit_{part}_batches=1" for part in ("train", "val", "test"))
REFUSED = ("transformer-engine", "transformer-engine-float16")  # need a GPU, and a package of NVIDIA's


def asked(composed: Compose, precision: str) -> DictConfig:
    return composed(*SMALL, *REFILL, *ONE_BATCH, "model.width=4", f"trainer.precision={precision}")


@pytest.mark.parametrize("precision", REFUSED)
def test_what_the_cpu_does_not_have_is_refused(precision: str, composed: Compose) -> None:
    told = ""
    try:
        Experiment.from_config(asked(composed, precision))
    except EXPECTED as error:
        told = one_line(error)
    assert len(told.splitlines()) == 1
    assert "trainer" in told


@pytest.mark.slow
@pytest.mark.parametrize("precision", [name for name in ACCEPTED if name not in REFUSED])
def test_a_job_runs(precision: str, composed: Compose) -> None:
    results: list[Any] = run_of(asked(composed, precision))
    assert [result.structure for result in results] == ["dense", "unstructured", "refill"]
