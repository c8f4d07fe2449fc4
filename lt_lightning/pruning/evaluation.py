"""Networks looked at and left as they were, how far two of them differ, and the line between two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Set networks to evaluation mode without gradients; at the end every module is back in its own mode.

    >>> network = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    >>> with evaluating(network):
    ...     network[0].training
    False
    >>> [module.training for module in network]
    [True, False]
    """
    modes = {module: module.training for network in networks for module in network.modules()}
    try:
        for network in networks:
            network.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def forked_random(device: torch.device | str = "cpu") -> AbstractContextManager[None]:
    """Return a context in which random numbers may be drawn: at its end the generators are as they were.

    Args:
        device: device on which they are drawn, besides the CPU.

    >>> state = torch.get_rng_state()
    >>> with forked_random():
    ...     _ = torch.randn(3)
    >>> torch.equal(torch.get_rng_state(), state)
    True
    """
    return torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else [])


def relative_difference(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected magnitude; infinite for NaN or other shapes.

    >>> relative_difference(torch.tensor([1.0, -3.0]), torch.tensor([1.0, -4.0]))
    0.25
    """
    if got.shape != expected.shape:
        return float("inf")
    got, expected = got.detach().double().cpu(), expected.detach().double().cpu()
    largest = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return float(((got - expected).abs().max() / largest).nan_to_num(float("inf")))


def largest_difference(first: nn.Module, second: nn.Module, images: Tensor) -> float:
    """Return the largest difference of two networks' outputs, relative to the first's largest output."""
    with evaluating(first, second), torch.inference_mode():
        expected, got = first(images), second(images)
    return relative_difference(got, expected)


# The line between two trained networks: points on it, the error barrier, and the smallest stable rewind point.

Batches = Iterable[tuple[Tensor, Tensor]]


def interpolate(first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return (1 - alpha) * first + alpha * second, value by value; it is exact at the ends, and where both agree.

    Args:
        first: state of a network (parameters and buffers by name).
        second: state of another network with the same names and shapes; its counters (whole numbers) are ignored.
        alpha: position on the line, in [0, 1].

    Raises:
        ValueError: if names or shapes differ.

    >>> import torch
    >>> interpolate({"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([2.0, 4.0])}, 0.25)
    {'w': tensor([0.5000, 4.0000])}
    """
    if names := sorted(set(first) ^ set(second)):
        raise ValueError(f"no line joins these networks: only one of them has {names[0]}")
    if names := [name for name in first if first[name].shape != second[name].shape]:
        shapes = f"{tuple(first[names[0]].shape)} and {tuple(second[names[0]].shape)}"
        raise ValueError(f"no line joins these networks: {names[0]} has the shapes {shapes}")
    return {
        name: value.lerp(second[name], alpha) if value.is_floating_point() else value.clone()
        for name, value in first.items()
    }


def barrier(errors: Sequence[float]) -> float:
    """Return the height of the error barrier: the largest error on the line less the mean error of its two ends.

    Frankle et al. 2020 ("Linear Mode Connectivity and the Lottery Ticket Hypothesis", section 2) call it the linear
    interpolation instability, and a network stable where it is below 2 %. It is never negative.

    Args:
        errors: errors along the line; the first and the last are those of its ends.

    Raises:
        ValueError: if there are fewer than two.

    >>> barrier([0.25, 0.75, 0.5])
    0.375
    """
    if len(errors) < 2:
        raise ValueError(f"a barrier needs the errors of both ends, not {len(errors)} error")
    return max(errors) - (errors[0] + errors[-1]) / 2


def smallest_stable(stable: Callable[[int], bool], count: int) -> int | None:
    """Return the index of the smallest rewind point that is stable, by bisection; None if even the last is unstable.

    All points after a stable one are assumed to be stable. Where noise breaks that assumption, the result is a stable
    point whose predecessor is unstable.

    Args:
        stable: function that measures whether the point of an index is stable; called at most log2(count) + 1 times.
        count: number of points, in ascending order.

    >>> smallest_stable(lambda point: point >= 5, 8)
    5
    """
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if stable(middle):
            high = middle
        else:
            low = middle + 1
    return low if low < count else None


def reestimate(network: nn.Module, batches: Batches) -> None:
    """Set the statistics of every BatchNorm to the means over these batches, all of equal weight.

    A point between two networks has activations of its own: statistics that are interpolated do not fit them
    (Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima", section 3.2). Everything else stays.

    Args:
        network: network on the batches' device; it is changed in place, but its modes stay.
        batches: images and labels of the training data.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    try:
        with evaluating(network):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean over all batches
                norm.train()
            for images, _ in batches:
                network(images)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def error(network: nn.Module, batches: Batches) -> float:
    """Return the share of the images that a network classifies wrongly, in evaluation mode.

    Args:
        network: network from images to logits (n, classes), on the batches' device.
        batches: images and labels.

    Raises:
        ValueError: if there are no images.
    """
    wrong = count = 0
    with evaluating(network):
        for images, labels in batches:
            wrong += int((network(images).argmax(1) != labels).sum())
            count += len(labels)
    if not count:
        raise ValueError("the error of a network needs at least one image")
    return wrong / count
