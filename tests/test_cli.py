"""`lt-lightning` as a user types it: help everywhere, near misses, one line for what is wrong, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lt_lightning import __version__
from lt_lightning.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
Type = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Type:
    """Does what a command line asks for, in an empty folder, and returns exit code, output and errors."""

    def typed(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["lt-lightning", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # set by the command
        code, said = 0, ""
        try:
            main()
        except SystemExit as end:
            code, said = (end.code or 0, "") if isinstance(end.code, int | None) else (1, f"{end.code}\n")
        printed = capsys.readouterr()
        return code, printed.out, printed.err + said

    return typed


@pytest.mark.parametrize("arguments", [[], *([name] for name in COMMANDS)])
def test_help_says_what_a_command_does_and_changes_nothing(arguments: list[str], typed: Type, tmp_path: Path) -> None:
    code, printed, _ = typed(*arguments, "--help")
    assert code == 0
    assert printed.startswith(f"usage: {' '.join(['lt-lightning', *arguments])}")
    assert "Example" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["rnu"], ["rnu", "did you mean run?"]),
        (["report", "runs", "--outptu=y"], ["--outptu", "did you mean --output?"]),
        (["verdict", "table.csv", "--margn=1"], ["--margn", "did you mean --margin?"]),
        (["run", "--multrun"], ["--multrun", "did you mean --multirun?"]),
        (["stability", "--cgf=job"], ["--cgf", "did you mean --cfg?"]),
        (["export"], ["ticket, output"]),
        (["options", "prunning"], ["prunning", "did you mean pruning?"]),
        (["options", "xyzzy"], ["xyzzy"]),
        (["run", "modle=resnet8"], ["modle", "did you mean model?"]),
        (["run", "model=resnt8"], ["model", "did you mean resnet8?"]),
        (["run", "pruning.rte=0.2"], ["pruning.rte", "did you mean rate?"]),
        (["run", "pruning.rate=2"], ["pruning.rate=2"]),
        (["run", "search=bisec"], ["search='bisec'", "did you mean bisect?"]),
        (["run", "seeds=many"], ["seeds=many"]),
        (["run", "-m", "modle=resnet8"], ["modle", "did you mean model?"]),
        (["stability", "stability.pionts=3"], ["stability.pionts", "did you mean points?"]),
        (["report", "rnus"], ["rnus", "did you mean runs?"]),
        (["status", "rnus"], ["rnus", "did you mean runs?"]),
        (["export", "runs/tikcet", "out"], ["runs/tikcet", "did you mean ticket?"]),
        (["export", "runs/ticket", "out"], ["runs/ticket"]),
        (["export", "runs/ticket", "out", "--batch-size=many"], ["--batch-size", "many"]),
        (["verdict", "tabel.csv"], ["tabel.csv", "did you mean table.csv?"]),
        (["verdict", "table.csv", "--seed", "sed"], ["'sed'", "did you mean seed?"]),
        (["verdict", "table.csv", "--reference", "dnse"], ["'dnse'", "did you mean dense?"]),
        (["verdict", "table.csv", "--confidence", "2"], ["confidence=2"]),
        (["verdict", "table.csv", "--margin", "200"], ["--margin", "200"]),
        (["verdict", "table.csv", "--margin", "half"], ["--margin", "half"]),
    ],
)
def test_what_is_impossible_ends_in_one_line_with_exit_code_2(
    arguments: list[str], parts: list[str], typed: Type, tmp_path: Path
) -> None:
    (tmp_path / "runs" / "ticket").mkdir(parents=True)
    (tmp_path / "table.csv").write_text("setting,seed,accuracy\ndense,0,0.9\nimp,0,0.9\n")
    code, printed, said = typed(*arguments)
    assert (code, printed) == (2, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "table.csv"]
    (line,) = said.splitlines()
    assert line.startswith("error: ")
    assert [part for part in parts if part not in line] == []


def test_help_needs_no_pytorch_and_a_module_is_a_command(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "for asked in (['--help'], ['run', '--help']):\n"
        "    sys.argv = ['lt-lightning', *asked]\n"
        "    runpy.run_module('lt_lightning', run_name='__main__')\n"
        "sys.exit(f'imported: {heavy}' if (heavy := {'torch', 'pytorch_lightning', 'wandb'} & set(sys.modules)) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: ") == 2


@pytest.mark.parametrize("page", ["options", "tutorial"])
def test_help_of_what_writes_a_page_leaves_it(page: str) -> None:
    before = (ROOT / "docs" / f"{page}.md").stat()
    command = [sys.executable, str(ROOT / "docs" / f"{page}_page.py"), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("usage: ")
    assert (ROOT / "docs" / f"{page}.md").stat() == before


def test_commands_get_their_arguments(typed: Type, tmp_path: Path) -> None:
    assert typed("--version")[1] == f"lt-lightning {__version__}\n"
    assert typed("status", ".")[1].splitlines()[-1] == "0 done, 0 running, 0 failed, 0 missing"
    (tmp_path / "table.csv").write_text(
        "method,seed,accuracy\n" + "".join(f"{m},{s},9{s}\n" for m in "ab" for s in "12")
    )
    code, printed, _ = typed("verdict", "table.csv", "--setting", "method", "--reference", "a", "--json")
    assert (code, json.loads(printed)["rows"][0]["seeds"]) == (0, 2)


def test_options_are_found_by_group_and_by_word(typed: Type) -> None:
    assert "resnet8*" in typed("options")[1]
    group = typed("options", "schedule")[1]
    assert "one_cycle" in group
    assert "classifier.schedule.peak=0.3 (one_cycle)" in group
    found = typed("options", "rewind")[1]
    assert "pruning.rewind=1ep" in found
    assert all("rewind" in part for part in found.split("\n  pruning.")[1:2])
    assert max(map(len, (group + found).splitlines())) <= 80


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lt-lightning st", ["status", "stability"]),
        ("lt-lightning run pruning=s", ["pruning=snip", "pruning=synflow"]),
        ("lt-lightning stability stability.po", ["stability.points="]),
        ("lt-lightning report r", []),
    ],
)
def test_completion(line: str, expected: list[str], typed: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    code, printed, _ = typed("-sc", "query=bash")
    assert (code, printed.split()) == (0, expected)
