"""docs/architecture.md names every folder, and no file that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_every_folder_is_named() -> None:
    folders = {path.parent.name for path in (ROOT / "lt_lightning").glob("*/__init__.py")}
    assert {folder for folder in folders if f"| `lt_lightning/{folder}/` |" not in PAGE} == set()
    picture = (ROOT / "docs" / "way_of_the_data.svg").read_text()
    drawn = {"data", "models", "structures", "execution", "tickets", "experiment", "report", "pruning"}
    assert {folder for folder in drawn if f"{folder}/" not in picture} == set()
    assert drawn <= folders


def test_every_file_that_is_named_is_there() -> None:
    files = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)", PAGE))
    assert len(files) > 15
    assert {
        name for name in files if not (ROOT / "lt_lightning" / name).is_file() and not (ROOT / name).is_file()
    } == set()
