"""Fashion-MNIST: 60,000 + 10,000 grey images of 28x28 pixels, in four gzipped idx files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import numpy as np
import torch

from lt_lightning.data.dataset_files import Files, bad, find, read_gzip
from lt_lightning.data.module import Pairs
from lt_lightning.data.tensors import TensorData

IMAGES_MAGIC: Final = 0x00000803  # unsigned bytes, three axes
LABELS_MAGIC: Final = 0x00000801  # unsigned bytes, one axis
SITE: Final = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"


class FashionMnist(TensorData):
    """Articles of clothing in ten classes (Xiao et al., arXiv 1708.07747); 10,000 of them are the test set."""

    name = "fashion_mnist"
    classes = 10
    channels = 1
    size = 28
    mean = (0.2860,)
    std = (0.3530,)
    files = Files(
        folder="fashion-mnist",
        entries=(
            "train-images-idx3-ubyte.gz",
            "train-labels-idx1-ubyte.gz",
            "t10k-images-idx3-ubyte.gz",
            "t10k-labels-idx1-ubyte.gz",
        ),
        downloads={
            f"{SITE}/train-images-idx3-ubyte.gz": (
                "sha256:3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"
            ),
            f"{SITE}/train-labels-idx1-ubyte.gz": (
                "sha256:a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"
            ),
            f"{SITE}/t10k-images-idx3-ubyte.gz": (
                "sha256:346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"
            ),
            f"{SITE}/t10k-labels-idx1-ubyte.gz": (
                "sha256:67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"
            ),
        },
    )

    def _read(self) -> tuple[Pairs, Pairs]:
        folder = find(self.root, self.files)
        return read_pairs(folder, "train", self.classes), read_pairs(folder, "t10k", self.classes)


def read_pairs(folder: Path, prefix: str, classes: int) -> Pairs:
    """Read `<prefix>-images-idx3-ubyte.gz` and `<prefix>-labels-idx1-ubyte.gz`.

    Raises:
        ValueError: if a file is corrupt, or if the two do not fit each other; names the file.
    """
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", IMAGES_MAGIC, (28, 28))
    path = folder / f"{prefix}-labels-idx1-ubyte.gz"
    labels = read_idx(path, LABELS_MAGIC, ())
    if len(labels) != len(images):
        raise bad(path, f"holds {len(labels)} labels for {len(images)} images")
    if labels.max() >= classes:
        raise bad(path, f"holds the label {labels.max()}; the last class is {classes - 1}")
    return Pairs(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())


def read_idx(path: Path, magic: int, shape: tuple[int, ...]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Read items of a shape from a gzipped idx file: a magic number, the lengths of the axes, bytes.

    Raises:
        ValueError: if the file is something else, or has too few or too many bytes; names the file.
    """
    content = read_gzip(path)
    header = struct.Struct(f">{2 + len(shape)}I")
    if len(content) < header.size:
        raise bad(path, f"has {len(content)} bytes, less than the header of an idx file")
    start, count, *lengths = header.unpack_from(content)
    if start != magic or tuple(lengths) != shape or not count:
        raise bad(path, f"is no idx file of bytes with items of shape {shape} (magic {start:#010x})")
    expected = header.size + count * int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise bad(path, f"has {len(content)} bytes, not the {expected} that its header says")
    return np.frombuffer(content, np.uint8, offset=header.size).reshape(count, *shape).copy()
