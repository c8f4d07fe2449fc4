"""What a command leaves of its job besides the results: the record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.run.command import do, from_where_it_was_typed
from lt_lightning.experiment.run.job import Job
from lt_lightning.results.job_record import JobRecord
from lt_lightning.results.status import state_of, tasks_under
from tests.runs import REFILL, SMALL

Compose = Callable[..., DictConfig]


def test_a_single_job_leaves_a_record_in_its_folder(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its beginning on, so that others see what it is at; also where it fails."""
    config, root = composed(*SMALL, *REFILL, "report=false"), tmp_path / "runs"
    folder, tasks = root / "jobs" / "now" / "0", list(Job.of(config).tasks)

    def broken(*arguments: object) -> None:
        assert tasks_under(root) == tasks
        raise RuntimeError("no power")

    with monkeypatch.context() as patch:
        patch.setattr("lt_lightning.experiment.run.scheduler.run_search", broken)
        with pytest.raises(RuntimeError, match="no power"):
            do(config, folder, ["seed=0", "+trainer.detect_anomaly=false", "~controls"])
    record = JobRecord.load(folder)
    assert record.overrides == {"seed": "0", "trainer.detect_anomaly": "false", "controls": ""}
    assert (record.number, list(record.tasks), record.asked_tasks) == (0, tasks, tasks)
    assert [state_of(task).kind for task in tasks_under(root)] == ["failed", "missing"]
    assert [result.structure for result in do(config, folder)] == ["dense", "unstructured", "refill"]
    assert [state_of(task).kind for task in tasks_under(root)] == ["done", "done"]


@pytest.mark.parametrize("request_", ["plan=true", "status=true", "status=all"])
def test_what_runs_nothing_leaves_no_record(request_: str, composed: Compose, tmp_path: Path) -> None:
    assert do(composed(*SMALL, request_), tmp_path / "job") == []
    assert not (tmp_path / "job").exists()


def test_relative_paths_begin_where_the_command_was_typed(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the folder of the job, where `hydra.job.chdir` lets it run."""
    config = composed("paths.root=runs", "paths.data=/data", "transfer.from=[runs/a,/b]", "+pruning.imp=c")
    typed_in, before = tmp_path / "typed", config.copy()
    typed_in.mkdir()
    hydra = OmegaConf.create({"runtime": {"cwd": str(typed_in)}})
    monkeypatch.setattr("lt_lightning.experiment.run.command.HydraConfig.get", lambda: hydra)
    monkeypatch.chdir(typed_in)
    from_where_it_was_typed(config)
    assert config == before
    monkeypatch.chdir(tmp_path)
    from_where_it_was_typed(config)
    assert config.paths.root == str(typed_in / "runs")
    assert (config.paths.data, config.data.get("root", "/data")) == ("/data", "/data")
    assert config.transfer["from"] == [str(typed_in / "runs" / "a"), "/b"]
    assert config.pruning.imp == str(typed_in / "c")
    config = composed("transfer.from=others")
    from_where_it_was_typed(config)
    assert config.transfer["from"] == "others"
