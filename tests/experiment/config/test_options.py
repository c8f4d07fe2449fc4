"""The options of a job are checked by type and range, each refusal naming key and value; what is right is typed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.config.checks import naming, naming_among, shown
from lt_lightning.experiment.config.options import JobOptions, Measure, defaults_of, options_of
from lt_lightning.results.verdict import Rule

Compose = Callable[..., DictConfig]
CONF = Path(__file__).resolve().parents[3] / "conf"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DictConfig:
    """A configuration as it is saved, composed once."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        names = ["labels.data=digits", "labels.model=resnet8", f"paths.root={tmp_path_factory.mktemp('runs')}"]
        return OmegaConf.create(OmegaConf.to_container(compose("run", names), resolve=True))  # type: ignore[return-value]


def test_options_are_typed(composed: Compose) -> None:
    options = options_of(composed("measure.samples=3", "verdict.margin=0", "controls=[reinit]", "data.batch_size=32"))
    assert isinstance(options, JobOptions)
    assert options.measure == Measure(batch_size=32, samples=3, slot=0.03)
    assert options.verdict == Rule(margin=0.0)
    assert (options.controls, options.retrain_rounds, options.dataset.classes) == (["reinit"], None, 10)


def test_what_a_saved_configuration_lacks_has_its_default(job: DictConfig) -> None:
    saved: Any = OmegaConf.to_container(job)
    saved["measure"] = None
    for key in ("verdict", "checkpoint", "threads"):
        del saved[key]
    options = options_of(OmegaConf.create(saved))
    assert (options.verdict, options.threads, options.measure) == (Rule(), None, None)


