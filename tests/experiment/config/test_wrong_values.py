"""Every option of the composed job, with values of every kind: the job could run, or ends in one line.

Nothing is trained: the job's tasks are listed, and all parts are built.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.config.checks import nodes_of
from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.run_job import check_published
from lt_lightning.experiment.run.setup import built
from lt_lightning.results.failures import EXPECTED, one_line
from lt_lightning.storage.config_groups import CONF

VALUES: list[Any] = [
    None, True, False, 0, -1, 3, 2026, 10**9, 10**30, 0.5, -0.5, 1e300, float("nan"), float("inf"), "", "x", "a/b",
    [], [None], [1, "a"], {}, {"a": 1}, {1: 2}, {"_target_": None}, {"_target_": "lt_lightning.Nothing"},
    {"_target_": "lt_lightning.Refill", "extra": "x"},
]  # fmt: skip
SECONDS = 60
LARGE = [("model.width", 2026)]  # which a large machine could train


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """A small job of every group, composed once."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        asked = [
            "labels.data=digits", "labels.model=resnet8", f"paths.root={tmp_path_factory.mktemp('runs')}",
            "model.width=4", "pruning.rounds=2", "trainer.accelerator=cpu", "structure=[refill,regroup]",
            "classifier.learning_rate=0.1", "threads=1",
        ]  # fmt: skip
        return OmegaConf.create(OmegaConf.to_container(compose("run", asked), resolve=True))  # type: ignore[return-value]


def keys_of(config: DictConfig) -> list[str]:
    """Every dotted key, of options and of nodes."""
    return [
        f"{path}.{key}" if path else str(key) for path, node in nodes_of(OmegaConf.to_container(config)) for key in node
    ]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def told_of(job: DictConfig, key: str, value: Any) -> str:
    """The line that a value ends in; empty if the job could run."""
    config = job.copy()
    *way, last = key.split(".")
    node: Any = config
    for part in way:
        node = node[part]
    node[last] = value
    with within(SECONDS):
        try:
            listed = Job.of(config)
            check_published(listed)
            built(listed)
        except EXPECTED as error:
            return one_line(error)
    return ""


def check(job: DictConfig, key: str, value: Any) -> None:
    told = told_of(job, key, value)
    assert len(told.splitlines()) < 2
    assert not told or key.partition(".")[0] in told or "dataset" in told


def test_a_sample_of_wrong_values_is_told_in_one_line(job: DictConfig) -> None:
    pairs = [(key, value) for key in keys_of(job) for value in VALUES if (key, value) not in LARGE]
    for key, value in random.Random(0).sample(pairs, 12):
        check(job, key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.channels", 3), ("trainer.devices", 3), ("trainer.devices", 10**9), ("trainer.num_nodes", None),
        ("trainer.num_nodes", {"a": 1}), ("trainer.num_nodes", 0), ("growing.group_penalty", -1), ("retraining", None),
    ],
)  # fmt: skip
def test_values_that_once_ended_otherwise_are_told(job: DictConfig, key: str, value: Any) -> None:
    check(job, key, value)
    assert told_of(job, key, value)


@pytest.mark.slow
def test_every_wrong_value_is_told_in_one_line(job: DictConfig) -> None:
    failures = []
    for key in keys_of(job):
        for value in VALUES:
            if (key, value) in LARGE:
                continue
            try:
                check(job, key, value)
            except BaseException as error:  # all of them are told at the end
                failures.append(f"{key}={value!r}: {type(error).__name__}: {str(error)[:300]}")
    assert not failures, "\n".join(failures)
