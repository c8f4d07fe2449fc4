"""The record of tickets in W&B, beside the rows of `metrics.csv`: axes, artifacts with origin, tables, pictures."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lt_lightning.pruning.layers import weight_of
from lt_lightning.results.records import Result
from lt_lightning.storage.litter import scratch_folder
from lt_lightning.structures.plan import BlockPlan, ChannelPlan, HybridPlan
from lt_lightning.tickets.ticket import Ticket

if TYPE_CHECKING:
    import wandb  # slow to import, and only needed where it is chosen


# The axis of each metric: learning curves over the epoch of the fit, tickets over density, pictures over the round.
# Rows of tickets share no key with those of epochs, so that no curve jumps between the two.
AXES = {
    "train/*": "epoch",
    "val/*": "epoch",
    "lr": "epoch",
    "pruning/*": "epoch",
    "ticket/*": "ticket/density",
    "masks/*": "ticket/round",
}
ROUNDS = (
    "round", "structure", "control", "target_density", "density", "executed", "retained_magnitude", "accuracy",
    "dense_accuracy", "val_accuracy", "best_epoch",
)  # fmt: skip
TIMINGS = (
    "round", "structure", "control", "density", "total_epochs", "train_seconds", "params_ratio", "flops_ratio",
    "time_ratio_inference", "time_ratio_training", "time_spread_inference", "time_spread_training",
)  # fmt: skip
FIGURES = ("accuracy", "val_accuracy", "retained_magnitude", *TIMINGS[4:])
LAYERS = 4  # number of layers whose masks are shown
SMALLEST = 256  # smallest longer side of a picture, in pixels
LONGEST_NAME = 128  # longest name of an artifact that W&B allows


@dataclass(frozen=True)
class Entry:
    """A trained ticket that goes to W&B.

    Attributes:
        result: result of the ticket.
        ticket: the trained ticket.
        folder: folder of the ticket, `SEARCH/round_NN/STRUCTURE`.
        made_from: folder of the ticket that it was made from; None for a dense network.
    """

    result: Result
    ticket: Ticket
    folder: Path
    made_from: Path | None = None


def define_axes(run: wandb.Run) -> None:
    """Define in W&B which axis each metric is drawn over."""
    for name, axis in AXES.items():
        run.define_metric(axis)
        run.define_metric(name, step_metric=axis)


def artifact_name(folder: Path) -> str:
    """Return the name of the artifact for the ticket in a folder.

    >>> artifact_name(Path("/runs/digits-resnet8-s0-1a2b3c4d/round_01/refill from x-5e6f7a8b"))
    'digits-resnet8-s0-1a2b3c4d-round_01-refill-from-x-5e6f7a8b'
    """
    return re.sub(r"[^\w.-]+", "-", "-".join(folder.parts[-3:]))[-LONGEST_NAME:]


def record_tickets(run: wandb.Run, entries: Sequence[Entry]) -> None:
    """Give W&B the tickets of a finished search or retraining, once.

    Args:
        run: run of the search or retraining; its rows are logged.
        entries: tickets, those of a search in the order of its rounds.
    """
    known = run.summary.get("accuracy")  # type: ignore[no-untyped-call]
    if known is not None:  # the run goes on online, and has the tickets already
        return
    own = {entry.folder for entry in entries}
    for entry in entries:
        run.log(_row(entry))
        if entry.made_from is not None and entry.made_from not in own:
            _use(run, entry.made_from)
        run.log_artifact(_ticket_artifact(entry.ticket, entry.folder, entry.made_from))
        _log_network(run, entry)
    run.log({"tables/rounds": _table(entries, ROUNDS), "tables/timings": _table(entries, TIMINGS)})
    last = entries[-1].result
    run.summary.update(
        {"round": last.round, "density": last.density, "executed": last.executed}
        | {name: value for name in FIGURES if not math.isnan(value := getattr(last, name))}
        | {"dense_accuracy": last.dense_accuracy}
    )


def _row(entry: Entry) -> dict[str, Any]:
    """Return the ticket's figures, and pictures of its masks."""
    result = entry.result
    figures = {f"ticket/{name}": getattr(result, name) for name in ("round", "density", *FIGURES)}
    return {name: value for name, value in figures.items() if not math.isnan(value)} | _pictures(entry)


