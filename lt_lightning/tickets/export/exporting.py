"""The export of a finished ticket's network in every format, each checked against the masked network, with a card."""

from __future__ import annotations

import math
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from lt_lightning.execution.cost import parameters
from lt_lightning.execution.execute import DENSE_FORM, execute
from lt_lightning.execution.form_choice import choose_forms
from lt_lightning.network_graph.compare import compare_networks
from lt_lightning.storage.files import read_json, write_bytes, write_json
from lt_lightning.storage.foreign import DATA, allowed, build_network, read_config
from lt_lightning.structures.plan import BlockPlan, HybridPlan, Plan
from lt_lightning.tickets.export import standard_formats
from lt_lightning.tickets.export.network_file import (
    BATCHES,
    RECIPE,
    WEIGHTS,
    checked,
    load_network,
    save_network,
)
from lt_lightning.tickets.export.standard_formats import block_layers
from lt_lightning.tickets.ticket import Ticket

# What is exported: a finished ticket of a search, and the network that it executes.


@dataclass(frozen=True)
class Source:
    """A ticket and its network.

    Attributes:
        ticket: the trained ticket.
        model: resolved configuration of the full network.
        shape: shape of one image.
        mean: mean of the pixels scaled to [0, 1], by channel, which the data module subtracts; None where it has none.
        std: standard deviation by which it divides, likewise.
        masked: full network with the ticket's trained weights, in evaluation mode.
        allow: packages, besides our own, whose classes the configuration may name.
    """

    ticket: Ticket
    model: Mapping[str, Any]
    shape: tuple[int, ...]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    masked: nn.Module
    allow: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path, allow: Sequence[str] = ()) -> Source:
        """Read a ticket's folder, `SEARCH/round_NN/STRUCTURE`.

        Args:
            folder: the ticket's folder.
            allow: see `export_ticket`.

        Raises:
            FileNotFoundError: if there is no ticket, or no `config.yaml` in the search's folder.
            ValueError: if a file is damaged, or names what is not allowed; if the ticket is not trained, or is for
                another network.
        """
        ticket = Ticket.load(folder / "ticket")
        if ticket.trained is None:
            raise ValueError(f"the ticket in {folder} is not trained yet: there are no weights to export")
        config = folder.resolve().parents[1] / "config.yaml"
        if not config.is_file():
            raise FileNotFoundError(
                f"there is no {config}: the ticket must be in SEARCH/round_NN/STRUCTURE of its search"
            )
        model, shape, data = _read_config(config)
        try:
            module = allowed(data, (DATA, *allow))
            network = build_network(model, allow, ticket.rewind)
        except ValueError as error:
            raise ValueError(f"{config}: {error}") from None
        mean, std = getattr(module, "mean", None), getattr(module, "std", None)
        return cls(ticket, model, shape, mean, std, ticket.apply(network, "trained").eval(), tuple(allow))


