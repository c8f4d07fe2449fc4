"""What W&B's offline record, TensorBoard and the CSV file hold of one job, read back."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from omegaconf import DictConfig
from PIL import Image

from lt_lightning.experiment.logging.loggers import make_loggers
from lt_lightning.experiment.logging.wandb_record import Entry, _pictures, artifact_name
from lt_lightning.experiment.sweep import Multirun
from lt_lightning.results.records import Result
from lt_lightning.structures.plan import BlockPlan, ChannelPlan
from lt_lightning.tickets.ticket import Ticket
from tests.runs import BOTH, MEASURED, SMALL, composing, run_of

OPTIONS = (
    *SMALL, *BOTH, "controls=[reinit]", "logger=[wandb,tensorboard]",
    MEASURED,
)  # fmt: skip
BLUE, WHITE = (0, 114, 178), (255, 255, 255)

Records = Callable[[Path], list[Any]]


STEPS = {"_step", "_runtime", "_timestamp", "trainer/global_step"}  # W&B writes them into every row


@dataclass(frozen=True)
class Recorded:
    """A finished job and what W&B recorded of each training, by the training's folder."""

    root: Path
    results: list[Result]
    runs: dict[Path, list[Any]]
    files: dict[Path, Path]

    @property
    def search(self) -> Path:
        return self.root / self.results[0].search

    def of(self, folder: Path, kind: str) -> list[Any]:
        return [getattr(each, kind) for each in self.runs[folder] if each.WhichOneof("record_type") == kind]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory, wandb_records: Records) -> Recorded:
    root = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch, composing(root) as composed:
        for part in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
            patch.setenv(f"WANDB_{part}", str(root / "elsewhere"))
        results = run_of(composed(*OPTIONS))
    runs, files = {}, {}
    for path in (root / "wandb").glob("offline-run-*/run-*.wandb"):
        records = wandb_records(path)
        (name,) = (each.run.display_name for each in records if each.WhichOneof("record_type") == "run")
        search, _, rest = name.partition("-round_")
        folder = root / search / f"round_{rest[:2]}" / rest[3:] if rest else root / search
        runs[folder], files[folder] = records, path.parent / "files"
    return Recorded(root, results, runs, files)


def rows_of(folder: Path) -> dict[int, dict[str, float]]:
    """The CSV file's."""
    with (folder / "metrics.csv").open() as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return {int(row.pop("step")): row for row in rows}


def test_every_training_is_a_run_with_its_place_as_id(recorded: Recorded, tmp_path: Path) -> None:
    folders = {recorded.root / result.place for result in recorded.results if result.structure not in {"dense"}}
    retrained = {folder for folder in folders if (folder / "metrics.csv").is_file()}
    assert len(retrained) == 5  # two structures, and a control of each ticket of round 1
    assert set(recorded.runs) == {recorded.search, *retrained}
    told = {folder: recorded.of(folder, "run")[0] for folder in recorded.runs}
    assert {each.run_group for each in told.values()} == {"digits-resnet8"}
    assert {folder: each.job_type for folder, each in told.items()} == {
        folder: "search" if folder == recorded.search else "retrain" for folder in recorded.runs
    }
    assert len({each.run_id for each in told.values()}) == len(told)
    assert wandb.run is None  # closed, so that the next job does not go on in it


def test_metrics_have_their_axes(recorded: Recorded) -> None:
    for folder in recorded.runs:
        axes = {each.glob_name or each.name: each.step_metric for each in recorded.of(folder, "metric")}
        assert axes == {
            "*": "trainer/global_step", "trainer/global_step": "", "epoch": "", "ticket/density": "",
            "ticket/round": "", "train/*": "epoch", "pruning/*": "epoch", "val/*": "epoch", "lr": "epoch",
            "ticket/*": "ticket/density", "masks/*": "ticket/round",
        }  # fmt: skip


def test_all_three_hold_the_same_scalars(recorded: Recorded) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    assert [row["pruning/round"] for row in rows_of(recorded.search).values()] == [0, 0, 1]
    for folder in recorded.runs:
        rows = rows_of(folder)
        assert len(rows) == (2 + 1 if folder == recorded.search else len(rows))
        assert all(
            {"epoch", "train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"} <= set(row)
            for row in rows.values()
        )
        in_wandb = {}
        for history in recorded.of(folder, "history"):
            items = values_of(history)
            if "train/loss" in items:
                step = items.pop("trainer/global_step")
                assert step not in in_wandb
                in_wandb[step] = {name: value for name, value in items.items() if not name.startswith("_")}
        assert in_wandb == rows
        name = recorded.of(folder, "run")[0].display_name
        events = EventAccumulator(str(recorded.root / "tensorboard" / name))
        events.Reload()
        in_board: dict[int, dict[str, float]] = {}
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                in_board.setdefault(event.step, {})[tag] = event.value
        assert in_board == {step: pytest.approx(row, rel=1e-6) for step, row in rows.items()}


