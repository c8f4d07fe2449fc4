"""A sweep as its jobs see it: counted as Hydra counts, named by what it is, and its time left."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lt_lightning.experiment.run.progress import JobProgress
from lt_lightning.experiment.sweep import Multirun, count_jobs


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=0,1,2", "model=a,b", "data=digits"],
        ["seed=range(0,10,3)", "x=choice(1,2)"],
        ["structure=[refill,regroup],[refill]", "+y='a,b'", "~z"],
        ["data=digits"],
        ["x=shuffle(range(1,4))"],
    ],
)
def test_jobs_are_counted_as_hydra_counts_them(overrides: list[str]) -> None:
    parsed = OverridesParser.create().parse_overrides(overrides)
    (jobs,) = BasicSweeper.split_arguments(parsed, None)
    assert count_jobs({"params": None}, overrides) == len(jobs)


def test_what_cannot_be_counted_is_not_guessed() -> None:
    assert count_jobs({"params": None}, ["model=glob(*)"]) is None
    assert count_jobs({"n_trials": 7}, ["x=interval(0,1)"]) == 7


def begun(folder: Path, *overrides: str, experiment: str | None = None) -> Multirun:
    config = {
        "hydra": {
            "sweeper": {"params": None}, "overrides": {"task": list(overrides)}, "sweep": {"dir": str(folder)},
            "runtime": {"choices": {"experiment": experiment, "data": "digits", "model": "resnet8"}},
        },
    }  # fmt: skip
    return Multirun.begin(OmegaConf.create(config))


def test_a_sweep_keeps_its_name_when_it_is_started_again(tmp_path: Path) -> None:
    first = begun(tmp_path / "a", "seed=0,1", "model=a,b", "paths.root=/here")
    again = begun(tmp_path / "b", "model=a,b", "paths.root=/there", "seed=0,1")
    assert first.name == again.name
    assert first.name.startswith("digits-resnet8-")
    assert begun(tmp_path / "c", "seed=0,1,2", "model=a,b").name != first.name
    assert begun(tmp_path / "d", "seed=0,1", experiment="paper").name.startswith("paper-")
    assert Multirun.above(tmp_path / "a" / "3") == first
    assert Multirun.above(tmp_path / "elsewhere" / "3") is None


def test_time_left_is_that_of_the_jobs_to_come(
    composed: Callable[..., DictConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten jobs: three ended, one of which had nothing to train; the fourth is half done after 100 s."""
    clock = [1000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    sweep = begun(tmp_path, "seed=range(0,10)")
    for trained in (True, False, True):
        sweep.count_end(trained)
    assert sweep.ended() == (3, 2)
    config = composed()
    assert Multirun.of(config) is None
    sweep.enter(config)
    file = io.StringIO()
    job = JobProgress(4, Console(file=file, width=40), Multirun.of(config))
    clock[0] += 100
    job.start("search", 4)
    job.advance(2)
    assert job.sweep_time_left() == "4:20 left"  # 100 s for 2.5 jobs, 6.5 to come
    job.finish("search, round 1 of 2")
    assert file.getvalue() == "[2/4 epochs, 1:40 left; job 4 of 10, 4:20 left] search, round 1 of 2\n"
    assert math.isnan(sweep.seconds_left(0.0, (0, 0)))
