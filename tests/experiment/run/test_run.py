"""A whole small job: what it leaves on disk, and that a second run finds it again."""

from __future__ import annotations

import csv
import io
import json
import shutil
import socket
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lt_lightning.experiment.config.tasks import search_folder
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.run_job import check_collapse, run_job
from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.results.records import Result, find_results
from lt_lightning.storage.files import write_json
from lt_lightning.storage.layout import round_folder, write_rounds
from lt_lightning.structures.refill import Refill
from lt_lightning.tickets.making import structure_ticket
from lt_lightning.tickets.ticket import Ticket
from tests.runs import BOTH, MEASURED, REFILL, SMALL, Compose, composing, run_of


class Finished(NamedTuple):
    """A job that has run."""

    root: Path
    config: DictConfig
    results: list[Result]
    printed: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    root, file = tmp_path_factory.mktemp("runs"), io.StringIO()
    with composing(root) as composed:
        config = composed(*SMALL, *BOTH, "pruning.rounds=2", "retrain_rounds=[2]", MEASURED)
        results = run_job(Job.of(config), Console(file=file))
        OmegaConf.resolve(config)  # while it is the one that Hydra knows
    return Finished(root, config, results, file.getvalue())


def test_a_job_leaves_tickets_results_and_table(finished: Finished) -> None:
    root, _, results, printed = finished
    wanted = {(0, "dense")} | {(n, "unstructured") for n in (1, 2)}
    wanted |= {(2, "refill"), (2, "regroup")}
    assert {(result.round, result.structure) for result in results} == wanted
    with (root / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(int(row["round"]), row["structure"]) for row in rows} == wanted
    first = "data model seed round structure target_density density accuracy dense_accuracy params_ratio flops_ratio"
    assert set(f"{first} train_seconds".split()) <= set(rows[0])

    for result in results:
        folder = root / result.place
        ticket = Ticket.load(folder / "ticket")
        assert ticket.trained is not None
        _check_against_weights(ticket, result)
        layers = json.loads((folder / "ticket.json").read_text())["layers"]
        assert all(0 < layer["density"] <= 1 and 0 < layer["target_density"] <= 1 for layer in layers.values())
    assert len({result.search for result in results}) == 1
    assert "One seed: no verdict" in printed
    # The dense network trains 2 epochs, each later training 1, as it begins at the rewind point.
    epochs = {(0, "dense"): 2, (1, "unstructured"): 3, (2, "unstructured"): 4, (2, "refill"): 5, (2, "regroup"): 5}
    assert {(result.round, result.structure): result.total_epochs for result in results} == epochs
    assert {(int(row["round"]), row["structure"]): int(row["total_epochs"]) for row in rows} == epochs
    assert "search, round 2 of 2" in printed


def _check_against_weights(ticket: Ticket, result: Result) -> None:
    """The density told is that of the trained weights themselves."""
    assert ticket.trained is not None
    prunable = [f"{name}.weight" for name in ticket.card["prunable"]]
    alive = sum(int(ticket.trained[name].count_nonzero()) for name in prunable)
    total = sum(ticket.trained[name].numel() for name in prunable)
    assert alive / total == pytest.approx(result.density, abs=2 / total)  # a trained weight may be zero by chance


def test_accuracy_is_that_of_the_ticket_on_disk(finished: Finished) -> None:
    experiment = Experiment.from_config(finished.config)
    experiment.data.setup("test")
    network = experiment.classifier().network.eval()
    for result in finished.results:
        Ticket.load(finished.root / result.place / "ticket").apply(network, "trained")
        right = total = 0
        with torch.no_grad():
            for images, labels in experiment.data.test_dataloader():
                right += int((network(images).argmax(1) == labels).sum())
                total += len(labels)
        assert right / total == pytest.approx(result.accuracy, abs=1e-6)


