"""The task that all contenders train: a network, masks, images, and the setting."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lt_lightning.data.cifar import Cifar10
from lt_lightning.data.module import Loader
from lt_lightning.data.tensors import Augment, Pairs, TensorData
from lt_lightning.execution.machine import Compile
from lt_lightning.pruning.criteria import Magnitude
from lt_lightning.pruning.layers import find_layers, full_masks, prunable_layers
from lt_lightning.pruning.masks import Masks
from lt_lightning.pruning.selection import prune

Engine = Literal["eager", "compile", "graphs"]
Batch = tuple[Tensor, Tensor]

CLASSES = Cifar10.classes
AUGMENT = Augment(pad=4, flip=True)
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4


@dataclass(frozen=True)
class Setting:
    """How a task is trained.

    Attributes:
        batch_size: number of images of a step.
        device: device to train on.
        bfloat16: whether autocast is used, with weights in float32.
        engine: eager PyTorch, `torch.compile`, or that with CUDA graphs (`mode="reduce-overhead"`).
        channels_last: whether weights and images are in that memory format.

    Raises:
        ValueError: if the engine is none of them, or needs CUDA and the device is another.
    """

    batch_size: int
    device: str = "cpu"
    bfloat16: bool = False
    engine: Engine = "eager"
    channels_last: bool = True

    def __post_init__(self) -> None:
        if self.engine not in get_args(Engine):
            raise ValueError(f"engine={self.engine!r} is not one of {', '.join(get_args(Engine))}")
        if self.engine == "graphs" and torch.device(self.device).type != "cuda":
            raise ValueError(f"engine='graphs' needs CUDA, and the device is {self.device!r}")

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of weights and images."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def compile(self) -> Compile:
        """The engine, as `compile_network` takes it."""
        return "graphs" if self.engine == "graphs" else self.engine == "compile"

    def precision(self) -> AbstractContextManager[object]:
        """Return the context in which forward pass and loss are computed."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16) if self.bfloat16 else nullcontext()


@dataclass(frozen=True)
class Task:
    """A training from given values on given batches, whoever runs it.

    Epoch 0 are `warm_up` steps of the dense network. Then everything goes back to the initial values, and epoch 1
    are the steps that count.

    Attributes:
        network: network at its initial values; it is copied, never changed.
        density: density of the masks.
        images: images (N, C, H, W) uint8 on the CPU, one more than the steps need.
        labels: labels (N,) int64.
        setting: how it is trained.
        steps: largest number of steps that count.
        warm_up: number of steps before, at least 1.
    """

    network: nn.Module
    density: float
    images: Tensor
    labels: Tensor
    setting: Setting
    steps: int
    warm_up: int = 1

    @cached_property
    def example(self) -> Tensor:
        """An image of zeros, as the classifiers' `example_input_array`."""
        return torch.zeros(1, *self.images.shape[1:])

    @cached_property
    def masks(self) -> Masks:
        """The masks that keep the largest initial weights of every prunable layer."""
        layers = prunable_layers(find_layers(self.network, self.example), ("stem", "classifier"))
        full = full_masks(layers)
        weights = {name: self.network.get_parameter(name).detach() for name in full}
        return prune(full, Magnitude()(weights, full), self.density, "layer")

    def copy(self) -> nn.Module:
        """Return the network at its initial values, on the device and in the memory format, in training mode."""
        network = copy.deepcopy(self.network).to(self.setting.device)
        return network.to(memory_format=self.setting.memory_format).train()  # type: ignore[call-overload,no-any-return]  # absent from its types

    def data(self) -> Images:
        """Return the batches, for a `Trainer` or by hand."""
        return Images(self)


class Images(TensorData):
    """A task's images in one of our data modules, on the device. An epoch is as long as the task says."""

    name = "synthetic"
    classes = CLASSES
    mean = Cifar10.mean
    std = Cifar10.std
    files = None

    def __init__(self, task: Task) -> None:
        _, self.channels, self.size, _ = task.images.shape
        super().__init__(".", task.setting.batch_size, augment=AUGMENT, validation=1)
        self.task = task

    def train_dataloader(self) -> Loader:
        """Return the loader of the epoch that begins; so the trainer has to reload it for every epoch."""
        return self.loader(0 if self.trainer is None else self.trainer.current_epoch)

    def loader(self, epoch: int) -> Loader:
        """Return the loader of epoch 0 or 1, without a trainer, too."""
        self._load()
        whole = self.parts["train"]
        count = (self.task.warm_up if epoch == 0 else self.task.steps) * self.batch_size
        try:
            self.parts["train"] = Pairs(whole.inputs[:count], whole.labels[:count])
            loader = self._loader("train")
        finally:
            self.parts["train"] = whole
        loader.sampler.set_epoch(epoch)
        return loader

    @property
    def device(self) -> torch.device:
        return torch.device(self.task.setting.device)

    def _read(self) -> tuple[Pairs, Pairs]:
        images, labels = self.task.images, self.task.labels
        return Pairs(images, labels), Pairs(images[:1], labels[:1])


def synthetic(count: int, shape: Sequence[int], classes: int = CLASSES) -> Pairs:
    """Return random images and labels, always the same."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    return Pairs(images, torch.randint(classes, (count,), generator=generator))


def real(count: int, root: Path | str) -> Pairs:
    """Return CIFAR-10's training images from a folder of data sets, repeated if more are needed.

    Raises:
        FileNotFoundError: if they are not there.
    """
    (images, labels), _ = Cifar10(root, 1)._read()
    chosen = torch.arange(count) % len(images)
    return Pairs(images[chosen], labels[chosen])


@torch.no_grad()
def go_back(network: nn.Module, initial: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    """Set a network, pruned by PyTorch's own hooks or not, to initial values and forget the momentum."""
    state = network.state_dict(keep_vars=True)
    for name, value in initial.items():
        state[name if name in state else f"{name}_orig"].copy_(value)
    optimizer.state.clear()
