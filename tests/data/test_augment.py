"""Batched augmentation against loops over single images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lt_lightning.data.tensors import Augment, crop, flip, normalise


def noise(count: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (count, channels, height, width), generator=generator).to(dtype)


def crop_one(image: np.ndarray, top: int, left: int, pad: int) -> np.ndarray:
    """One pixel at a time."""
    channels, height, width = image.shape
    out = np.zeros_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                source_y, source_x = y + top - pad, x + left - pad
                if 0 <= source_y < height and 0 <= source_x < width:
                    out[c, y, x] = image[c, source_y, source_x]
    return out


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("channels", "height", "width", "pad"), [(1, 8, 8, 1), (3, 6, 9, 4), (2, 5, 3, 7)])
def test_crop_agrees_with_a_loop(channels: int, height: int, width: int, pad: int, dtype: torch.dtype) -> None:
    images = noise(40, channels, height, width, dtype)
    top, left = torch.randint(2 * pad + 1, (2, 40), generator=torch.Generator().manual_seed(1))
    expected = [crop_one(image, int(a), int(b), pad) for image, a, b in zip(images.numpy(), top, left, strict=True)]
    result = crop(images, top, left, pad)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result.numpy(), np.stack(expected))


def test_crop_takes_images_that_are_not_contiguous() -> None:
    images = noise(10, 3, 6, 6)
    top, left = torch.randint(5, (2, 10), generator=torch.Generator().manual_seed(1))
    strided = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(crop(strided, top, left, 2), crop(images, top, left, 2))


def test_flip_agrees_with_a_loop() -> None:
    images = noise(20, 3, 4, 5)
    chosen = torch.arange(20) % 3 == 0
    expected = np.stack(
        [image[:, :, ::-1] if yes else image for image, yes in zip(images.numpy(), chosen, strict=True)]
    )
    np.testing.assert_array_equal(flip(images, chosen).numpy(), expected)


def test_normalise_agrees_with_double_precision() -> None:
    images = noise(5, 3, 4, 4)
    mean, std = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([0.2, 0.3, 0.4])
    result = normalise(images, mean, std)
    expected = (images.numpy() / 255 - mean.double().numpy()[:, None, None]) / std.double().numpy()[:, None, None]
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)


def test_augment_draws_every_place_and_both_sides_equally_often() -> None:
    """The 2 x 9 outcomes of pad 1 with flip, told apart by brute force over an image of distinct pixels."""
    image = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4)
    outcomes: dict[bytes, int] = {}
    for top in range(3):
        for left in range(3):
            window = crop_one(image[0].numpy(), top, left, 1)
            outcomes[window.tobytes()] = 0
            outcomes[window[:, :, ::-1].tobytes()] = 0
    assert len(outcomes) == 18
    for result in Augment(pad=1, flip=True)(image.expand(9000, 1, 4, 4), torch.Generator().manual_seed(0)):
        outcomes[result.numpy().tobytes()] += 1  # KeyError: an outcome that cannot be
    assert all(400 < times < 600 for times in outcomes.values())  # 500 expected, standard deviation 22


def test_augment_is_a_function_of_the_generator() -> None:
    images = noise(50, 3, 8, 8)
    augment = Augment(pad=2, flip=True)
    first = augment(images, torch.Generator().manual_seed(1))
    torch.manual_seed(99)
    assert torch.equal(first, augment(images, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, augment(images, torch.Generator().manual_seed(2)))


def test_augment_without_crop_or_flip_changes_nothing() -> None:
    images = noise(5, 3, 8, 8)
    before = images.clone()
    assert torch.equal(Augment()(images, torch.Generator()), images)
    Augment(pad=2, flip=True)(images, torch.Generator())
    assert torch.equal(images, before)


def test_a_negative_pad_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^pad=-1: "):
        Augment(pad=-1)
