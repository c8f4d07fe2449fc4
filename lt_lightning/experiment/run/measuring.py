"""The times of tickets: measured when one is trained, or afterwards, for results without any."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lt_lightning.execution.execute import execute
from lt_lightning.execution.form_choice import choose_forms
from lt_lightning.execution.timing import TimeRatio
from lt_lightning.experiment.parts import Experiment
from lt_lightning.network_graph.compare import compare_networks
from lt_lightning.results.records import WIDE, Result, write_summary
from lt_lightning.storage.files import write_json
from lt_lightning.storage.layout import TICKET
from lt_lightning.tickets.ticket import Ticket

LAYER_TIMES = "layer_times.json"


def measure(experiment: Experiment, ticket: Ticket, folder: Path) -> tuple[TimeRatio, TimeRatio]:
    """Return two ratios of the time of the network that executes a trained ticket to the dense network's.

    The first is the ratio in inference, the second in a training step. One with a wide spread is measured again, up to
    three times in all. The time of every layer in inference is written beside the ticket.
    """
    options = experiment.options.measure
    width = ticket.card.get("width")
    if ticket.plan is None and width is None:
        return TimeRatio(1.0, 0.0, 0), TimeRatio(1.0, 0.0, 0)
    if options is None:
        return TimeRatio(math.nan, 0.0, 0), TimeRatio(math.nan, 0.0, 0)
    from lt_lightning.execution.cost import Setting, layer_seconds, time_ratio  # for start-up time

    dense = experiment.classifier().network
    network = ticket.apply(experiment.classifier(width).network, "trained")
    device, bfloat16 = experiment.device, experiment.computes_in_bfloat16
    ratios = []
    for training in (False, True):
        small = network
        how = (options.batch_size, training, device, bfloat16)
        choice = choose_forms(network, ticket.plan, experiment.example, *how)
        if ticket.plan is not None:
            made = execute(network, ticket.plan, ticket.masks, experiment.example, choice.forms, experiment.traced)
            assert made is not None
            small = made.network
            compare_networks(network, small, experiment.example)
        setting = Setting(options.batch_size, training, bfloat16)
        effort = (options.samples, options.slot, WIDE)
        ratios.append(time_ratio(dense, small, experiment.example, setting, device, *effort))
        if not training:
            networks = {"dense": dense, "ticket": small}
            seconds = layer_seconds(networks, ticket.layers, experiment.example, setting, device)
            times = {
                "batch_size": options.batch_size, "bfloat16": bfloat16, "device": device, "seconds": seconds,
                "choice": dict(choice.forms), "decided_by": dict(choice.decided_by),
            }  # fmt: skip
            write_json(folder / LAYER_TIMES, times)
    return ratios[0], ratios[1]


def time_results(experiment: Experiment, results: Sequence[Result], note: Callable[[str], object]) -> None:
    """Measure the tickets of finished results that have no times, and write these into the results and the table.

    Args:
        experiment: parts of the job, whose options say how to measure.
        results: results without times.
        note: is told in a line what has been measured.
    """
    experiment.use_threads()
    for result in results:
        folder = experiment.root / result.place
        inference, training = measure(experiment, Ticket.load(folder / TICKET), folder)
        with_times(result, inference, training).save(folder)
        note(f"timed: {result.kind}, round {result.round}: {inference.ratio:.2f} and {training.ratio:.2f} of dense")
    write_summary(experiment.root)


def with_times(result: Result, inference: TimeRatio, training: TimeRatio) -> Result:
    """Return a result with the times that were measured of its ticket."""
    return replace(
        result,
        time_ratio_inference=inference.ratio,
        time_ratio_training=training.ratio,
        time_spread_inference=inference.spread,
        time_spread_training=training.spread,
        time_samples=training.samples,
    )
