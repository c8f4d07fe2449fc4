"""The fingerprint follows the meaning of a configuration: how it is written makes no difference, other values do."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from hydra.utils import get_object
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.config import fingerprint as module
from lt_lightning.experiment.config.checks import Signature, imported, signature_of, state_of_files
from lt_lightning.experiment.config.fingerprint import fingerprint, hash_of, meaning_of, retraining_fingerprint

Compose = Callable[..., DictConfig]
CONF = Path(__file__).resolve().parents[3] / "conf"


def targets(node: Any) -> set[str]:
    """All that the values of a YAML file name as `_target_`."""
    if isinstance(node, Mapping):
        own = {node["_target_"]} if "_target_" in node else set()
        return own.union(*map(targets, node.values()))
    return set()


TARGETS = sorted(set().union(*(targets(yaml.safe_load(path.read_text())) for path in CONF.rglob("*.yaml"))))


class Mine:
    """A user's class."""

    operational: ClassVar = ("fast",)

    def __init__(self, size: int, rate: float = 0.5, share: int | float = 0.1, fast: bool = False) -> None: ...


MINE = f"{Mine.__module__}.Mine"


# Properties

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine

numbers = st.integers(-9, 9) | st.floats(-9, 9, allow_nan=False) | st.sampled_from([0.0, 1.0, -1.0])
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


