"""What a public repository has does what it says: the workflow, the hooks, the templates, the table of versions."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def test_the_workflow_runs_the_check_on_every_promised_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    promised = [each.rpartition(" ")[2] for each in project["classifiers"] if "Python :: 3." in each]
    (job,) = read(".github/workflows/check.yml")["jobs"].values()
    assert job["strategy"]["matrix"]["python"] == promised
    assert project["requires-python"] == f">={promised[0]}"
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_hooks_are_the_checks_of_the_makefile() -> None:
    """Local ones: nothing is downloaded, and versions are those of the environment."""
    (repository,) = read(".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    tools = {hook["entry"].partition(" --")[0] for hook in repository["hooks"]}
    checks = re.findall(r"\$\(VENV\)/bin/(ruff \w+|mypy|lint-imports)", (ROOT / "Makefile").read_text())
    assert tools == set(checks)


def test_templates_of_issues_are_forms() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name != "config.yml":
            assert form.keys() >= {"name", "description", "body"}
            assert len({each["id"] for each in form["body"]}) == len(form["body"]), path.name


def test_the_versions_that_everything_was_tested_with_are_the_pinned_ones() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    (row,) = re.findall(r"^\| constraints\.txt \|(.*)\|$", (ROOT / "docs" / "versions.md").read_text(), re.MULTILINE)
    cells = [cell.strip().partition(" ")[0] for cell in row.split("|")]
    names = ("torch", "pytorch-lightning", "hydra-core", "omegaconf")
    assert cells[: len(names)] == [pinned[name].partition("+")[0] for name in names]
