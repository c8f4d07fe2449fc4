"""Random crop, flip and normalisation of whole batches at once, on the batch's device and without host syncs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def crop(images: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """Pad every image with zeros and cut a window of the old size out of it, at a position of its own.

    All rows of all windows are copied by a single `index_select` from an overlapping view in which every entry
    is the start of a row: on a CPU three to fifteen times faster than gathering or indexing pixels.

    Args:
        images: images (N, C, H, W) of any type.
        top: first row of the window in the padded image, (N,) int64 in [0, 2 * pad].
        left: first column of the window, likewise.
        pad: number of zeros on each side.

    Returns:
        Images (N, C, H, W).

    >>> image = torch.tensor([[[[1, 2], [3, 4]]]])
    >>> crop(image, top=torch.tensor([2]), left=torch.tensor([1]), pad=1)
    tensor([[[[3, 4],
              [0, 0]]]])
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad))
    line = width + 2 * pad
    plane = line * (height + 2 * pad)
    planes = torch.arange(count * channels, device=images.device).view(count, channels, 1) * plane
    rows = torch.arange(height, device=images.device) + top[:, None]
    starts = planes + (rows * line + left[:, None])[:, None]
    windows = padded.reshape(-1).unfold(0, width, 1)
    return windows.index_select(0, starts.view(-1)).view_as(images)


def flip(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror the chosen images left to right.

    Args:
        images: images (N, C, H, W) of any type.
        chosen: whether to mirror each image, (N,) bool.

    >>> flip(torch.tensor([[[[1, 2]]], [[[3, 4]]]]), torch.tensor([False, True])).flatten()
    tensor([1, 2, 4, 3])
    """
    count = len(images)
    both = torch.cat([images, images.flip(3)])
    return both.index_select(0, torch.arange(count, device=images.device) + count * chosen)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return uint8 images as float32: (pixel / 255 - mean) / std, by channel.

    Args:
        images: images (N, C, H, W) uint8.
        mean: mean of the pixels scaled to [0, 1], (C,), on the same device.
        std: their standard deviation, likewise.
    """
    scale = 1 / (255 * std)
    return images.float().mul_(scale[:, None, None]).sub_((mean / std)[:, None, None])


@dataclass(frozen=True)
class Augment:
    """Random augmentation of training images.

    Attributes:
        pad: zeros around an image before a window of the old size is cut at random; 0 for no cropping.
        flip: mirror half of the images, chosen at random.

    Raises:
        ValueError: if `pad` is negative.
    """

    pad: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ValueError(f"pad={self.pad}: must be at least 0")

    def __call__(self, images: Tensor, generator: torch.Generator, rank: int = 0, world_size: int = 1) -> Tensor:
        """Augment a batch.

        Args:
            images: images (N, C, H, W): part `rank` of `world_size` equal parts of the batch of a step.
            generator: generator on their device. Every process draws for the whole batch of the step and takes what
                is for its part, so that an image becomes the same however many processes there are.
            rank: number of this process.
            world_size: number of processes.
        """
        count, device = len(images), images.device
        part = slice(rank * count, (rank + 1) * count)
        if self.pad:
            corners = torch.randint(2 * self.pad + 1, (2, count * world_size), generator=generator, device=device)
            images = crop(images, corners[0, part], corners[1, part], self.pad)
        if self.flip:
            drawn = torch.rand(count * world_size, generator=generator, device=device)
            images = flip(images, drawn[part] < 0.5)
        return images
