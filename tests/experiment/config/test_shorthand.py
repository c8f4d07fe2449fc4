"""What may be written shorter comes to what is written in full."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from lt_lightning.cli import spelled_out
from tests.runs import SMALL


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["seeds=1"], ["seed=0"]),
        (["-m", "seeds=2"], ["-m", "seed=0,1"]),
        (["a=1", "-m", "seed=0,1"], ["-m", "a=1", "seed=0,1"]),
        (["density=null"], ["pruning.density=null"]),
        (["--multirun", "density=0.5,0.1"], ["-m", "pruning.density=[0.5,0.1]"]),
        (["density=[0.5]"], ["pruning.density=[0.5]"]),
        (["seed=0,1", "a.seeds=3", "pruning.density=0.5"], ["seed=0,1", "a.seeds=3", "pruning.density=0.5"]),
    ],
)
def test_only_what_is_shorter_is_replaced(given: list[str], expected: list[str]) -> None:
    assert spelled_out(given) == expected


@pytest.mark.parametrize("wrong", [["seeds=0"], ["seeds=some"], ["seeds=3,4"], ["seeds="], ["seeds=2", "seed=7"]])
def test_seeds_that_cannot_be_counted_end_in_one_line(
    wrong: list[str], script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *wrong])
    with pytest.raises(SystemExit, match="2"):
        script.run()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert wrong[0] in line


def test_seeds_are_a_sweep_without_saying_so_and_densities_one_search(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = []
    for short in (["seeds=2", "density=0.5,0.25"], ["-m", "seed=0,1", "pruning.density=[0.25,0.5]"]):
        options = (f"paths.root={tmp_path}", *SMALL, "structure=[]", "status=true")
        monkeypatch.setattr(sys, "argv", ["run.py", *short, *options])
        script.run()
        told.append([line for line in capsys.readouterr().out.splitlines() if "digits-resnet8-s" in line])
    assert told[0] == told[1]
    assert len(told[0]) == 2
