"""What went wrong, in one line for people, and recorded beside the results until the next attempt succeeds."""

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

from lt_lightning.files import read_json, write_json

FILE = "error.json"
# What a wrong configuration, wrong data or a diverging training raise; anything else is a defect of ours.
EXPECTED = (ValueError, OSError, FloatingPointError, HydraException, OmegaConfBaseException)


@dataclass(frozen=True)
class Failure:
    """A failed attempt.

    Attributes:
        error: in one line.
        time: Unix time.
        traceback: where it happened.
    """

    error: str
    time: float
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """What can be told about an exception."""
        return cls(one_line(error), time.time(), "".join(traceback.format_exception(error)))

    @classmethod
    def load(cls, folder: Path) -> Failure | None:
        """The last attempt's failure; None if there was none."""
        try:
            return cls(**read_json(folder / FILE))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, folder: Path) -> None:
        """Leaves a record in the folder, if that can be written."""
        with suppress(OSError):
            write_json(folder / FILE, asdict(self))


def clear(folder: Path) -> None:
    """Removes the record: an attempt succeeded."""
    (folder / FILE).unlink(missing_ok=True)


def one_line(error: BaseException) -> str:
    """What went wrong, without what led there: Hydra and OmegaConf wrap the cause and add lines."""
    if isinstance(error, ExceptionGroup):
        return f"{error.message}: {'; '.join(dict.fromkeys(map(one_line, error.exceptions)))}"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        key = str(error).rpartition("full_key: ")[2].strip()
        while isinstance(error, InstantiationException) and error.__cause__ is not None:
            error = error.__cause__
        return _with_key(key, _first_line(error))
    if isinstance(error.__cause__, (ConfigAttributeError, ConfigKeyError)):
        return f"{_first_line(error)} {_first_line(error.__cause__)}{_known_keys(error.__cause__)}"
    if isinstance(error, OverrideParseException):
        return f"the override {error.override!r} cannot be read: {_first_line(error)}"
    if isinstance(error, MissingConfigException):
        told = f"{_first_line(error).removesuffix('.')}; "
        return told + (f"there is {', '.join(error.options)}" if error.options else "there is no such group or choice")
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    told = lines[0] if lines else ""
    if told.startswith("Caught ") and "DataLoader worker" in told:  # and then a traceback, which ends with the cause
        told = lines[-1].partition(": ")[2]
    return told if told and isinstance(error, EXPECTED) else f"{type(error).__name__}: {told}".removesuffix(": ")


def _with_key(key: str, told: str) -> str:
    """The message of an object that need not know where in the configuration it stands."""
    parent, _, last = key.rpartition(".")
    if "\n" in key or not key or told.startswith(key):
        return told
    if parent and told.startswith(f"{last}."):
        return f"{parent}.{told}"
    return f"{key}.{told}" if re.match(r"\w+=", told) else f"{key}: {told}"


def _known_keys(error: ConfigAttributeError | ConfigKeyError) -> str:
    """What could have been meant."""
    node = error.parent_node
    return f"; there is {', '.join(str(key) for key in node)}" if isinstance(node, DictConfig) else ""
