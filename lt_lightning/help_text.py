"""What the terminal shows of the options of a job, in 80 columns: `lt-lightning run --help`, `lt-lightning options`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import Final

from lt_lightning.arguments import WIDTH
from lt_lightning.experiment.config.option_rows import Choice, OptionRow, groups, main_job, rows_of, stability_job
from lt_lightning.storage.config_groups import CONF
from lt_lightning.storage.near_names import did_you_mean

FLAGS: Final = """\
Flags of Hydra:
  -m, --multirun           run a job for each value of KEY=A,B
  -c job, --cfg job        print the configuration, and run nothing
  -cd DIR, --config-dir    add a folder with groups of your own
  --info                   print what Hydra knows: search path, defaults
  --hydra-help             list all flags"""


def run_help() -> str:
    """Return the options of `lt-lightning run`: its groups, and what belongs to none."""
    own = [row for row in rows_of([main_job()]) if "/" not in row.key and not (CONF / row.key).is_dir()]
    return "\n".join(
        [
            "Groups (GROUP=CHOICE; * is taken if none is named):",
            *_group_lines(),
            "\nOptions of the job (KEY=VALUE; `lt-lightning options GROUP` explains others):",
            *map(entry, own),
            "\n" + FLAGS,
        ]
    )


def stability_help() -> str:
    """Return the options that `lt-lightning stability` adds to those of `lt-lightning run`."""
    entries = (entry(row) for row in rows_of([stability_job()]) if not row.key.startswith("hydra."))
    return "\n".join(["Options, beside those of `lt-lightning run`:", *entries, "\n" + FLAGS])


def explain(words: Sequence[str]) -> str:
    """Return what is known of some words: groups, choices, and options whose key or meaning holds all words.

    Args:
        words: names of groups, keys or parts of them, or words of an explanation; none lists the groups.

    Raises:
        ValueError: if there is nothing of that name.
    """
    if not words:
        text = "\n".join(["Groups (* is taken if none is named):", *_group_lines()])
        return f"{text}\n\n`lt-lightning options GROUP`, or KEY, or any word, explains the options."
    known = groups()
    if len(words) == 1 and words[0] in known:
        return "\n".join(_group_entries(known[words[0]]))
    rows = [row for choices in ([main_job()], [stability_job()], *known.values()) for row in _own_rows(choices)]
    found = [row for row in rows if all(word.lower() in f"{row.key} {row.meaning}".lower() for word in words)]
    if not found:
        names = {name for row in rows for name in (row.key, *row.key.split("."))} | set(known)
        near = did_you_mean(words[0], sorted(names))
        raise ValueError(f"{' '.join(words)}: no group and no option has this name or explanation{near}")
    return "\n".join(map(entry, found))


def entry(row: OptionRow) -> str:
    """Return the lines of one option.

    >>> print(entry(OptionRow("a.b", {"1": "", "2": "big"}, "a whole number", "size of it")))
      a.b=1
          or 2 (big)
          size of it; a whole number
    """
    first, *others = row.defaults.items()
    lines = [_filled(f"{row.key}{'=' * bool(first[0])}{_of(*first)}", 2)]
    lines += [_filled(f"or {_of(*other)}", 6) for other in others]
    paragraphs = "; ".join(filter(None, [row.meaning, row.values])).split("<br>")
    return "\n".join(lines + [_filled(paragraph, 6) for paragraph in paragraphs if paragraph])


def _of(default: str, names: str) -> str:
    return f"{default} ({names})" if names else default


def _filled(text: str, indent: int) -> str:
    return fill(text, WIDTH, initial_indent=" " * indent, subsequent_indent=" " * (indent + 2), break_on_hyphens=False)


def _own_rows(choices: Sequence[Choice]) -> list[OptionRow]:
    """Return the rows of a group; none if all its choices are presets, which only set what others declare."""
    return [] if all(choice.preset for choice in choices) else rows_of(choices)


def _group_entries(choices: Sequence[Choice]) -> Iterator[str]:
    for choice in choices:
        starts = f"Starts from {', '.join(choice.parents)}." if choice.parents else ""
        yield f"{choice.name}\n" + _filled(" ".join(filter(None, [choice.text, starts])), 4)
    if rows := _own_rows(choices):
        yield "\nOptions:"
        yield from map(entry, rows)


def _group_lines() -> Iterator[str]:
    """Yield the choices of every group, by the names of the files alone: no class has to be imported for that."""
    taken = {option.key: option.default.strip("[]").split(",") for option in main_job().options}
    for folder in sorted(path for path in CONF.rglob("*") if path.is_dir()):
        group = folder.relative_to(CONF).as_posix()
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        if names:
            marked = [f"{name}*" if name in taken.get(group, ()) else name for name in names]
            yield fill(f"  {group:<15} {', '.join(marked)}", WIDTH, subsequent_indent=" " * 18, break_on_hyphens=False)
