"""The trainers of one task: a bare loop, ours with and without pruning, peers, the paper's kind of pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.callbacks import ModelPruning
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune as peer
from torch.utils.data import DataLoader, Dataset

from benchmarks.training.task import CLASSES, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Setting, Task, go_back
from lt_lightning.data.cifar import Cifar10
from lt_lightning.execution.machine import compile_network
from lt_lightning.pruning.masks import Masks
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.classifier import ImageClassifier
from lt_lightning.training.schedules import Constant

Pause = Callable[[], None]
"""A training calls it before each of its steps; it returns when it is the training's turn again."""


@dataclass
class Run:
    """One training of a task: the function that trains, and the losses of its steps, as tensors not yet read."""

    task: Task
    train: Callable[[Run, Pause], None]
    losses: list[Tensor] = field(default_factory=list)

    def __call__(self, pause: Pause) -> None:
        """Train, and pause before every step that counts."""
        self.train(self, pause)

    def values(self) -> list[float]:
        """Return the losses of the steps that counted so far."""
        return [float(loss) for loss in self.losses]


def bare(run: Run, pause: Pause) -> None:
    """Train by a loop by hand on augmented batches that lie on the device: nothing can be faster."""
    task, setting = run.task, run.task.setting
    data = task.data()
    epochs = [
        [(images.contiguous(memory_format=setting.memory_format), labels) for images, labels in data.loader(epoch)]
        for epoch in (0, 1)
    ]
    network = _compiled(task)
    optimizer = sgd(network)
    step = training_step(network, optimizer, setting)
    for images, labels in epochs[0]:
        step(images, labels)
    go_back(network, task.network.state_dict(), optimizer)
    for images, labels in epochs[1]:
        pause()
        run.losses.append(step(images, labels))


def sgd(network: nn.Module) -> torch.optim.Optimizer:
    """Make the optimizer of the loop by hand."""
    return torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)


def training_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, setting: Setting
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a step of the loop by hand: from images and labels to the loss."""

    def step(images: Tensor, labels: Tensor) -> Tensor:
        optimizer.zero_grad()
        with setting.precision():
            loss = F.cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def loading(run: Run, pause: Pause) -> None:
    """Make our batches alone: order, augmentation, normalisation."""
    for _ in run.task.data().loader(1):
        pause()


def dense(run: Run, pause: Pause) -> None:
    """Train by our trainer on data in memory, without pruning."""
    _fit(run, pause, ())


def pruned(run: Run, pause: Pause) -> None:
    """Train by our trainer in the first round of `LotteryTicketPruning`.

    Raises:
        RuntimeError: if the callback has other masks than the task.
    """
    with tempfile.TemporaryDirectory() as folder:
        lottery = lottery_of(run.task, folder)
        _fit(run, pause, (lottery, _SameMasks(lottery, run.task.masks)))


def with_model_pruning(run: Run, pause: Pause) -> None:
    """Train by our trainer with Lightning's `ModelPruning`, which prunes after epoch 0."""
    network = _compiled(run.task)
    parameters = [_located(network, name) for name in run.task.masks]
    mask = torch.cat([mask.flatten() for mask in run.task.masks.values()]).to(run.task.setting.device)

    class Given(peer.BasePruningMethod):
        """Prunes what the task's masks do."""

        PRUNING_TYPE = "unstructured"

        def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
            return default_mask * mask

    callback = ModelPruning(
        Given, parameters, apply_pruning=lambda epoch: epoch == 0, make_pruning_permanent=False,
        use_lottery_ticket_hypothesis=False,
    )  # fmt: skip
    _fit(run, pause, (_FlatForPeer(run.task.setting.memory_format), callback), network)


def with_prune_hooks(run: Run, pause: Pause) -> None:
    """Train by our trainer with the hooks of `torch.nn.utils.prune`."""
    network = _compiled(run.task)
    for name, mask in run.task.masks.items():
        module, parameter = _located(network, name)
        peer.custom_from_mask(module, parameter, mask.to(run.task.setting.device))  # type: ignore[no-untyped-call]
    _fit(run, pause, (), network)