@pytest.mark.parametrize(
    ("override", "refused"),
    [
        ("measure.samples=x", "measure.samples='x'"),
        ("measure.samples=0", "measure.samples=0"),
        ("measure.samples=1.5", "measure.samples=1.5"),
        ("measure.samples=true", "measure.samples=true"),
        ("measure.samples=null", "measure.samples=null"),
        ("measure.slot=0", "measure.slot=0"),
        ("measure.slot=inf", "measure.slot=inf"),
        ("measure=some", "measure='some'"),
        ("measure.turns=3", "measure.turns=3"),
        ("unheard_of=3", "unheard_of=3"),
        ("seed=one", "seed='one'"),
        ("seed=-1", "seed=-1"),
        ("seed=4294967296", "seed=4294967296"),
        ("retrain_rounds=2", "retrain_rounds=2"),
        ("retrain_rounds=[1,a]", "retrain_rounds=[1,'a']"),
        ("controls=reinit", "controls='reinit'"),
        ("search=[1]", "search=[1]"),
        ("execution=fast", "execution='fast'"),
        ("threads=0", "threads=0"),
        ("threads=true", "threads=true"),
        ("threads=100000", "threads=100000"),
        ("paths.root=2026", "paths.root=2026"),
        ("labels=null", "labels=null"),
        ("labels.model=20", "labels.model=20"),
        ("checkpoint=null", "checkpoint=null"),
        ("model=3", "model=3"),
        ("published=x", "published='x'"),
        ("structure.refill._target_=null", "structure.refill={"),
        ("structure.mine.extra=0.1", "structure.mine={extra:0.1}"),
        ("structure.mine=null", "structure.mine=null"),
        ("structure.dense=${structure.refill}", "structure.dense={"),
        ("structure.unstructured=${structure.refill}", "structure.unstructured={"),
        ("callbacks.mine=3", "callbacks.mine=3"),
        ("logger=x", "logger='x'"),
        ("measure.samples=10000000000", "measure.samples=10000000000"),
        ("trainer.max_epochs=10000000000", "trainer.max_epochs=10000000000"),
        ("trainer.limit_test_batches=0", "trainer.limit_test_batches=0"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0"),
        ("pruning.rounds=1000000000", "pruning.rounds=1000000000"),
        ("transfer=x", "transfer='x'"),
        ("checkpoint.seconds=x", "checkpoint.seconds='x'"),
        ("verdict.margin=2", "verdict.margin=2"),
        ("verdict.confidence=x", "verdict.confidence='x'"),
        ("plan=maybe", "plan='maybe'"),
        ("status=some", "status='some'"),
        ("plan=true status=true", "plan=true"),
        ("report=maybe", "report='maybe'"),
        ("pruning.rounds=-1", "pruning.rounds=-1"),
        ("pruning.rate=1", "pruning.rate=1"),
        ("pruning.rate=nan", "pruning.rate=nan"),
        ("pruning.density=[]", "pruning.density=[]"),
        ("pruning.density=[0.5,2]", "pruning.density=[0.5,2]"),
        ("pruning.next_round_from=filters", "pruning.next_round_from='filters'"),
        ("pruning.next_round_from=refil", "pruning.next_round_from='refil': must be one of unstructured, refill"),
        ("trainer.max_epochs=null", "trainer.max_epochs=null"),
        ("trainer.gradient_clip_val=-1", "trainer.gradient_clip_val=-1"),
        ("dataset.classes=0", "dataset.classes=0"),
    ],
)
def test_what_is_refused_is_named_with_its_value(override: str, refused: str, job: DictConfig) -> None:
    config = OmegaConf.merge(job, OmegaConf.from_dotlist(override.split(" ")))
    assert isinstance(config, DictConfig)
    with pytest.raises(ValueError, match=f"^{re.escape(refused)}") as caught:
        options_of(config)
    assert "\n" not in str(caught.value)


def test_a_key_that_is_no_text_is_named(job: DictConfig) -> None:
    config = job.copy()
    config.structure = {1: {"_target_": "lt_lightning.Refill"}}
    with pytest.raises(ValueError, match=r"^structure\.1=.*\b1\b"):
        options_of(config)


def test_what_is_missing_is_named(job: DictConfig) -> None:
    config = job.copy()
    del config.paths.root
    with pytest.raises(ValueError, match=r"^paths\.root "):
        options_of(config)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (("model=bert_small",), "model.vocabulary=${dataset.vocabulary}: .* classes, channels, size$"),
        (("data=digit_tokens",), "model.channels=${dataset.channels}: .* classes, vocabulary, length$"),
    ],
)
def test_a_network_for_other_data_is_refused(overrides: tuple[str, ...], told: str, composed: Compose) -> None:
    with pytest.raises(ValueError, match=f"^{told.replace('$', re.escape('$'), 1)}"):
        options_of(composed(*overrides))


def test_a_job_is_composed_with_the_defaults(job: DictConfig) -> None:
    for key, default in defaults_of(JobOptions).items():
        if key not in ("structure", "measure", "labels", "threads"):  # of which groups say more
            assert job[key] == default, key


def test_an_object_that_names_its_argument_is_given_its_key() -> None:
    with pytest.raises(ValueError, match=r"^verdict\.margin=2: "), naming("verdict"):
        Rule(margin=2)
    with pytest.raises(FileNotFoundError, match=r"^data\.root=x: "), naming("data"):
        raise FileNotFoundError("root=x: put it there")
    with pytest.raises(ValueError, match=r"^model: "), naming("model"):
        raise ValueError("nothing to prune")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("rewind=9ep: too late", "pruning.rewind=9ep: too late"),
        ("batch_size=5: too few", "data.batch_size=5: too few"),
        ("nothing=1: is none of theirs", "nothing=1: is none of theirs"),
        ("diverged", "diverged"),
    ],
)
def test_of_several_objects_the_one_with_that_argument_is_named(message: str, told: str, job: DictConfig) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"), naming_among(job, "data", "pruning"):
        raise ValueError(message)


def test_values_are_shown_as_they_are_written() -> None:
    assert shown({"a": [None, True, 0.5, "b"]}) == "{a:[null,true,0.5,'b']}"
