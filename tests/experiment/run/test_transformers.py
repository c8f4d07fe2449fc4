"""Presets of transformers: what reads token ids, and a search whose tickets drop heads and hidden units."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from lt_lightning.execution.cost import parameters
from lt_lightning.execution.execute import execute
from lt_lightning.experiment.parts import Experiment
from lt_lightning.pruning.evaluation import largest_difference
from lt_lightning.pruning.layers import find_layers
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.batches import example_input
from tests.runs import run_of

Compose = Callable[..., DictConfig]

TINY = (
    "model.width=4", "model.depth=1", "data.limit=0.1", "data.batch_size=32", "trainer.max_epochs=2",
    "trainer.accelerator=cpu", "classifier.schedule.warmup_epochs=1", "pruning.rounds=1", "pruning.rewind=1ep",
    "retrain_rounds=null", "measure=null", "report=false",
)  # fmt: skip
PRESETS = {"digits_vit": torch.float32, "digits_bert": torch.int64}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_search_without_structure(preset: str, composed: Compose, tmp_path: Path) -> None:
    if preset == "digits_bert":
        pytest.importorskip("transformers")
    config = composed(f"experiment={preset}", *TINY, "structure=[]", "~structure.refill")
    experiment = Experiment.from_config(config)
    assert experiment.example.dtype == PRESETS[preset]
    classifier = experiment.classifier()
    read = example_input(pl.Trainer(logger=False), classifier, classifier.network)
    assert isinstance(read, torch.Tensor)
    assert read.dtype == PRESETS[preset]
    results = run_of(config)
    assert [(result.round, result.structure) for result in results] == [(0, "dense"), (1, "unstructured")]
    assert all(0 <= result.accuracy <= 1 and math.isfinite(result.train_seconds) for result in results)
    ticket = Ticket.load(next((tmp_path / "runs").glob("*/round_01/unstructured")) / "ticket")
    assert ticket.card["density"] == pytest.approx(0.64, abs=0.01)
    assert ticket.trained is not None
    assert all(not ticket.trained[name][~mask].any() for name, mask in ticket.masks.items())


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_refilled_tickets_drop_heads_and_hidden_units(preset: str, composed: Compose, tmp_path: Path) -> None:
    """A search, refill within the blocks (`coupling=inner`), retraining as the smaller network, and its time."""
    if preset == "digits_bert":
        pytest.importorskip("transformers")
    shorter = ("trainer.max_epochs=10", "pruning.rounds=2", "retrain_rounds=[2]", "measure.samples=3", "structure=[]")
    config = composed(f"experiment={preset}", *shorter, "trainer.accelerator=cpu", "report=false")
    results = {(result.round, result.structure): result for result in run_of(config)}
    assert set(results) == {(0, "dense"), (1, "unstructured"), (2, "unstructured"), (2, "refill")}
    refilled = results[2, "refill"]
    assert refilled.accuracy > 0.2  # twice what guessing gives
    assert refilled.density == pytest.approx(0.64**2, abs=0.05)
    assert max(refilled.params_ratio, refilled.flops_ratio) < 0.6
    assert all(0 < ratio < 2 for ratio in (refilled.time_ratio_inference, refilled.time_ratio_training))

    experiment = Experiment.from_config(config)
    (folder,) = (tmp_path / "runs").glob("*/round_02/refill-*")
    ticket = Ticket.load(folder / "ticket")
    assert ticket.card["execution"] == "shrunk"
    masked = ticket.apply(experiment.spare_classifier().network, "trained").double()
    example, inputs = experiment.example, experiment.data.random_inputs(4)
    if inputs.is_floating_point():
        example, inputs = example.double(), inputs.double()
    made = execute(masked, ticket.plan, ticket.masks, example)
    assert made is not None
    assert largest_difference(masked, made.network, inputs) < 1e-9
    assert parameters(made.network) / parameters(masked) == pytest.approx(refilled.params_ratio, abs=0.02)
    whole, small = (find_layers(network, example) for network in (masked, made.network))
    queries, hidden = (
        [name for name in whole if name.endswith(end)]
        for end in (("query",), ("perceptron.hidden", "intermediate.dense"))
    )
    for names, unit in ((queries, config.model.width), (hidden, 1)):
        left = [small[name].shape[0] for name in names if name in small]
        assert sum(left) < sum(whole[name].shape[0] for name in names)
        assert all(outputs % unit == 0 for outputs in left)  # heads go whole
