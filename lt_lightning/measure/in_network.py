"""Time of every layer within networks that run: what each does, where it stands, among all others."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lt_lightning.measure.networks import Setting, network_call, random_images

Mark = Any  # a moment: seconds of a clock, or an event of a device


def layer_seconds(
    networks: Mapping[str, nn.Module],
    layers: Iterable[str],
    shape: tuple[int, ...],
    setting: Setting,
    device: torch.device | str = "cpu",
    passes: int = 5,
) -> dict[str, dict[str, float]]:
    """Median time of every layer in inference, in networks that run in turn.

    What stands between layers (activations, normalisation, gathering channels) is no layer's.

    Args:
        networks: by name; they are left as they were.
        layers: names of submodules; one that a network lacks, or that is not called, has no time there.
        shape: of one image.
        setting: of inference, eager.
        device: where to run.
        passes: of every network, besides one to warm up.

    Returns:
        seconds by layer and network.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    >>> seconds = layer_seconds({"a": net}, ["0", "gone"], (1, 8, 8), Setting(2, training=False))
    >>> {name: list(each) for name, each in seconds.items()}
    {'0': ['a'], 'gone': []}
    """
    images = random_images(setting, shape, device)
    names = list(layers)
    mark, between = _clock(device)
    runs = {}
    marks: dict[str, dict[str, list[tuple[Mark, Mark]]]] = {}
    for key, network in networks.items():
        mine = copy.deepcopy(network).to(device)
        marks[key] = _watched(mine, names, mark)
        runs[key] = network_call(mine, images, setting)
    for run in runs.values():
        run()
    for found in marks.values():
        for each in found.values():
            each.clear()
    for _ in range(passes):
        for run in runs.values():
            run()
    return {
        name: {
            key: statistics.median(between(*pair) for pair in found[name])
            for key, found in marks.items()
            if found.get(name)
        }
        for name in names
    }


def _watched(network: nn.Module, names: Iterable[str], mark: Callable[[], Mark]) -> dict[str, list[tuple[Mark, Mark]]]:
    """Where the moments before and after each call of each layer are noted."""
    modules = dict(network.named_modules())
    noted: dict[str, list[tuple[Mark, Mark]]] = {name: [] for name in names if name in modules}
    began: dict[str, Mark] = {}

    def watch(name: str) -> None:
        modules[name].register_forward_pre_hook(lambda *_: began.__setitem__(name, mark()))
        modules[name].register_forward_hook(lambda *_: noted[name].append((began[name], mark())))

    for name in noted:
        watch(name)
    return noted


def _clock(device: torch.device | str) -> tuple[Callable[[], Mark], Callable[[Mark, Mark], float]]:
    """How to mark a moment, and the seconds between two."""
    if torch.device(device).type != "cuda":
        return time.perf_counter, lambda first, last: last - first

    def mark() -> Mark:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between(first: Mark, last: Mark) -> float:
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    return mark, between
