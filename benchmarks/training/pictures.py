"""Images as research code has them: one PIL picture at a time."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from lt_lightning.data.cifar import Cifar10


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Pads by zeros, crops and mirrors each picture at random, and normalises it.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
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
    """A window of the picture's size, cut at a place of the padded picture."""
    padded = Image.new(picture.mode, (picture.width + 2 * pad, picture.height + 2 * pad))
    padded.paste(picture, (pad, pad))
    window = padded.crop((left, top, left + picture.width, top + picture.height))
    return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else window


def as_tensor(picture: Image.Image) -> Tensor:
    """(3, H, W), float32, normalised as CIFAR-10."""
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(Cifar10.mean)[:, None, None]) / torch.tensor(Cifar10.std)[:, None, None]
