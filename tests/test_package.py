"""What the package promises as a whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lt_lightning

MATHEMATICS = (
    "lt_lightning.pruning.selection",
    "lt_lightning.pruning.enforcement",
    "lt_lightning.pruning.rewinding",
    "lt_lightning.structures.refill",
    "lt_lightning.structures.regroup",
    "lt_lightning.pruning.evaluation",
    "lt_lightning.tickets.ticket",
    "lt_lightning.tickets.making",
)


def test_public_names_are_there() -> None:
    for name in lt_lightning.__all__:
        assert getattr(lt_lightning, name).__name__ == name
    with pytest.raises(AttributeError, match="Nothing"):
        lt_lightning.Nothing  # noqa: B018


def test_mathematics_and_tickets_import_nothing_of_the_frameworks() -> None:
    code = (
        f"import sys, {', '.join(MATHEMATICS)}\n"
        "heavy = {'pytorch_lightning', 'hydra', 'wandb', 'omegaconf'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