def test_tickets_are_artifacts_that_tell_where_they_come_from(recorded: Recorded) -> None:
    """dense -> round -> structure -> smaller network; what a run starts from is told by the same name and content."""
    made: dict[str, Any] = {}
    used: dict[Path, list[Any]] = {folder: [] for folder in recorded.runs}
    for folder in recorded.runs:
        for artifact in recorded.of(folder, "artifact"):
            if artifact.use_after_commit:
                used[folder].append(artifact)
            elif artifact.type in ("ticket", "network"):
                assert artifact.name not in made
                made[artifact.name] = artifact
    origin = {name: json.loads(artifact.metadata).get("made_from") for name, artifact in made.items()}
    rounds = [artifact_name(recorded.root / result.place) for result in recorded.results[:2]]
    assert [origin[name] for name in rounds] == [None, *rounds[:-1]]
    assert rounds[1].endswith("-round_01-unstructured")
    assert used.pop(recorded.search) == []
    for folder, artifacts in used.items():
        name = artifact_name(folder)
        (source,) = artifacts
        assert source.name == origin[name]
        assert [entry.digest for entry in source.manifest.contents] == [
            entry.digest for entry in made[source.name].manifest.contents
        ]
        control = "reinit" in folder.name
        assert (source.name == rounds[1]) == (not control or folder.name.startswith("unstructured"))
        if "unstructured" in folder.name:
            assert f"{name}-shrunk" not in made
            continue
        shrunk = made[f"{name}-shrunk"]
        assert (shrunk.type, origin[shrunk.name]) == ("network", name)
        assert {entry.path for entry in shrunk.manifest.contents} == {
            "card.json", "network.json", "network.safetensors",
        }  # fmt: skip


def test_tables_and_figures_are_those_of_the_results(recorded: Recorded) -> None:
    results = {recorded.root / result.place: result for result in recorded.results}
    expected = {folder: [results[folder]] for folder in recorded.runs if folder != recorded.search}
    expected[recorded.search] = recorded.results[:2]
    for folder, own in expected.items():
        for name in ("rounds", "timings"):
            (path,) = recorded.files[folder].glob(f"media/table/tables/{name}_*.json")
            table = json.loads(path.read_text())
            assert {"round", "structure", "control", "density"} < set(table["columns"])
            assert table["data"] == [[_told(getattr(result, column)) for column in table["columns"]] for result in own]
        rows = [
            items for history in recorded.of(folder, "history") if "ticket/accuracy" in (items := values_of(history))
        ]
        assert [(row["ticket/round"], row["ticket/density"], row["ticket/accuracy"]) for row in rows] == [
            (result.round, pytest.approx(result.density), result.accuracy) for result in own
        ]
        summary = {
            item.key: json.loads(item.value_json) for each in recorded.of(folder, "summary") for item in each.update
        }
        assert summary["accuracy"] == own[-1].accuracy
        assert summary["time_ratio_training"] == own[-1].time_ratio_training
        config = {
            item.key: json.loads(item.value_json) for each in recorded.of(folder, "config") for item in each.update
        }
        assert config["classifier"]["learning_rate"] == 0.1
        assert config["ticket"] == {"round": 1, "structure": own[-1].structure, "control": own[-1].control}


def _told(value: Any) -> Any:
    return value if value == value else "NaN"


def test_a_ticket_without_masks_has_no_pictures(recorded: Recorded) -> None:
    """Such as a small dense network, whose layers are those of the search but narrower."""
    result = recorded.results[1]
    ticket = Ticket.load(recorded.root / result.place / "ticket")
    assert _pictures(Entry(result, ticket, recorded.root))
    assert _pictures(Entry(result, replace(ticket, masks={}), recorded.root)) == {}


