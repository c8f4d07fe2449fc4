"""The doctor names what is missing and what that turns off, and ends with 1 only if nothing can be run."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from lt_lightning.data.fashion_mnist import FashionMnist
from lt_lightning.execution.kernels import cpu
from lt_lightning.experiment.run.doctor import EXTRAS, Check, examine

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("doctor_script", ROOT / "scripts" / "doctor.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checks(tmp_path: Path) -> Callable[[], dict[str, Check]]:
    return lambda: {
        each.topic: each for each in examine(ROOT / "conf", tmp_path / "data", tmp_path / "not" / "yet" / "runs")
    }


def test_versions_devices_and_extras_are_told(checks: Callable[[], dict[str, Check]]) -> None:
    found = checks()
    for name in ("torch", "pytorch-lightning", "hydra-core", "wandb"):
        assert f"{name} {version(name)}" in found["lt-lightning"].finding
    assert f"{torch.get_num_threads()} threads" in found["CPU"].finding
    assert found["results"].state == "ok"
    assert {"bfloat16", "compiled CPU kernel"} <= set(found)
    assert not torch.cuda.is_available() or {"GPU 0", "Triton"} <= set(found)
    assert torch.cuda.is_available() or found["GPU"].state == "off"


def test_every_extra_says_what_it_is_for() -> None:
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(extras) - {"dev"} == set(EXTRAS)


def test_what_is_missing_turns_a_feature_off_or_is_an_error(
    checks: Callable[[], dict[str, Check]], monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = ["tensorboard"]

    def pretended(package: str) -> str:
        if package in absent:
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr("lt_lightning.execution.machine.version", pretended)
    check = checks()["extra tensorboard"]
    assert (check.state, check.finding) == ("off", "tensorboard is missing")
    assert "logger=tensorboard" in check.effect
    assert "'.[tensorboard]'" in check.effect
    absent.append("torchmetrics")
    check = checks()["lt-lightning"]
    assert check.state == "wrong"
    assert "torchmetrics is missing" in check.effect


def test_data_sets_are_found_or_told_where_to_put(checks: Callable[[], dict[str, Check]], tmp_path: Path) -> None:
    found = checks()
    assert "data=digits" not in found  # comes with scikit-learn
    assert {found[f"data={name}"].state for name in ("cifar10", "fashion_mnist", "imagenet")} == {"off"}
    assert "put train, val into" in found["data=imagenet"].effect
    assert found["data=fashion_mnist"].effect == "downloaded at its first use"
    assert FashionMnist.files is not None
    for name in FashionMnist.files.entries:
        path = tmp_path / "data" / FashionMnist.files.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert checks()["data=fashion_mnist"].state == "ok"


def test_without_a_compiler_the_kernel_is_off(
    checks: Callable[[], dict[str, Check]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    cpu.library.cache_clear()
    try:
        check = checks()["compiled CPU kernel"]
    finally:
        cpu.library.cache_clear()
    assert check.state == "off"
    assert check.finding.startswith("no C++ compiler found")


def test_the_script_ends_with_0_or_1(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script.doctor(["--data", str(tmp_path), "--root", str(tmp_path / "runs")])
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith("Ready to run")
    assert "\x1b" not in printed
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as ended:
        script.doctor(["--root", str(tmp_path / "file" / "runs")])
    assert str(ended.value).startswith("error: results: paths.root=")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    with pytest.raises(SystemExit, match="no space"):
        script.doctor(["--root", str(tmp_path)])
