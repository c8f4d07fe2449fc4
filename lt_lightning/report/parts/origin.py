"""Where it all came from: commands, hardware, versions, seeds, configuration."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from omegaconf import OmegaConf

from lt_lightning.report.facts import environment_of
from lt_lightning.report.found import Found
from lt_lightning.report.page import Page, heading, paragraph, table


def add_origin(page: Page, found: Found) -> None:
    """Adds the part."""
    blocks = [heading("Made again by")]
    if found.asked:
        blocks.append(f"<pre>{escape(chr(10).join(asked.command for asked in found.asked))}</pre>")
    else:
        blocks.append(paragraph("The commands were not kept: no record of jobs lies beside the searches."))
    blocks.append(heading("Hardware and versions"))
    for search in found.searches:
        if facts := environment_of(search.folder):
            what = f"<summary>{escape(search.folder.name)}</summary>"
            told = table(("what", "value"), [(key, _told(value)) for key, value in facts.items()], left=(0, 1))
            blocks.append(f"<details open>{what}{told}</details>")
        else:
            blocks.append(paragraph(f"{search.folder.name}: not recorded."))
    blocks.append(heading("Configuration"))
    for search in found.searches:
        shown = OmegaConf.to_yaml(OmegaConf.create(dict(search.config))) if search.config else "cannot be read"
        blocks.append(
            f"<details><summary>{escape(search.folder.name)}, seed {search.seed}</summary>"
            f"<pre>{escape(shown)}</pre></details>"
        )
    page.add("origin", "Origin", *blocks)


def _told(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return str(value)
