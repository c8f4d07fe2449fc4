"""Every command of `lt-lightning run` that a page shows is one that can be given."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import open_dict

from lt_lightning.__main__ import COMMANDS
from lt_lightning.cli import spelled_out
from lt_lightning.experiment.run.job import Job

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> Iterator[tuple[str, str]]:
    """Page and arguments of each; those with a folder of the user's own are tested beside the page that has them."""
    for page in PAGES:
        for command in re.findall(r"lt-lightning run\b([^`\n]*)", page.read_text(encoding="utf-8")):
            if not any(each in command for each in ("KEY=VALUE", "NAME", "RUNS/", "--config-dir", "--help")):
                yield page.name, command


def test_every_command_that_is_named_is_one() -> None:
    named = {
        name for page in PAGES for name in re.findall(r"[`\n]lt-lightning (\w+)", page.read_text(encoding="utf-8"))
    }
    assert named - set(COMMANDS) == set()
    assert len(named) > 5


def first_of(override: str) -> str:
    """Of a sweep its first job."""
    (parsed,) = OverridesParser.create().parse_overrides([override])
    if not parsed.is_discrete_sweep():
        return override
    return f"{parsed.get_key_element()}={next(parsed.sweep_string_iterator())}"


def test_every_command_of_the_pages_composes() -> None:
    shown = dict.fromkeys(commands())
    assert len(shown) > 15
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        for page, command in shown:
            given = [each for each in spelled_out(shlex.split(command, comments=True)) if each != "-m"]
            try:
                config = compose("run", [first_of(each) for each in given], return_hydra_config=True)
                HydraConfig.instance().set_config(config)
                with open_dict(config):
                    del config["hydra"]
                assert Job.of(config).tasks
            except Exception as error:
                error.add_note(f"{page}: lt-lightning run{command}")
                raise
    HydraConfig.instance().cfg = None
