"""Lines between networks, by hand calculation and closed properties."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from lt_lightning.pruning.evaluation import barrier, error, interpolate, reestimate, smallest_stable

Make = Callable[[], nn.Module]


def line(function: Callable[[Tensor], float], first: Tensor, second: Tensor, points: int) -> list[float]:
    alphas = torch.linspace(0, 1, points, dtype=torch.float64).tolist()
    return [function(interpolate({"w": first}, {"w": second}, alpha)["w"]) for alpha in alphas]


def test_barrier_of_quadratics_by_hand() -> None:
    first, second = torch.tensor([-1.0, 0.0]).double(), torch.tensor([1.0, 2.0]).double()
    # |w|^2 at (1 - a)(-1, 0) + a(1, 2) is (2a - 1)^2 + 4a^2: convex, largest at an end, 5; the ends' mean is 3.
    assert barrier(line(lambda w: float(w @ w), first, second, 21)) == pytest.approx(5 - 3)
    # 4 - |w|^2 is -1 at a = 1, 3 at a = 0, and largest where the derivative 4(2a - 1) + 8a is zero: a = 1/4, 3.5.
    assert barrier(line(lambda w: 4 - float(w @ w), first, second, 21)) == pytest.approx(3.5 - 1)


def test_double_well_has_its_hill_as_barrier() -> None:
    errors = line(lambda w: float((w**2 - 1) ** 2), torch.tensor(-1.0).double(), torch.tensor(1.0).double(), 11)
    assert barrier(errors) == pytest.approx(1.0)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9))
def test_barrier_is_never_negative_and_the_same_from_both_ends(errors: list[float]) -> None:
    assert barrier(errors) >= 0
    assert barrier(errors) == barrier(errors[::-1])


def test_barrier_needs_both_ends() -> None:
    with pytest.raises(ValueError, match=r"\b1 error"):
        barrier([0.5])


def test_ends_and_equal_networks_are_exact(conv_net: Make) -> None:
    first = conv_net().state_dict()
    second = {name: value * 1.7 + 1 if value.is_floating_point() else value + 3 for name, value in first.items()}
    for alpha, end in ((0.0, first), (1.0, second)):
        point = interpolate(first, second, alpha)
        assert all(torch.equal(point[name], end[name]) for name in end if end[name].is_floating_point())
    for alpha in (0.1, 0.5, 0.7):
        assert all(torch.equal(value, first[name]) for name, value in interpolate(first, first, alpha).items())
        between = interpolate(first, second, alpha)
        torch.testing.assert_close(between["0.weight"], (1 - alpha) * first["0.weight"] + alpha * second["0.weight"])


def test_a_line_keeps_the_mask_of_both_ends() -> None:
    mask = torch.tensor([True, False, True])
    point = interpolate({"w": torch.rand(3) * mask}, {"w": torch.rand(3) * mask}, 0.3)
    assert point["w"][1] == 0


def test_other_networks_have_no_line() -> None:
    with pytest.raises(ValueError, match=r" b$"):
        interpolate({"a": torch.zeros(1)}, {"a": torch.zeros(1), "b": torch.zeros(1)}, 0.5)
    with pytest.raises(ValueError, match=r"\ba\b.*\(1,\).*\(2,\)"):
        interpolate({"a": torch.zeros(1)}, {"a": torch.zeros(2)}, 0.5)


@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 33])
def test_bisection_finds_every_first_point_and_asks_little(count: int) -> None:
    for first in range(count + 1):
        asked: list[int] = []

        def stable(point: int, first: int = first, asked: list[int] = asked) -> bool:
            asked.append(point)
            return point >= first

        assert smallest_stable(stable, count) == (first if first < count else None)
        assert len(asked) == len(set(asked)) <= count.bit_length()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 1, 6, 6, generator=generator) * 2 + 1, torch.arange(8) % 3) for _ in range(5)]


def test_reestimated_statistics_are_those_of_pytorch(conv_net: Make) -> None:
    ours, theirs = conv_net(), conv_net()
    ours.eval()
    reestimate(ours, batches())
    update_bn(batches(), theirs)
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name
    assert not any(module.training for module in ours.modules())
    assert [m.momentum for m in ours.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1, 0.1]


def test_dropout_is_off_while_statistics_are_estimated() -> None:
    network = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(1)).train()
    reestimate(network, batches())
    norm = network[1]
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    expected = torch.stack([images.mean() for images, _ in batches()]).mean()
    assert float(norm.running_mean[0]) == pytest.approx(float(expected), abs=1e-6)
    assert all(module.training for module in network.modules())


def test_error_counts_wrong_answers() -> None:
    network = nn.Identity()
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]])
    assert error(network, [(logits, torch.tensor([0, 0, 0])), (logits[:1], torch.tensor([1]))]) == 0.5
    with pytest.raises(ValueError, match="at least one image"):
        error(network, [])
