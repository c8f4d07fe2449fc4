"""The LightningModule that trains, validates and tests any classifier of images or token sequences."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from lt_lightning.execution.machine import Compile, compile_network
from lt_lightning.training.distillation import Distillation
from lt_lightning.training.lightning_internals import is_lightning, pl
from lt_lightning.training.schedules import Milestones, Schedule

if TYPE_CHECKING:
    from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig


class EpochMean(Metric):
    """A mean over the samples of an epoch, and over all processes.

    It is logged once an epoch (`first`), and Lightning computes, writes and resets it at the epoch's end: `self.log` of
    a value costs some 0.4 ms at every step, more than the operations of a small network.

    >>> mean = EpochMean()
    >>> mean.update(torch.tensor(3.0), 2)
    >>> mean.update(torch.tensor(1.0), 2)
    >>> mean.compute()
    tensor(1.)
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0), "sum")  # takes the type of what is added
        self.add_state("count", torch.tensor(0), "sum")

    @property
    def first(self) -> bool:
        """Whether it was updated exactly once since it was reset."""
        return self.update_count == 1

    def update(self, total: Tensor, count: int) -> None:
        """Add a batch.

        Args:
            total: sum over the samples of the batch.
            count: number of these samples.
        """
        if total.is_floating_point() and total.dtype.itemsize < 4:
            total = total.float()
        self.total = self.total + total
        self.count = self.count + count

    def compute(self) -> Tensor:
        """Return the mean so far."""
        return self.total / self.count


# The module

Batch = tuple[Tensor, Tensor]
Decay = Literal["all", "weights"]
Optimizer = Literal["sgd", "adamw"]

PAPER_SCHEDULE = Milestones(shares=(0.5, 0.75))


