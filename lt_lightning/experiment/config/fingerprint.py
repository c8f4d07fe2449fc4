"""What of a configuration determines a result, by its meaning, and the digits that name the folder of the result.

How something is written makes no difference: the order of keys, `1` for `1.0`, a default that is spelled out, the
public name of a class or that of its module. A class says in its attribute `operational` which of its arguments change
how, but not what, is computed; they make no difference either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.config.options import RETRAINING_KEYS, SEARCH_KEYS
from lt_lightning.experiment.config.signatures import signature_of
from lt_lightning.pruning.densities import descending
from lt_lightning.storage.layout import UNSTRUCTURED

# Raised when a change of the algorithms makes earlier results differ from what would come out now.
ALGORITHM = 5

MISSING = "???"  # stands for no value in OmegaConf, too

# Lightning's own `Trainer` cannot say which of its arguments are operational.
TRAINER = frozenset({
    "accelerator", "devices", "num_nodes", "strategy", "sync_batchnorm", "num_sanity_val_steps", "log_every_n_steps",
    "default_root_dir", "enable_progress_bar", "enable_model_summary", "enable_checkpointing", "profiler",
    "detect_anomaly", "benchmark", "max_time",
})  # fmt: skip
# Callbacks of Lightning that only look on.
WATCHING = frozenset(
    f"pytorch_lightning.callbacks.{name}"
    for name in ("device_stats_monitor.DeviceStatsMonitor", "lr_monitor.LearningRateMonitor")
)
TRAINERS = ("pytorch_lightning.trainer.trainer.Trainer", "lightning.pytorch.trainer.trainer.Trainer")


def fingerprint(config: DictConfig) -> str:
    """Return the digits that name the folder of a job's search."""
    keys = [*SEARCH_KEYS, *(["structure"] if config.pruning.next_round_from != UNSTRUCTURED else [])]
    return hash_of({**meanings(config, keys), "processes": _processes(config)})


def retraining_fingerprint(config: DictConfig, structure: str, origin: Mapping[str, str]) -> str:
    """Return the digits that name the folder of a retrained ticket, beside the folder of its search.

    Args:
        config: configuration of the job.
        structure: name of the structure; unstructured tickets have no options.
        origin: where the ticket comes from, if not from the job's own search.
    """
    options = meaning_of(_plain(config.structure[structure])) if structure in config.structure else {}
    return hash_of({"structure": options, **meanings(config, RETRAINING_KEYS), **origin})


def hash_of(what: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits for JSON values, in any order.

    >>> hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(_text({"algorithm": ALGORITHM, **what}).encode()).hexdigest()[:8]


def meanings(config: DictConfig | Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return the meaning of some keys of a configuration."""
    found = {key: meaning_of(_plain(config[key])) for key in keys}
    if acting := _that_act(found.pop("callbacks", {})):
        found["callbacks"] = acting
    if "pruning" in found:
        found["pruning"] = _pruning(found["pruning"])
    return found


def meaning_of(value: Any) -> Any:
    """Return a value of a configuration without what makes no difference to a result.

    >>> meaning_of({"_target_": "lt_lightning.Refill", "extra": 0, "coupling": "inner"})
    {'_target_': 'Refill', 'coupling': 'inner'}
    """
    if isinstance(value, Mapping):
        return _made(value) if "_target_" in value else {str(key): meaning_of(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [meaning_of(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _made(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the meaning of a node that names what is made of it."""
    signature, left_out = signature_of(str(node["_target_"])), operational_options(node)
    found = {"_target_": signature.name}
    for key, value in node.items():
        if key == "_target_" or key in left_out:
            continue
        exactly = key in signature.counts_or_shares and value == 1  # there 1 is a count, and 1.0 a share
        own, default = (each if exactly else meaning_of(each) for each in (value, signature.defaults.get(key, MISSING)))
        if _text(own) != _text(default):
            found[str(key)] = own
    return found


def operational_options(node: Mapping[str, Any]) -> frozenset[str]:
    """Return the options of a node that change how, but not what, is computed."""
    signature = signature_of(str(node.get("_target_", "")))
    return frozenset(signature.operational) | (TRAINER if signature.name in TRAINERS else frozenset())


def operational_keys(config: DictConfig) -> list[str]:
    """Return the dotted keys of a configuration's groups that change how, but not what, is computed."""
    groups = {key: value for key in SEARCH_KEYS if isinstance(value := _plain(config[key]), Mapping)}
    return [f"{key}.{option}" for key, value in groups.items() for option in sorted(operational_options(value))]


def _that_act(callbacks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the callbacks without those of Lightning that only look on."""
    return {name: node for name, node in callbacks.items() if node["_target_"] not in WATCHING}


def _pruning(meant: dict[str, Any]) -> dict[str, Any]:
    """Return what options of the group mean together.

    Where densities are given, the number of rounds follows from them, and their order does not matter. The folder of
    another search (`imp`) is named by what determines that search, wherever it lies.
    """
    if meant.get("imp") is not None:
        meant = {**meant, "imp": Path(str(meant["imp"])).name}
    if (density := meant.get("density")) is None:
        return meant
    first, *more = descending(density)
    rest = {key: value for key, value in meant.items() if key != "rounds"}
    return {**rest, "density": [first, *more] if more else first}


def _processes(config: DictConfig) -> Any:
    """Return the parts of a batch that are normalised each on its own; as written where only the machine can tell.

    Nothing else depends on the number of processes: `data.batch_size` counts the images of all of them together, and
    the order and the augmentation are those of one process.
    """
    trainer = _plain(config.trainer)
    if trainer.get("sync_batchnorm"):
        return 1
    devices = trainer.get("devices", "auto")
    count = len(devices) if isinstance(devices, list) else devices
    return count * trainer.get("num_nodes", 1) if isinstance(count, int) and count > 0 else devices


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
