"""ImageNet's folders, streamed by workers."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lt_lightning.data.imagenet import ImageNet, Pictures, middle_box, random_box


def write(root: Path, train: int = 8, test: int = 3) -> Path:
    """Three classes; red tells the class, green the number of the picture."""
    folder = root / "imagenet"
    for part, count in (("train", train), ("val", test)):
        for label, name in enumerate(["n01", "n02", "n03"]):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                noise = np.random.default_rng(label * 100 + number).integers(0, 40, (40 + 5 * number, 60, 3))
                noise[..., 0] += 80 * label
                noise[..., 1] += 20 * number
                Image.fromarray(noise.astype(np.uint8)).save(place / f"{number}.JPEG", quality=95)
    return folder


def loaded(root: Path, workers: int = 0, seed: int = 0) -> ImageNet:
    data = ImageNet(root, 4, classes=3, size=16, workers=workers, eval_batch_size=5, validation=6, seed=seed)
    data.setup()
    return data


def epoch(data: ImageNet, number: int) -> tuple[Tensor, Tensor]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(number)
    batches = list(loader)
    assert len(batches) == len(loader)
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def pixels(data: ImageNet, images: Tensor) -> Tensor:
    """The inverse of the normalisation, in 0 to 255."""
    return (images * torch.tensor(data.std)[:, None, None] + torch.tensor(data.mean)[:, None, None]) * 255


def test_every_part_has_its_pictures_with_their_labels(tmp_path: Path) -> None:
    write(tmp_path)
    data = loaded(tmp_path)
    images, labels = epoch(data, 0)
    assert images.dtype == torch.float32
    assert images.shape == (16, 3, 16, 16)  # 18 training pictures, full batches of 4
    for loader, expected in ((data.val_dataloader(), 6), (data.test_dataloader(), 9)):
        batches = list(loader)
        assert sum(len(batch) for batch, _ in batches) == expected
        images = torch.cat([images, *(batch for batch, _ in batches)])
        labels = torch.cat([labels, *(batch for _, batch in batches)])
    red = pixels(data, images)[:, 0].mean((1, 2))
    assert torch.equal(((red - 20) / 80).round().long(), labels)
    assert sorted(labels[-9:].tolist()) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_evaluation_resizes_and_takes_the_middle(tmp_path: Path) -> None:
    """Against the two steps that are usual, on a smooth picture."""
    folder = write(tmp_path)
    ramp = np.zeros((96, 128, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, 128)[None, :]
    ramp[..., 1] = np.linspace(0, 255, 96)[:, None]
    Image.fromarray(ramp).save(folder / "val" / "n01" / "0.JPEG", quality=100, subsampling=0)
    data = ImageNet(tmp_path, 4, classes=3, size=56, workers=0, validation=6)
    data.setup()
    images, _ = next(iter(data.test_dataloader()))
    resized = Image.open(folder / "val" / "n01" / "0.JPEG").resize((85, 64), Image.Resampling.BILINEAR)
    expected = np.array(resized)[4:60, 14:70].transpose(2, 0, 1)
    difference = (pixels(data, images)[0] - torch.from_numpy(expected.copy())).abs()
    assert float(difference.max()) < 4


@pytest.mark.parametrize("workers", [0, 2])
def test_training_is_a_function_of_seed_and_epoch_not_of_the_workers(tmp_path: Path, workers: int) -> None:
    write(tmp_path)
    reference, labels = epoch(loaded(tmp_path), 1)
    torch.manual_seed(5)
    np.random.seed(5)
    again, same_labels = epoch(loaded(tmp_path, workers), 1)
    assert torch.equal(reference, again)
    assert torch.equal(labels, same_labels)


def test_epochs_and_seeds_differ_in_order_and_in_augmentation(tmp_path: Path) -> None:
    write(tmp_path)
    data = loaded(tmp_path)
    first, second, other = epoch(data, 0)[0], epoch(data, 1)[0], epoch(loaded(tmp_path, seed=1), 0)[0]

    def contents(images: Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    assert len(contents(first) | contents(second) | contents(other)) == 48


def test_the_order_seed_changes_what_becomes_of_every_picture(tmp_path: Path) -> None:
    write(tmp_path)
    plain, other = loaded(tmp_path), loaded(tmp_path)
    other.order_seed = 1
    images = torch.cat([epoch(plain, 0)[0], epoch(other, 0)[0]])
    assert len({image.numpy().tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("workers", [0, 2])
def test_plain_batches_are_the_middles_of_training_pictures(tmp_path: Path, workers: int) -> None:
    write(tmp_path)
    data = loaded(tmp_path, workers)
    pictures = data._parts["train"]
    middles = Pictures([os.fsdecode(path) for path in pictures.paths], pictures.labels.tolist(), 16, 0, augment=False)
    expected = {middles[0, number][0].permute(2, 0, 1).numpy().tobytes() for number in range(len(middles))}
    batches = data.plain_batches(3)
    assert len(batches) == 3
    for images, _ in batches:
        assert {image.round().byte().numpy().tobytes() for image in pixels(data, images)} <= expected
    before = epoch(loaded(tmp_path), 0)[0]
    assert torch.equal(epoch(data, 0)[0], before)  # which is augmented as ever


def test_half_of_the_training_pictures_are_mirrored(tmp_path: Path) -> None:
    half = np.zeros((32, 64, 3), np.uint8)
    half[:, 32:] = 255  # every part of it is brighter on its right, or even
    Image.fromarray(half).save(tmp_path / "half.JPEG")
    pictures = Pictures([str(tmp_path / "half.JPEG")], [0], size=16, seed=0, augment=True)
    sums = torch.stack([pictures[number, 0][0].float().sum((0, 2)) for number in range(400)])
    left, right = sums[:, :8].sum(1), sums[:, 8:].sum(1)
    brighter_right, brighter_left = int((right > left + 100).sum()), int((left > right + 100).sum())
    assert brighter_right + brighter_left > 150
    assert abs(brighter_right - brighter_left) < 4 * (brighter_right + brighter_left) ** 0.5
    pictures.augment = False
    assert all(torch.equal(pictures[0, 0][0], pictures[number, 0][0]) for number in range(5))


def test_workers_that_stay_get_the_new_epoch(tmp_path: Path) -> None:
    write(tmp_path)
    loader = loaded(tmp_path, workers=1).train_dataloader()
    alone = loaded(tmp_path)
    for number in (0, 1):
        loader.sampler.set_epoch(number)
        assert torch.equal(torch.cat([images for images, _ in loader]), epoch(alone, number)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_goes_on_with_its_own_order(tmp_path: Path, workers: int) -> None:
    """Lightning asks for the iterator before it says which epoch it is: workers must not have begun with epoch 0."""
    write(tmp_path)
    data = loaded(tmp_path, workers)
    before = torch.get_rng_state()
    whole, labels = epoch(data, 3)
    first = data.train_dataloader()
    first.sampler.set_epoch(3)
    batches = iter(first)
    for _ in range(2):
        next(batches)
    second = loaded(tmp_path, workers).train_dataloader()
    rest = iter(second)
    second.load_state_dict(first.state_dict())
    second.sampler.set_epoch(3)
    found = list(rest)
    assert len(found) == 2
    assert torch.equal(torch.cat([images for images, _ in found]), whole[8:])
    assert torch.equal(torch.cat([label for _, label in found]), labels[8:])
    second.sampler.set_epoch(4)
    assert torch.equal(torch.cat([images for images, _ in second]), epoch(data, 4)[0])
    assert torch.equal(torch.get_rng_state(), before)  # which dropout draws from


@pytest.mark.parametrize(("width", "height"), [(500, 375), (64, 64), (1000, 100), (90, 700)])
def test_random_boxes_keep_to_the_published_ranges(width: int, height: int) -> None:
    random = np.random.default_rng(0)
    boxes = np.array([random_box(width, height, random) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert boxes.min() >= 0
    assert right.max() <= width + 1e-9
    assert bottom.max() <= height + 1e-9
    ratio = (right - left) / (bottom - top)
    assert ratio.min() >= 3 / 4 - 1e-9
    assert ratio.max() <= 4 / 3 + 1e-9
    share = (right - left) * (bottom - top) / (width * height)
    assert share.min() >= 0.08 - 1e-9 or max(width, height) > 4 * min(width, height)
    if width == height:  # all ratios fit up to an area of 3/4: uniform below
        below = share[share < 0.75]
        assert float(np.mean(below)) == pytest.approx((0.08 + 0.75) / 2, abs=0.02)
        assert float(np.mean(np.log(ratio))) == pytest.approx(0, abs=0.02)
        assert float(np.std(np.log(ratio[share < 0.75]))) == pytest.approx(math.log(16 / 9) / math.sqrt(12), abs=0.02)


def test_an_extreme_picture_falls_back_to_its_middle() -> None:
    assert random_box(1000, 10, np.random.default_rng(0)) == pytest.approx((493 + 1 / 3, 0, 506 + 2 / 3, 10))
    assert middle_box(100, 200) == pytest.approx((6.25, 56.25, 93.75, 143.75))


def test_bad_folders_are_named(tmp_path: Path) -> None:
    data = ImageNet(tmp_path, 4, classes=3)
    with pytest.raises(FileNotFoundError, match=rf"^root={tmp_path}: .*train, val.*{tmp_path}/imagenet"):
        data.setup()
    folder = write(tmp_path)
    with pytest.raises(ValueError, match=rf"^classes=1000: {folder / 'train'} .*\b3\b"):
        ImageNet(tmp_path, 4).setup()
    with pytest.raises(ValueError, match=r"^workers=-1"):
        ImageNet(tmp_path, 4, workers=-1)
    for path in (folder / "val" / "n02").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=rf"^{folder / 'val' / 'n02'} "):
        loaded(tmp_path)


@pytest.mark.parametrize("part", ["train", "val"])
def test_classes_of_other_names_are_refused(part: str, tmp_path: Path) -> None:
    """As many classes are not the same classes: numbered by name, n03 and n04 would be one."""
    folder = write(tmp_path)
    (folder / part / "n03").rename(folder / part / "n04")
    with pytest.raises(ValueError, match=rf"^{folder / 'val'} .*'n0[34]'.*{folder / 'train'}"):
        ImageNet(tmp_path, 4, classes=3, size=16, workers=0, validation=6).setup()


def test_a_bad_picture_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    path = folder / "val" / "n02" / "1.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=rf"{path} "):
        list(loaded(tmp_path).test_dataloader())
