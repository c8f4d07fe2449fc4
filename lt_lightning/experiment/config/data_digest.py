"""Whether the data are still those that a search was trained on.

A digest of images and labels lies beside the search. What the digest is made of takes long to read, so sizes and times
of change of the files are kept with it: while they are the same, nothing is read, and nothing slow imported.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from lt_lightning.experiment.config.checks import naming, shown
from lt_lightning.storage.files import read_json, write_json

if TYPE_CHECKING:
    from lt_lightning.data.module import LabelledData

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
    """Yield the files that a data set consists of; of a folder itself and all folders in it, which change with it."""
    for entry in entries:
        path = folder / entry
        yield path
        for inside, folders, _ in os.walk(path):
            folders.sort()
            yield from (Path(inside, name) for name in folders)
