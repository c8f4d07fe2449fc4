"""Hydra's sweeps of jobs in two processes each, by every launcher, as a user starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.run.checkpoints import SIGNALS
from lt_lightning.results.records import find_results
from tests.runs import SMALL

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "run.py"
SEARCH = (*SMALL, "trainer=ddp_sim", "structure=[]", "report=false")


def sweep(folder: Path, *arguments: str) -> Path:
    """Runs a sweep and returns the folder of its jobs."""
    command = [sys.executable, str(SCRIPT), "-m", "paths.root=runs", *SEARCH, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    (jobs,) = (folder / "runs" / "jobs").iterdir()
    return jobs


def check(folder: Path, jobs: Path, key: str) -> None:
    """Two jobs, each in a folder of its own, of different settings; both ended well, and nothing else was written.

    That all processes of a job had its settings is compared within it: their weights, bit for bit, after every round.
    """
    assert [path.name for path in folder.iterdir()] == ["runs"]
    own = sorted(path for path in jobs.iterdir() if path.is_dir() and not path.name.startswith("."))
    assert [path.name for path in own] == ["0", "1"]
    settings = []
    for path in own:
        assert {each.name for each in path.iterdir()} <= {".hydra", "job.json", "run.log"}
        config = OmegaConf.load(path / ".hydra" / "config.yaml")
        assert isinstance(config, DictConfig)
        settings.append(OmegaConf.select(config, key))
    assert len(set(settings)) == 2
    searches = sorted(path for path in (folder / "runs").iterdir() if path.name.startswith("digits-"))
    trained = []
    for search in searches:
        config = OmegaConf.load(search / "config.yaml")
        assert isinstance(config, DictConfig)
        trained.append(OmegaConf.select(config, key))
    assert sorted(trained) == sorted(settings)
    assert len(find_results(folder / "runs")) == 4  # dense and unstructured, of each


@pytest.mark.usefixtures("started")
def test_basic_launcher(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both jobs from this process, which is then as it was before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    brief = ("pruning.rewind=0ep", "trainer.max_epochs=1", "data.limit=0.1")
    options = ("paths.root=runs", *SEARCH, *brief, "seed=1,2", "hydra.job.name=run")
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", *options])
    environment, handlers = dict(os.environ), [signal.getsignal(number) for number in SIGNALS]
    script.run()
    changed = {key for key, _ in environment.items() ^ os.environ.items()}
    # Set by importing scikit-learn, and by Lightning for processes and workers that it starts.
    assert not {key for key in changed if not key.startswith(("KMP_", "PL_"))}
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert not dist.is_initialized()
    (jobs,) = (tmp_path / "runs" / "jobs").iterdir()
    check(tmp_path, jobs, "seed")


@pytest.mark.slow
def test_basic_launcher_as_a_user_starts_it(tmp_path: Path) -> None:
    check(tmp_path, sweep(tmp_path, "seed=1,2"), "seed")


@pytest.mark.slow
def test_joblib_launcher_runs_both_at_once(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    jobs = sweep(tmp_path, "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    check(tmp_path, jobs, "seed")


@pytest.mark.slow
def test_submitit_launcher(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    jobs = sweep(tmp_path, "seed=1,2", "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=8")
    check(tmp_path, jobs, "seed")


@pytest.mark.slow
def test_ray_launcher(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs the extra `ray`")
    ray = ("+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false")
    jobs = sweep(tmp_path, "seed=1,2", "hydra/launcher=ray", *ray)
    check(tmp_path, jobs, "seed")


@pytest.mark.slow
def test_optuna_sweeper(tmp_path: Path) -> None:
    """Where the processes of a job sampled their own settings, weights would differ."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    key = "classifier.learning_rate"
    trials = ("hydra/sweeper=tune", "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler.seed=1")
    jobs = sweep(tmp_path, *trials, f"{key}=interval(0.01,0.2)")
    check(tmp_path, jobs, key)
