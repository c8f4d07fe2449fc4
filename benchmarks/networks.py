"""The time and memory of a network's tickets and of the dense network, measured in turn in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import nan
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.network_costs import (
    file_bytes,
    joules,
    nvml_counter,
    peak_bytes,
    saved_bytes,
    share_of_ideal,
    training_difference,
)
from benchmarks.variants import Effort, Executed, Tickets, Variant
from lt_lightning.execution.cost import Engine, Setting, flops, inputs_like, network_call, parameters
from lt_lightning.execution.machine import tensor_float32
from lt_lightning.execution.timing import interleaved, stopwatch
from lt_lightning.pruning.evaluation import relative_difference
from lt_lightning.tickets.export.standard_formats import IMAGES, make_session, to_onnx

_COMPARED = 8  # images on which networks are compared
_TOLERANCE = {False: 1e-3, True: 0.25}  # with rounded products: bfloat16 gives some 0.03 in a deep network, TF32 less


@dataclass(frozen=True)
class Measurement:
    """What one variant of a network costs in one setting.

    Attributes:
        variant: `dense`, or a name of `variants.VARIANTS`.
        density: density of every prunable layer; 1 for `dense`.
        setting: see `Setting`.
        milliseconds: median of one call.
        p5: 5th percentile, milliseconds.
        p95: 95th percentile, milliseconds.
        samples: number of turns.
        speedup: median of dense over this one's, both in this engine and memory format.
        ideal: operations of dense over those of the ticket's plan; 1 where it has none (`masked`).
        share: part of the ideal saving of time that is reached, see `share_of_ideal`.
        flops: operations of one forward pass of the batch, in the network that runs.
        parameters: number of parameters of the network that runs.
        file_megabytes: size of the network as safetensors.
        saved_megabytes: activations that are kept for the backward pass; NaN for inference.
        peak_megabytes: most memory that a call takes, see `peak_bytes`; NaN where it cannot be seen.
        joules: energy of one call; NaN where there is no counter.
        difference: relative difference to the masked network: of the logits (inference), or of those after two
            training steps, and of the first loss of a compiled step.
        left_dense: layers of the plan that run whole, since that was measured faster.
    """

    variant: str
    density: float
    setting: Mapping[str, object]
    milliseconds: float
    p5: float
    p95: float
    samples: int
    speedup: float
    ideal: float
    share: float
    flops: int
    parameters: int
    file_megabytes: float
    saved_megabytes: float
    peak_megabytes: float
    joules: float
    difference: float
    left_dense: Sequence[str]


@dataclass(frozen=True)
class _Contender:
    """A network that is measured, and what it is compared with."""

    variant: str
    density: float
    executed: Executed
    masked: Executed  # the full network that computes the same
    planned: int  # operations of one image by the ticket's plan
    fits: Callable[[Setting], bool]


def measure_networks(
    tickets: Tickets,
    variants: Mapping[str, Variant],
    densities: Sequence[float],
    setting: Setting,
    effort: Effort,
    engines: Sequence[Engine] = ("eager",),
    layouts: Sequence[bool] = (True,),
    device: str = "cpu",
) -> list[Measurement]:
    """Measure the dense network and every variant at every density, in every engine and memory format, in turn.

    `masked` is measured at the lowest density alone, as its time does not depend on it.

    Args:
        tickets: tickets of the network.
        variants: variants by name.
        densities: densities of every prunable layer.
        setting: batch size, training and precision; `engines` and `layouts` replace its engine and memory format.
        effort: how much is measured.
        engines: engines, see `Setting`.
        layouts: memory formats, True for channels_last.
        device: device to measure on.

    Raises:
        RuntimeError: if a network does not compute what the masked one does.
    """
    contenders = list(_contenders(tickets, variants, densities, setting, device))
    settings = [
        replace(setting, engine=engine, channels_last=layout)
        for engine in engines
        for layout in (layouts if engine != "onnx" else (False,))
    ]
    entries = {
        f"{one.variant} {one.density} {how}": (one, how) for how in settings for one in contenders if one.fits(how)
    }
    calls, differences = {}, {}
    for key, (one, how) in entries.items():
        calls[key], differences[key] = _checked_call(one, how, tickets, device)
    timings = interleaved(calls, stopwatch(device), effort.samples, effort.slot, 1, effort.limit)
    dense = {how: timings[f"dense 1.0 {how}"].median for how in settings if f"dense 1.0 {how}" in timings}
    counter = nvml_counter(device)
    image = tickets.example.to(device)
    whole = flops(tickets.network, tickets.example)
    rows = []
    for key, (one, how) in entries.items():
        timing, network = timings[key], one.executed.network.to(device)
        speedup, ideal = dense[how] / timing.median, whole / one.planned
        rows.append(
            Measurement(
                one.variant,
                one.density,
                asdict(how),
                timing.median * 1e3,
                timing.p5 * 1e3,
                timing.p95 * 1e3,
                timing.samples,
                speedup,
                ideal,
                share_of_ideal(speedup, ideal),
                flops(network.eval(), image) * how.batch_size,
                parameters(network),
                file_bytes(network) / 1e6,
                _saved_megabytes(network, how, tickets, device),
                peak_bytes(calls[key], device) / 1e6 if how.engine == "eager" else nan,
                nan if counter is None else joules(calls[key], counter, torch.cuda.synchronize),
                differences[key],
                one.executed.left_dense,
            )
        )
    return rows


def _contenders(
    tickets: Tickets, variants: Mapping[str, Variant], densities: Sequence[float], setting: Setting, device: str
) -> Iterator[_Contender]:
    dense = Executed(copy.deepcopy(tickets.network))
    yield _Contender("dense", 1.0, dense, dense, flops(dense.network, tickets.example), _fits_dense)
    for name, variant in variants.items():
        if not variant.fits(setting):
            continue
        for density in densities if name != "masked" else [min(densities)]:
            ticket = tickets.ticket(variant.structure, density)
            masked = Executed(tickets.masked(variant.structure, density), ticket.masks)
            executed = variant.execute(masked.network, ticket, tickets.example, setting, device)
            planned = tickets.whole(variant.structure, density)
            operations = flops(masked.network if planned is None else planned.network, tickets.example)
            yield _Contender(name, density, executed, masked, operations, variant.fits)


def _fits_dense(setting: Setting) -> bool:
    """Return whether the dense network can be measured: ONNX Runtime is for inference in float32."""
    return setting.engine != "onnx" or not (setting.training or setting.bfloat16)


def _checked_call(
    one: _Contender, setting: Setting, tickets: Tickets, device: str
) -> tuple[Callable[[], object], float]:
    """Return the function to be timed, which has run once, and its result's difference to the masked network's."""
    images = inputs_like(tickets.example, setting, device)
    call: Callable[[], object]
    if setting.engine == "onnx":
        call = onnx_call(one.executed.network, images, torch.get_num_threads())
        difference = _inference_difference(one, torch.from_numpy(np.squeeze(call(), 0)), images)  # type: ignore[call-overload]
    elif setting.training:
        call = step = _copied_call(one.executed, images, setting)
        first_loss = step()
        difference = _training_difference(one, images, setting)
        if setting.engine == "compile":
            expected = _copied_call(one.executed, images, replace(setting, engine="eager"))()
            difference = max(difference, relative_difference(first_loss, expected))
    else:
        call = infer = _copied_call(one.executed, images, setting)
        difference = _inference_difference(one, infer(), images)
    if not difference <= _TOLERANCE[setting.bfloat16 or tensor_float32(device)]:
        raise RuntimeError(
            f"{one.variant} at density {one.density} ({setting}) differs from the masked network by {difference:.1e}"
        )
    return call, difference


def _copied_call(executed: Executed, images: Tensor, setting: Setting) -> Callable[[], Tensor]:
    network = copy.deepcopy(executed.network).to(images.device)
    return network_call(network, images, setting, executed.masks)


def _inference_difference(one: _Contender, logits: Tensor, images: Tensor) -> float:
    """Compare the first images alone, in float32: in evaluation mode they do not depend on each other."""
    masked = copy.deepcopy(one.masked.network).to(images.device).eval()
    with torch.inference_mode():
        expected = masked(images[:_COMPARED].float())
    return relative_difference(logits[:_COMPARED], expected)


def _training_difference(one: _Contender, images: Tensor, setting: Setting) -> float:
    few = images[:_COMPARED] if len(images) > 1 else torch.cat([images, -images])  # BatchNorm needs several values
    full, small = (copy.deepcopy(e.network).to(images.device) for e in (one.masked, one.executed))
    return training_difference(full, one.masked.masks, small, one.executed.masks, few, setting)


def _saved_megabytes(network: nn.Module, setting: Setting, tickets: Tickets, device: str) -> float:
    """Return the saved megabytes of the batch from those of two and three images: all but statistics grows alike."""
    if not setting.training:
        return nan
    trained = copy.deepcopy(network).train()
    images = inputs_like(tickets.example, replace(setting, batch_size=3), device)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=setting.bfloat16):
        two, three = (saved_bytes(trained, images[:count]) for count in (2, 3))
    return (two + (setting.batch_size - 2) * (three - two)) / 1e6


def onnx_call(network: nn.Module | bytes | Path, inputs: Tensor, threads: int) -> Callable[[], object]:
    """Return a function that runs a network on ONNX Runtime's CPU provider.

    The network is exported and the session made here, once; only the run is timed.

    Args:
        network: network to export in evaluation mode, an ONNX file of ours, or its content. It is left as it was.
        inputs: a batch of images.
        threads: number of threads of a single operator.

    Returns:
        A function that returns the outputs, a list of one numpy array.

    Raises:
        ImportError: without the extra `export`.
    """
    model = to_onnx(network, tuple(inputs.shape[1:])) if isinstance(network, nn.Module) else network
    session = make_session(model, threads)
    feed = {IMAGES: np.ascontiguousarray(inputs.detach().cpu().numpy())}
    return lambda: session.run(None, feed)