def by_pictures(run: Run, pause: Pause) -> None:
    """Train as research code does, the paper's too: PIL pictures, `DataLoader`, contiguous float32, figures every step.

    The pictures are decoded and augmented by worker processes on CUDA. On a CPU they would take turns with the
    training, so the training process does it.
    """
    task, device = run.task, torch.device(run.task.setting.device)
    pictures = Pictures(task.images, task.labels)
    workers = 4 if device.type == "cuda" else 0
    loader: DataLoader[Any] = DataLoader(
        pictures, task.setting.batch_size, shuffle=True, drop_last=True, num_workers=workers, pin_memory=workers > 0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    network = task.copy().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # absent from its types
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    for images, labels in loader:
        pause()
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        float((logits.argmax(1) == labels).float().mean())  # as they print it
        run.losses.append(torch.tensor(float(loss.detach())))


CONTENDERS: Mapping[str, Callable[[Run, Pause], None]] = {
    "bare": bare,
    "dense": dense,
    "pruned": pruned,
    "model_pruning": with_model_pruning,
    "prune_hooks": with_prune_hooks,
    "pictures": by_pictures,
    "loading": loading,
}

SAME_AS: Mapping[str, str] = {"dense": "bare", "model_pruning": "pruned", "prune_hooks": "pruned"}
"""The contender whose losses another one must have."""


def _fit(run: Run, pause: Pause, callbacks: Sequence[pl.Callback], network: nn.Module | None = None) -> None:
    """Train our classifier in a trainer that has only these callbacks."""
    classifier = classifier_of(run.task, network)
    own: list[pl.Callback] = [_Steps(run, pause)]
    if not any(isinstance(callback, LotteryTicketPruning) for callback in callbacks):
        own.append(_GoBack(run.task.network.state_dict()))  # the lottery does so itself
    trainer_of(run.task, [*callbacks, *own]).fit(classifier, run.task.data())


def classifier_of(task: Task, network: nn.Module | None = None) -> ImageClassifier:
    """Return our classifier of a task's network, or of one made from it."""
    classifier = ImageClassifier(
        _compiled(task) if network is None else network, CLASSES, LEARNING_RATE, momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY, schedule=Constant(), channels_last=task.setting.channels_last,
    )  # fmt: skip
    classifier.example_input_array = task.example
    return classifier


def trainer_of(task: Task, callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
    """Return a trainer for a task's two epochs, which are two rounds for `LotteryTicketPruning`."""
    rounds = any(isinstance(callback, LotteryTicketPruning) for callback in callbacks)
    quiet: dict[str, Any] = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
        "num_sanity_val_steps": 0, "limit_val_batches": 0,
    }  # fmt: skip
    return pl.Trainer(
        max_epochs=1 if rounds else 2,
        accelerator=torch.device(task.setting.device).type,
        devices=1,
        precision="bf16-mixed" if task.setting.bfloat16 else "32-true",
        reload_dataloaders_every_n_epochs=1,  # epochs differ in length
        callbacks=callbacks,
        **(quiet | options),
    )


def lottery_of(task: Task, folder: str) -> LotteryTicketPruning:
    """Return the callback that trains the dense network in epoch 0, then a round with the task's masks."""
    return LotteryTicketPruning(
        1, folder, density=task.density, scope="layer", scores_from="rewound", rewind=0, monitor=None
    )


def _compiled(task: Task) -> nn.Module:
    network = task.copy()
    compile_network(network, task.setting.compile)
    return network


def _located(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, parameter = name.rpartition(".")
    return network.get_submodule(path), parameter


class _Steps(pl.Callback):
    """Pauses before each step that counts, and keeps its loss."""

    def __init__(self, run: Run, pause: Pause) -> None:
        self._run = run
        self._pause = pause

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.current_epoch > 0:
            self._pause()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        if trainer.current_epoch > 0:
            self._run.losses.append(outputs["loss"].detach())


class _GoBack(pl.Callback):
    """Sets the network to its initial values before epoch 1."""

    def __init__(self, initial: Mapping[str, Tensor]) -> None:
        self._initial = initial

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            network = pl_module.get_submodule("network")
            go_back(network, self._initial, trainer.optimizers[0])


class _SameMasks(pl.Callback):
    """Checks that the lottery has the masks that the other contenders have."""

    def __init__(self, lottery: LotteryTicketPruning, masks: Masks) -> None:
        self._lottery = lottery
        self._masks = masks

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 1:
            ours, enforced = self._masks, self._lottery.enforced_masks
            if ours.keys() != enforced.keys() or any(not torch.equal(ours[name], enforced[name]) for name in ours):
                raise RuntimeError("the lottery has other masks than the task")


class _FlatForPeer(pl.Callback):
    """Makes weights contiguous for `ModelPruning`, which cannot flatten them in channels_last."""

    def __init__(self, usual: torch.memory_format) -> None:
        self._usual = usual

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._convert(pl_module, self._usual)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._convert(pl_module, torch.contiguous_format)

    @staticmethod
    def _convert(pl_module: pl.LightningModule, to: torch.memory_format) -> None:
        pl_module.get_submodule("network").to(memory_format=to)  # type: ignore[call-overload]  # absent from its types


# Images as research code has them: one PIL picture at a time.


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Pads each picture by zeros, crops and mirrors it at random, and normalises it.

    Args:
        images: images (N, 3, H, W) uint8.
        labels: labels (N,) int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self._pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        top, left, mirrored = (int(torch.randint(high, ())) for high in (9, 9, 2))
        picture = Image.fromarray(self._pixels[index])
        return as_tensor(cropped(picture, top, left, bool(mirrored))), self._labels[index]


def cropped(picture: Image.Image, top: int, left: int, mirrored: bool, pad: int = 4) -> Image.Image:
    """Cut a window of the picture's size out of the padded picture."""
    padded = Image.new(picture.mode, (picture.width + 2 * pad, picture.height + 2 * pad))
    padded.paste(picture, (pad, pad))
    window = padded.crop((left, top, left + picture.width, top + picture.height))
    return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else window


def as_tensor(picture: Image.Image) -> Tensor:
    """Return a picture as (3, H, W) float32, normalised as CIFAR-10."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(Cifar10.mean)[:, None, None]) / torch.tensor(Cifar10.std)[:, None, None]
