"""The steps for a machine with a GPU go on where they were stopped; they themselves are run where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import DONE, Step, run, steps, told


def python(code: str) -> tuple[str, ...]:
    return ("-c", code)


def test_what_is_done_is_not_run_again_and_what_failed_or_was_stopped_is(tmp_path: Path) -> None:
    counted = f"open(r'{tmp_path / 'runs'}', 'a').write('x')"
    marker = tmp_path / "marker"
    todo = [
        Step("first", python(counted)),
        Step("breaks", python(f"import pathlib, sys; sys.exit(not pathlib.Path(r'{marker}').exists())")),
        Step("long", python(f"import pathlib, time; time.sleep(0 if pathlib.Path(r'{marker}').exists() else 60)")),
        Step("last", python(counted)),
    ]
    ended = run(todo, tmp_path / "out", seconds=3)
    assert {name: each["status"] for name, each in ended.items()} == {"first": 0, "breaks": 1, "long": -1}
    assert "not begun" in told(todo, ended)
    marker.touch()
    ended = run(todo, tmp_path / "out", seconds=60)
    assert {each["status"] for each in ended.values()} == {0}
    assert (tmp_path / "runs").read_text() == "xx"
    written = json.loads((tmp_path / "out" / DONE).read_text())
    assert written["steps"] == ended
    assert {"cpu", "versions"} <= written["environment"].keys()
    assert ended["long"]["seconds"] >= 1


def test_the_programs_of_the_steps_take_their_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is called with `--help` behind its arguments, which they would refuse first if they did not know them."""
    from benchmarks import budgets
    from benchmarks.__main__ import main as networks
    from benchmarks.training.__main__ import main as training

    mains = {"networks": networks, "training": training, "budgets": budgets.main}
    found = {step.name: step.arguments for step in steps(tmp_path)}
    assert set(mains) < set(found)
    for name, program in mains.items():
        with pytest.raises(SystemExit) as ended:
            program([*found[name][2:], "--help"])
        assert ended.value.code == 0
    capsys.readouterr()


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU"):
        gpu.main([])
    gpu.main(["--wheels"])
    assert "hydra-core" in capsys.readouterr().out
