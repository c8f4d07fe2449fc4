"""Every YAML under `conf/` composes with the main job, and what it names can be built."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.job import Job

CONF = Path(__file__).resolve().parents[3] / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
OPTIONS = [path for path in FILES if len(path.parts) > 1]
# What a choice needs, where the defaults of the main job do not fit it.
NEEDED = {
    "data/digit_tokens.yaml": ["model=bert_small"],
    "model/bert_base.yaml": ["data=digit_tokens", "model.depth=1"],
    "model/bert_small.yaml": ["data=digit_tokens"],
    "model/vit_base.yaml": ["data=imagenet", "model.depth=1"],
}


def test_nothing_but_the_root_files_and_groups() -> None:
    flat = [path for path in FILES if path.parts[0] != "hydra"]
    assert [path for path in flat if len(path.parts) != 2] == [Path("run.yaml"), Path("stability.yaml")]


@pytest.mark.parametrize("path", OPTIONS, ids=str)
def test_option_composes_and_builds(path: Path, composed: Callable[..., DictConfig]) -> None:
    group, choice = path.parent.as_posix(), path.stem
    override = f"{group}=[{choice}]" if group == "structure" else f"{group}={choice}"
    scale = ["scale=smoke"] if group == "experiment" else []  # every preset must have that
    config = composed(override, *NEEDED.get(str(path), []), *scale)
    experiment = Experiment.from_config(Job.of(config).config)
    assert experiment.classifier().classes == config.dataset.classes
    if group in ("data", "model"):
        assert experiment.labels[group] == choice
    if group == "structure":
        assert list(experiment.structures) == [choice]
