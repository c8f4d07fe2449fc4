"""Where it all came from: commands, hardware, versions, seeds, configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from omegaconf import OmegaConf

from lt_lightning.report.facts import environment_of
from lt_lightning.report.found import Found
from lt_lightning.report.page import Page, heading, paragraph, table


def add_origin(page: Page, found: Found) -> None:
    """Adds the part."""
    blocks = [heading("Made again by")]
    if found.asked:
        commands = dict.fromkeys(asked.command for asked in found.asked)
        blocks.append(f"<pre>{escape(chr(10).join(commands))}</pre>")
    else:
        blocks.append(paragraph("The commands were not kept: no record of jobs lies beside the searches."))
    blocks.append(heading("Hardware and versions"))
    blocks += [_environment(names, facts) for names, facts in _environments(found)]
    blocks.append(heading("Configuration"))
    for search in found.searches:
        shown = OmegaConf.to_yaml(OmegaConf.create(dict(search.config))) if search.config else "cannot be read"
        blocks.append(
            f"<details><summary>{escape(search.folder.name)}, seed {search.seed}</summary>"
            f"<pre>{escape(shown)}</pre></details>"
        )
    page.add("origin", "Origin", *blocks)


def _environments(found: Found) -> list[tuple[list[str], Mapping[str, Any]]]:
    """Names of searches, and what they ran with; those that ran with the same stand together."""
    together: list[tuple[list[str], Mapping[str, Any]]] = []
    for search in found.searches:
        facts = environment_of(search.folder)
        names = next((names for names, others in together if others == facts), None)
        if names is None:
            together.append((names := [], facts))
        names.append(search.folder.name)
    return together


def _environment(names: Sequence[str], facts: Mapping[str, Any]) -> str:
    if not facts:
        return paragraph(f"{', '.join(names)}: not recorded.")
    what = f"<summary>{escape(', '.join(names))}</summary>"
    told = table(("what", "value"), [(key, _told(value)) for key, value in facts.items()], left=(0, 1))
    return f"<details open>{what}{told}</details>"


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return str(value)
