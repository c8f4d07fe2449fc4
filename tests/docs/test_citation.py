"""What the files beside the README say agrees with the package."""

from __future__ import annotations

import tomllib
from pathlib import Path

import yaml

import lt_lightning

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_citation_names_the_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the format requires
    assert citation["version"] == lt_lightning.__version__
    assert citation["license"] == PROJECT["license"] == "MIT"
    (paper,) = citation["references"]
    assert paper["year"] == 2022
    assert [author["family-names"] for author in paper["authors"]] == ["Chen", "Chen", "Ma", "Wang", "Wang"]
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n\nCopyright (c) 2026 The LT-Lightning authors\n")


def test_changelog_has_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog
    assert lt_lightning.__version__ in changelog
