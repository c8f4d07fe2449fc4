"""What a wheel holds, and that it does without a clone: the command, a job, the groups in another application."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ("conf", "hydra_plugins", "lt_lightning", "LICENSE", "README.md", "pyproject.toml")

APPLICATION = """\
import sys

import hydra
from hydra.utils import instantiate


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(config):
    callback, structure = instantiate(config.callbacks.pruning), instantiate(config.structure.half)
    print(type(callback).__name__, callback.options.rate, callback.directory, type(structure).__name__, config.lr)
    assert "site-packages" in sys.modules["lt_lightning"].__file__


main()
"""
TRAIN = """\
defaults:
  - model: mine
  - lt_lightning/pruning@callbacks.pruning: imp
  - lt_lightning/structure@structure: nm
  - _self_
lr: 0.1
callbacks:
  pruning:
    rate: 0.5
    directory: tickets
structure:
  half: ${structure.nm}
"""
WHOLE = """\
defaults:
  - lt_lightning/run@_global_
  - _self_
seed: 7
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that setuptools builds from a copy of the sources, as pip has it do."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in SHIPPED:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", code, str(built)]
    subprocess.run(command, cwd=source, check=True, timeout=300, stdout=subprocess.DEVNULL)
    (made,) = built.glob("*.whl")
    return made


def test_a_wheel_holds_the_package_and_conf_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "lt-lightning = lt_lightning.__main__:main" in archive.read(entry_points).decode()
    groups = Path("lt_lightning/storage/config_groups/lt_lightning")
    expected = {str(groups / file.relative_to(ROOT / "conf")) for file in (ROOT / "conf").rglob("*.yaml")}
    for folder, pattern in (("lt_lightning", "*.py"), ("hydra_plugins", "*.py"), ("lt_lightning", "cpp/*")):
        expected |= {str(file.relative_to(ROOT)) for file in (ROOT / folder).rglob(pattern)}
    page = {f"lt_lightning/report/page.{kind}" for kind in ("css", "html", "js")}
    assert names == expected | page | {"lt_lightning/py.typed"}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of an environment that has the wheel, and what it requires from the one that tests run in."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/*/site-packages")
    required = Path(sysconfig.get_paths()["purelib"])
    editable = {"__editable__.lt_lightning", "__editable___lt_lightning", "lt_lightning"}
    linked = packages.parent / "required"
    linked.mkdir()
    for each in required.iterdir():
        if not any(each.name.startswith(name) for name in editable):
            (linked / each.name).symlink_to(each)
    (packages / "required.pth").write_text(f"{linked}\n")
    command = [sys.executable, "-m", "pip", "--python", str(folder), "install", "--no-deps", "--no-index", "-q"]
    subprocess.run([*command, str(wheel)], check=True, timeout=300)
    return folder / "bin"


def start(command: list[str | Path], folder: Path) -> str:
    """Run a command in a folder outside of any clone, and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_job_runs_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    options = ("model.width=4", "data.limit=0.2", "trainer.max_epochs=1", "pruning.rounds=1", "pruning.rewind=0ep")
    start([installed / "lt-lightning", "run", *options, "trainer.accelerator=cpu", "measure=null"], tmp_path)
    assert len(list(tmp_path.glob("runs/*/round_01/*/ticket.safetensors"))) == 3
    assert len(list(tmp_path.glob("runs/*/report/report.html"))) == 1
    printed = start([installed / "python", "-m", "lt_lightning", "status", "runs"], tmp_path)
    assert printed.splitlines()[-1] == "3 done, 0 running, 0 failed, 0 missing"
    assert "ok    lt-lightning:" in start([installed / "lt-lightning", "doctor"], tmp_path)


@pytest.mark.slow
def test_another_application_composes_the_groups(installed: Path, tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    (configs / "model").mkdir(parents=True)
    (configs / "model" / "mine.yaml").write_text("width: 3\n")
    (configs / "train.yaml").write_text(TRAIN)
    (configs / "whole.yaml").write_text(WHOLE)
    (tmp_path / "application.py").write_text(APPLICATION)
    printed = start([installed / "python", "application.py", "lt_lightning/pruning@callbacks.pruning=omp"], tmp_path)
    assert printed.split() == ["LotteryTicketPruning", "0.5", "tickets", "NM", "0.1"]
    printed = start([installed / "python", "application.py", "-cn", "whole", "--cfg", "job"], tmp_path)
    assert "seed: 7\nretrain_rounds: null" in printed
    assert "_target_: lt_lightning.models.resnet.cifar_resnet" in printed
