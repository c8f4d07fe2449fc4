"""The group `debug`: each choice runs from end to end, does what it says, and never counts as a real result."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from lt_lightning.experiment.config.tasks import search_folder
from lt_lightning.experiment.parts import Experiment
from tests.runs import REFILL, SMALL, run_of

Compose = Callable[..., DictConfig]
CHOICES = ("fdr", "limit", "overfit", "profiler")


@pytest.mark.parametrize("choice", CHOICES)
def test_its_results_are_elsewhere_and_under_another_name(choice: str, composed: Compose, tmp_path: Path) -> None:
    config = composed(f"debug={choice}")
    config.paths.root = str(tmp_path)
    assert search_folder(config).name.startswith(f"{choice}-digits-resnet8-s0-")
    assert search_folder(composed()).name.startswith("digits-")


def test_each_has_a_root_of_its_own(composed: Compose) -> None:
    """Read from the files: `composed` sets a root as the command line would."""
    conf = Path(__file__).resolve().parents[3] / "conf" / "debug"
    assert {path.stem for path in conf.glob("*.yaml")} == set(CHOICES)
    for choice in CHOICES:
        assert f"\n  root: runs/debug/{choice}\n" in (conf / f"{choice}.yaml").read_text()


def test_fdr_goes_through_every_phase_with_one_batch(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the preset asks for much: rounds, epochs, a late rewind point, a density."""
    batches: list[tuple[int, list[int]]] = []
    advance = pl.Trainer.fit

    def counted(self: pl.Trainer, *args: object, **kwargs: object) -> None:
        advance(self, *args, **kwargs)  # type: ignore[arg-type]
        batches.append((int(self.num_training_batches), [int(count) for count in self.num_val_batches]))

    monkeypatch.setattr(pl.Trainer, "fit", counted)
    results = run_of(composed("debug=fdr", "trainer.accelerator=cpu", "measure=null", *REFILL, "controls=[reinit]"))
    assert [(result.round, result.structure, result.control) for result in results] == [
        (0, "dense", ""), (1, "unstructured", ""), (1, "refill", ""),
        (1, "unstructured", "reinit"), (1, "refill", "reinit"),
    ]  # fmt: skip
    assert batches == [(1, [1])] * 4
    assert {result.data for result in results} == {"fdr-digits"}


def test_limit_shortens_epochs_and_nothing_else(composed: Compose) -> None:
    plain, limited = composed("pruning.rounds=3"), composed("pruning.rounds=3", "debug=limit")
    assert limited.trainer.limit_train_batches == 8
    for key in ("model", "pruning", "classifier", "data", "structure"):
        assert limited[key] == plain[key]
    assert limited.trainer.max_epochs == plain.trainer.max_epochs


OVERFIT = ("debug=overfit", "model.width=8", "trainer.accelerator=cpu", "structure=[]")


def test_overfit_has_four_unchanging_batches(composed: Compose) -> None:
    experiment = Experiment.from_config(composed(*OVERFIT))
    experiment.data.setup("fit")
    loader = experiment.data.train_dataloader()
    seen = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        images = torch.cat([images for images, _ in loader]).flatten(1)
        seen.append(sorted(images.tolist()))
    assert len(seen[0]) == 4 * 64
    assert seen[0] == seen[1]  # in another order, unchanged


@pytest.mark.slow
def test_overfit_learns_its_batches_by_heart(composed: Compose, tmp_path: Path) -> None:
    run_of(composed(*OVERFIT))
    (metrics,) = (tmp_path / "runs").glob("overfit-*/metrics.csv")
    with metrics.open() as file:
        rows = list(csv.DictReader(file))
    ends = [float(row["train/accuracy"]) for row in (rows[29], rows[-1])]
    assert rows[29]["pruning/round"] == "0.0"
    assert min(ends) > 0.99


def test_profiler_reports_beside_what_it_profiled(composed: Compose, tmp_path: Path) -> None:
    run_of(composed("debug=profiler", *SMALL, *REFILL))
    root = tmp_path / "runs"
    (search,) = root.glob("profiler-digits-*")
    (retraining,) = search.glob("round_01/refill-*/fit-profile.txt")
    for path in (search / "fit-profile.txt", retraining, root / "test-profile.txt"):
        report = path.read_text()
        assert "Profiler Report" in report
        assert "ImageClassifier" in report
    assert "optimizer_step" in retraining.read_text()
    assert sorted(path.name for path in tmp_path.rglob("*profile*.txt")) == [
        "fit-profile.txt", "fit-profile.txt", "test-profile.txt",
    ]  # fmt: skip


def test_places_of_real_results_are_those_that_they_were(composed: Compose) -> None:
    """Named by what determines them, to which the group adds nothing."""
    assert search_folder(composed()).name == "digits-resnet8-s0-79d68acf"
    assert search_folder(composed("experiment=cifar10_vgg16")).name == "cifar10-vgg16_bn-s0-deccda79"
