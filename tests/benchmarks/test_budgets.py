from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import budgets
from benchmarks.budgets import Bench, main, table
from lt_lightning.structures.refill import Refill


def test_a_row_says_what_the_ticket_executes() -> None:
    """Refill of a quarter of each layer: half of the inner channels, and multiply-adds of the same order."""
    row = Bench("resnet8", "cpu", batch_size=2).row(Refill(round_to=1), training=False, asked=None)
    assert 0.2 < row["weights"] < 0.3
    assert 0.2 < row["flops"] < 0.4
    assert row["time"] > 0
    assert set(row["layers"]) <= {"channels", "dense"}


def test_what_is_written_is_shown_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"network": "net", "structure": "hybrid", "training": True, "asked": 0.5, "time": 0.512, "spread": 0.01,
           "weights": 0.31, "flops": 0.44, "layers": {"blocks": 2, "channels": 3}}  # fmt: skip
    monkeypatch.setattr(budgets, "jobs", lambda *_: iter([({"kind": "budget"}, lambda: [row])]))
    main(["--output", str(tmp_path / "budgets.json"), "--threads", "1"])
    monkeypatch.setattr(budgets, "jobs", lambda *_: pytest.fail("measured again"))
    capsys.readouterr()
    main(["--show", str(tmp_path / "budgets.json")])
    shown = capsys.readouterr().out
    assert "0.512" in shown
    assert "2 blocks, 3 channels" in shown
    assert table([]).row_count == 0