def rewritten(value: Any) -> Any:
    """The same with keys in another order and numbers in their other form."""
    if isinstance(value, dict):
        return {key: rewritten(each) for key, each in reversed(value.items())}
    if isinstance(value, list):
        return [rewritten(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def same(one: Any, other: Any) -> bool:
    """Whether two values mean the same, by Python's equality alone, in which only True is 1, which it is not here."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


@UNHURRIED
@given(values)
def test_order_of_keys_and_form_of_numbers_make_no_difference(value: Any) -> None:
    assert hash_of({"a": meaning_of(value)}) == hash_of({"a": meaning_of(rewritten(value))})


@UNHURRIED
@given(values, values)
def test_other_values_are_another_identity(one: Any, other: Any) -> None:
    assert (json.dumps(meaning_of(one), sort_keys=True) == json.dumps(meaning_of(other), sort_keys=True)) == same(
        one, other
    )


@pytest.mark.parametrize("target", TARGETS)
def test_a_default_that_is_spelled_out_makes_no_difference_and_another_value_does(target: str) -> None:
    bare = {"_target_": target}
    signature = signature_of(target)
    left_out = module.operational_options(bare)
    assert meaning_of({**bare, **signature.defaults}) == meaning_of(bare)
    for key, default in signature.defaults.items():
        other = meaning_of({**bare, key: f"no {default}"})
        assert (other == meaning_of(bare)) == (key in left_out), key


@pytest.mark.parametrize("target", [*TARGETS, MINE])
def test_signatures_are_as_python_has_them(target: str) -> None:
    signature, parameters = signature_of(target), inspect.signature(get_object(target)).parameters
    own = {key: each for key, each in parameters.items() if each.kind != each.VAR_KEYWORD}
    assert set(own) <= set(signature.arguments)
    for key, parameter in own.items():
        if parameter.default is None or isinstance(parameter.default, (bool, int, float, str)):
            assert signature.defaults[key] == parameter.default, key
        elif parameter.default is parameter.empty:
            assert key not in signature.defaults


def test_arguments_that_are_handed_to_a_base_class_are_known_with_their_defaults() -> None:
    digits = signature_of("lt_lightning.data.digits.Digits")
    assert digits.defaults["validation"] == 0.1
    assert digits.defaults["augment"] == {"_target_": "lt_lightning.data.tensors.Augment", "pad": 0, "flip": False}
    assert {"root", "batch_size", "limit"} <= set(digits.arguments) - {"options"}
    assert "validation" in digits.counts_or_shares
    assert digits.operational == ["root", "eval_batch_size"]


def test_what_was_found_is_kept_until_a_file_of_the_package_changes(tmp_path: Path) -> None:
    (tmp_path / "their_nets.py").write_text("import torch\nclass Net:\n    def __init__(self, depth=8): ...\n")
    code = (
        "import sys\nfrom lt_lightning.experiment.config.checks import signature_of\n"
        "print(signature_of('their_nets.Net').defaults['depth'], 'torch' in sys.modules)"
    )
    environment = {**os.environ, "LT_LIGHTNING_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])

    def found() -> str:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        return done.stdout.strip()

    assert found() == "8 True"
    assert found() == "8 False"
    (tmp_path / "their_nets.py").write_text("class Net:\n    def __init__(self, depth=9): ...\n")
    assert found() == "9 False"


def test_a_package_that_is_not_there_has_no_state_and_a_damaged_cache_is_found_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert state_of_files("no_such_package") is None
    monkeypatch.setenv("LT_LIGHTNING_CACHE", str(tmp_path))
    signature_of.cache_clear()
    target = "lt_lightning.structures.refill.Refill"
    expected = signature_of(target)
    (file,) = tmp_path.rglob("*.json")
    file.write_text("[1, 2")
    signature_of.cache_clear()
    assert signature_of(target) == expected == imported(target)


# Names


def test_the_public_name_of_a_class_is_that_of_its_module(composed: Compose) -> None:
    short = composed("pruning._target_=lt_lightning.LotteryTicketPruning")
    assert fingerprint(short) == fingerprint(composed())
    assert meaning_of({"_target_": "lt_lightning.Refill"}) == {"_target_": "Refill"}
    assert meaning_of({"_target_": "lt_lightning.structures.refill.Refill"}) == {"_target_": "Refill"}


def test_a_class_of_the_user_counts_by_the_module_that_defines_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "their_package"
    package.mkdir()
    (package / "__init__.py").write_text("from .nets import Net as Net\nmade = type('Made', (Net,), {})\n")
    (package / "nets.py").write_text("class Net:\n    def __init__(self, depth=8, rate=1.0): ...\n")
    (package / "other.py").write_text("class Net:\n    def __init__(self, depth=8): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {path: signature_of(f"their_package.{path}").name for path in ("Net", "nets.Net", "other.Net", "made")}
    assert names == {
        "Net": "their_package.nets.Net", "nets.Net": "their_package.nets.Net", "other.Net": "their_package.other.Net",
        "made": "their_package.Made",
    }  # fmt: skip
    assert meaning_of({"_target_": "their_package.Net", "rate": 1}) == {"_target_": "their_package.nets.Net"}
    assert signature_of("their_package.Missing") == Signature("their_package.Missing")


def test_public_classes_of_ours_have_a_name_each() -> None:
    names: dict[str, str] = {}
    for target in (each for each in TARGETS if each.startswith("lt_lightning.")):
        assert names.setdefault(signature_of(target).name, target) == target


# Options


def test_a_class_says_which_options_are_operational() -> None:
    bare = {"_target_": MINE, "size": 3}
    assert meaning_of({**bare, "fast": True}) == meaning_of(bare)
    assert meaning_of({**bare, "rate": 0.4}) != meaning_of(bare)


@pytest.mark.parametrize(
    ("node", "key"),
    [({"_target_": MINE, "size": 3}, "share"), ({"_target_": "pytorch_lightning.Trainer"}, "limit_train_batches")],
)
def test_one_batch_is_not_all_of_them(node: dict[str, Any], key: str) -> None:
    assert hash_of(meaning_of({**node, key: 1})) != hash_of(meaning_of({**node, key: 1.0}))
    assert hash_of(meaning_of({**node, "rate": 1})) == hash_of(meaning_of({**node, "rate": 1.0}))


@pytest.mark.parametrize(
    "same",
    [
        "~classifier.momentum",
        "classifier.weight_decay=0.0001",
        "~classifier.label_smoothing",
        "classifier.label_smoothing=0",
        "~data.augment.flip",
        "+trainer.accumulate_grad_batches=1",
        "~pruning.on_collapse",
        "schedule=one_cycle",
        "classifier.schedule.final=0",
        "+pruning.network=null",
    ],
)
def test_what_is_written_otherwise_is_the_same_search(same: str, composed: Compose) -> None:
    assert fingerprint(composed(same)) == fingerprint(composed())


def test_a_callback_that_acts_determines_and_one_that_looks_on_does_not(composed: Compose) -> None:
    plain = fingerprint(composed())
    assert fingerprint(composed("callbacks=[learning_rates]")) == plain
    mine = "+callbacks.mine._target_=pytorch_lightning.callbacks.GradientAccumulationScheduler"
    acting = fingerprint(composed(mine, "+callbacks.mine.scheduling={0:2}"))
    assert len({plain, acting, fingerprint(composed(mine, "+callbacks.mine.scheduling={0:4}"))}) == 3


def test_the_time_that_one_command_trains_does_not_determine(composed: Compose) -> None:
    assert fingerprint(composed("+trainer.max_time='00:01:00:00'")) == fingerprint(composed())


def test_a_true_is_no_one(composed: Compose) -> None:
    assert fingerprint(composed("classifier.nesterov=true")) != fingerprint(composed("classifier.nesterov=1"))


def test_options_of_a_structure_are_its_own(composed: Compose) -> None:
    def digits(*overrides: str) -> str:
        return retraining_fingerprint(composed(*overrides), "refill", {})

    assert digits("structure.refill.extra=0") == digits("~structure.refill.coupling") == digits()
    assert len({digits(), digits("structure.refill.extra=0.1"), digits("execution=masked")}) == 3


def test_how_tickets_are_retrained_is_their_own_and_defaults_are_no_difference(composed: Compose) -> None:
    def digits(*overrides: str) -> str:
        return retraining_fingerprint(composed(*overrides), "refill", {})

    assert digits("retraining.distil=0", "retraining.temperature=2") == digits()
    known = {"structure": meaning_of(OmegaConf.to_container(composed().structure.refill)), "execution": "shrunk"}
    assert digits() == hash_of(known)  # what folders were named by before there was the option
    assert digits("retraining.length=2") != digits("retraining.length=1.0") == digits()
    assert digits("retraining.distil=0.5", "retraining.temperature=4") == digits("retraining.distil=0.5")
    others = ("retraining.distil=0.5", "retraining.distil=1")
    assert len({digits(), *map(digits, others), digits(others[0], "retraining.temperature=2")}) == 4
    assert digits("retraining.barrier=0.1") == digits()
    several = ("retraining.copies=2",)
    assert (
        len({digits(), digits("retraining.length=2"), digits(*several), digits(*several, "retraining.barrier=0.1")})
        == 4
    )
    assert fingerprint(composed("retraining.distil=0.5")) == fingerprint(composed())


def test_the_version_of_the_algorithm_determines(composed: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed()
    before = fingerprint(config), retraining_fingerprint(config, "refill", {})
    monkeypatch.setattr(module, "ALGORITHM", module.ALGORITHM + 1)
    after = fingerprint(config), retraining_fingerprint(config, "refill", {})
    assert not set(before) & set(after)


def test_a_saved_configuration_has_the_fingerprint_of_the_composed_one(composed: Compose, tmp_path: Path) -> None:
    config = composed("pruning.density=[0.5,0.3]", "trainer=ddp_sim")
    OmegaConf.save(config, tmp_path / "config.yaml", resolve=True)
    saved = OmegaConf.load(tmp_path / "config.yaml")
    assert isinstance(saved, DictConfig)
    assert fingerprint(saved) == fingerprint(config)
