"""The presets: the paper's settings, that all run from end to end, and published figures beside ours."""

from __future__ import annotations

import csv
import gzip
import math
import os
import struct
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image

from lt_lightning.data.cifar import Cifar10, Cifar100
from lt_lightning.experiment.config.tasks import rounds_of
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.sweep import SweepEnd
from lt_lightning.models.resnet import WideResNet
from lt_lightning.pruning.densities import densities
from lt_lightning.pruning.rewinding import Step
from lt_lightning.results.job_record import JobRecord, Task
from lt_lightning.results.published_figures import PublishedFigure, figures_of
from lt_lightning.results.records import Result
from tests.cases import slow_but
from tests.runs import Compose, composing, run_of
from tests.toys import DENSE

CONF = Path(__file__).resolve().parents[3] / "conf"
FILES: dict[str, Any] = {path.stem: OmegaConf.load(path) for path in sorted((CONF / "experiment").glob("*.yaml"))}
SWEPT = {name: dict(file.hydra.sweeper.params) for name, file in FILES.items() if "hydra" in file}

# Of the paper, table of settings: network, weight decay, batch, epochs.
SETTINGS = {
    "cifar10_wrn32_2": ("wrn32_2", 1e-4, 128, 160),
    "cifar10_resnet18": ("resnet18", 1e-4, 128, 160),
    "cifar10_mobilenet_v1": ("mobilenet_v1", 1e-4, 128, 160),
    "cifar10_vgg16": ("vgg16_bn", 2e-4, 128, 160),
    "cifar100_wrn32_2": ("wrn32_2", 2e-4, 128, 160),
    "cifar100_resnet18": ("resnet18", 2e-4, 128, 160),
    "cifar100_mobilenet_v1": ("mobilenet_v1", 2e-4, 128, 160),
    "cifar100_vgg16": ("vgg16_bn", 5e-4, 128, 160),
    "tiny_imagenet_resnet50": ("resnet50", 5e-4, 32, 95),
    "imagenet_resnet50": ("resnet50", 1e-4, 1024, 95),
}
# Of the paper: extreme sparsity of Refill(+) and of Regroup; 0 where there is no such ticket.
EXTREMES = {
    "cifar10_wrn32_2": (53, 66),
    "cifar100_wrn32_2": (28, 36),
    "cifar10_mobilenet_v1": (67, 72),
    "cifar100_mobilenet_v1": (0, 56),
    "cifar10_vgg16": (60, 80),
    "cifar100_vgg16": (40, 80),
    "cifar10_resnet18": (50, 78),
    "cifar100_resnet18": (0, 78),
    "tiny_imagenet_resnet50": (60, 74),
    "imagenet_resnet50": (0, 31),
}
# Of the paper: VGG-16 on CIFAR-100, per cent that remain and accuracy, from the densest ticket to the sparsest.
CURVES = {
    "unstructured": ("", "73.64 73.80 73.67 74.01 74.27 74.56 74.58 74.52 74.42"),
    "refill_paper": (
        "80.2 64.1 51.3 41.1 32.9 26.3 21.0 16.9 13.4",
        "73.43 72.87 72.67 71.37 70.79 71.07 69.42 68.75 67.25",
    ),
    "regroup|regroup_paper": (
        "82.4 80.0 69.5 62.6 56.1 46.5 38.2 31.0 25.3",
        "73.63 73.81 74.31 73.94 75.05 74.98 75.24 74.68 75.25",
    ),
}
VGG = replace(DENSE, data="cifar100", model="vgg16_bn", accuracy=0.73, dense_accuracy=0.73)


def ticket(structure: str, number: int, density: float, accuracy: float, **others: Any) -> Result:
    place = f"s{others.get('seed', 0)}/{number}/{structure}"
    asked = others.pop("target_density", 0.8**number)
    return replace(
        VGG, structure=structure, round=number, target_density=asked, density=density, accuracy=accuracy, place=place,
        **others,
    )  # fmt: skip


@pytest.fixture(scope="module")
def presets() -> Iterator[dict[str, DictConfig]]:
    """The paper's presets, each composed once, and resolved while it is the one that Hydra knows."""
    found: dict[str, DictConfig] = {}
    with composing(Path("runs")) as composed:
        for name in [*SETTINGS, "cifar10_resnet18_reinit"]:
            found[name] = composed(f"experiment={name}")
            OmegaConf.resolve(found[name])
        yield found


