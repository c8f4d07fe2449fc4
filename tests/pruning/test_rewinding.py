"""Rewinding points against trainings that are simply repeated."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from lt_lightning.pruning.rewinding import Mode, Refilled, Restart, RewindPoint, Step, when_alive

Make = Callable[[], nn.Module]
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}
SCHEDULES: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "step": lambda o: StepLR(o, 2, 0.5),
    "milestones": lambda o: MultiStepLR(o, [1, 4], 0.1),
    "cosine": lambda o: CosineAnnealingLR(o, 20),
    "one cycle": lambda o: OneCycleLR(o, 0.2, total_steps=20),
    "sequence": lambda o: SequentialLR(o, [StepLR(o, 1, 0.9), StepLR(o, 1, 0.5)], [4]),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8ep", Step(8, "ep")),
        ("500it", Step(500, "it")),
        ("0ep", Step(0, "ep")),
        (3, Step(3, "ep")),
        (" 7 ", Step(7, "ep")),
        ("5%", Step(5, "%")),
    ],
)
def test_steps_are_read(text: str | int, expected: Step) -> None:
    assert Step.parse(text) == expected
    assert Step.parse(str(expected)) == expected


@pytest.mark.parametrize("text", ["", "ep", "-1ep", "1.5ep", "8 epochs", "8EP", "1ep2it", "²ep", "2.5%", "%"])
def test_what_is_no_step_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(f"rewind={text!r}: ")):
        Step.parse(text)


@given(st.integers(0, 100), st.integers(1, 1000))
def test_a_share_is_the_nearest_whole_epoch(share: int, epochs: int) -> None:
    step = Step(share, "%").within(epochs)
    assert abs(Fraction(share * epochs, 100) - step.count) <= Fraction(1, 2)
    assert step.within(epochs + 1) == step == Step(step.count, "ep")
    assert Step(share, "it").within(epochs) == Step(share, "it")


@given(st.integers(0, 10**6), st.integers(1, 10**4))
def test_a_step_splits_into_epochs_and_the_rest(count: int, steps_per_epoch: int) -> None:
    epochs, steps = Step(count, "it").split(steps_per_epoch)
    assert epochs * steps_per_epoch + steps == count
    assert 0 <= steps < steps_per_epoch
    assert Step(count, "ep").split(steps_per_epoch) == (count, 0)


def train(network: nn.Module, optimizer: Optimizer, schedule: LRScheduler, steps: int, seed: int) -> list[float]:
    """Some steps on random data; returns their learning rates."""
    generator = torch.Generator().manual_seed(seed)
    rates = []
    for _ in range(steps):
        images = torch.randn(4, 1, 6, 6, generator=generator)
        labels = torch.randint(3, (4,), generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(network(images), labels))
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        schedule.step()
    return rates


def values(state: Any) -> list[Any]:
    """Everything in nested containers, flat."""
    if isinstance(state, dict):
        return [item for key in state for item in (key, *values(state[key]))]
    if isinstance(state, (list, tuple)):
        return [item for entry in state for item in values(entry)]
    return [state]


def same(a: Any, b: Any) -> bool:
    first, second = values(a), values(b)
    return len(first) == len(second) and all(
        torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_every_rewind_restores_the_exact_bits_and_so_the_same_training(
    conv_net: Make, optimizer_name: str, schedule_name: str
) -> None:
    """Lightning's ModelPruning holds the live weights, so its second rewind is wrong."""
    network = conv_net()
    optimizer = OPTIMIZERS[optimizer_name](network.parameters())
    schedule = SCHEDULES[schedule_name](optimizer)
    train(network, optimizer, schedule, 3, seed=1)
    point = RewindPoint.capture(network, [optimizer], [schedule])
    expected = copy.deepcopy([network.state_dict(), optimizer.state_dict(), schedule.state_dict()])
    rates = train(network, optimizer, schedule, 5, seed=2)
    trained = copy.deepcopy(network.state_dict())
    parameters = list(network.parameters())
    for _ in range(3):
        train(network, optimizer, schedule, 2, seed=3)  # somewhere else, in place
        network.load_state_dict(point.network)
        point.restore_schedule([optimizer], [schedule])
        assert same([network.state_dict(), optimizer.state_dict(), schedule.state_dict()], expected)
        assert train(network, optimizer, schedule, 5, seed=2) == rates
        assert same(network.state_dict(), trained)
    assert all(a is b for a, b in zip(network.parameters(), parameters, strict=True))


def test_buffers_go_back_too(conv_net: Make) -> None:
    network = conv_net()
    point = RewindPoint.capture(network, [], [])
    network(torch.randn(4, 1, 6, 6) + 5)
    moved = [name for name, value in network.state_dict().items() if not torch.equal(value, point.network[name])]
    assert moved == [f"{i}.{part}" for i in (1, 4) for part in ("running_mean", "running_var", "num_batches_tracked")]
    network.load_state_dict(point.network)
    assert same(network.state_dict(), point.network)


def test_a_plateau_schedule_goes_back(conv_net: Make) -> None:
    optimizer = OPTIMIZERS["sgd"](conv_net().parameters())
    schedule = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    point = RewindPoint.capture(nn.Identity(), [optimizer], [schedule])
    for _ in range(3):
        schedule.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)
    point.restore_schedule([optimizer], [schedule])
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert schedule.num_bad_epochs == 0