def test_pictures_show_the_masks(recorded: Recorded) -> None:
    """Those of the search, pixel by pixel: blue is kept, white is pruned."""
    place = recorded.root / recorded.results[1].place
    ticket = Ticket.load(place / "ticket")
    layers = ticket.card["prunable"]
    shown = [layers[0], layers[-1]]
    (row,) = (
        items for history in recorded.of(recorded.search, "history")
        if "masks" in (items := values_of(history)) and items["ticket/round"] == 1
    )  # fmt: skip
    assert set(row["masks"]) == {"1", "2", "3", "4"}
    for number, layer in (("1", shown[0]), ("4", shown[1])):
        told = row["masks"][number]
        assert told["captions"] == [f"{layer}: search (unstructured)"]
        picture = np.asarray(Image.open(recorded.files[recorded.search] / told["filenames"][0]).convert("RGB"))
        mask = ticket.masks[f"{layer}.weight"].flatten(1).numpy()
        times = picture.shape[0] // mask.shape[0]
        assert picture.shape == (times * mask.shape[0], times * mask.shape[1], 3)
        colours = np.where(mask[..., None], BLUE, WHITE)
        assert (picture == colours.repeat(times, 0).repeat(times, 1)).all()
    for folder in recorded.runs:
        if folder.name.startswith(("refill-", "regroup-")) and "reinit" not in folder.name:
            (row,) = (items for each in recorded.of(folder, "history") if "masks" in (items := values_of(each)))
            structure = folder.name.partition("-")[0]
            plan = Ticket.load(folder / "ticket").plan
            assert isinstance(plan, BlockPlan | ChannelPlan)
            for number, layer in (("1", layers[0]), ("4", layers[-1])):
                titles = ["search (unstructured)", structure]
                if layer in (plan.blocks if isinstance(plan, BlockPlan) else {**plan.outputs, **plan.inputs}):
                    titles.append(f"{structure}, reordered")
                assert row["masks"][number]["captions"] == [f"{layer}: {title}" for title in titles]


def test_dashboard_shows_what_is_recorded(recorded: Recorded) -> None:
    """Every metric, picture and table that a panel names is in the record; the panels are those that are promised."""
    pytest.importorskip("wandb_workspaces")
    from lt_lightning.experiment.logging.dashboard import make_dashboard, workspace_json

    view = workspace_json(make_dashboard("me", "mine", "sweep-1"))
    assert (view["entity"], view["project"]) == ("me", "mine")
    assert "sweep-1" in json.dumps(view["spec"])
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    assert [section["name"] for section in sections] == ["Tickets", "Learning curves", "Time", "Masks", "Tables"]
    history, summary = set(), set()
    for folder in recorded.runs:
        for each in recorded.of(folder, "history"):
            for name, value in values_of(each).items():
                nested = name in ("masks", "tables")
                history |= {f"{name}/{inner}" for inner in value} if nested else {name}
        summary |= {item.key for each in recorded.of(folder, "summary") for item in each.update}
    named: dict[str, int] = {}
    for section in sections:
        for panel in section["panels"]:
            config = panel["config"]
            match panel["viewType"]:
                case "Scatter Plot":
                    names = {config[axis].removeprefix("summary:") for axis in ("xAxis", "yAxis")}
                    assert names <= summary
                case "Run History Line Plot":
                    names = {config["xAxis"], *config["metrics"]}
                    assert names <= history
                case "Bar Chart":
                    names = set(config["metrics"])
                    assert names <= summary
                case "Media Browser":
                    names = set(config["mediaKeys"])
                    assert names <= history
                case _:
                    names = {name for name in ("tables/rounds", "tables/timings") if name in json.dumps(config)}
                    assert len(names) == 1
                    assert names <= history
            named |= dict.fromkeys(names, 1)
    assert {"accuracy", "density", "flops_ratio", "time_ratio_inference", "time_ratio_training", "val/accuracy"} <= set(
        named
    )
    assert {"masks/1", "masks/4", "tables/rounds", "tables/timings", "ticket/accuracy"} <= set(named)


def test_no_curve_has_rows_of_epochs_and_of_tickets(recorded: Recorded) -> None:
    for folder in recorded.runs:
        rows = [set(values_of(each)) - STEPS for each in recorded.of(folder, "history")]
        tickets = [row for row in rows if "ticket/accuracy" in row]
        assert tickets
        others = set().union(*(row for row in rows if row not in tickets))
        assert "val/accuracy" in others
        assert not others & set().union(*tickets)


def test_a_sweep_is_a_group_and_a_place_keeps_its_id(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wandb"))
    config = composed("logger=wandb")
    sweep = Multirun(tmp_path / "jobs" / "now", "sweep_small-1a2b3c4d", 4, 0.0)
    sweep.save()
    ids = []
    for group in (None, None, "mine"):
        config.logger.wandb.group = group
        sweep.enter(config)
        _, mirror = make_loggers(config, tmp_path / "place", tmp_path, "name", "search", {"round": 1})
        settings = mirror.target._wandb_init  # type: ignore[attr-defined]
        assert settings["group"] == (group or sweep.name)
        ids.append(settings["id"])
        wandb.finish()
    assert "WARNING" not in capfd.readouterr().err
    assert len(set(ids)) == 1
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 1  # each takes the place of the one before


def values_of(history: Any) -> dict[str, Any]:
    """A row, with what stands deeper as dictionaries: pictures and tables by the parts of their name."""
    values: dict[str, Any] = {}
    for item in history.item:
        keys = [item.key] if item.key else list(item.nested_key)
        if len(keys) > 1:
            keys = [*keys[0].split("/"), *keys[1:]]
        inner = values
        for key in keys[:-1]:
            inner = inner.setdefault(key, {})
        inner[keys[-1]] = json.loads(item.value_json)
    return values
