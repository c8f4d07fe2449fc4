"""Handwritten digits that come with scikit-learn: 1,797 grey images of 8x8 pixels; there is nothing to download."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from lt_lightning.data.tensors import Pairs, TensorData, TokenData

TEST_PER_CLASS: Final = 36
CLASSES: Final = 10
SIZE: Final = 8
LARGEST: Final = 16  # of a pixel


class Digits(TensorData):
    """The set is used with 360 test images, 36 of each class, that no seed changes. `root` is not read."""

    name = "digits"
    classes = CLASSES
    channels = 1
    size = SIZE
    mean = (0.3055,)
    std = (0.3760,)
    files = None

    def _read(self) -> tuple[Pairs, Pairs]:
        pixels, labels = _digits()
        values = np.rint(pixels * (255 / LARGEST)).astype(np.uint8)
        return _divided(torch.from_numpy(values)[:, None], labels)


class DigitTokens(TokenData):
    """The digits as sequences of tokens: one for each pixel, row by row, whose id is the pixel's grey level.

    The division into training, validation and test part is that of `Digits`. `root` is not read.
    """

    name = "digit_tokens"
    classes = CLASSES
    vocabulary = LARGEST + 1
    length = SIZE * SIZE
    files = None

    def _read(self) -> tuple[Pairs, Pairs]:
        pixels, labels = _digits()
        return _divided(torch.from_numpy(pixels.astype(np.uint8)).flatten(1), labels)


def _digits() -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float64]], Tensor]:
    """Return pixels (N, 8, 8), whole numbers from 0 to 16, and labels (N,)."""
    digits = load_digits()
    return digits.images, torch.from_numpy(digits.target).long()


def _divided(inputs: Tensor, labels: Tensor) -> tuple[Pairs, Pairs]:
    test = _test(labels)
    rest = torch.ones(len(labels), dtype=torch.bool)
    rest[test] = False
    return Pairs(inputs[rest], labels[rest]), Pairs(inputs[test], labels[test])


def _test(labels: Tensor) -> Tensor:
    """Return indices evenly spaced in each class: all writers, whose digits follow each other, are in the test set."""
    classes = [(labels == label).nonzero()[:, 0] for label in range(CLASSES)]
    spaced = torch.arange(TEST_PER_CLASS)
    return torch.cat([members[spaced * len(members) // TEST_PER_CLASS] for members in classes]).sort().values
