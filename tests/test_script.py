"""`scripts/run.py` as a user starts it: what is wrong ends in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "run.py"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("pruning.ratee=0.3", ["pruning.ratee", "'ratee' is not in struct", "there is", "rate,"]),
        ("structure.refill.score=nope", ["structure.refill.score='nope'", "l1, l2, count, saliency"]),
    ],
)
def test_a_wrong_override_ends_in_one_line(override: str, told: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), f"paths.root={tmp_path}", override]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in told), line
