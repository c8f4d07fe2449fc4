"""Tiny-ImageNet: 64x64 colour pictures of 200 ImageNet classes, or of any choice of them, as JPEG files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, Unpack

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lt_lightning.data.dataset_files import Files, bad, find, read_image, read_text
from lt_lightning.data.module import Options
from lt_lightning.data.tensors import NO_AUGMENTATION, Augment, Pairs, TensorData

SIZE: Final = 64


class TinyImageNet(TensorData):
    """The classes named in `wnids.txt`, numbered in the order of their names.

    The test set is the folder `val` (the published test set has no labels); validation images are held out from
    `train`. The pictures are decoded once in each process, which takes half a minute for all 110,000.

    Args:
        root: see `LabelledData`.
        batch_size: see `LabelledData`.
        classes: number of classes that `wnids.txt` must name.
        augment: augmentation of the training images.
        options: see `LabelledData`.
    """

    name = "tiny_imagenet"
    channels = 3
    size = SIZE
    mean = (0.4802, 0.4481, 0.3975)
    std = (0.2770, 0.2691, 0.2821)
    files = Files(
        folder="tiny-imagenet-200",
        entries=("wnids.txt", "train", "val"),
        downloads={"http://cs231n.stanford.edu/tiny-imagenet-200.zip": "md5:90528d7ca1a48142e341f4ef8d21d0de"},
    )

    def __init__(
        self,
        root: str | Path,
        batch_size: int,
        *,
        classes: int = 200,
        augment: Augment = NO_AUGMENTATION,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(root, batch_size, augment=augment, **options)
        self.classes = classes

    def _read(self) -> tuple[Pairs, Pairs]:
        folder = find(self.root, self.files)
        names = read_names(folder / "wnids.txt", self.classes)
        return _decode_all(train_files(folder / "train", names)), _decode_all(test_files(folder / "val", names))


def read_names(path: Path, classes: int) -> list[str]:
    """Read the names of the classes, one a line in any order, and sort them.

    Raises:
        ValueError: if there are more or fewer than `classes`, or one twice.
    """
    names = sorted(read_text(path).split())
    if len(set(names)) != len(names):
        raise bad(path, "names a class twice")
    if len(names) != classes:
        raise ValueError(f"classes={classes}: {path} names {len(names)} classes")
    return names


def train_files(folder: Path, names: Sequence[str]) -> list[list[Path]]:
    """Return the pictures of each class: `<name>/images/*.JPEG`.

    Raises:
        ValueError: if a class has none.
    """
    return [_nonempty(folder / name, sorted((folder / name / "images").glob("*.JPEG"))) for name in names]


def test_files(folder: Path, names: Sequence[str]) -> list[list[Path]]:
    """Return the pictures of each class: in `images`, with their classes in `val_annotations.txt` (file, class, box).

    Raises:
        ValueError: if a line cannot be read, or if a class has no picture.
    """
    path = folder / "val_annotations.txt"
    pictures: dict[str, list[Path]] = {name: [] for name in names}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        fields = line.split("\t")
        if len(fields) < 2:
            raise bad(path, f"names no file and class in line {number}")
        if fields[1] in pictures:
            pictures[fields[1]].append(folder / "images" / fields[0])
    return [_nonempty(path, sorted(files), name) for name, files in pictures.items()]


def _nonempty(path: Path, files: list[Path], name: str = "this class") -> list[Path]:
    if not files:
        raise bad(path, f"has no picture of {name}")
    return files


def _decode_all(files: Sequence[Sequence[Path]]) -> Pairs:
    """Decode the pictures of each class."""
    labels = torch.cat([torch.full((len(pictures),), label) for label, pictures in enumerate(files)])
    images = torch.empty(len(labels), 3, SIZE, SIZE, dtype=torch.uint8)
    paths = [path for pictures in files for path in pictures]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        decoded = pool.map(_decode, paths)
        for index, image in enumerate(tqdm(decoded, "decoding Tiny-ImageNet", len(paths), leave=False, unit="image")):
            images[index] = image
    return Pairs(images, labels)


def _decode(path: Path) -> Tensor:
    """Return a picture (3, 64, 64) uint8."""
    image = read_image(path)
    if image.size != (SIZE, SIZE):
        raise bad(path, f"has {image.width}x{image.height} pixels, not {SIZE}x{SIZE}")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
