"""What may be written on the command line of a job: every option, read from where it is declared.

Options of the job are declared in `options.py`; those of the groups in `conf/`, whose comments and whose classes'
docstrings say what they mean. `lt-lightning options` prints them, and `docs/options_page.py` writes them on a page.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, get_type_hints

import yaml
from hydra.utils import get_object

from lt_lightning.experiment.config.checks import annotated, describe, shown
from lt_lightning.experiment.config.options import JobOptions, Stability, defaults_of, described, nested_options
from lt_lightning.storage.config_groups import CONF

OWN: Final = "lt_lightning."
REFERENCE: Final = re.compile(r"(see|likewise)\b")  # how an argument's text begins that is explained elsewhere
FREE_FORM: Final = ("published",)  # nodes whose keys are no options


@dataclass(frozen=True)
class Option:
    """A key of a YAML file that has a value.

    Attributes:
        key: as it is written on the command line.
        default: as it stands in the file; empty for a node of keys.
        values: allowed values, as far as an annotation tells.
        meaning: meaning by the docstring of what takes it, else by the comment in the file.
    """

    key: str
    default: str
    values: str
    meaning: str


@dataclass(frozen=True)
class Choice:
    """A YAML file.

    Attributes:
        name: name of the file, without suffix.
        text: comment at its top.
        parents: choices of the same group that it starts from.
        targets: names of what it makes.
        options: its keys.
        preset: whether it sets keys of other groups, and none of its own.
    """

    name: str
    text: str
    parents: Sequence[str]
    targets: Sequence[str]
    options: Sequence[Option]
    preset: bool


@dataclass(frozen=True)
class OptionRow:
    """What the choices of a group say of one key.

    Attributes:
        key: as it is written on the command line.
        defaults: every default, with the names of the choices that have it, unless that goes without saying.
        values: allowed values, as far as an annotation tells.
        meaning: meaning of the key.
    """

    key: str
    defaults: Mapping[str, str]
    values: str
    meaning: str


# All of it


def main_job(conf: Path = CONF) -> Choice:
    """Return the options of `lt-lightning run` that belong to no group."""
    job = read_choice(conf / "run.yaml", conf)
    return replace(job, options=[*job.options, *_declared(JobOptions)])


def stability_job(conf: Path = CONF) -> Choice:
    """Return the options that `lt-lightning stability` adds."""
    job = read_choice(conf / "stability.yaml", conf)
    return replace(job, options=[*_declared(Stability, "stability."), *job.options])


def groups(conf: Path = CONF) -> dict[str, list[Choice]]:
    """Return the choices of every group, by the group's name."""
    folders = sorted(path for path in conf.rglob("*") if path.is_dir())
    read_in = {folder: [read_choice(file, conf) for file in sorted(folder.glob("*.yaml"))] for folder in folders}
    return {folder.relative_to(conf).as_posix(): choices for folder, choices in read_in.items() if choices}


