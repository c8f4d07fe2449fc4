"""The reader of Tiny-ImageNet's folders, on a small copy and on real pictures."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lt_lightning.data.tiny_imagenet import TinyImageNet

NAMES = ["n03", "n01", "n02"]  # not in the order of their names
SHADE = {"n01": 40, "n02": 120, "n03": 200}


def picture(path: Path, shade: int, *, grey: bool = False, size: int = 64) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if grey else "RGB", (size, size), shade if grey else (shade, 0, 255)).save(path)


def write(root: Path) -> Path:
    """Three classes of 4 training and 2 test pictures; the first of each is grey."""
    folder = root / "tiny-imagenet-200"
    annotations = ""
    for name in NAMES:
        for number in range(4):
            picture(folder / "train" / name / "images" / f"{name}_{number}.JPEG", SHADE[name], grey=number == 0)
        for number in range(2):
            picture(folder / "val" / "images" / f"val_{name}{number}.JPEG", SHADE[name])
            annotations += f"val_{name}{number}.JPEG\t{name}\t0\t0\t62\t62\n"
    (folder / "wnids.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "val" / "val_annotations.txt").write_text(annotations)
    return folder


def loaded(root: Path, classes: int = 3) -> TinyImageNet:
    data = TinyImageNet(root, 2, classes=classes, validation=3)
    data.setup()
    return data


def test_pictures_are_decoded_and_classes_numbered_by_name(tmp_path: Path) -> None:
    write(tmp_path)
    data = loaded(tmp_path)
    parts = data.parts.values()
    assert [len(part.inputs) for part in parts] == [9, 3, 6]
    assert data.parts["test"].labels.tolist() == [0, 0, 1, 1, 2, 2]
    grey = 0
    for part in parts:
        for image, label in zip(part.inputs, part.labels, strict=True):
            expected = SHADE[f"n0{int(label) + 1}"]
            blue = int(image[2, 5, 5])
            grey += blue < 250
            assert image.shape == (3, 64, 64)
            assert abs(int(image[0, 5, 5]) - expected) < 4  # JPEG
            assert abs(blue - 255) < 4 or abs(blue - expected) < 4
    assert grey == 3


def test_rows_and_columns_are_not_exchanged(tmp_path: Path) -> None:
    folder = write(tmp_path)
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:16] = 255  # the upper quarter is white
    Image.fromarray(pixels).save(folder / "val" / "images" / "val_n010.JPEG")
    image = loaded(tmp_path).parts["test"].inputs[0]
    assert int(image[:, :8].min()) > 200
    assert int(image[:, 24:].max()) < 50


def test_a_choice_of_classes_leaves_the_others_out(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "wnids.txt").write_text("n03\nn01\n")
    data = loaded(tmp_path, classes=2)
    assert data.parts["test"].labels.tolist() == [0, 0, 1, 1]
    assert abs(int(data.parts["test"].inputs[2, 0, 0, 0]) - SHADE["n03"]) < 4


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path)
    with pytest.raises(ValueError, match=rf"^classes=200: {folder / 'wnids.txt'} .*\b3\b"):
        loaded(tmp_path, classes=200)
    (folder / "wnids.txt").write_text("n01\nn01\nn02\n")
    with pytest.raises(ValueError, match=r"wnids\.txt .*twice"):
        loaded(tmp_path)


def test_a_bad_picture_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    path = folder / "train" / "n02" / "images" / "n02_1.JPEG"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=rf"^{path} "):
        loaded(tmp_path)
    picture(path, 1, size=32)
    with pytest.raises(ValueError, match=rf"^{path} .*32x32.*64x64"):
        loaded(tmp_path)


def test_missing_pictures_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    annotations = folder / "val" / "val_annotations.txt"
    text = annotations.read_text()
    annotations.write_text(text.replace("n02\t", "n09\t"))
    with pytest.raises(ValueError, match=rf"^{annotations} .*\bn02\b"):
        loaded(tmp_path)
    annotations.write_text("val_n010.JPEG n01\n" + text)
    with pytest.raises(ValueError, match=rf"^{annotations} .* line 1$"):
        loaded(tmp_path)
    annotations.write_text(text)
    for path in (folder / "train" / "n03" / "images").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=rf"^{folder / 'train' / 'n03'} "):
        loaded(tmp_path)


@pytest.mark.skipif("LT_DATA" not in os.environ, reason="LT_DATA names no folder of data sets")
def test_real_pictures() -> None:
    root = Path(os.environ["LT_DATA"])
    classes = len((root / "tiny-imagenet-200" / "wnids.txt").read_text().split())
    if classes > 20:
        pytest.skip("the whole set takes too long")
    data = TinyImageNet(root, 32, classes=classes)
    data.setup()
    train, held_out, test = data.parts.values()
    assert (train.labels.bincount() + held_out.labels.bincount()).tolist() == [500] * classes
    assert test.labels.bincount().tolist() == [50] * classes
    grey = (test.inputs[:, 0] == test.inputs[:, 2]).flatten(1).all(1)
    assert 0 < int(grey.sum()) < 0.05 * len(grey)