class ImageClassifier(pl.LightningModule):
    """Train a network on cross-entropy, by SGD with momentum or AdamW, and measure its accuracy.

    A batch is inputs, images (n, channels, h, w), float, or token ids (n, length), and labels (n,), int64. Logged, as
    means over an epoch: `lr`, `train/loss`, `train/accuracy`, `val/loss`, `val/accuracy`, `test/loss`,
    `test/accuracy` (accuracy in [0, 1]). Nothing in a step waits for the device.

    The schedule spans the fit as `trainer.max_epochs` stands when the optimizer is made: one training. Whoever
    repeats trainings within a fit restores the state of optimizer and scheduler at the beginning of each.

    Attributes:
        distillation: soft labels that the training loss has, too; `TicketTraining` sets them.

    Args:
        network: network from inputs to logits (n, classes). It becomes the attribute `network`: parameters are
            `network.*`.
        classes: number of classes.
        learning_rate: base rate, which `schedule` multiplies.
        optimizer: `sgd`, or `adamw` (Loshchilov and Hutter, ICLR 2019), which transformers need.
        momentum: momentum of SGD, or what AdamW averages gradients with (its first beta), in [0, 1).
        nesterov: whether SGD's momentum has Nesterov's form.
        weight_decay: weight decay; SGD adds it to the gradient, AdamW shrinks the weights by it.
        decay: which parameters decay: `all`, or `weights`, those of two dimensions and more, which leaves out biases
            and normalisation.
        schedule: schedule of the learning rate; None: the paper's milestones at half and three quarters.
        label_smoothing: label smoothing in the training loss, in [0, 1).
        channels_last: whether convolutions run in this memory format, which most devices compute faster.
        compile: whether the network is compiled with `torch.compile` at its first call; `graphs` also replays it from
            CUDA graphs.

    Raises:
        ValueError: if an argument is out of range.
    """

    operational: ClassVar = ("channels_last", "compile")  # arguments that do not change what is computed
    distillation: Distillation | None = None

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        learning_rate: float = 0.1,
        optimizer: Optimizer = "sgd",
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 1e-4,
        decay: Decay = "all",
        schedule: Schedule | None = None,
        label_smoothing: float = 0.0,
        channels_last: bool = True,
        compile: Compile = False,
    ) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(f"classes={classes}: must be 2 or more")
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate={learning_rate}: must be positive")
        if optimizer not in get_args(Optimizer):
            raise ValueError(f"optimizer={optimizer!r}: must be one of {', '.join(get_args(Optimizer))}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: must be in [0, 1)")
        if nesterov and momentum == 0:
            raise ValueError(f"nesterov={nesterov}: needs a positive momentum")
        if nesterov and optimizer != "sgd":
            raise ValueError(f"nesterov={nesterov}: needs optimizer='sgd', and it is {optimizer!r}")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"weight_decay={weight_decay}: must be 0 or more")
        if decay not in get_args(Decay):
            raise ValueError(f"decay={decay!r}: must be one of {', '.join(get_args(Decay))}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing}: must be in [0, 1)")
        self.network = network
        self.classes = classes
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.momentum = momentum
        self.nesterov = nesterov
        self.weight_decay = weight_decay
        self.decay = decay
        self.schedule = PAPER_SCHEDULE if schedule is None else schedule
        self.label_smoothing = label_smoothing
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # absent from its types
        self.graphs = compile == "graphs"
        compile_network(self.network, compile)
        self.train_loss, self.train_accuracy = EpochMean(), EpochMean()
        self.val_loss, self.val_accuracy = EpochMean(), EpochMean()
        self.test_loss, self.test_accuracy = EpochMean(), EpochMean()

    def check_device(self, trainer: pl.Trainer) -> None:
        """See that the device can compile the network as it is asked for.

        Raises:
            ValueError: if CUDA graphs are asked for on another device, or beside what they overwrite.
        """
        if self.graphs and (device := trainer.strategy.root_device.type) != "cuda":
            raise ValueError(f"compile='graphs': needs CUDA, and the device is {device!r}; use True or False")
        if self.graphs and trainer.accumulate_grad_batches > 1:
            raise ValueError(
                "compile='graphs': overwrites gradients at the next batch, and "
                f"Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}) adds to them; use True or False"
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits (n, classes) of images (n, channels, h, w) or token ids (n, length).

        Raises:
            ValueError: if the network gives another shape.
        """
        if inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=self.memory_format)
        logits: Tensor = self.network(inputs)
        if logits.shape != (len(inputs), self.classes):
            raise ValueError(
                f"classes={self.classes}: the network gives {tuple(logits.shape)} for {len(inputs)} samples"
            )
        return logits

    def setup(self, stage: str) -> None:
        """Forget the means that a fit which was broken off has left."""
        self.check_device(self.trainer)
        for module in self.children():
            if isinstance(module, EpochMean):
                module.reset()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the mean loss of a batch."""
        inputs, labels = batch
        logits = self(inputs)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if self.distillation is not None:
            loss = self.distillation(loss, logits, inputs)
        self._measure("train", loss, logits, labels)
        if batch_idx == 0:
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            self.log("lr", rate, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def on_train_epoch_end(self) -> None:
        """Stop a training that has diverged; once an epoch, since looking at the loss waits for the device.

        Raises:
            FloatingPointError: if the epoch's mean loss is not finite.
        """
        loss = float(self.trainer.callback_metrics["train/loss"])
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"train/loss={loss} in epoch {self.current_epoch}: the training has diverged; "
                f"try less than learning_rate={self.learning_rate}"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log loss and accuracy of a batch."""
        self._evaluate("test", batch)

    def _evaluate(self, stage: str, batch: Batch) -> None:
        inputs, labels = batch
        logits = self(inputs)
        self._measure(stage, F.cross_entropy(logits, labels), logits, labels)

    @torch.no_grad()
    def _measure(self, stage: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add to the means over the epoch and all ranks; nothing is read before its end."""
        count = len(labels)
        for name, total in (("loss", loss * count), ("accuracy", (logits.argmax(1) == labels).sum())):
            mean: EpochMean = getattr(self, f"{stage}_{name}")
            mean.update(total, count)
            if mean.first:
                self.log(f"{stage}/{name}", mean, on_step=False, on_epoch=True, batch_size=count)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer, and its schedule, which goes step by step over one training.

        Raises:
            ValueError: if the training has no end, or the schedule does not fit into it.
        """
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ValueError(f"Trainer(max_epochs={self.trainer.max_epochs}): max_epochs must be a positive number")
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        optimizer = self._make_optimizer()
        factor = partial(self.schedule, total_steps=int(total), steps_per_epoch=steps_per_epoch)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _make_optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer == "adamw" and self.dtype == torch.float16:
            raise ValueError(
                f"optimizer='adamw': divides by averages that are 0 in Trainer(precision={self.trainer.precision!r}); "
                "use 'sgd', or 'bf16-true' or a mixed precision"
            )
        groups = self._parameter_groups()
        fused = True if self._can_fuse() else None  # else PyTorch's own choice
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.learning_rate, betas=(self.momentum, 0.999), fused=fused)
        return torch.optim.SGD(
            groups, lr=self.learning_rate, momentum=self.momentum, nesterov=self.nesterov, fused=fused
        )

    def _can_fuse(self) -> bool:
        """Whether one kernel can update all parameters."""
        if self.device.type == "cpu" and self.dtype in (torch.float16, torch.bfloat16):  # it adds up wrongly there
            return False
        clips = bool(self.trainer.gradient_clip_val)
        if clips and is_lightning(self.trainer.precision_plugin, "MixedPrecision"):  # Lightning clips no fused ones
            return False
        return self.device.type in ("cpu", "cuda")

    def _parameter_groups(self) -> list[dict[str, object]]:
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        if self.decay == "all":
            return [{"params": parameters, "weight_decay": self.weight_decay}]
        weights = [parameter for parameter in parameters if parameter.ndim > 1]
        others = [parameter for parameter in parameters if parameter.ndim <= 1]
        groups = ((weights, self.weight_decay), (others, 0.0))
        return [{"params": group, "weight_decay": decay} for group, decay in groups if group]