def rows_of(choices: Sequence[Choice]) -> list[OptionRow]:
    """Return a row for every key and meaning; where the choices differ, each default names those that have it."""
    base = next((choice for choice in choices if _is_base(choice, choices)), None)
    of_base = {option.key: option for option in base.options} if base else {}
    found: dict[tuple[str, str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for choice in sorted(choices, key=lambda choice: choice is not base):
        for option in choice.options:
            row = of_base.get(option.key, option)
            remark = option.meaning if option.meaning not in (row.meaning, _elsewhere(choice.targets)) else ""
            found[row.key, row.values, row.meaning][option.default].append(
                ": ".join(filter(None, [choice.name, remark]))
            )
    everywhere = {", ".join(choice.name for choice in choices), base.name if base else ""}
    return [
        OptionRow(key, _with_names(defaults, everywhere), values, meaning)
        for (key, values, meaning), defaults in found.items()
    ]


def _is_base(choice: Choice, choices: Sequence[Choice]) -> bool:
    """Whether there are other choices, and all of them start from it."""
    others = [other for other in choices if other is not choice]
    return bool(others) and all(choice.name in other.parents for other in others)


def _with_names(defaults: Mapping[str, Sequence[str]], everywhere: Container[str]) -> dict[str, str]:
    joined = {default: ", ".join(names) for default, names in defaults.items()}
    return {default: "" if names in everywhere else names for default, names in joined.items()}


# What is declared in Python


def _declared(kind: type[Any], prefix: str = "") -> Iterator[Option]:
    """Yield the options that a job is composed with, and that no YAML file explains."""
    explained, defaults = arguments_in(inspect.getdoc(kind) or ""), defaults_of(kind)
    for each in fields(kind):
        if each.name not in defaults:
            continue
        key, default = f"{prefix}{each.name}", defaults[each.name]
        meaning = each.metadata.get("help") or explained[each.name].rstrip(".")
        if (inner := nested_options(kind).get(each.name)) is not None:
            yield Option(key, "", "", meaning)
            yield from _declared(inner, f"{key}.")
        elif isinstance(default, dict) and default:
            yield from (Option(f"{key}.{name}", _source(value), "", meaning) for name, value in default.items())
        else:
            yield Option(key, _source(default), described(kind, each.name), meaning)


def _source(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


# The files


def read_choice(file: Path, conf: Path = CONF) -> Choice:
    """Reads a YAML file with its comments."""
    text = _Text(file.read_text())
    root = yaml.compose(text.text)
    group = ".".join(file.relative_to(conf).parent.parts)
    prefix = text.package(group)
    preset = not prefix and group not in map(_name, _pairs(root))
    options = [*_overridden(_entries(root)), *_walk(text, root, prefix, "" if preset else _root_target(file), preset)]
    targets = [] if preset else [option.default for option in options if option.key.endswith("_target_")]
    own = f"{group}.{file.stem}."
    return Choice(
        name=file.stem,
        text=text.top or next(map(_summary, targets), ""),
        parents=[entry for entry in _entries(root) if isinstance(entry, str) and entry != "_self_"],
        targets=targets,
        options=[
            replace(option, key=option.key.replace(own, f"{group}.NAME.") if option.key.startswith(own) else option.key)
            for option in options
            if preset or not option.key.endswith("_target_")
        ],
        preset=preset,
    )


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return node.value if isinstance(node, yaml.MappingNode) else []


def _name(pair: tuple[yaml.Node, yaml.Node]) -> str:
    return str(pair[0].value)


def _entries(root: yaml.Node | None) -> list[Any]:
    """The file's list of defaults."""
    lists = [pair[1] for pair in _pairs(root) if _name(pair) == "defaults"]
    return [yaml.SafeLoader("").construct_document(entry) for each in lists for entry in each.value]


def _overridden(entries: Sequence[Any]) -> Iterator[Option]:
    """What a list of defaults says of groups."""
    for entry in entries:
        for key, value in entry.items() if isinstance(entry, dict) else ():
            name = key.removeprefix("override ").removeprefix("/")
            default = f"[{','.join(value)}]" if isinstance(value, list) else str(value or "null")
            yield Option(name, default, "", f"the group [{name}](#{name})")


def _root_target(file: Path) -> str:
    """What the file's root names, itself or by what it starts from."""
    root = yaml.compose(file.read_text())
    bases = [file.with_name(f"{entry}.yaml") for entry in _entries(root) if isinstance(entry, str)]
    return _target(root) or next((_root_target(base) for base in bases if base.is_file()), "")


def _target(node: yaml.Node | None) -> str:
    return next((str(pair[1].value) for pair in _pairs(node) if _name(pair) == "_target_"), "")


def _walk(text: _Text, node: yaml.Node | None, prefix: str, target: str, preset: bool) -> Iterator[Option]:
    """The keys below a node, in order; those of nodes only where there is a comment on them."""
    for key, value in _pairs(node):
        name = str(key.value)
        path = f"{prefix}.{name}".strip(".")
        if name == "defaults":
            continue
        comment = text.comment(key, value)
        if name in FREE_FORM and value.value:
            yield Option(path, "…", "", comment)
        elif _pairs(value):
            if comment:
                yield Option(path, "", "", comment)
            yield from _walk(text, value, path, "" if preset else _target(value), preset)
        else:
            explained = _meanings(target).get(name, "")
            texts = [comment, explained] if REFERENCE.match(explained) else [explained, comment]
            meaning = next(filter(None, [*texts, _elsewhere([target])]), "")
            yield Option(path, text.source(value), _values(target).get(name, ""), meaning.rstrip("."))


class _Text:
    """A YAML file as text."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = text.splitlines()
        self.head = next((n for n, line in enumerate(self.lines) if not line.startswith("#")), len(self.lines))
        self.top = _joined(line for line in self.lines[: self.head] if not line.startswith("# @package"))

    def package(self, group: str) -> str:
        """Below which key the file's keys are."""
        named = re.search(r"^# @package (\S+)", self.text, re.MULTILINE)
        return (named[1] if named else group).replace("_global_", "")

    def source(self, node: yaml.Node) -> str:
        """A node as it is written, on one line."""
        return " ".join(self.text[node.start_mark.index : node.end_mark.index].split())

    def comment(self, key: yaml.Node, value: yaml.Node) -> str:
        """What is written behind a value, and on the lines above the key."""
        first = key.start_mark.line
        while first > self.head and self.lines[first - 1].lstrip().startswith("#"):
            first -= 1
        end = key.end_mark if isinstance(value, yaml.MappingNode) else value.end_mark
        _, _, behind = self.lines[end.line][end.column :].partition("# ")
        return _joined([*self.lines[first : key.start_mark.line], behind])


def _joined(comments: Iterable[str]) -> str:
    """Lines of comment as text; indented ones stay lines of their own."""
    lines = [line.strip().removeprefix("#").removeprefix(" ") for line in comments]
    return re.sub(
        r"\s*\n\s*", " ", "\n".join(f"<br>{line.strip()}" if line.startswith(" ") else line for line in lines)
    ).strip()


# What the options mean


@cache
def _meanings(target: str) -> Mapping[str, str]:
    """What the docstrings of a class and its bases, or of a function and what it returns, say of the arguments."""
    found: dict[str, str] = {}
    for object_ in _described_by(target):
        for name, text in arguments_in(inspect.getdoc(object_) or "").items():
            if REFERENCE.match(found.get(name, "see")):
                found[name] = text
    return found


def _described_by(target: str) -> Iterator[object]:
    if target.startswith(OWN):
        named = get_object(target)
        yield named
        made = named if inspect.isclass(named) else get_type_hints(named).get("return")
        yield from getattr(made, "__mro__", ())[:-1]


def arguments_in(docstring: str) -> dict[str, str]:
    """The arguments or attributes that a docstring in Google style describes.

    >>> arguments_in("What it is.\\n\\nArgs:\\n    size: of it,\\n        in pixels.\\n    name: to show.")
    {'size': 'of it, in pixels.', 'name': 'to show.'}
    """
    found = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", docstring + "\n", re.MULTILINE):
        for name, text in re.findall(r"^    (\w+): ((?:.*\n)(?:     .*\n|\n(?=     ))*)", section, re.MULTILINE):
            found[name] = " ".join(text.split())
    return found


@cache
def _values(target: str) -> Mapping[str, str]:
    """What may be given for the arguments, as far as their annotations tell."""
    if not target.startswith(OWN):
        return {}
    hints, _ = annotated(get_object(target))
    return {name: describe(hint).replace("_target_", "`_target_`") for name, hint in hints.items()}


def _elsewhere(targets: Sequence[str]) -> str:
    """Where the options of classes of other packages are explained."""
    others = [f"`{target}`" for target in targets if target and not target.startswith(OWN)]
    return f"see {', '.join(others)}" if others else ""


def _summary(target: str) -> str:
    """The first paragraph of a docstring of ours."""
    described = (inspect.getdoc(get_object(target)) or "") if target.startswith(OWN) else ""
    return " ".join(described.partition("\n\n")[0].split())
