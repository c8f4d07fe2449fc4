"""`lt-lightning run` as a user starts it: what is wrong ends in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "run.py"


def test_an_unknown_key_ends_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), f"paths.root={tmp_path}", "pruning.ratee=0.3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in ("pruning.ratee", "there is", "rate,", "did you mean rate?")), line


def test_a_wrong_value_ends_in_one_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", f"paths.root={tmp_path}", "structure.refill.score=nope"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # set by the script
    with pytest.raises(SystemExit, match="2"):
        script.run()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert all(part in line for part in ("structure.refill.score='nope'", "l1, l2, count, saliency")), line
