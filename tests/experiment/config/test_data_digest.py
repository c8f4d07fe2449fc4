"""Other images or labels than those that a search was trained on are noticed, whether anything is left to do or not."""

from __future__ import annotations

import gzip
import os
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from omegaconf import DictConfig
from PIL import Image

from lt_lightning.data.digits import Digits
from lt_lightning.data.fashion_mnist import FashionMnist
from lt_lightning.data.imagenet import ImageNet
from lt_lightning.experiment.config.fingerprint import check_data, record_data
from tests.runs import REFILL, SMALL

Compose = Callable[..., DictConfig]
FASHION = ("data=fashion_mnist", "data.batch_size=16", "data.validation=20", "model.stem=stride2")


def fashion(root: Path, seed: int = 0, label: int = 0) -> Path:
    """A few random images in Fashion-MNIST's format; `label` is that of the first one."""
    random = np.random.default_rng(seed)
    folder = root / "fashion-mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", 80), ("t10k", 20)):
        labels = bytes([label, *(number % 10 for number in range(1, count))])
        pixels = random.bytes(count * 784)
        for part, header, content in (
            ("images-idx3", (0x803, count, 28, 28), pixels),
            ("labels-idx1", (0x801, count), labels),
        ):
            written = gzip.compress(struct.pack(f">{len(header)}I", *header) + content, mtime=0)
            (folder / f"{prefix}-{part}-ubyte.gz").write_bytes(written)
    return root


def test_a_digest_changes_with_an_image_or_a_label_and_not_with_the_folder(tmp_path: Path) -> None:
    def digest(root: Path) -> str:
        return FashionMnist(root, 16, validation=20).digest()

    original = digest(fashion(tmp_path / "a"))
    assert digest(fashion(tmp_path / "b")) == original
    assert digest(fashion(tmp_path / "c", seed=1)) != original
    assert digest(fashion(tmp_path / "d", label=7)) != original
    assert Digits(tmp_path, 16).digest() == Digits(tmp_path / "elsewhere", 16).digest()


def test_a_digest_of_pictures_in_folders_follows_names_sizes_and_contents(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("train/n01", "train/n02", "val/n01", "val/n02"):
        (folder := tmp_path / "imagenet" / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(random.integers(0, 255, (40, 40, 3), np.uint8)).save(folder / f"{number}.JPEG")
    data = ImageNet(tmp_path, 2, classes=2, size=32, validation=2)
    digests = [data.digest()]
    picture = tmp_path / "imagenet" / "val" / "n02" / "1.JPEG"
    content = picture.read_bytes()
    picture.write_bytes(content[:-3] + b"abc")  # as many bytes
    digests.append(data.digest())
    picture.rename(picture.with_name("4.JPEG"))
    digests.append(data.digest())
    assert len(set(digests)) == 3
    picture.with_name("4.JPEG").unlink()
    picture.write_bytes(content)
    assert data.digest() == digests[0]


@pytest.fixture
def checked(composed: Compose, tmp_path: Path) -> Callable[[Path], None]:
    """Checks a folder of data as a finished job does; the first one is recorded."""
    search = tmp_path / "search"

    def check(root: Path) -> None:
        config = composed(*FASHION, f"paths.data={root}")
        if not search.exists():
            record_data(search, config, FashionMnist(root, 16, validation=20))
        check_data(search, config)

    return check


def test_files_that_have_not_changed_are_not_read(
    checked: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, copy = fashion(tmp_path / "first"), fashion(tmp_path / "copy")
    checked(first)
    checked(copy)  # read once, to be the same
    monkeypatch.setattr(FashionMnist, "digest", lambda self: pytest.fail("read"))
    checked(first)
    checked(copy)
    shutil.rmtree(copy)
    checked(copy)  # no other data


def test_other_data_are_refused_with_key_search_and_value(checked: Callable[[Path], None], tmp_path: Path) -> None:
    first = fashion(tmp_path / "first")
    checked(first)
    with pytest.raises(ValueError, match=rf"^paths\.data='{tmp_path}/other': .*{tmp_path}/search"):
        checked(fashion(tmp_path / "other", seed=1))
    fashion(first, label=3)  # in the same place
    os.utime(first / "fashion-mnist" / "train-labels-idx1-ubyte.gz", (1, 1))
    with pytest.raises(ValueError, match=r"^paths\.data="):
        checked(first)


def test_a_job_notices_other_data_finished_or_not(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(data: Path, *overrides: str) -> str:
        options = (
            *SMALL, *FASHION, f"paths.data={data}", f"paths.root={tmp_path / 'runs'}", "data.limit=1", "report=false",
            "threads=1",
        )  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["run.py", *options, *(overrides or ("structure=[]",))])
        try:
            script.run()
        except SystemExit:
            return capsys.readouterr().err
        return ""

    first, other = fashion(tmp_path / "first"), fashion(tmp_path / "other", seed=1)
    assert run(first) == run(first) == run(fashion(tmp_path / "copy")) == ""
    for more in ((), REFILL):
        told = run(other, *more)
        assert told.startswith(f"error: paths.data='{other}': ")
        assert str(tmp_path / "runs" / "fashion_mnist-resnet8-s0-") in told
