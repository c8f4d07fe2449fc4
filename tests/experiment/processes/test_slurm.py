"""The preset for SLURM: what it asks the cluster for, and that a preempted job goes on; on a SLURM of our own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from lt_lightning.results.records import find_results
from tests.runs import SMALL

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = (
    *SMALL, "trainer=ddp_sim", "trainer.max_epochs=6", "structure=[]", "report=false", "checkpoint.seconds=1e9",
)  # fmt: skip


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has one; its state."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    commands, state = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    state.mkdir()
    for name in ("sbatch", "srun", "scontrol", "sacct"):
        path = commands / name
        path.write_text(f"#!{sys.executable}\n" + (Path(__file__).parent / "slurm.py").read_text())
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    return state


@pytest.mark.parametrize(
    ("options", "asked"),
    [(["hydra/launcher=slurm"], {"nodes=1", "ntasks-per-node=1", "gpus-per-node=1", "mem=32GB"}),
     (["hydra/launcher=slurm_nodes", "trainer.num_nodes=2", "trainer.devices=4"],
      {"nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "mem=128GB"})],
)  # fmt: skip
def test_what_is_asked_of_the_cluster(
    options: list[str], asked: set[str], slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit of time, a signal before it is over, a task a node or a device, and to be put back into the queue."""
    import submitit

    script: list[str] = []

    def map_array(executor: submitit.AutoExecutor, *_: object) -> list[object]:
        own: Any = executor._executor
        script.extend(own._make_submission_file_text("command", "id").splitlines())
        return []

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", map_array)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        overrides = [*options, "hydra.launcher.partition=gpu", f"paths.root={tmp_path}"]
        config = compose("run", [*overrides, "hydra.job.name=run", "hydra.job.num=0"], return_hydra_config=True)
    launcher = instantiate(config.hydra.launcher)
    launcher.config = config
    launcher.launch([["seed=0"], ["seed=1"]], 0)
    asked |= {"time=240", "signal=USR2@120", "requeue", "partition=gpu", "cpus-per-task=8"}
    asked |= {"job-name=lt-lightning", "open-mode=append"}
    assert {f"#SBATCH --{each}" for each in asked} <= set(script)


@pytest.mark.slow
def test_a_job_whose_processes_slurm_has_started(slurm: Path, tmp_path: Path) -> None:
    """As on several nodes: one of them, here, with two tasks."""
    command = [sys.executable, str(ROOT / "scripts" / "run.py"), "-m", "paths.root=runs", *OPTIONS, "seed=1,2"]
    command += ["hydra/launcher=slurm_nodes", "hydra.launcher.gpus_per_node=null"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    runs = tmp_path / "runs"
    logs = {path.name: path.read_text() for path in sorted(runs.rglob("77_*_log.out"))}
    assert [name for name, log in logs.items() if "dense network (round 0)" in log] == [
        "77_0_0_log.out",
        "77_1_0_log.out",
    ]
    assert {name for name, log in logs.items() if "validation" not in log} == {"77_0_1_log.out", "77_1_1_log.out"}
    assert "2 jobs: 2 done" in done.stdout
    assert len(find_results(runs)) == 4


@pytest.mark.slow
def test_a_preempted_job_of_two_processes_goes_on_from_where_it_was(slurm: Path, tmp_path: Path) -> None:
    """SLURM signals all its processes. No checkpoint is written but for that."""
    command = [sys.executable, str(ROOT / "scripts" / "run.py"), "-m", "paths.root=runs", *OPTIONS, "seed=1,2"]
    command += ["hydra/launcher=slurm", "hydra.launcher.gpus_per_node=null"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    sweep = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    runs = tmp_path / "runs"
    wait_for(lambda: any(len(path.read_text().splitlines()) > 2 for path in runs.glob("digits-*/metrics.csv")))
    assert not list(runs.rglob("step-*.pt"))
    preempt()
    printed, _ = sweep.communicate(timeout=400)
    assert sweep.returncode == 0, printed
    assert [path.name for path in slurm.glob("again-*")] == ["again-77_0"]
    first, second = (path.read_text() for path in sorted(runs.rglob("77_*_0_log.out")))
    assert first.count("the dense network and") == 2
    assert "goes on in epoch" in first
    assert "goes on in epoch" not in second
    assert "2 jobs: 2 done" in printed
    assert len(find_results(runs)) == 4
    assert not list(runs.rglob("step-*.pt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "runs", "slurm"]


def preempt() -> None:
    """Every process of the running job step is told that it has to go, as SLURM does."""
    told = 0
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"\0FAKE_STEP=1\0" in (path / "environ").read_bytes():
                os.kill(int(path.name), signal.SIGUSR2)
                told += 1
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue
    assert told >= 3  # the one that watches, and the two that train


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
