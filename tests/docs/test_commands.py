"""Every command that a page shows is one that can be given."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep

from lt_lightning.__main__ import COMMANDS
from lt_lightning.cli import run, spelled_out
from lt_lightning.experiment.run.job import Job
from tests.experiment.config.test_presets import write_data
from tests.runs import Compose

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Placeholders, and folders of the user's own, which are tested beside the page that has them.
OPEN = ("KEY=VALUE", "KEY=", "GROUP", "NAME", "RUNS/", "TICKET", "--config-dir", "--help", "…", "...")


def shown(pattern: str) -> Iterator[tuple[str, str]]:
    """Page and what the group of the pattern matches, each once."""
    for page in PAGES:
        for found in dict.fromkeys(re.findall(pattern, page.read_text(encoding="utf-8"))):
            if not any(each in found for each in OPEN):
                yield page.name, found


def first_of(override: str) -> str:
    """Of a sweep its first job."""
    (parsed,) = OverridesParser.create().parse_overrides([override])
    value = parsed.value()
    if isinstance(value, IntervalSweep):
        return f"{parsed.get_key_element()}={value.start}"
    if not parsed.is_discrete_sweep():
        return override
    return f"{parsed.get_key_element()}={next(parsed.sweep_string_iterator())}"


def check(page: str, command: str, composed: Compose) -> None:
    """Compose the first job of a command, and make its list of tasks."""
    given = [each for each in spelled_out(shlex.split(command, comments=True)) if each != "-m"]
    try:
        assert Job.of(composed(*map(first_of, given))).tasks
    except Exception as error:
        error.add_note(f"{page}: {command}")
        raise


def test_every_job_of_the_pages_composes(composed: Compose) -> None:
    """Also one that torchrun starts."""
    commands = list(shown(RUNS))
    assert len(commands) > 30
    assert any("trainer.num_nodes=2" in command for _, command in commands)
    for page, command in commands:
        check(page, command, composed)


RUNS = r"(?:lt-lightning|-m lt_lightning) run((?: [^`\n]*)?)(?=[`\n])"
ELSEWHERE = (
    "my_package", "hydra/launcher=slurm", "trainer.num_nodes=2",  # what a page says has to be there
    "budget=time",  # which so small a network cannot meet
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted({command for _, command in shown(RUNS)}))
def test_every_job_of_the_pages_runs_at_smoke_scale(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As printed, but for the scale, and data of random images where the page's are downloaded."""
    if any(each in command for each in ELSEWHERE):
        pytest.skip("needs a package of one's own, or a cluster")
    write_data(tmp_path / "data", monkeypatch)
    monkeypatch.setenv("WANDB_MODE", "offline")
    lengths = ("trainer.max_epochs=", "pruning.rewind=")  # which the scale sets
    given = [each for each in shlex.split(command, comments=True) if not each.startswith(lengths)]
    sizes = ["data.validation=20"] if "cifar" in command or "transfer_small" in command else []  # of 160 images
    scale = ["scale=smoke", f"paths.data={tmp_path / 'data'}", f"paths.root={tmp_path / 'runs'}"]
    monkeypatch.setattr(sys, "argv", ["lt-lightning", *given, *sizes, *scale])
    run()
    told = capsys.readouterr().out
    assert "FAILED" not in told
    assert "plan=true" in given or "status=true" in given or "0 failed" in told or "dense" in told


def test_launchers_and_sweepers_of_the_pages_compose(composed: Compose) -> None:
    launchers = list(shown(r"`(hydra/(?:launcher|sweeper)=[^`]+)`"))
    assert {"joblib", "submitit_local", "slurm", "slurm_nodes", "ray"} <= {
        command.split()[0].partition("=")[2] for _, command in launchers
    }
    for page, command in launchers:
        name = command.split()[0].partition("=")[2]
        plugin = {"joblib": "joblib_launcher", "ray": "ray_launcher", "tune": "optuna_sweeper"}
        if find_spec(f"hydra_plugins.hydra_{plugin.get(name, 'submitit_launcher')}") is not None:
            check(page, command, composed)


def test_what_is_said_to_be_added_to_a_job_composes(composed: Compose) -> None:
    """The columns of docs/coming_from.md that say what is written here, of projects with a command line or recipes."""
    _, _, page = (ROOT / "docs" / "coming_from.md").read_text().partition("## open_lth\n")
    cells = [line.split(" | ")[1] for line in page.splitlines() if line.startswith("| ") and " | " in line]
    groups = "pruning|structure|controls|retrain_rounds|execution|seeds?|density|schedule|trainer|classifier"
    options = [each for cell in cells for each in re.findall(rf"`((?:{groups})\S*=[^`(]*[^`=(])`", cell)]
    assert len(options) > 15
    for option in options:
        check("coming_from.md", option, composed)


def test_every_other_command_is_there() -> None:
    scripts = {name for _, name in shown(r"python ((?:scripts|docs)/\w+\.py)")}
    assert "docs/tutorial.py" in scripts
    assert {name for name in scripts if not (ROOT / name).is_file()} == set()
    modules = {name for _, name in shown(r"python -m (benchmarks[\w.]*)")}
    assert modules
    assert {name for name in modules if find_spec(name) is None} == set()
    verbs = {name for _, name in shown(r"(?:^|[`\n]|PYTHONPATH=\. )lt-lightning (\w+)")}
    assert verbs - set(COMMANDS) == set()
    assert len(verbs) > 5
