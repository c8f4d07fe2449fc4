"""The W&B dashboard of this project's runs as code; `lt-lightning dashboard` saves it to W&B."""

from __future__ import annotations

from typing import Any

import wandb_workspaces.reports.v2.interface as wr
import wandb_workspaces.workspaces as ws

from lt_lightning.experiment.logging.wandb_record import LAYERS

NAME = "Lottery tickets"
STRUCTURE = "ticket.structure"  # key in the configuration of a run


def make_dashboard(entity: str, project: str, group: str | None = None) -> ws.Workspace:
    """Make a workspace with accuracy over density, time and operations, learning curves, masks and tables.

    Args:
        entity: user or team that the workspace is saved to.
        project: project of the runs.
        group: name of the only sweep to show; None shows all runs.
    """
    runs = ws.RunsetSettings(groupby=[ws.Config(STRUCTURE)])
    if group is not None:
        runs.filters = f'Metric("group") == "{group}"'
    masks = [
        wr.MediaBrowser(title=f"Layer {number} of {LAYERS}, by depth", media_keys=[f"masks/{number}"], num_columns=3)
        for number in range(1, LAYERS + 1)
    ]
    tables = [wr.WeavePanelSummaryTable(table_name=f"tables/{name}") for name in ("rounds", "timings")]
    panels = {"Tickets": _tickets(), "Learning curves": _curves(), "Time": _times(), "Masks": masks, "Tables": tables}
    sections = [ws.Section(name=name, panels=each, is_open=True) for name, each in panels.items()]
    return ws.Workspace(entity=entity, project=project, name=NAME, sections=sections, runset_settings=runs)


def workspace_json(workspace: ws.Workspace) -> dict[str, Any]:
    """Return the workspace as W&B stores it: JSON values."""
    view: dict[str, Any] = workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
    return view


def _tickets() -> list[Any]:
    return [
        _scatter("Accuracy over density", "density"),
        _scatter("Accuracy over the time of inference (dense = 1)", "time_ratio_inference"),
        _scatter("Accuracy over the time of a training step (dense = 1)", "time_ratio_training"),
        _scatter("Accuracy over operations (dense = 1)", "flops_ratio"),
        wr.LinePlot(
            title="Accuracy over density, by structure",
            x="ticket/density",
            y=["ticket/accuracy"],
            groupby=wr.Config(STRUCTURE),
        ),
    ]


def _curves() -> list[Any]:
    metrics = {
        "Validation accuracy": "val/accuracy",
        "Training accuracy": "train/accuracy",
        "Validation loss": "val/loss",
        "Training loss": "train/loss",
        "Learning rate": "lr",
        "Density": "pruning/density",
    }
    return [wr.LinePlot(title=title, x="epoch", y=[metric]) for title, metric in metrics.items()]


def _times() -> list[Any]:
    metrics = {
        "Time of inference (dense = 1)": "time_ratio_inference",
        "Time of a training step (dense = 1)": "time_ratio_training",
        "Seconds of training": "train_seconds",
    }
    return [
        wr.BarPlot(title=title, metrics=[metric], groupby=wr.Config(STRUCTURE)) for title, metric in metrics.items()
    ]


def _scatter(title: str, over: str) -> wr.ScatterPlot:
    """Return a panel with a dot for the last ticket of every run."""
    return wr.ScatterPlot(title=title, x=wr.SummaryMetric(over), y=wr.SummaryMetric("accuracy"))
