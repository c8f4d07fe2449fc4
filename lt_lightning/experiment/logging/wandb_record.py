"""What W&B gets besides the rows of `metrics.csv`: axes, tickets with where they come from, tables, mask pictures."""

from __future__ import annotations

import math
import re
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from lt_lightning.report.mask_pictures import Picture, pictures_of
from lt_lightning.results.records import Result
from lt_lightning.structures.base import BlockPlan, ChannelPlan
from lt_lightning.tickets.ticket import Ticket

if TYPE_CHECKING:
    import wandb  # slow to import, and only needed where it is chosen


# What is drawn over what: learning curves over the epoch of the fit, tickets over density, pictures by the round.
AXES = {"train/*": "epoch", "val/*": "epoch", "lr": "epoch", "ticket/*": "density", "masks/*": "round"}
ROUNDS = (
    "round", "structure", "control", "target_density", "density", "executed", "retained_magnitude", "accuracy",
    "dense_accuracy",    "val_accuracy", "best_epoch",
)  # fmt: skip
TIMINGS = (
    "round", "structure", "control", "density", "train_seconds", "params_ratio", "flops_ratio", "time_ratio_inference",
    "time_ratio_training",
)  # fmt: skip
FIGURES = ("accuracy", "val_accuracy", "retained_magnitude", *TIMINGS[4:])
LAYERS = 4  # of which pictures are made
SMALLEST = 256  # pixels of a picture's longer side, at least
LONGEST_NAME = 128  # of an artifact, as W&B allows


@dataclass(frozen=True)
class Entry:
    """A trained ticket that goes to W&B.

    Attributes:
        result: of it.
        ticket: itself.
        folder: of the ticket, `SEARCH/round_NN/STRUCTURE`.
        made_from: folder of the ticket that it was made from, if any.
    """

    result: Result
    ticket: Ticket
    folder: Path
    made_from: Path | None = None


def define_axes(run: wandb.Run) -> None:
    """Tells W&B what each metric is drawn over."""
    for name, axis in AXES.items():
        run.define_metric(axis)
        run.define_metric(name, step_metric=axis)


def artifact_name(folder: Path) -> str:
    """Of the ticket in a folder.

    >>> artifact_name(Path("/runs/digits-resnet8-s0-1a2b3c4d/round_01/refill from x-5e6f7a8b"))
    'digits-resnet8-s0-1a2b3c4d-round_01-refill-from-x-5e6f7a8b'
    """
    return re.sub(r"[^\w.-]+", "-", "-".join(folder.parts[-3:]))[-LONGEST_NAME:]


def record_tickets(run: wandb.Run, entries: Sequence[Entry]) -> None:
    """Gives W&B what a finished search or retraining yielded, once.

    Args:
        run: of it; its rows are logged.
        entries: its tickets, a search's in the order of its rounds.
    """
    known = run.summary.get("accuracy")  # type: ignore[no-untyped-call]
    if known is not None:  # it went on online after it was killed, and has them
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
    """The ticket's figures, and its masks as pictures."""
    result = entry.result
    figures = {f"ticket/{name}": getattr(result, name) for name in FIGURES}
    row: dict[str, Any] = {"round": result.round, "density": result.density}
    row |= {name: value for name, value in figures.items() if not math.isnan(value)}
    return row | _pictures(entry)


def _pictures(entry: Entry) -> dict[str, Any]:
    """Of some layers, evenly over the depth: before the structure and after it; of a search's ticket its own masks."""
    import wandb

    before, after = entry.ticket, []
    if entry.ticket.plan is not None and entry.made_from is not None:
        source = Ticket.load(entry.made_from / "ticket")
        names = [f"{layer}.weight" for layer in entry.ticket.card["prunable"]]
        weights = {name: entry.ticket.masks[name] for name in names}  # of another network they may differ
        if all(name in source.masks and source.masks[name].shape == mask.shape for name, mask in weights.items()):
            before, after = source, [entry.ticket]
    layers = list(entry.ticket.card["prunable"])
    chosen = [layers[round(index * (len(layers) - 1) / (LAYERS - 1))] for index in range(LAYERS)]
    return {
        f"masks/{number}": [
            wandb.Image(_enlarged(picture), caption=f"{layer}: {picture.title}")
            for picture in pictures_of(layer, before, after)
        ]
        for number, layer in enumerate(chosen, 1)
    }


def _enlarged(picture: Picture) -> Image.Image:
    image = picture.image()
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
    """Tells W&B that the run starts from a ticket of another run.

    `run.use_artifact` refuses offline, where it cannot ask for the artifact. But it needs not ask: the files are here,
    and an artifact of the same name and content is the same version. So it is given in the way in which
    `use_artifact` itself gives one that is not logged yet.
    """
    run._log_artifact(
        _ticket_artifact(Ticket.load(folder / "ticket"), folder, None), is_user_created=True, use_after_commit=True
    )


def _log_network(run: wandb.Run, entry: Entry) -> None:
    """The smaller network that executes the ticket, if its plan makes one, as `load_network` reads it."""
    if not isinstance(entry.ticket.plan, ChannelPlan | BlockPlan):
        return
    import wandb

    from lt_lightning.tickets.export.exporting import export_ticket

    name = artifact_name(entry.folder)[: LONGEST_NAME - len("-shrunk")] + "-shrunk"
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_ticket(entry.folder, Path(folder) / "network", ["safetensors"])
        except (ValueError, RuntimeError) as error:
            warnings.warn(f"W&B gets no smaller network of {entry.folder}: {error}", stacklevel=2)
            return
        artifact = wandb.Artifact(name, type="network", metadata={"made_from": artifact_name(entry.folder)})
        artifact.add_dir(str(Path(folder) / "network"))
        run.log_artifact(artifact)
