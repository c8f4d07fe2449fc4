"""What of a configuration determines a result, by its meaning, and the digits that name the folder of the result.

How something is written makes no difference: the order of keys, `1` for `1.0`, a default that is spelled out, the
public name of a class or that of its module. A class says in its attribute `operational` which of its arguments change
how, but not what, is computed; they make no difference either.

A digest of images and labels lies beside the search. What the digest is made of takes long to read, so sizes and times
of change of the files are kept with it: while they are the same, nothing is read, and nothing slow imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lt_lightning.experiment.config.checks import naming, shown, signature_of
from lt_lightning.experiment.config.options import RETRAINING_KEYS, SEARCH_KEYS, Retraining, defaults_of
from lt_lightning.pruning.densities import descending
from lt_lightning.storage.files import read_json, write_json
from lt_lightning.storage.layout import UNSTRUCTURED

if TYPE_CHECKING:
    from lt_lightning.data.module import LabelledData


# Raised when a change of the algorithms makes earlier results differ from what would come out now.
ALGORITHM = 6

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
    if changed := _changed(found.pop("retraining", {})):
        found["retraining"] = changed
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


def _changed(retraining: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of retraining that change something: no defaults, and nothing about what is not asked for."""
    defaults = meaning_of(defaults_of(Retraining))
    changed = {key: value for key, value in retraining.items() if value != defaults[key]}
    for option, needed in (("temperature", "distil"), ("barrier", "copies")):
        if needed not in changed:
            changed.pop(option, None)
    return changed


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
    """Return how many parts of a batch are normalised each on its own; as written where only the machine can tell.

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


FILE = "data.json"


def record_data(search: Path, config: DictConfig, data: LabelledData) -> None:
    """Keep the digest of the data beside a search that begins; if it has begun before, check the data.

    Raises:
        ValueError: if they are other data; see `check_data`.
    """
    if (search / FILE).is_file():
        check_data(search, config, data)
        return
    with naming("data"):
        digest = data.digest()
    files = {} if data.files is None else {"folder": data.files.folder, "entries": list(data.files.entries)}
    _write(search, config, {"digest": digest, "stamps": [], **files})


def check_data(search: Path, config: DictConfig, data: LabelledData | None = None) -> None:
    """Compare the data with those that a search was trained on.

    Args:
        search: folder of the search; without a digest there is nothing to compare with.
        config: configuration of the job.
        data: data of a job that trains or tests something; None if nothing is left to do. Files that are gone by then
            are no other data.

    Raises:
        ValueError: if they are other data; it names the key, the search and what to do.
    """
    if not (search / FILE).is_file():
        return
    record: dict[str, Any] = read_json(search / FILE)
    stamp = _stamp(config, record)
    if stamp in record["stamps"] or (data is None and stamp is None):
        return
    with naming("data"):
        digest = (data or instantiate(config.data)).digest()
    if digest != record["digest"]:
        key, root = ("paths.data", config.paths.data)
        if (own := config.data.get("root")) != root:
            key, root = ("data.root", own)
        raise ValueError(
            f"{key}={shown(root)}: holds other images or labels than {search} was trained on; name the folder of "
            "those, or another paths.root to search anew"
        )
    with suppress(OSError):  # results of others may be looked at
        _write(search, config, record)


def _write(search: Path, config: DictConfig, record: dict[str, Any]) -> None:
    stamp = _stamp(config, record)
    write_json(search / FILE, {**record, "stamps": [*record["stamps"], *([] if stamp is None else [stamp])]})


def _stamp(config: DictConfig, record: dict[str, Any]) -> str | None:
    """Return digits for place, sizes and times of change of the files; None if there are none."""
    if "folder" not in record or (root := config.data.get("root")) is None:
        return None
    folder = Path(str(root)).expanduser().resolve() / record["folder"]
    digest = hashlib.sha256(str(folder).encode())
    try:
        for path in _looked_at(folder, record["entries"]):
            status = path.stat()
            digest.update(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}\n".encode())
    except OSError:
        return None
    return digest.hexdigest()


def _looked_at(folder: Path, entries: Sequence[str]) -> Iterator[Path]:
    """Yield the files that a data set consists of; for a folder, itself and all folders in it, which change with it."""
    for entry in entries:
        path = folder / entry
        yield path
        for inside, folders, _ in os.walk(path):
            folders.sort()
            yield from (Path(inside, name) for name in folders)
