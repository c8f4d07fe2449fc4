"""The environments that take part in a task, which may go on after a change of versions or on another machine."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from lt_lightning.execution.machine import version_of
from lt_lightning.storage.files import read_json, write_json

FILE = "environments.json"  # in the folder of a task
Environment = dict[str, str]


def this_environment() -> Environment:
    """Return the versions that compute here, and the kind of device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {
        "lt_lightning": version_of("lt-lightning") or "unknown",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
    }


def environments_of(folder: Path) -> list[Environment]:
    """Return the environments that took part in a task, in their order; none if that is not known."""
    try:
        return [dict(each) for each in read_json(folder / FILE)]
    except (OSError, ValueError, TypeError):
        return []


def take_part_in(folder: Path) -> None:
    """Record that this environment takes part in a task: it is the last one now, wherever it stood before."""
    environments, this = environments_of(folder), this_environment()
    if environments[-1:] != [this]:
        write_json(folder / FILE, [*(each for each in environments if each != this), this])


def together(first: Sequence[Environment], more: Sequence[Environment]) -> list[Environment]:
    """Return all environments, each once.

    >>> together([{"torch": "2.11"}], [{"torch": "2.11"}, {"torch": "2.12"}])
    [{'torch': '2.11'}, {'torch': '2.12'}]
    """
    return [*first, *(each for each in more if each not in first)]


def change_since(search: Path) -> str:
    """Return a line on what is different here from the environment that a search went on in last; empty if nothing is.

    It names versions alone; whoever takes another machine knows of it.
    """
    if not (before := environments_of(search)):
        return ""
    now = this_environment()
    changes = [
        f"{key} {now[key]} instead of {before[-1].get(key, 'an unknown one')}"
        for key in ("lt_lightning", "torch", "python")
        if now[key] != before[-1].get(key)
    ]
    return f"This job goes on with {', '.join(changes)}; the cards of its tickets name both." if changes else ""