def _pictures(entry: Entry) -> dict[str, Any]:
    """Return pictures of the masks of some layers, evenly over the depth; none of a ticket that prunes nothing.

    A structured ticket is shown beside the ticket that it was made from.
    """
    import wandb

    from lt_lightning.report.mask_pictures import pictures_of  # slow to import, and not needed without W&B

    if not entry.ticket.masks:
        return {}
    before, after = entry.ticket, []
    if entry.ticket.plan is not None and entry.made_from is not None:
        source = Ticket.load(entry.made_from / "ticket")
        names = [weight_of(layer, entry.ticket.masks) for layer in entry.ticket.card["prunable"]]
        masks = {name: entry.ticket.masks[name] for name in names}
        # A ticket of another network may have other layers, or layers of other shapes.
        if all(name in source.masks and source.masks[name].shape == mask.shape for name, mask in masks.items()):
            before, after = source, [entry.ticket]
    layers = list(entry.ticket.card["prunable"])
    chosen = [layers[round(index * (len(layers) - 1) / (LAYERS - 1))] for index in range(LAYERS)]
    return {
        f"masks/{number}": [
            wandb.Image(_enlarged(picture.image), caption=f"{layer}: {picture.title}")
            for picture in pictures_of(layer, before, after)
        ]
        for number, layer in enumerate(chosen, 1)
    }


def _enlarged(image: Image.Image) -> Image.Image:
    times = max(1, SMALLEST // max(image.size))
    return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)


def _table(entries: Sequence[Entry], columns: Sequence[str]) -> wandb.Table:
    import wandb

    return wandb.Table(
        columns=list(columns), data=[[getattr(entry.result, name) for name in columns] for entry in entries]
    )


def _ticket_artifact(ticket: Ticket, folder: Path, made_from: Path | None) -> wandb.Artifact:
    import wandb

    card = {key: value for key, value in ticket.card.items() if isinstance(value, (str, int, float))}
    origin = {} if made_from is None else {"made_from": artifact_name(made_from)}
    artifact = wandb.Artifact(artifact_name(folder), type="ticket", metadata=card | origin)
    for suffix in ("safetensors", "json"):
        artifact.add_file(str(folder / f"ticket.{suffix}"))
    return artifact


def _use(run: wandb.Run, folder: Path) -> None:
    """Record in W&B that the run starts from a ticket of another run.

    `run.use_artifact` refuses to work offline, where it cannot query the artifact. But it need not query it: the files
    are here, and an artifact of the same name and content is the same version. So the artifact is logged in the way in
    which `use_artifact` itself logs one that is not logged yet.
    """
    run._log_artifact(
        _ticket_artifact(Ticket.load(folder / "ticket"), folder, None), is_user_created=True, use_after_commit=True
    )


def _log_network(run: wandb.Run, entry: Entry) -> None:
    """Log the smaller network that executes the ticket, if its plan makes one, in the format of `load_network`."""
    if not isinstance(entry.ticket.plan, ChannelPlan | BlockPlan | HybridPlan):
        return
    import wandb

    from lt_lightning.tickets.export.exporting import export_ticket

    name = artifact_name(entry.folder)[: LONGEST_NAME - len("-shrunk")] + "-shrunk"
    with scratch_folder("lt-lightning-") as folder:
        try:
            export_ticket(entry.folder, folder / "network", ["safetensors"])
        except (ValueError, RuntimeError) as error:
            warnings.warn(f"the smaller network of {entry.folder} is not logged to W&B: {error}", stacklevel=2)
            return
        artifact = wandb.Artifact(name, type="network", metadata={"made_from": artifact_name(entry.folder)})
        artifact.add_dir(str(folder / "network"))
        run.log_artifact(artifact)
