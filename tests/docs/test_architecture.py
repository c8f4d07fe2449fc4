"""docs/architecture.md names every folder, and its examples of extending work as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from lt_lightning.experiment.parts import Experiment

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()

MY_PACKAGE = """
import torch
from torch import nn
from lt_lightning.data.module import Pairs
from lt_lightning.data.tensors import TensorData
from lt_lightning.structures.base import Unstructured

class MyNet(nn.Sequential):
    def __init__(self, classes, channels):
        super().__init__(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

class MyData(TensorData):
    name, classes, channels, size, mean, std, files = "mine", 5, 3, 32, (0.5,) * 3, (0.2,) * 3, None
    def _read(self):
        return [Pairs(torch.zeros(n, 3, 32, 32, dtype=torch.uint8), torch.arange(n) % 5) for n in (300, 10)]

class HalfOfTheFilters(Unstructured):
    pass

class WithinFilter:
    def __call__(self, weights, masks, context):
        return {name: weights[name].abs() for name in masks}
"""


def test_every_folder_is_named() -> None:
    folders = {path.parent.name for path in (ROOT / "lt_lightning").glob("*/__init__.py")}
    assert {folder for folder in folders if f"| `lt_lightning/{folder}/` |" not in PAGE} == set()
    picture = (ROOT / "docs" / "way_of_the_data.svg").read_text()
    drawn = {"data", "models", "structures", "execution", "tickets", "experiment", "report", "pruning"}
    assert {folder for folder in drawn if f"{folder}/" not in picture} == set()
    assert drawn <= folders


def test_every_file_that_is_named_is_there() -> None:
    files = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)", PAGE))
    assert len(files) > 15
    assert {
        name for name in files if not (ROOT / "lt_lightning" / name).is_file() and not (ROOT / name).is_file()
    } == set()


def test_the_examples_of_extending_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = re.findall(r"```yaml\n# my_conf/(\S+)\n(.*?)```", PAGE, flags=re.DOTALL)
    assert sorted(name for name, _ in files) == ["data/mine.yaml", "model/mine.yaml", "structure/half.yaml"]
    for name, text in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "my_package.py").write_text(MY_PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = [
            f"hydra.searchpath=[file://{tmp_path}]", "model=mine", "data=mine", "structure=[half,refill]",
            "pruning.criterion._target_=my_package.WithinFilter", f"paths.root={tmp_path / 'runs'}",
        ]  # fmt: skip
        config = compose("run", overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        experiment = Experiment.from_config(config)
    HydraConfig.instance().cfg = None
    experiment.data.setup()
    images, _ = next(iter(experiment.data.train_dataloader()))
    assert experiment.classifier()(images).shape == (128, 5)
    assert [type(structure).__name__ for structure in experiment.structures.values()] == ["HalfOfTheFilters", "Refill"]
