"""The reader of idx files, on small ones and on the real ones."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lt_lightning.data.fashion_mnist import FashionMnist


def images_file(pixels: np.ndarray) -> bytes:
    return struct.pack(">IIII", 2051, *pixels.shape) + pixels.tobytes()


def labels_file(labels: list[int]) -> bytes:
    return struct.pack(">II", 2049, len(labels)) + bytes(labels)


def write(root: Path) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    train = random.integers(0, 256, (12, 28, 28), dtype=np.uint8)
    test = random.integers(0, 256, (5, 28, 28), dtype=np.uint8)
    folder = root / "fashion-mnist"
    folder.mkdir()
    content = {
        "train-images-idx3": images_file(train),
        "train-labels-idx1": labels_file([n % 10 for n in range(12)]),
        "t10k-images-idx3": images_file(test),
        "t10k-labels-idx1": labels_file([9, 8, 7, 6, 5]),
    }
    for name, body in content.items():
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(body))
    return train, test


def test_files_are_read_exactly(tmp_path: Path) -> None:
    train, test = write(tmp_path)
    data = FashionMnist(tmp_path, 2, validation=3, seed=1)
    data.setup()
    used, held_out, tested = data.parts.values()
    assert (len(used.inputs), len(held_out.inputs)) == (9, 3)
    pairs = zip(torch.cat([used.inputs, held_out.inputs]), torch.cat([used.labels, held_out.labels]), strict=True)
    found = {image.numpy().tobytes(): int(label) for image, label in pairs}
    assert found == {image.tobytes(): number % 10 for number, image in enumerate(train)}
    np.testing.assert_array_equal(tested.inputs[:, 0].numpy(), test)
    assert tested.labels.tolist() == [9, 8, 7, 6, 5]


def with_magic(body: bytes) -> bytes:
    return struct.pack(">I", 2052) + body[4:]


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("train-images-idx3", lambda body: body[:-1], "9423 .*9424"),
        ("train-images-idx3", lambda body: body + b"x", "9425 .*9424"),
        ("t10k-images-idx3", with_magic, "0x00000804"),
        ("t10k-images-idx3", lambda body: body[:7], "7 bytes"),
        ("t10k-images-idx3", lambda body: struct.pack(">IIII", 2051, 5, 14, 56) + body[16:], "0x00000803"),
        ("train-labels-idx1", lambda body: labels_file([1] * 11), "11 .*12"),
        ("t10k-labels-idx1", lambda body: labels_file([1, 2, 3, 4, 10]), "10.*9"),
        ("t10k-labels-idx1", lambda body: labels_file([]), "0x00000801"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, change: Callable[[bytes], bytes], problem: str) -> None:
    write(tmp_path)
    path = tmp_path / "fashion-mnist" / f"{name}-ubyte.gz"
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    with pytest.raises(ValueError, match=problem) as error:
        FashionMnist(tmp_path, 2, validation=3).setup()
    assert str(error.value).startswith(f"{path} ")
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte\.gz "):
        FashionMnist(tmp_path, 2, validation=3).setup()


@pytest.mark.skipif("LT_DATA" not in os.environ, reason="LT_DATA names no folder of data sets")
def test_the_real_files() -> None:
    data = FashionMnist(os.environ["LT_DATA"], 128, validation=6000)
    data.setup()
    train, held_out, test = data.parts.values()
    assert (len(train.inputs), len(held_out.inputs)) == (54_000, 6_000)
    assert (train.labels.bincount() + held_out.labels.bincount()).tolist() == [6_000] * 10
    assert test.labels.bincount().tolist() == [1_000] * 10
    assert test.labels[:5].tolist() == [9, 2, 1, 1, 6]  # as published
    pixels = torch.cat([train.inputs, held_out.inputs]).double() / 255
    assert float(pixels.mean()) == pytest.approx(data.mean[0], abs=5e-5)
    assert float(pixels.std()) == pytest.approx(data.std[0], abs=5e-5)