def _read_config(path: Path) -> tuple[dict[str, Any], tuple[int, ...], Any]:
    """Return the configuration of the network, the shape of an image, and the name of the data module's class."""
    whole = read_config(path)
    try:
        model, dataset, data = dict(whole["model"]), dict(whole["dataset"]), whole["data"].get("_target_")
        tokens = dataset.get("vocabulary") is not None
        shape = () if tokens else (int(dataset["channels"]), int(dataset["size"]), int(dataset["size"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or no configuration of a search: {error}") from None
    if tokens:
        raise ValueError(f"{path}: dataset.vocabulary={dataset['vocabulary']}: only networks of images are exported")
    return model, shape, data


@dataclass(frozen=True)
class Executed:
    """The network that executes a ticket.

    Attributes:
        network: the network, on the CPU, in evaluation mode.
        plan: plan that it executes; None if it is the full network.
        choice: form of each layer of a plan of blocks, see `execution.form_choice.choose_forms`.
        kept_whole: why channels are there that no structure may drop, each reason once.
    """

    network: nn.Module
    plan: Plan | None
    choice: Mapping[str, str]
    kept_whole: tuple[str, ...] = ()

    @property
    def left_dense(self) -> list[str]:
        """Names of the layers of a plan of blocks that run dense."""
        return [name for name, form in self.choice.items() if form == DENSE_FORM]


def executed(source: Source, batch_size: int | None = None, choice: Mapping[str, str] | None = None) -> Executed:
    """Make the network that executes a ticket's plan; the masked one where it has none.

    Args:
        source: the ticket.
        batch_size: number of images for which the fastest form of every layer of blocks is measured, on this machine,
            the dense layer included; None takes blocks wherever it is possible.
        choice: form of each layer, instead of measuring.
    """
    ticket = source.ticket
    example = torch.zeros(1, *source.shape)
    if choice is None:
        choice = choose_forms(source.masked, ticket.plan, example, batch_size).forms
    shrunk = execute(source.masked, ticket.plan, ticket.masks, example, choice)
    if shrunk is None:
        return Executed(source.masked, None, {})
    compare_networks(source.masked, shrunk.network, example)
    return Executed(shrunk.network.eval(), ticket.plan, shrunk.choice, shrunk.kept_whole)


# The files, each checked against the masked network.

PROGRAM: Final = "network.pt2"
ONNX: Final = "network.onnx"
CARD: Final = "card.json"

Facts = dict[str, Any]


def export_ticket(
    ticket: Path | str,
    output: Path | str,
    formats: Sequence[str] | None = None,
    batch_size: int | None = None,
    allow: Sequence[str] = (),
) -> Facts:
    """Export the network that a ticket executes, with its trained weights.

    The format `safetensors` is weights and a recipe, for `load_network`. `pt2` is a program of torch.export; a ticket
    of blocks of kernel positions calls our operator, which `import lt_lightning.execution.blocks.operators` registers.
    `onnx` is for any runtime; layers that call our operator run dense there, and the card names them. All take any
    number of images.

    Args:
        ticket: folder of a finished ticket, `SEARCH/round_NN/STRUCTURE`.
        output: folder to write; it must be new or empty, and is whole or not there.
        formats: names of `FORMATS`; None takes all.
        batch_size: number of images for which the fastest form of every layer of blocks is measured, on this machine,
            the dense layer included; None takes blocks wherever it is possible.
        allow: packages, besides those of our networks and data sets, whose classes the search's configuration may name:
            those of a network of your own, for example.

    Returns:
        The card, as it is in `card.json`: the ticket's card, formats, sizes in bytes, largest differences of the
        logits, versions.

    Raises:
        FileNotFoundError: if there is no ticket, or no configuration of its search.
        FileExistsError: if there is something in the output folder.
        ImportError: if ONNX is asked for without the extra `export`; before anything is written.
        ValueError: if a file is damaged or names what is not allowed, the ticket is not trained, or there is no such
            format.
        RuntimeError: if a format computes other logits than the masked network.
    """
    chosen = list(FORMATS) if formats is None else list(formats)
    if wrong := [name for name in chosen if name not in FORMATS]:
        raise ValueError(f"formats={wrong[0]!r}: must be of {', '.join(FORMATS)}")
    if "onnx" in chosen:
        standard_formats.require_extra()
    source = Source.read(Path(ticket), allow)
    small = executed(source, batch_size)
    with _new_folder(Path(output)) as folder:
        written = {name: FORMATS[name](source, small, folder) for name in FORMATS if name in chosen}
        card = _card(Path(ticket), source, small, written)
        write_json(folder / CARD, card)
    return card


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder that becomes `path` if the block ends without an error."""
    path = path.resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} is not empty: export to a new folder")
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_safetensors(source: Source, small: Executed, folder: Path) -> Facts:
    save_network(folder, small.network, source.model, source.shape, small.plan, small.choice)
    apart = checked(WEIGHTS, load_network(folder, source.allow), source.masked, source.shape)
    return {"difference": apart, "bytes": _sizes(folder, WEIGHTS, RECIPE)}


def _write_pt2(source: Source, small: Executed, folder: Path) -> Facts:
    content = standard_formats.to_bytes(standard_formats.to_program(small.network, source.shape))
    apart = checked(PROGRAM, standard_formats.from_bytes(content), source.masked, source.shape)
    write_bytes(folder / PROGRAM, content)
    needs = [standard_formats.OPERATORS] if block_layers(small.network) else []
    return {"difference": apart, "bytes": _sizes(folder, PROGRAM), "needs_import": needs}


def _write_onnx(source: Source, small: Executed, folder: Path) -> Facts:
    network = _for_onnx(source, small)
    content = standard_formats.to_onnx(network, source.shape)
    session = standard_formats.make_session(content, threads=torch.get_num_threads())
    apart = checked(ONNX, lambda images: standard_formats.run_session(session, images), source.masked, source.shape)
    write_bytes(folder / ONNX, content)
    # No standard operator computes blocks of single kernel positions.
    return {"difference": apart, "bytes": _sizes(folder, ONNX), "run_dense": block_layers(network)}


def _for_onnx(source: Source, small: Executed) -> nn.Module:
    """Return the network with groups of whole input channels in plain PyTorch, whatever was faster here."""
    plan = small.plan.blocks if isinstance(small.plan, HybridPlan) else small.plan
    if not isinstance(plan, BlockPlan) or plan.granularity != "input_channel":
        return small.network
    choice = {name: form if form == DENSE_FORM else "grouped" for name, form in small.choice.items()}
    return executed(source, choice=choice).network


FORMATS: Final[Mapping[str, Callable[[Source, Executed, Path], Facts]]] = {
    "safetensors": _write_safetensors,
    "pt2": _write_pt2,
    "onnx": _write_onnx,
}


def _as_json(facts: Mapping[str, Any]) -> Facts:
    """Return facts with null for what was not measured, since NaN is not JSON for anybody else."""
    return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in facts.items()}


def _card(folder: Path, source: Source, small: Executed, written: Mapping[str, Facts]) -> Facts:
    result = folder / "result.json"
    return {
        "ticket": dict(source.ticket.card),
        "place": "/".join(folder.resolve().parts[-3:]),
        "result": _as_json(read_json(result)) if result.is_file() else None,
        "layers": {name: asdict(report) for name, report in source.ticket.layers.items()},
        "input": {
            "shape": ["batch", *source.shape],
            "pixels": "scaled to [0, 1], mean subtracted, divided by std",
            "mean": source.mean and list(source.mean),
            "std": source.std and list(source.std),
        },
        "network": {
            "model": dict(source.model),
            "parameters": parameters(small.network),
            "parameters_dense": parameters(source.masked),
            "computed_by": dict(small.choice),
            "left_dense": small.left_dense,
            "kept_whole": list(small.kept_whole),
        },
        "formats": dict(written),
        "checked": {
            "against": "the full network with the ticket's masks, on random images",
            "batch_sizes": list(BATCHES),
            "difference": "largest of the logits, relative to the largest logit",
        },
        "versions": _versions("onnx" in written),
    }


def _sizes(folder: Path, *names: str) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in names}


def _versions(with_onnx: bool) -> dict[str, str]:
    packages = ["lt-lightning", "torch", *(standard_formats.EXTRA if with_onnx else ())]
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