# Settings


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_are_the_papers(name: str, presets: dict[str, DictConfig]) -> None:
    config = presets[name]
    classifier, trainer = config.classifier, config.trainer
    model, decay, batch, epochs = SETTINGS[name]
    assert (config.labels.model, classifier.weight_decay, config.data.batch_size) == (model, decay, batch)
    assert (trainer.max_epochs, classifier.learning_rate, classifier.momentum) == (epochs, 0.1, 0.9)
    milestones = [80, 120] if epochs == 160 else [30, 60]
    steps = epochs * 400  # as the schedule rounds
    assert [round(share * steps) for share in classifier.schedule.shares] == [400 * each for each in milestones]
    assert classifier.schedule.factor == 0.1
    assert (config.pruning.rate, config.pruning.rounds) == (0.2, 9)
    assert config.pruning.rewind == ("8ep" if epochs == 160 else "5ep")  # the same share
    assert set(config.structure) == {"refill_paper", "plus_paper", "regroup"}


def test_rounds_leave_what_the_papers_curve_has(presets: dict[str, DictConfig]) -> None:
    config = presets["cifar100_vgg16"]
    points = [f for f in published(config) if (f.quantity, f.ticket) == ("accuracy", "unstructured")]
    left = [100 * each for each in densities(config.pruning.rounds, config.pruning.rate)]
    assert left == pytest.approx([point.remaining for point in points], abs=0.05)


def test_rewind_points_differ_at_smoke_scale(composed: Compose) -> None:
    name = "cifar10_resnet18_rewinding"
    epochs = composed(f"experiment={name}", "scale=smoke").trainer.max_epochs
    points = SWEPT[name]["pruning.rewind"].split(",")
    assert {str(Step.parse(point).within(epochs)) for point in points} == {"0ep", "1ep"}


def test_structured_pruning_goes_on_from_whole_filters(composed: Compose) -> None:
    config = composed("experiment=cifar10_resnet18_structured_imp")
    assert (config.pruning.next_round_from, list(config.structure)) == ("filters", ["filters"])
    assert config.structure.filters.score == "l1"
    reference = composed("experiment=cifar10_resnet18")
    for group in ("classifier", "trainer", "data", "model"):
        assert config[group] == reference[group]


def test_scale_comes_after_the_preset(composed: Compose) -> None:
    config = composed("experiment=imagenet_resnet50", "scale=smoke", "trainer=ddp")
    assert (config.trainer.max_epochs, config.pruning.rounds, config.model.width) == (2, 2, 8)
    assert (config.trainer.devices, config.classifier.weight_decay) == ("auto", 1e-4)


