"""The outcome of a trained ticket: its accuracy on the test set, and the time of the network that executes it."""

from __future__ import annotations

import math
from pathlib import Path

from lt_lightning.execution.execute import execute
from lt_lightning.experiment.parts import Experiment
from lt_lightning.network_graph.compare import compare_networks
from lt_lightning.results.records import Result
from lt_lightning.storage.files import write_json
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.classifier import ImageClassifier
from lt_lightning.training.processes import invite

LAYER_TIMES = "layer_times.json"


def evaluate(experiment: Experiment, ticket: Ticket) -> float:
    """Return the accuracy of a trained ticket on the test set."""
    width = ticket.card.get("width")
    classifier = experiment.spare_classifier(width)
    ticket.apply(classifier.network, "trained")
    invite(run_test, width)
    return run_test(experiment, width, classifier)


def run_test(experiment: Experiment, width: int | None, classifier: ImageClassifier | None = None) -> float:
    """Return the accuracy on the test set; every process tests its part with process 0's weights."""
    (metrics,) = experiment.trainer([], []).test(
        classifier or experiment.spare_classifier(width), experiment.data, verbose=False
    )
    return float(metrics["test/accuracy"])


def measure(experiment: Experiment, ticket: Ticket, folder: Path) -> tuple[float, float]:
    """Return two ratios of the time of the network that executes a trained ticket to the dense network's.

    The first is the ratio in inference, the second in a training step. The time of every layer in inference is written
    beside the ticket.
    """
    options = experiment.options.measure
    width = ticket.card.get("width")
    if ticket.plan is None and width is None:
        return 1.0, 1.0
    if options is None:
        return math.nan, math.nan
    from lt_lightning.execution.cost import Setting, layer_seconds, time_ratio  # for start-up time

    dense = experiment.classifier().network
    network = ticket.apply(experiment.classifier(width).network, "trained")
    device, bfloat16 = experiment.device, experiment.computes_in_bfloat16
    ratios = []
    for training in (False, True):
        small = network
        choice: dict[str, str] = {}
        if ticket.plan is not None:
            made = execute(
                network, ticket.plan, ticket.masks, experiment.example, options.batch_size, training, device,
                bfloat16=bfloat16, traced=experiment.traced,
            )  # fmt: skip
            assert made is not None
            small, choice = made.network, dict(made.choice)
            compare_networks(network, small, experiment.example)
        setting = Setting(options.batch_size, training, bfloat16)
        ratios.append(time_ratio(dense, small, experiment.example, setting, device, options.samples, options.slot))
        if not training:
            networks = {"dense": dense, "ticket": small}
            seconds = layer_seconds(networks, ticket.layers, experiment.example, setting, device)
            times = {
                "batch_size": options.batch_size, "bfloat16": bfloat16, "device": device, "seconds": seconds,
                "choice": choice,
            }  # fmt: skip
            write_json(folder / LAYER_TIMES, times)
    return ratios[0], ratios[1]


def make_result(experiment: Experiment, ticket: Ticket, accuracy: float, dense_accuracy: float, folder: Path) -> Result:
    """Return the result of a trained and tested ticket."""
    inference, training = measure(experiment, ticket, folder)
    card = ticket.card
    prunable = [ticket.layers[name] for name in card["prunable"]]
    weights = sum(report.target for report in prunable)
    return Result(
        **experiment.labels,
        round=card["round"],
        structure=card["structure"],
        origin=card.get("origin", ""),
        target_density=card["target_density"],
        density=card["density"],
        params_ratio=card["params_ratio"],
        flops_ratio=card["flops_ratio"],
        best_epoch=card["best_epoch"],
        accuracy=accuracy,
        dense_accuracy=dense_accuracy,
        train_seconds=card["train_seconds"],
        val_accuracy=card["metrics"].get("val/accuracy", math.nan),
        retained_magnitude=sum(report.retained_magnitude * report.target for report in prunable) / weights,
        time_ratio_inference=inference,
        time_ratio_training=training,
        search=experiment.search_folder.name,
        place=str(folder.relative_to(experiment.root)),
        executed=sum(report.executed for report in prunable) / sum(report.size for report in prunable),
        control=card.get("control", ""),
    )
