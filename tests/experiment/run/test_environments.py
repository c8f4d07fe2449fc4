"""The environments that take part in a task, in the order in which they did so last."""

from __future__ import annotations

from pathlib import Path

import pytest

from lt_lightning.experiment.run import environments
from lt_lightning.experiment.run.environments import change_since, environments_of, take_part_in


def test_the_last_is_the_one_that_went_on_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("1.0", "2.0", "1.0"):
        monkeypatch.setattr(environments, "version_of", lambda _, version=version: version)
        take_part_in(tmp_path)
    assert [each["lt_lightning"] for each in environments_of(tmp_path)] == ["2.0", "1.0"]
    assert change_since(tmp_path) == ""
    monkeypatch.setattr(environments, "version_of", lambda _: "2.0")
    assert "lt_lightning 2.0" in change_since(tmp_path)
    assert "1.0" in change_since(tmp_path)
