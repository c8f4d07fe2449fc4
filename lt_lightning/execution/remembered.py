"""What was measured on this machine, remembered in the user's cache folder for all later runs.

Each answer is a file of its own, so that processes may write at once. Its question stands in it, with all that the
answer depends on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lt_lightning.execution.machine import processor, version_of
from lt_lightning.storage.files import cache_folder, read_json, write_json

Question = Mapping[str, Any]


def machine_facts(device: torch.device | str) -> dict[str, Any]:
    """Return what every measured time depends on besides its question."""
    device = torch.device(device)
    return {
        "device": device.type,
        "processor": processor(device),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }


@cache
def _versions() -> dict[str, str | None]:
    return {name: version_of(name) for name in ("torch", "lt-lightning")}


def remembered(folder: str, question: Question) -> dict[str, float] | None:
    """Return the seconds that were measured before, by name; None if they are not known, or cannot be read.

    Args:
        folder: folder of such answers in the cache.
        question: what was measured, as JSON values.
    """
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        known = read_json(_place(folder, question))
        if known["question"] == question:
            return {str(name): float(seconds) for name, seconds in known["seconds"].items()} or None
    return None


def remember(folder: str, question: Question, seconds: Mapping[str, float]) -> None:
    """Remember what was measured."""
    with suppress(OSError):  # without a cache it is measured anew each time
        write_json(_place(folder, question), {"question": question, "seconds": seconds})


def _place(folder: str, question: Question) -> Path:
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
    return cache_folder() / folder / f"{digest[:32]}.json"
