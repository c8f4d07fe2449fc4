"""The setup of a job: its parts are built and checked, and its configuration and the layers to prune are shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lt_lightning.experiment.config.tasks import retrained_rounds, rounds_of
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.job import Job
from lt_lightning.pruning.layers import Layer, left_out, why_not_pruned

NOT_SHOWN = ("published", "labels")  # figures of others and names, on which no result depends


class PrunedLayer(NamedTuple):
    """A layer as the table of layers shows it.

    Attributes:
        layer: the layer.
        weights: number of its weights; 0 if it shares them with a layer before it.
        operations: number of its multiply-adds for one sample.
        reasons: why it is not pruned, by `why_not_pruned`; none if it is.
    """

    layer: Layer
    weights: int
    operations: int
    reasons: list[str]


def built(job: Job) -> Experiment:
    """Return the parts of a job's experiment, checked.

    Raises:
        ValueError: if the configuration asks for something impossible; the message names the key.
    """
    experiment = Experiment.from_config(job.config)
    for protocol in job.protocols:
        protocol.check(experiment)
    return experiment


def show_setup(job: Job, experiment: Experiment, console: Console) -> None:
    """Print what the job consists of, its choices and what differs from the defaults, and the table of layers.

    In a sweep, and where there is no terminal, one line replaces the table.
    """
    config = job.config
    console.print(
        f"{config.labels.data} with {config.labels.model}, seed {config.seed}: {_content(job)}.\n"
        f"Everything is written under {config.paths.root}.",
        markup=False, highlight=False,
    )  # fmt: skip
    for line in configuration_lines(experiment):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    exempt = experiment.pruning_options.exempt
    network, layers = experiment.spare_classifier().network, experiment.traced.layers
    rows = pruned_layers(layers.values(), exempt)
    if console.is_interactive and not _in_sweep():
        console.print(layers_table(rows, exempt))
    else:
        console.print(layers_line(rows, exempt), markup=False, highlight=False, soft_wrap=True)
    for line in left_out(network, layers):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def configuration_lines(experiment: Experiment) -> list[str]:
    """Return lines that name the choice of every group, the changed keys, and the file of the whole configuration.

    A process that another one has started knows only that file.
    """
    where = f"Configuration: {experiment.search_folder / 'config.yaml'}"
    if not HydraConfig.initialized():
        return [where]
    hydra = HydraConfig.get()
    choices = {key: choice for key, choice in hydra.runtime.choices.items() if not key.startswith("hydra/")}
    changed = [each for each in hydra.overrides.task if each.partition("=")[0].lstrip("+~") not in choices]
    lines = [" ".join(f"{key}={each}" for key, each in choices.items() if each not in (None, "null", "default"))]
    return lines + [f"changed: {' '.join(changed)}"] * bool(changed) + [where]


def pruned_layers(layers: Iterable[Layer], exempt: Sequence[str]) -> list[PrunedLayer]:
    """Return a row for every convolution and linear layer, in the order of execution.

    Args:
        layers: layers that `find_layers` returns.
        exempt: roles and patterns of the layers that are not pruned.
    """
    layers = list(layers)
    reasons = why_not_pruned(layers, exempt)
    return [
        PrunedLayer(layer, 0 if layer.tied_to else layer.size, layer.size * layer.positions, reasons[layer.name])
        for layer in layers
    ]


def layers_table(rows: Sequence[PrunedLayer], exempt: Sequence[str]) -> Table:
    """Return the table of layers; see `pruned_layers`."""
    table = Table(title="What is pruned", caption=layers_line(rows, exempt), box=SIMPLE_HEAD, show_edge=False)
    for heading in ("layer", "shape", "weights", "FLOPs", "pruned"):
        table.add_column(heading, justify="right" if heading in ("weights", "FLOPs") else "left", no_wrap=True)
    total = sum(row.operations for row in rows)
    for layer, weights, operations, reasons in rows:
        table.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            f"{weights:,}",
            f"{operations / total:.1%}",
            f"no: {', '.join(reasons)}" if reasons else "yes",
        )
    return table


def layers_line(rows: Sequence[PrunedLayer], exempt: Sequence[str]) -> str:
    """Return one line that says how much of a network is pruned.

    For example `7 of 9 layers are pruned: 98.9% of 77,850 weights, 95.1% of the FLOPs; exempt: stem, classifier`.
    """
    pruned = [row for row in rows if not row.reasons]
    weights, operations = sum(row.weights for row in rows), sum(row.operations for row in rows)
    return (
        f"{len(pruned)} of {len(rows)} layers are pruned: "
        f"{sum(row.weights for row in pruned) / weights:.1%} of {weights:,} weights, "
        f"{sum(row.operations for row in pruned) / operations:.1%} of the FLOPs; "
        f"exempt: {', '.join(exempt) or 'nothing'}"
    )


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _content(job: Job) -> str:
    """Return in one sentence what the job consists of."""
    config = job.config
    count = rounds_of(config)
    pruned = f"the dense network and {count} round{'s' * (count != 1)} of pruning"
    if not (rounds := retrained_rounds(config)):
        return pruned
    names = ", ".join(config.structure) or "no structure"
    which = "every round" if len(rounds) == count else f"round {', '.join(map(str, rounds))}"
    every, most = len(job.tasks) - 1, len(job.asked(at_most=True)) - 1
    return f"{pruned}; {names} for {which}" + (f" (at most {most} of {every} retrainings)" if most < every else "")