def test_width_scales_the_wide_residual_network() -> None:
    def convolutions(width: int) -> list[int]:
        network = WideResNet(14, 2, classes=10, width=width)
        return [p.shape[0] for p in network.parameters() if p.dim() == 4]

    assert convolutions(8) == [channels // 2 for channels in convolutions(16)]


# From end to end


def write_data(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All data sets in their own formats, with a few random images each."""
    random = np.random.default_rng(0)

    def records(count: int, classes: int, label_bytes: int) -> bytes:
        return b"".join(bytes([number % classes] * label_bytes) + random.bytes(3 * 32 * 32) for number in range(count))

    def pictures(folder: Path, count: int, size: int) -> list[str]:
        folder.mkdir(parents=True)
        image = Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8))
        image.save(folder / "0.JPEG")
        content = (folder / "0.JPEG").read_bytes()
        for number in range(1, count):
            (folder / f"{number}.JPEG").write_bytes(content)
        return [f"{number}.JPEG" for number in range(count)]

    for kind, names, label_bytes in ((Cifar10, Cifar10.train, 1), (Cifar100, Cifar100.train, 2)):
        monkeypatch.setattr(kind, "train_records", 160 // len(names))
        monkeypatch.setattr(kind, "test_records", 20)
        folder = root / kind.files.folder
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(records(kind.train_records, kind.classes, label_bytes))
        (folder / kind.test[0]).write_bytes(records(20, kind.classes, label_bytes))

    tiny = root / "tiny-imagenet-200"
    annotations = []
    for name in ("n01", "n02"):
        pictures(tiny / "train" / name / "images", 80, 64)
    for number, picture in enumerate(pictures(tiny / "val" / "images", 4, 64)):
        annotations.append(f"{picture}\tn0{1 + number % 2}\t0\t0\t62\t62")
    (tiny / "val" / "val_annotations.txt").write_text("\n".join(annotations))
    (tiny / "wnids.txt").write_text("n01\nn02\n")

    for prefix, count in (("train", 160), ("t10k", 20)):
        labels = bytes(number % 10 for number in range(count))
        for part, magic, shape, content in (
            ("images-idx3", 0x803, (28, 28), random.bytes(count * 28 * 28)),
            ("labels-idx1", 0x801, (), labels),
        ):
            path = root / "fashion-mnist" / f"{prefix}-{part}-ubyte.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(struct.pack(f">{2 + len(shape)}I", magic, count, *shape) + content))

    for name in ("n01", "n02"):
        pictures(root / "imagenet" / "train" / name, 80, 250)
        pictures(root / "imagenet" / "val" / name, 2, 250)


SIZES = {
    "tiny": ("dataset.classes=2",),
    "imagenet": ("dataset.classes=2", "data.validation=0.1", "data.workers=0"),
}
QUICK = ("cifar10_vgg16", "cifar10_fast", "cifar100_vgg16_group_aware")


def smoke(name: str, data: Path) -> list[str]:
    sizes = SIZES.get(name.split("_")[0], ("data.validation=20",))
    return [f"experiment={name}", "scale=smoke", f"paths.data={data}", *sizes]


@pytest.mark.parametrize("name", slow_but(QUICK, FILES))
def test_preset_runs_from_end_to_end(
    name: str,
    composed: Compose,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_data(tmp_path, monkeypatch)
    shrunk = ("trainer.limit_train_batches=2", "trainer.accelerator=cpu") if name in QUICK else ()
    config = composed(*smoke(name, tmp_path), *shrunk)
    results = run_of(config)
    found = {(result.round, result.structure) for result in results}
    source = config.pruning.next_round_from
    alone = [source] if source != "unstructured" else ["unstructured", *config.structure]
    alone = [] if config.growing.alone else alone
    grown = [f"{each}_grown" for each in config.grown if each in config.structure]
    cycled = [f"{each}_cycles" for each in config.grown if each not in config.structure]
    rounds = range(1, rounds_of(config) + 1)
    assert found == {(0, "dense")} | {(number, kind) for number in rounds for kind in (*alone, *grown)}
    assert {result.control for result in results} == {"", *config.controls, *cycled}
    assert all(math.isfinite(result.accuracy) for result in results)
    assert ("published, and ours" in capsys.readouterr().out) == bool(config.published)


@pytest.mark.parametrize("name", slow_but(["cifar10_resnet18_rewinding", "transfer_small"], SWEPT))
def test_the_last_job_of_a_sweep_can_be_run_at_smoke_scale(name: str, composed: Compose, tmp_path: Path) -> None:
    last = [f"{key}={str(values).split(',')[-1]}" for key, values in SWEPT[name].items()]
    job = Job.of(composed(*smoke(name, tmp_path), *last))
    experiment = Experiment.from_config(job.config)
    assert experiment.rounds == 2
    assert len(job.tasks[0].parts) == 3
    assert {task.round for task in job.tasks[1:]} <= {1, 2}
    assert min(map(experiment.retraining_epochs, (True, False))) > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEPT)
def test_a_sweep_runs_from_end_to_end(
    name: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_data(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", *smoke(name, tmp_path), f"paths.root={tmp_path / 'runs'}"])
    script.run()
    jobs = math.prod(str(values).count(",") + 1 for values in SWEPT[name].values())
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{jobs} jobs: "))
    assert " 0 running, 0 failed, 0 missing" in told
    if "transfer" in name:
        searches = [path.parent.name for path in (tmp_path / "runs").glob("*/config.yaml")]
        (table,) = (tmp_path / "runs" / "jobs").glob("*/sweep.csv")
        assert len(searches) == jobs // 2
        with table.open() as file:
            transferred = [row for row in csv.DictReader(file) if row["structure"] == "unstructured" and row["origin"]]
        assert len(transferred) == 2 * len(searches) * (len(searches) - 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagenet_resnet50", "tiny_imagenet_resnet50"])
def test_preset_for_many_devices_runs_on_two(
    name: str, composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_data(tmp_path, monkeypatch)
    results = run_of(composed(*smoke(name, tmp_path), "trainer=ddp_sim"))
    assert max(result.round for result in results) == 2
    assert all(math.isfinite(result.accuracy) for result in results)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_resnet18", "tiny_imagenet_resnet50", "imagenet_resnet50", "fashion_mnist"])
def test_preset_runs_on_the_real_data(name: str, composed: Compose, tmp_path: Path) -> None:
    if "LT_DATA" not in os.environ:
        pytest.skip("LT_DATA does not name the folder of the data sets")
    data = Path(os.environ["LT_DATA"])
    classes = []
    if "imagenet" in name:
        classes = [f"dataset.classes={len(list((data / 'tiny-imagenet-200' / 'train').iterdir()))}"]
    if name.startswith("imagenet"):
        as_imagenet(data / "tiny-imagenet-200", tmp_path / "imagenet")
        data = tmp_path
    results = run_of(composed(f"experiment={name}", "scale=smoke", f"paths.data={data}", *classes))
    assert max(result.round for result in results) == 2


def as_imagenet(tiny: Path, root: Path) -> None:
    """Tiny-ImageNet's pictures in ImageNet's folders."""
    (root / "train").mkdir(parents=True)
    for folder in (tiny / "train").iterdir():
        (root / "train" / folder.name).symlink_to((folder / "images").resolve())
    for line in (tiny / "val" / "val_annotations.txt").read_text().splitlines():
        picture, name, *_ = line.split("\t")
        (root / "val" / name).mkdir(parents=True, exist_ok=True)
        (root / "val" / name / picture).symlink_to((tiny / "val" / "images" / picture).resolve())


# Published figures


def published(config: DictConfig) -> list[PublishedFigure]:
    values: Any = OmegaConf.to_container(config.published)
    return figures_of(values)


def test_presets_name_figures_of_tickets_that_there_are(presets: dict[str, DictConfig]) -> None:
    for name, config in presets.items():
        figures = published(config)
        assert {figure.quantity for figure in figures} >= {"extreme_sparsity"}, name
        for figure in figures:
            assert figure.remaining is None or 10 < figure.remaining <= 100
            assert -2 < figure.value <= 100
            kinds = {kind.removesuffix(" reinit") for kind in figure.ticket.split("|")}
            assert kinds <= {"dense", "unstructured", "refill_paper", "plus_paper", "regroup", "regroup_paper"}


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_sparsities_are_the_papers(name: str, presets: dict[str, DictConfig]) -> None:
    found = {f.ticket: f.value for f in published(presets[name]) if f.quantity == "extreme_sparsity"}
    refill, regroup = EXTREMES[name]
    assert found == {"refill_paper|plus_paper": refill, "regroup|regroup_paper": regroup}


@pytest.mark.parametrize("kind", CURVES)
def test_curves_are_the_papers(kind: str, presets: dict[str, DictConfig]) -> None:
    figures = published(presets["cifar100_vgg16"])
    points = [figure for figure in figures if (figure.quantity, figure.ticket) == ("accuracy", kind)]
    remaining, accuracy = (list(map(float, numbers.split())) for numbers in CURVES[kind])
    assert [point.value for point in points] == accuracy
    assert not remaining or [point.remaining for point in points] == remaining


def test_flops_become_shares_of_the_dense_network(presets: dict[str, DictConfig]) -> None:
    figures = {f.ticket: f for f in published(presets["cifar10_vgg16"]) if f.quantity == "flops"}
    assert set(figures) == {"refill_paper", "plus_paper", "regroup|regroup_paper"}
    assert figures["regroup|regroup_paper"].value == pytest.approx(29.6, abs=0.05)  # 0.093 of 0.314 G
    assert figures["regroup|regroup_paper"].remaining == 20.1


def test_wrong_figures_stop_a_run_before_training(composed: Compose, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"published\.speed"):
        run_of(composed("+published.speed.refill=[[80,1]]"))
    assert not list(tmp_path.rglob("*.json"))


def test_a_sweep_ends_with_the_comparison_over_its_seeds(
    composed: Compose, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = tmp_path / "sweep"
    for seed, accuracy in enumerate((0.70, 0.80)):
        place = tmp_path / f"s{seed}"
        ticket("regroup", 1, 0.8, accuracy, seed=seed).save(place)
        folder = sweep / str(seed)
        JobRecord(seed, {"seed": str(seed)}, (Task(place, "search", 0, None, (place,)),), (0,)).save(folder)
        (folder / ".hydra").mkdir()
        config = composed(f"seed={seed}", "+published.accuracy.regroup=[[80,74.0]]", "structure=[regroup]")
        OmegaConf.save(config, folder / ".hydra" / "config.yaml")
    with open_dict(config):
        config.hydra = {"sweep": {"dir": str(sweep)}}
    SweepEnd().on_multirun_end(config)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("accuracy"))
    assert line.split() == ["accuracy", "regroup", "80.0", "74.00", "80.0", "75.00", "+1.00", "2"]
