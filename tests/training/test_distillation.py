"""Soft labels in the loss: by hand, and what of the teacher a training must not touch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.structures.base import StructureInput
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup
from lt_lightning.tickets.making import make_ticket
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.classifier import ImageClassifier
from lt_lightning.training.distillation import Distillation
from lt_lightning.training.retraining import TicketTraining
from tests import toys

CLASSES = 3
EPOCHS = 2


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip


def batches(dtype: torch.dtype = torch.float32) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(24, 1, 6, 6, generator=generator, dtype=dtype)
    return DataLoader(TensorDataset(images, torch.randint(CLASSES, (24,), generator=generator)), 8)


def ticket_of(structure: Refill | Regroup) -> Ticket:
    net = network(1)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    masks = {"3.weight": torch.rand(8, 8, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5}
    traced = TracedNetwork(net, torch.zeros(1, 1, 6, 6))
    return make_ticket("it", structure, StructureInput(traced, masks, state), state)


def fit(training: TicketTraining, folder: Path, *more: pl.Callback, resume: Path | None = None, **options: Any) -> Any:
    """Trains the ticket in a classifier, which is returned."""
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=EPOCHS, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[training, *more],
        enable_checkpointing=bool(more), **options,
    )  # fmt: skip
    classifier = ImageClassifier(network(2), CLASSES)
    dtype = torch.float64 if options.get("precision") == "64-true" else torch.float32
    classifier.example_input_array = torch.zeros(1, 1, 6, 6)
    trainer.fit(classifier, batches(dtype), batches(dtype), ckpt_path=resume, weights_only=resume is not None)
    return classifier


def trained(training: TicketTraining) -> dict[str, Tensor]:
    assert training.trained is not None
    return dict(training.trained.trained or {})


def test_loss_and_gradient_are_those_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    logits = torch.randn(5, CLASSES, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 2, 1, 1, 0])
    teacher = nn.Linear(4, CLASSES).double()
    share, temperature = 0.3, 2.5
    hard = F.cross_entropy(logits, labels)
    loss = Distillation(teacher, share, temperature)(hard, logits, inputs)
    (gradient,) = torch.autograd.grad(loss, logits)

    def probabilities(values: Any, at: float) -> Any:
        powers = np.exp(values / at)
        return powers / powers.sum(1, keepdims=True)

    student, wanted = logits.detach().numpy(), teacher(inputs).detach().numpy()
    p, q = probabilities(wanted, temperature), probabilities(student, temperature)
    divergence = (p * np.log(p / q)).sum() / 5
    plain = probabilities(student, 1)
    entropy = -np.log(plain[range(5), labels.numpy()]).mean()
    assert float(loss.detach()) == pytest.approx((1 - share) * entropy + share * temperature**2 * divergence, rel=1e-12)
    expected = (1 - share) * (plain - np.eye(CLASSES)[labels.numpy()]) / 5 + share * temperature * (q - p) / 5
    assert np.abs(gradient.numpy() - expected).max() < 1e-14


def test_the_teacher_is_neither_trained_nor_saved(tmp_path: Path) -> None:
    teacher, modes = network(7).train(), []
    before = copy.deepcopy(teacher.state_dict())
    distillation = Distillation(teacher, 0.5)
    distillation.teacher.register_forward_hook(lambda module, *_: modes.append([m.training for m in module.modules()]))
    checkpoint = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    training = TicketTraining(ticket_of(Refill(round_to=1)), monitor=None, distillation=distillation)
    classifier = fit(training, tmp_path, checkpoint)
    assert len(modes) == EPOCHS * 3  # once a step, and in no validation
    assert not any(map(any, modes))
    assert not any(parameter.requires_grad for parameter in distillation.teacher.parameters())
    for states in (teacher.state_dict(), distillation.teacher.state_dict()):
        assert all(torch.equal(states[name], value) for name, value in before.items())
    assert teacher.training
    saved = torch.load(tmp_path / "epoch=1.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == {f"network.{name}" for name in before}
    (optimizer,) = saved["optimizer_states"]
    assert sum(len(group["params"]) for group in optimizer["param_groups"]) == len(list(teacher.parameters()))
    assert classifier.distillation is None
    assert training.trained is not None
    assert training.trained.card["distillation"] == {"share": 0.5, "temperature": 4.0}


@pytest.mark.parametrize("structure", [Refill(round_to=1), Regroup(group_size=4)])
def test_a_smaller_network_is_distilled_as_the_masked_one(structure: Refill | Regroup, tmp_path: Path) -> None:
    """In float64, which the teacher follows; the smaller network's values are kept in the ticket's own float32."""
    ticket, teacher = ticket_of(structure), network(7)

    def weights(execution: Any, distillation: Distillation | None) -> dict[str, Tensor]:
        training = TicketTraining(ticket, execution=execution, monitor=None, distillation=distillation)
        fit(training, tmp_path, precision="64-true")
        return {name: value.double() for name, value in trained(training).items()}

    masked, shrunk = (weights(execution, Distillation(teacher, 0.5)) for execution in ("masked", "shrunk"))
    plain = weights("masked", None)
    for name, mask in ticket.masks.items():
        assert torch.allclose(masked[name] * mask, shrunk[name] * mask, rtol=0, atol=1e-6)
        assert not torch.allclose(masked[name] * mask, plain[name] * mask, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*dirpath has changed.*")
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    ticket = ticket_of(Refill(round_to=1))

    def parts(name: str) -> tuple[TicketTraining, ModelCheckpoint]:
        checkpoint = ModelCheckpoint(tmp_path / name, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        return TicketTraining(ticket, monitor=None, distillation=Distillation(network(7), 0.5)), checkpoint

    whole, checkpoint = parts("whole")
    fit(whole, tmp_path, checkpoint)
    resumed, checkpoint = parts("resumed")
    fit(resumed, tmp_path, checkpoint, resume=tmp_path / "whole" / "epoch=0.ckpt")
    first, second = trained(whole), trained(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = TicketTraining(ticket, monitor=None)
    with pytest.raises(ValueError, match=r"^distillation=None: "):
        fit(other, tmp_path, checkpoint, resume=tmp_path / "whole" / "epoch=0.ckpt")


def test_a_module_whose_loss_takes_no_soft_labels_is_refused(tmp_path: Path) -> None:
    ticket = ticket_of(Refill(round_to=1))
    training = TicketTraining(ticket, monitor=None, distillation=Distillation(network(7), 0.5))
    module = toys.Toy(network(2))
    trainer = pl.Trainer(accelerator="cpu", max_epochs=1, logger=False, callbacks=[training], default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"^distillation=Distillation\(share=0\.5.* Toy "):
        trainer.fit(module)
    assert not module.rates


@pytest.mark.parametrize("arguments", [{"share": 0.0}, {"share": 1.5}, {"share": 0.5, "temperature": 0.0}])
def test_what_is_out_of_range_is_refused(arguments: dict[str, float]) -> None:
    name, value = list(arguments.items())[-1]
    with pytest.raises(ValueError, match=rf"^{name}={value}: "):
        Distillation(nn.Linear(1, 1), **arguments)


def test_a_teacher_of_other_classes_is_refused() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"^teacher: .*\(2, 5\).*\(2, 3\)"):
        Distillation(nn.Linear(4, 5), 0.5)(torch.zeros(()), logits, torch.zeros(2, 4))
