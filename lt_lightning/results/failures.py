"""Failures: each in one line for people, recorded beside the results until the next attempt succeeds."""

from __future__ import annotations

import re
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from lt_lightning.storage.config_groups import CONF
from lt_lightning.storage.files import read_json, write_json
from lt_lightning.storage.near_names import did_you_mean

FILE = "error.json"
# Errors that a wrong configuration, wrong data or a diverging training raise; any other is a defect of ours.
EXPECTED = (ValueError, OSError, FloatingPointError, HydraException, OmegaConfBaseException)
# Those of them that say that what was asked for is impossible: an option, or a file that it names.
IMPOSSIBLE = (
    ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, HydraException, OmegaConfBaseException,
)  # fmt: skip


@dataclass(frozen=True)
class Failure:
    """A failed attempt.

    Attributes:
        error: error in one line.
        time: Unix time of the failure.
        traceback: traceback of the exception.
    """

    error: str
    time: float
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return the failure that an exception makes."""
        return cls(one_line(error), time.time(), "".join(traceback.format_exception(error)))

    @classmethod
    def load(cls, folder: Path) -> Failure | None:
        """Return the last attempt's failure; None if there was none."""
        try:
            return cls(**read_json(folder / FILE))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, folder: Path) -> None:
        """Write a record into a folder, if that is possible."""
        with suppress(OSError):
            write_json(folder / FILE, asdict(self))


def clear(folder: Path) -> None:
    """Remove the record of a failure, since an attempt has succeeded."""
    (folder / FILE).unlink(missing_ok=True)


def one_line(error: BaseException) -> str:
    """Return an error in one line: the cause, which Hydra and OmegaConf wrap, with its key in the configuration."""
    if isinstance(error, ExceptionGroup):
        return f"{error.message}: {'; '.join(dict.fromkeys(map(one_line, error.exceptions)))}"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        key = str(error).rpartition("full_key: ")[2].strip()
        while isinstance(error, InstantiationException) and error.__cause__ is not None:
            error = error.__cause__
        return with_key(key, _first_line(error))
    if isinstance(error.__cause__, (ConfigAttributeError, ConfigKeyError)):
        return f"{error.__cause__.full_key}: is no option{_known_keys(error.__cause__)}"
    if isinstance(error, OverrideParseException):
        return f"the override {error.override!r} cannot be read: {_first_line(error)}"
    if isinstance(error, MissingConfigException):
        group, _, wrong = str(error.missing_cfg_file).rpartition("/")
        choices = error.options or sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        options = f"there is {', '.join(choices)}" if group and choices else "there is no such group or choice"
        return f"{_first_line(error).removesuffix('.')}; {options}{did_you_mean(wrong, choices)}"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else ""
    if line.startswith("Caught ") and "DataLoader worker" in line:  # and then a traceback, which ends with the cause
        line = lines[-1].partition(": ")[2]
    return line if line and isinstance(error, EXPECTED) else f"{type(error).__name__}: {line}".removesuffix(": ")


def with_key(key: str, message: str) -> str:
    """Add to an object's message the key by which the configuration makes the object."""
    if "\n" in key or not key or message.startswith(key):
        return message
    return f"{key}.{message}" if re.match(r"[\w.]+=", message) else f"{key}: {message}"


def _known_keys(error: ConfigAttributeError | ConfigKeyError) -> str:
    """Return text that lists the keys of the node in which a key is unknown."""
    node = error.parent_node
    if not isinstance(node, DictConfig):
        return ""
    keys = [str(key) for key in node]
    return f"; there is {', '.join(keys)}{did_you_mean(str(error.key), keys)}"
