"""What a job shows when it starts: its configuration, and which layers will be pruned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lt_lightning.experiment import protocols
from lt_lightning.experiment.config.tasks import retrained_rounds, rounds_of
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.job import Job
from lt_lightning.pruning.layers import Layer, exempting, find_layers
from lt_lightning.results.locks import tidy

NOT_SHOWN = ("published", "labels")  # figures and names: nothing is run by them


def built(job: Job) -> Experiment:
    """Return the parts of a job's experiment, checked, and free its folders of what killed owners left.

    Raises:
        ValueError: if the configuration asks for something impossible; the message names the key.
    """
    for task in job.tasks:
        tidy(task.folder)
    experiment = Experiment.from_config(job.config)
    for protocol in protocols.PROTOCOLS:
        protocol.check(experiment)
    return experiment


def show_setup(job: Job, experiment: Experiment, console: Console) -> None:
    """Prints the choices and, on a terminal and for a job of its own, the configuration and the table of layers.

    Else a line of the layers takes the place of both: the configuration lies in the file that is named.
    """
    config = job.config
    console.print(
        f"{config.labels.data} with {config.labels.model}, seed {config.seed}: {_content(job)}.\n"
        f"Everything is written under {config.paths.root}.",
        markup=False, highlight=False,
    )  # fmt: skip
    for line in configuration_lines(experiment):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    layers = list(find_layers(experiment.network_to_look_at(), experiment.example).values())
    exempt = experiment.exempt
    if console.is_interactive and not _in_sweep():
        console.print(configuration_table(experiment.config))
        console.print(layers_table(layers, exempt))
    else:
        console.print(layers_line(layers, exempt), markup=False, highlight=False, soft_wrap=True)


def configuration_lines(experiment: Experiment) -> list[str]:
    """The choice of every group, what is changed besides, and where the whole configuration is.

    Only as far as this process knows: one that another has started has been given the configuration alone.
    """
    where = f"Configuration: {experiment.search_folder / 'config.yaml'}"
    if not HydraConfig.initialized():
        return [where]
    hydra = HydraConfig.get()
    choices = {key: told for key, told in hydra.runtime.choices.items() if not key.startswith("hydra/")}
    changed = [each for each in hydra.overrides.task if each.partition("=")[0].lstrip("+~") not in choices]
    lines = [" ".join(f"{key}={told}" for key, told in choices.items() if told not in (None, "null", "default"))]
    return lines + [f"changed: {' '.join(changed)}"] * bool(changed) + [where]


def configuration_table(config: DictConfig) -> Table:
    """The composed configuration: a row for each group with its values, and one for what stands in none."""
    table = Table(title="Configuration", box=SIMPLE_HEAD, show_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    whole: Any = OmegaConf.to_container(config, resolve=True)
    shown = {key: value for key, value in whole.items() if key not in NOT_SHOWN}
    groups = {key: shown.pop(key) for key in list(shown) if isinstance(shown[key], Mapping) and shown[key]}
    for name, values in {"": shown, **groups}.items():
        table.add_row(name, Text(" ".join(f"{key}={value}" for key, value in _flat(values))))
    return table


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Values by dotted key, as on a command line."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", _told(value)


def _told(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_told, value))}]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def layers_table(layers: Sequence[Layer], exempt: Sequence[str]) -> Table:
    """A row for every convolution and linear layer, in the order of execution.

    Args:
        layers: as `find_layers` gives them.
        exempt: roles and patterns of what is not pruned.
    """
    table = Table(title="What is pruned", caption=layers_line(layers, exempt), box=SIMPLE_HEAD, show_edge=False)
    for heading in ("layer", "shape", "weights", "FLOPs", "pruned"):
        table.add_column(heading, justify="right" if heading in ("weights", "FLOPs") else "left", no_wrap=True)
    total = sum(_operations(layer) for layer in layers)
    for layer in layers:
        reasons = exempting(layer, exempt)
        table.add_row(
            layer.name,
            "x".join(map(str, layer.shape)),
            f"{layer.size:,}",
            f"{_operations(layer) / total:.1%}",
            f"no: {', '.join(reasons)}" if reasons else "yes",
        )
    return table


def layers_line(layers: Sequence[Layer], exempt: Sequence[str]) -> str:
    """`7 of 9 layers are pruned: 98.9 % of 77,850 weights, 95.1 % of the FLOPs; exempt: stem, classifier`."""
    pruned = [layer for layer in layers if not exempting(layer, exempt)]
    weights, operations = (sum(map(of, pruned)) / sum(map(of, layers)) for of in (_size, _operations))
    return (
        f"{len(pruned)} of {len(layers)} layers are pruned: {weights:.1%} of {sum(map(_size, layers)):,} weights, "
        f"{operations:.1%} of the FLOPs; exempt: {', '.join(exempt) or 'nothing'}"
    )


def _size(layer: Layer) -> int:
    return layer.size


def _operations(layer: Layer) -> int:
    """Multiply-adds for one sample."""
    return layer.size * layer.positions


def _in_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _content(job: Job) -> str:
    """What the job consists of, in one sentence."""
    config = job.config
    pruned = f"the dense network and {rounds_of(config)} rounds of pruning"
    if not (rounds := retrained_rounds(config)):
        return pruned
    names = ", ".join(config.structure) or "no structure"
    which = "every round" if len(rounds) == rounds_of(config) else f"round {', '.join(map(str, rounds))}"
    every, most = len(job.tasks) - 1, len(job.asked(at_most=True)) - 1
    return f"{pruned}; {names} for {which}" + (f" (at most {most} of {every} retrainings)" if most < every else "")
