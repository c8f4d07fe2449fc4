"""Distillation: the soft labels of a trained network in the loss of another one."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lt_lightning.pruning.examples import copied


class Distillation:
    """Mixes the soft labels of a teacher into the loss of a network that is trained.

    The loss becomes `(1 - share) * loss + share * temperature**2 * KL(teacher || student)`. The divergence is a
    mean over the batch, of the two networks' probabilities at the temperature, by which their logits are divided before
    the softmax (Hinton et al. 2015, arXiv 1503.02531). Soft labels of the dense network, in the training of its
    tickets, are from arXiv 2101.03255.

    A LightningModule can be distilled if it has an attribute `distillation`, which is None, and whose `training_step`
    applies it, as that of `ImageClassifier` does:

        loss = F.cross_entropy(logits, labels)
        if self.distillation is not None:
            loss = self.distillation(loss, logits, inputs)

    The teacher is copied, and stays in evaluation mode. It is no module of the LightningModule, so that no optimizer
    has its parameters, and no checkpoint its values.

    Args:
        teacher: trained network, from inputs to logits (n, classes).
        share: share of the loss that the soft labels have, in (0, 1].
        temperature: temperature of the probabilities, above 0; a higher one tells more of the unlikely classes.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(self, teacher: nn.Module, share: float, temperature: float = 4.0) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share={share}: must be in (0, 1]")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature={temperature}: must be positive")
        self.teacher = copied(teacher).eval().requires_grad_(False)
        self.share = share
        self.temperature = temperature

    def __repr__(self) -> str:
        return f"Distillation(share={self.share}, temperature={self.temperature})"

    @property
    def facts(self) -> dict[str, float]:
        """Share and temperature, for a card."""
        return {"share": self.share, "temperature": self.temperature}

    def follow(self, student: nn.Module) -> None:
        """Move the teacher to the device and the type of the network that is trained."""
        parameter = next(student.parameters())
        self.teacher.to(parameter.device, parameter.dtype)

    def __call__(self, loss: Tensor, logits: Tensor, inputs: Tensor) -> Tensor:
        """Return the loss of a batch with the soft labels in it.

        Args:
            loss: loss on the batch's labels, a mean.
            logits: what the network that is trained gives for the batch.
            inputs: inputs of the batch.

        Raises:
            ValueError: if the teacher's logits have another shape.
        """
        with torch.no_grad():
            wanted = self.teacher(inputs)
        if wanted.shape != logits.shape:
            raise ValueError(f"teacher: gives {tuple(wanted.shape)} where the network gives {tuple(logits.shape)}")
        student, teacher = (F.log_softmax(each / self.temperature, dim=1) for each in (logits, wanted))
        divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
        return (1 - self.share) * loss + self.share * self.temperature**2 * divergence