def test_a_finished_job_trains_nothing_and_a_wider_one_only_what_is_new(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_of(composed(*SMALL, *REFILL))
    fits: list[pl.Trainer] = []
    fit = pl.Trainer.fit

    def counted(self: pl.Trainer, *args: object, **kwargs: object) -> None:
        fits.append(self)
        fit(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(pl.Trainer, "fit", counted)
    # As a job leaves it that is killed in its last moment; somebody has emptied the table.
    root, last = tmp_path / "runs", tmp_path / "runs" / first[-1].place
    summary = (root / "summary.csv").read_text()
    (root / "summary.csv").write_text("")
    (last / ".lock").write_text(json.dumps({"host": socket.gethostname(), "pid": 1, "since": 0}))
    assert str(run_of(composed(*SMALL, *REFILL))) == str(first)  # times, which were not measured, are NaN
    assert fits == []
    assert sorted((root / "summary.csv").read_text().splitlines()) == sorted(summary.splitlines())
    assert not list(root.rglob(".lock"))
    wider = run_of(composed(*SMALL, *BOTH))
    assert len(fits) == 1  # regroup; the search and refill are found again
    assert {r.place for r in first} < {r.place for r in wider}
    run_of(composed(*SMALL, *REFILL, "structure.refill.coupling=inner"))
    assert len(fits) == 2  # other options are another ticket, of the same search
    assert len({r.search for r in find_results(tmp_path / "runs")}) == 1


def test_a_job_that_goes_on_with_another_version_says_so_and_cards_name_both(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(composed(*SMALL, "structure=[]"))
    assert "0.0.7" not in capsys.readouterr().out
    monkeypatch.setattr("lt_lightning.experiment.run.environments.version_of", lambda _: "0.0.7")
    results = run_of(composed(*SMALL, *REFILL))
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if "lt_lightning 0.0.7" in line]) == 1
    cards = {each.structure: Ticket.load(tmp_path / "runs" / each.place / "ticket").card for each in results}
    first, second = cards["refill"]["environments"]
    assert cards["dense"]["environments"] == cards["unstructured"]["environments"] == [first]
    assert second == {**first, "lt_lightning": "0.0.7"}
    assert {"torch", "python", "device"} < set(first)
    run_of(composed(*SMALL, *REFILL))  # nothing goes on
    assert "0.0.7" not in capsys.readouterr().out


def test_group_aware_search_trains_the_structure(composed: Compose, tmp_path: Path) -> None:
    options = ("pruning.rounds=2", "pruning.next_round_from=refill", "structure.refill.score=feature_l2")
    results = run_of(composed(*SMALL, *REFILL, *options))
    assert [(r.round, r.structure) for r in results] == [(0, "dense"), (1, "refill"), (2, "refill")]
    densities = [r.density for r in results]
    assert densities == sorted(densities, reverse=True)
    for result in results[1:]:
        ticket = Ticket.load(tmp_path / "runs" / result.place / "ticket")
        _check_against_weights(ticket, result)


def test_saliency_uses_the_gradients_of_the_search(composed: Compose, tmp_path: Path) -> None:
    options = (*REFILL, "structure.refill.score=saliency")
    with pytest.raises(ValueError, match="gradient_batches"):
        run_of(composed(*SMALL, *options))
    results = run_of(composed(*SMALL, *options, "pruning.gradient_batches=3"))
    assert results[-1].structure == "refill"
    assert (tmp_path / "runs" / results[-1].search / "round_01" / "gradients.pt").is_file()


def test_feature_maps_score_the_same_whenever_the_ticket_is_made(composed: Compose, tmp_path: Path) -> None:
    """By the run that searches, and by one that reads the finished search."""
    config = composed(*SMALL, *REFILL, "structure.refill.score=feature_l1")
    root = tmp_path / "runs"
    _, plain, refill = run_of(config)
    after = Ticket.load(root / refill.place / "ticket")
    shutil.rmtree(root / refill.place)
    assert run_of(config)[-1].place == refill.place
    found = Ticket.load(root / refill.place / "ticket")
    assert after.card["mask_digest"] == found.card["mask_digest"]

    experiment = Experiment.from_config(config)
    traced = TracedNetwork(experiment.classifier().network, experiment.example)
    by_weights = structure_ticket(Ticket.load(root / plain.place / "ticket"), "refill", Refill(round_to=2), traced)
    assert by_weights.card["mask_digest"] != after.card["mask_digest"]


def test_a_search_that_collapsed_under_warn_is_refused_by_stop(composed: Compose) -> None:
    folder = search_folder(composed(*SMALL))
    rounds: list[Any] = [{"round": number, "density": 0.5**number} for number in (0, 1)]
    write_rounds(folder, rounds)
    layers = {"stages.0.conv1": {"kept": 0}, "stages.0.conv2": {"kept": 7}}
    write_json(round_folder(folder, 1) / "unstructured" / "ticket.json", {"layers": layers})
    check_collapse(Job.of(composed(*SMALL)))
    with pytest.raises(ValueError, match=r"^pruning\.on_collapse='stop': .*\b1\b.* stages\.0\.conv1;"):
        check_collapse(Job.of(composed(*SMALL, "pruning.on_collapse=stop")))


def test_diverging_training_stops_and_leaves_no_result(composed: Compose, tmp_path: Path) -> None:
    import wandb

    with pytest.raises(FloatingPointError, match="train/loss="):
        run_of(composed(*SMALL, *REFILL, "classifier.learning_rate=1e30", "logger=wandb"))
    assert wandb.run is None
    assert find_results(tmp_path / "runs") == []


@pytest.mark.slow
def test_search_on_digits_finds_tickets_that_match_the_dense_network(composed: Compose) -> None:
    """The main job in small. 360 test images: a point is about twice the standard error of a difference."""
    results = run_of(composed(*SMALL, "model.width=16", "data.limit=1", "trainer.max_epochs=8"))
    dense = results[0].accuracy
    assert dense > 0.97
    winners = [result for result in results if result.round == 1]
    assert len(winners) == 3
    for result in winners:
        assert result.accuracy > dense - 0.015, result
    refill, regroup = (next(r for r in results if r.structure == name) for name in ("refill", "regroup"))
    assert refill.density <= 0.8 < refill.density + 0.05
    assert regroup.density == pytest.approx(0.8, abs=0.003)
    assert max(refill.flops_ratio, regroup.flops_ratio) < 0.95
