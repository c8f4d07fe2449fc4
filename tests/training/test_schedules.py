"""Schedules against values worked by hand and against PyTorch's own schedulers."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lt_lightning.training.schedules import Constant, Cosine, Milestones, OneCycle, Schedule

CONF = Path(__file__).parents[2] / "conf" / "schedule"
ALL: list[Schedule] = [
    Constant(),
    Milestones(shares=(0.5, 0.75)),
    Milestones(epochs=(2, 3), warmup_epochs=1),
    Cosine(),
    Cosine(warmup_epochs=1, final=0.1),
    OneCycle(),
    OneCycle(peak=0.5, start=0.0, final=0.01),
]


def values(schedule: Schedule, total: int, steps_per_epoch: float) -> list[float]:
    return [schedule(step, total, steps_per_epoch) for step in range(total + 1)]


def rates(make: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler], steps: int) -> list[float]:
    """What a scheduler of PyTorch's gives for a base rate of 1 at steps 0 to `steps`."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    found = [scheduler.get_last_lr()[0]]
    for _ in range(steps):
        optimizer.step()
        scheduler.step()
        found.append(scheduler.get_last_lr()[0])
    return [float(rate) for rate in found]


def test_the_papers_milestones() -> None:
    schedule = Milestones(epochs=(80, 120))
    per_epoch = 352  # 45,000 images in batches of 128
    total = 160 * per_epoch
    at = {epoch: schedule(epoch * per_epoch, total, per_epoch) for epoch in (0, 79, 80, 119, 120, 159)}
    assert at == pytest.approx({0: 1, 79: 1, 80: 0.1, 119: 0.1, 120: 0.01, 159: 0.01})
    assert schedule(80 * per_epoch - 1, total, per_epoch) == 1
    assert schedule(120 * per_epoch - 1, total, per_epoch) == pytest.approx(0.1)
    assert values(Milestones(shares=(0.5, 0.75)), total, per_epoch) == values(schedule, total, per_epoch)


def test_milestones_are_pytorchs() -> None:
    expected = rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [6, 9], gamma=0.2), 12)
    assert values(Milestones(epochs=(2, 3), factor=0.2), 12, 3) == pytest.approx(expected)


def test_milestones_with_warmup_by_hand() -> None:
    schedule = Milestones(epochs=(2, 3), factor=0.5, warmup_epochs=1)
    expected = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]
    assert values(schedule, 16, 4) == pytest.approx(expected)


def test_cosine_is_pytorchs() -> None:
    expected = rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 20, eta_min=0.1), 20)
    assert values(Cosine(final=0.1), 20, 5) == pytest.approx(expected)


def test_cosine_with_warmup_by_hand() -> None:
    # Two steps up, reaching 1 with the second; then 4 steps down to 0.2.
    expected = [0.5, 1, 1, 0.2 + 0.8 * (2 + math.sqrt(2)) / 4, 0.6, 0.2 + 0.8 * (2 - math.sqrt(2)) / 4, 0.2]
    assert values(Cosine(warmup_epochs=1, final=0.2), 6, 2) == pytest.approx(expected)


def test_one_cycle_is_pytorchs() -> None:
    # PyTorch's reaches the peak at step pct_start * total - 1 and the end at total - 1.
    total, peak = 40, 0.3
    expected = rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o,
            max_lr=1.0,
            total_steps=total + 1,
            pct_start=(peak * total + 1) / (total + 1),
            div_factor=25,
            final_div_factor=4,
            cycle_momentum=False,
        ),
        total,
    )
    assert values(OneCycle(peak=peak, start=1 / 25, final=0.01), total, 10) == pytest.approx(expected)


def test_constant() -> None:
    assert set(values(Constant(), 10, 5)) == {1.0}


@pytest.mark.parametrize("schedule", ALL, ids=repr)
@given(total=st.integers(4, 400), beyond=st.integers(0, 1000))
def test_stays_in_range_and_keeps_its_final_value(schedule: Schedule, total: int, beyond: int) -> None:
    per_epoch = total / 4
    found = values(schedule, total, per_epoch)
    assert all(0 <= value <= 1 for value in found)
    assert max(found) == pytest.approx(1, abs=0.2)
    assert schedule(total + beyond, total, per_epoch) == found[-1]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_equal_ones_hash_alike_and_pickle(schedule: Schedule) -> None:
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule
    assert hash(again) == hash(schedule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Milestones(), "epochs=None, shares=None"),
        (lambda: Milestones(epochs=(1,), shares=(0.5,)), r"epochs=\(1,\), shares=\(0\.5,\)"),
        (lambda: Milestones(epochs=(3, 2)), r"epochs=\[3, 2\]"),
        (lambda: Milestones(epochs=(2, 2)), r"epochs=\[2, 2\]"),
        (lambda: Milestones(epochs=(0, 2)), r"epochs=\[0, 2\]"),
        (lambda: Milestones(shares=(0.5, 1.0)), r"shares=\[0\.5, 1\.0\].*\(0, 1\)"),
        (lambda: Milestones(shares=(0.5,), factor=0), r"factor=0: .*\(0, 1\]"),
        (lambda: Milestones(shares=(0.5,), factor=math.nan), "factor=nan"),
        (lambda: Milestones(shares=(0.5,), warmup_epochs=-1), "warmup_epochs=-1"),
        (lambda: Cosine(warmup_epochs=math.nan), "warmup_epochs=nan"),
        (lambda: Cosine(final=1.5), r"final=1\.5: .*\[0, 1\]"),
        (lambda: OneCycle(peak=1.0), r"peak=1\.0: .*\(0, 1\)"),
        (lambda: OneCycle(start=-0.1), "start=-0.1"),
        (lambda: OneCycle(final=2), "final=2"),
    ],
)
def test_refuses(make: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_refuses_a_training_that_is_too_short() -> None:
    with pytest.raises(ValueError, match=r"^epochs=\[80, 120\]: .*\b100\b"):
        Milestones(epochs=(80, 120))(0, 1000, 10)
    with pytest.raises(ValueError, match=r"^warmup_epochs=5: .*\b5\b"):
        Cosine(warmup_epochs=5)(0, 50, 10)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", Constant()),
        ("cosine", Cosine()),
        ("milestones", Milestones(shares=(0.5, 0.75))),
        ("one_cycle", OneCycle()),
    ],
)
def test_configurations(name: str, expected: Schedule) -> None:
    file = CONF / f"{name}.yaml"
    assert file.read_text().startswith("# @package classifier.schedule\n")
    assert instantiate(OmegaConf.load(file)) == expected
    assert {path.stem for path in CONF.glob("*.yaml")} == {"constant", "cosine", "milestones", "one_cycle"}


def test_milestones_from_a_list_override() -> None:
    config = OmegaConf.merge(OmegaConf.load(CONF / "milestones.yaml"), {"epochs": [30, 60], "shares": None})
    schedule = instantiate(config)
    assert schedule == Milestones(epochs=(30, 60))
    assert isinstance(schedule.epochs, tuple)
