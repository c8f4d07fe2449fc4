"""Every YAML under `conf/` composes with the main job, and what it names can be built."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path

import pytest
from omegaconf import DictConfig

from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.job import Job

CONF = Path(__file__).resolve().parents[3] / "conf"
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
GROUPS = sorted({path.parent.as_posix() for path in FILES if len(path.parts) > 1})
# What a choice needs, where the defaults of the main job do not fit it.
NEEDED = {
    "data=digit_tokens": ["model=bert_small"],
    "model=bert_base": ["data=digit_tokens", "model.depth=1"],
    "model=bert_small": ["data=digit_tokens"],
    "model=vit_base": ["data=imagenet", "model.depth=1"],
}


def choices(group: str) -> list[str]:
    """The overrides that choose each file of a group."""
    return [f"{group}={path.stem}" for path in FILES if path.parent.as_posix() == group]


# Groups that do not depend on each other are gone through side by side: the n-th choice of each in the n-th job.
TOGETHER = [group for group in GROUPS if group not in ("data", "experiment", "recipe", "structure")]
JOBS = [
    *choices("data"),
    *(" ".join(filter(None, row)) for row in zip_longest(*map(choices, TOGETHER))),
]


def test_nothing_but_the_root_files_and_groups() -> None:
    flat = [path for path in FILES if path.parts[0] != "hydra"]
    assert [path for path in flat if len(path.parts) != 2] == [Path("run.yaml"), Path("stability.yaml")]


@pytest.mark.parametrize("job", JOBS)
def test_options_compose_and_build(job: str, composed: Callable[..., DictConfig]) -> None:
    overrides = job.split()
    needed = [option for each in overrides for option in NEEDED.get(each, [])]
    config = composed("structure=[]", *overrides, *needed)  # structures look at the whole network: they come below
    experiment = Experiment.from_config(Job.of(config).config)
    assert experiment.classifier().classes == config.dataset.classes
    for group, _, choice in (each.partition("=") for each in overrides):
        if group in ("data", "model"):
            assert str(experiment.labels[group]).endswith(choice)  # `debug` sets its own name before that of the data


def test_all_structures_compose_and_build(composed: Callable[..., DictConfig]) -> None:
    names = [override.partition("=")[2] for override in choices("structure")]
    config = composed(f"structure=[{','.join(names)}]")
    assert list(Experiment.from_config(Job.of(config).config).structures) == names


@pytest.mark.parametrize("recipe", choices("recipe"))
def test_recipes_compose_and_build(recipe: str, composed: Callable[..., DictConfig]) -> None:
    config = composed("structure=[refill,regroup]", recipe)  # a recipe grows what there is
    job = Job.of(config)
    assert Experiment.from_config(job.config).config.recipe == recipe.partition("=")[2]
    assert any(task.protocol == "grown" for task in job.tasks) == (recipe == "recipe=strong")


@pytest.mark.parametrize("preset", choices("experiment"))
def test_presets_compose_and_have_a_small_scale(preset: str, composed: Callable[..., DictConfig]) -> None:
    """What they name is built where they run from end to end."""
    job = Job.of(composed(preset, "scale=smoke"))
    assert job.tasks[0].kind is None