def restart_of(mode: Mode, network: nn.Module, optimizer: Optimizer, schedule: LRScheduler) -> Restart:
    point = RewindPoint.capture(network, [optimizer], [schedule])
    return Restart(mode, point, epochs=2, last_rates=[[0.001]])


@pytest.mark.parametrize("mode", ["learning_rate", "none"])
def test_other_modes_keep_the_weights_and_start_momentum_anew(conv_net: Make, mode: Mode) -> None:
    network = conv_net()
    optimizer = OPTIMIZERS["sgd"](network.parameters())
    schedule = SCHEDULES["step"](optimizer)
    first = train(network, optimizer, schedule, 3, seed=1)
    restart = restart_of(mode, network, optimizer, schedule)
    expected = train(network, optimizer, schedule, 4, seed=1)
    trained = copy.deepcopy(network.state_dict())
    assert same(restart.values(network.state_dict(), {}), trained)
    restart.restore([optimizer], [schedule])
    assert same(network.state_dict(), trained)
    assert not optimizer.state
    restart.fix_rates([optimizer])
    rate = optimizer.param_groups[0]["lr"]
    assert rate == (expected[0] if mode == "learning_rate" else 0.001)
    assert first[0] != expected[0]


def test_the_values_of_a_restart_are_copies(conv_net: Make) -> None:
    network = conv_net()
    optimizer = OPTIMIZERS["sgd"](network.parameters())
    for mode in get_args(Mode):
        restart = restart_of(mode, network, optimizer, SCHEDULES["step"](optimizer))
        state = network.state_dict()
        before = restart.values(state, {})
        restart.values(state, {})["0.weight"].zero_()
        assert same(restart.values(state, {}), before)


@pytest.mark.parametrize(
    ("refilled", "expected"), [("last", [1.0, 2.0, 3.0]), ("rewind", [1.0, 20.0, 30.0]), ("zero", [1.0, 0.0, 0.0])]
)
def test_refilled_weights_restart_from_what_is_asked_under_all_names_of_a_parameter(
    refilled: Refilled, expected: list[float]
) -> None:
    network = nn.ModuleList([nn.Linear(3, 1, bias=False), nn.Linear(3, 1, bias=False)])
    network[1].weight = network[0].weight
    network[0].weight.data = torch.tensor([[1.0, 2.0, 0.0]])
    before = {"0.weight": torch.tensor([[9.0, 9.0, 3.0]])}
    alive = when_alive(network.state_dict(), {"0.weight": torch.tensor([[True, True, False]])}, before)
    assert {name: value.tolist() for name, value in alive.items()} == {
        "0.weight": [[1.0, 2.0, 3.0]], "1.weight": [[1.0, 2.0, 3.0]]
    }  # fmt: skip
    point = RewindPoint(dict.fromkeys(alive, torch.tensor([[10.0, 20.0, 30.0]])), [], [], [])
    restart = Restart("learning_rate", point, 1, [], refilled)
    values = restart.values(alive, {"0.weight": torch.tensor([[True, False, False]])})
    assert {name: value.tolist() for name, value in values.items()} == {name: [expected] for name in alive}


def test_fixed_rates_touch_no_other_mode(conv_net: Make) -> None:
    network = conv_net()
    optimizer = OPTIMIZERS["sgd"](network.parameters())
    restart_of("weights", network, optimizer, SCHEDULES["step"](optimizer)).fix_rates([optimizer])
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("schedule_name", SCHEDULES)
def test_a_restart_comes_back_from_disk(conv_net: Make, tmp_path: Path, schedule_name: str) -> None:
    network = conv_net()
    optimizer = OPTIMIZERS["sgd"](network.parameters())
    schedule = SCHEDULES[schedule_name](optimizer)
    train(network, optimizer, schedule, 3, seed=1)
    restart = restart_of("weights", network, optimizer, schedule)
    restart.save(tmp_path / "folder" / "restart.pt")
    restored = Restart.load(tmp_path / "folder" / "restart.pt")
    assert same(restored.state_dict(), restart.state_dict())
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["restart.pt"]


def test_a_damaged_or_missing_restart_is_told_in_one_line(conv_net: Make, tmp_path: Path) -> None:
    network = conv_net()
    optimizer = OPTIMIZERS["sgd"](network.parameters())
    path = tmp_path / "restart.pt"
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        Restart.load(path)
    restart_of("weights", network, optimizer, SCHEDULES["step"](optimizer)).save(path)
    whole = path.read_bytes()
    torch.save({"mode": "weights"}, other := tmp_path / "other.pt")
    torch.save([1], array := tmp_path / "array.pt")
    for content in (whole[: len(whole) // 2], b"", b"text", other.read_bytes(), array.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{path} ")) as told:
            Restart.load(path)
        assert "\n" not in str(told.value)


class Bomb:
    """What an attacker would pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").touch, ())


def test_loading_a_restart_never_executes_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"mode": Bomb()}, tmp_path / "restart.pt")
    with pytest.raises(ValueError, match=r"restart\.pt "):
        Restart.load(tmp_path / "restart.pt")
    assert not (tmp_path / "exploded").exists()
