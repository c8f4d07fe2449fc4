"""The readers of CIFAR's binary files, on small ones and on the real ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lt_lightning.data.cifar import Cifar10, Cifar100


class Small10(Cifar10):
    train_records = 4
    test_records = 3


class Small100(Cifar100):
    train_records = 6
    test_records = 3


def write10(root: Path) -> dict[bytes, int]:
    """Five files of 4 records and one of 3; the label of each image."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    random = np.random.default_rng(0)
    label_of: dict[bytes, int] = {}
    for number, name in enumerate([f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]):
        body = b""
        for record in range(3 if name == "test_batch.bin" else 4):
            pixels, label = random.bytes(3072), (number + record) % 10
            body += bytes([label]) + pixels
            label_of[pixels] = label
        (folder / name).write_bytes(body)
    return label_of


def write100(root: Path) -> dict[bytes, int]:
    folder = root / "cifar-100-binary"
    folder.mkdir()
    random = np.random.default_rng(0)
    label_of: dict[bytes, int] = {}
    for name, count in (("train.bin", 6), ("test.bin", 3)):
        body = b""
        for record in range(count):
            pixels, label = random.bytes(3072), 99 - record
            body += bytes([record, label]) + pixels  # coarse label, fine label
            label_of[pixels] = label
        (folder / name).write_bytes(body)
    return label_of


@pytest.mark.parametrize(("kind", "write", "sizes"), [(Small10, write10, (15, 5, 3)), (Small100, write100, (4, 2, 3))])
def test_files_are_read_exactly(
    tmp_path: Path, kind: type[Cifar10 | Cifar100], write: Callable[[Path], dict[bytes, int]], sizes: tuple[int, ...]
) -> None:
    label_of = write(tmp_path)
    data = kind(tmp_path, 2, validation=sizes[1])
    data.setup()
    parts = data.parts.values()
    assert tuple(len(part.inputs) for part in parts) == sizes
    found = {
        image.numpy().tobytes(): int(label)
        for part in parts
        for image, label in zip(part.inputs, part.labels, strict=True)
    }
    assert found == label_of


def test_planes_are_red_green_blue_and_rows_come_first(tmp_path: Path) -> None:
    write10(tmp_path)
    pixels = np.zeros((3, 32, 32), np.uint8)
    pixels[0, 0, 1], pixels[1, 2, 0], pixels[2, 31, 31] = 10, 20, 30
    path = tmp_path / "cifar-10-batches-bin" / "test_batch.bin"
    path.write_bytes((b"\x05" + pixels.tobytes()) * 3)
    data = Small10(tmp_path, 2, validation=5)
    data.setup()
    image = data.parts["test"].inputs[0]
    assert (int(image[0, 0, 1]), int(image[1, 2, 0]), int(image[2, 31, 31]), int(image.sum())) == (10, 20, 30, 60)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda body: body[:-1], "12291 .*12292 .*4"),
        (lambda body: body[: 3 * 3073], "9219 .*12292 .*4"),
        (lambda body: b"", "0 bytes"),
        (lambda body: body[:3073] + b"\x0a" + body[3074:], "10.*9"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, change: Callable[[bytes], bytes], problem: str) -> None:
    write10(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=problem) as error:
        Small10(tmp_path, 2, validation=5).setup()
    assert str(error.value).startswith(f"{path} ")
    assert "\n" not in str(error.value)


def test_the_fine_label_is_checked(tmp_path: Path) -> None:
    write100(tmp_path)
    path = tmp_path / "cifar-100-binary" / "test.bin"
    path.write_bytes(b"\x00\x64" + path.read_bytes()[2:])
    with pytest.raises(ValueError, match=r"\b100\b.*\b99\b"):
        Small100(tmp_path, 2, validation=2).setup()


@pytest.mark.skipif("LT_DATA" not in os.environ, reason="LT_DATA names no folder of data sets")
def test_the_real_files() -> None:
    data = Cifar10(os.environ["LT_DATA"], 128, validation=5000)
    data.setup()
    train, held_out, test = data.parts.values()
    assert (len(train.inputs), len(held_out.inputs)) == (45_000, 5_000)
    assert (train.labels.bincount() + held_out.labels.bincount()).tolist() == [5_000] * 10
    assert test.labels.bincount().tolist() == [1_000] * 10
    assert test.labels[:5].tolist() == [3, 8, 8, 0, 6]  # as published: cat, ship, ship, aeroplane, frog
    for channel in range(3):
        pixels = train.inputs[:, channel].double() / 255
        assert float(pixels.mean()) == pytest.approx(data.mean[channel], abs=2e-3)
        assert float(pixels.std()) == pytest.approx(data.std[channel], abs=2e-3)
