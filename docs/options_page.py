"""Writes docs/options.md, the reference of all options, from where they are declared, `conf/` and docstrings."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from lt_lightning.experiment.config.option_rows import OWN, Choice, groups, main_job, rows_of, stability_job
from lt_lightning.storage.config_groups import CONF
from lt_lightning.storage.files import write_bytes

PAGE: Final = Path(__file__).resolve().parent / "options.md"

INTRODUCTION: Final = """\
---
search:
  boost: 10
---

# Options

<!-- Written by `python docs/options_page.py`. Change the options, conf/ or the docstrings, and run it again. -->

`lt-lightning run GROUP=CHOICE KEY=VALUE …` replaces any of what follows. `--cfg job` shows what a command line
composes to. A key that is not in the configuration is refused; `+KEY=VALUE` adds one that the class takes all the same,
`~KEY` removes one. Lists are written `[a,b]`; with `-m`, `KEY=a,b` runs a job for each value. `seeds=5` stands for
`-m seed=0,1,2,3,4`, and `density=0.5,0.1` for `pruning.density=[0.5,0.1]`. Where a default is followed by names in
brackets it is that of these choices. `NAME` in a key stands for the name of the choice.
"""


def page(conf: Path = CONF) -> str:
    """The whole reference, as Markdown."""
    parts = [INTRODUCTION, "## The main job\n", _table([main_job(conf)])]
    for name, choices in groups(conf).items():
        parts += _group(name, choices)
    stability = stability_job(conf)
    parts += ["## The job of `lt-lightning stability`\n", stability.text + "\n", _table([stability])]
    return "\n".join(parts)


def _group(group: str, choices: Sequence[Choice]) -> Iterator[str]:
    yield f"## {group}\n"
    if all(choice.preset for choice in choices):
        yield _rows(("choice", "what it is", "sets"), [(_code(c.name), c.text, _settings(c)) for c in choices])
        return
    rows = [(_code(c.name), _described(c), ", ".join(map(_linked, c.targets))) for c in choices]
    yield _rows(("choice", "what it is", "made of"), rows)
    if any(choice.options for choice in choices):
        yield _table(choices)


def _described(choice: Choice) -> str:
    starts = f"Starts from {', '.join(map(_code, choice.parents))}." if choice.parents else ""
    return " ".join(filter(None, [choice.text, starts]))


def _settings(choice: Choice) -> str:
    parents = [f"all of {_code(parent)}" for parent in choice.parents]
    own = [f"{_code(f'{option.key}={option.default}')} {option.meaning}".strip() for option in choice.options]
    return "<br>".join(parents + own)


def _table(choices: Sequence[Choice]) -> str:
    rows = [(_code(row.key), _defaults(row.defaults), row.values, row.meaning) for row in rows_of(choices)]
    return _rows(("key", "default", "values", "meaning"), rows)


def _defaults(names: Mapping[str, str]) -> str:
    return "<br>".join(_code(default) + (f" ({of})" if of else "") for default, of in names.items())


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["-"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _linked(target: str) -> str:
    """A name, with a link into the pages of the package if it is ours (see `docs/api_pages.py`)."""
    if not target.startswith(OWN):
        return _code(target)
    folder, *rest = target.removeprefix(OWN).split(".")
    return f"[{_code(target.rpartition('.')[2])}](api/{folder if len(rest) > 1 else 'lt_lightning'}.md#{target})"


if __name__ == "__main__":
    ArgumentParser(description=__doc__).parse_args()
    write_bytes(PAGE, page().encode())
