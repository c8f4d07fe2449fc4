"""Tables of accuracies of any origin: a line for each training, with setting, seed, accuracy and perhaps sparsity."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lt_lightning.storage.near_names import did_you_mean


@dataclass(frozen=True)
class ColumnNames:
    """The names of a table's columns.

    Attributes:
        setting: columns whose values together name a setting.
        seed: column of the seed.
        accuracy: column of the accuracy, as a share or in percent.
        sparsity: column of the sparsity, as a share or in percent.
        density: column of the density, in place of one of the sparsity.
    """

    setting: tuple[str, ...] = ("setting",)
    seed: str = "seed"
    accuracy: str = "accuracy"
    sparsity: str | None = None
    density: str | None = None


@dataclass(frozen=True)
class Measurement:
    """One line of a table.

    Attributes:
        setting: name of the setting.
        seed: name of the seed.
        accuracy: accuracy as a share.
        sparsity: share of the weights that is left out; None where the table tells nothing.
        line: number of the line.
    """

    setting: str
    seed: str
    accuracy: float
    sparsity: float | None = None
    line: int = 0


def read_table(path: Path, columns: ColumnNames = ColumnNames()) -> list[Measurement]:
    """Read a table with a line of names: comma, semicolon or tab between the columns.

    Args:
        path: file of the table.
        columns: names of its columns.

    Raises:
        ValueError: naming line and value, if the table cannot be what it should be.
        OSError: if the file cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is no table in UTF-8") from None
    header = text.partition("\n")[0]
    reader = csv.DictReader(text.splitlines(), delimiter=max(",;\t", key=header.count), skipinitialspace=True)
    _check_columns(path, [name.strip() for name in reader.fieldnames or ()], columns)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    lines = [(reader.line_num, row) for row in reader if any(row.values())]
    if not lines:
        raise ValueError(f"{path}: has no lines below its names")
    if longer := next((line for line, row in lines if None in row), None):
        raise ValueError(f"{path}, line {longer}: has more cells than the table has names ({len(reader.fieldnames)})")
    accuracies = _shares(path, columns.accuracy, lines)
    column = columns.sparsity or columns.density
    shares = _shares(path, column, lines, may_be_empty=True) if column else [None] * len(lines)
    found: dict[tuple[str, float | None, str], Measurement] = {}
    for (line, row), accuracy, share in zip(lines, accuracies, shares, strict=True):
        assert accuracy is not None
        sparsity = share if columns.density is None or share is None else 1 - share
        setting = " ".join(filter(None, ((row[name] or "").strip() for name in columns.setting)))
        each = Measurement(setting, _seed(row[columns.seed]), accuracy, sparsity, line)
        for name, value in (("/".join(columns.setting), each.setting), (columns.seed, each.seed)):
            if not value:
                raise ValueError(f"{path}, line {line}: {name} is empty")
        key = (each.setting, each.sparsity, each.seed)
        if key in found:
            raise ValueError(
                f"{path}, line {line}: {columns.seed}={each.seed} of {setting_text(each.setting, each.sparsity)} "
                f"is there already, in line {found[key].line}; --setting may name a second column"
            )
        found[key] = each
    return list(found.values())


def _check_columns(path: Path, there: Sequence[str], columns: ColumnNames) -> None:
    asked = {"--seed": columns.seed, "--accuracy": columns.accuracy}
    asked |= {"--sparsity": columns.sparsity} if columns.sparsity else {}
    asked |= {"--density": columns.density} if columns.density else {}
    for flag, name in [*(("--setting", name) for name in columns.setting), *asked.items()]:
        if name not in there:
            raise ValueError(
                f"{path}: has no column {name!r}, but {', '.join(there) or 'none'}; {flag} NAME names it"
                f"{did_you_mean(name, there)}"
            )
    if twice := next((name for name in there if there.count(name) > 1), None):
        raise ValueError(f"{path}: has two columns {twice!r}")


def _shares(
    path: Path, column: str, lines: Sequence[tuple[int, Mapping[str, str]]], may_be_empty: bool = False
) -> list[float | None]:
    """Return a column as shares; its values are shares all, or percent all, as those are that are written with %."""
    values: dict[int, float | None] = {}
    signed = set()
    for line, row in lines:
        cell = (row[column] or "").strip()
        signed |= {line} if cell.endswith("%") else set()
        written = cell.removesuffix("%").strip()
        if not written and may_be_empty:
            values[line] = None
            continue
        try:
            value = float(written)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 100:
            raise ValueError(f"{path}, line {line}: {column}={row[column]!r} is no share in [0, 1], and no percentage")
        values[line] = value
    numbers = {line: value for line, value in values.items() if value is not None}
    percent = min(signed, default=max(numbers, key=lambda line: numbers[line], default=None))
    if percent is None or not (signed or numbers[percent] > 1):
        return list(values.values())
    share = next((line for line, value in numbers.items() if 0 < value < 1 and line not in signed), None)
    if share is not None:
        raise ValueError(
            f"{path}: {column} is in percent in line {percent} ({numbers[percent]:g}), but {numbers[share]:g} in line "
            f"{share}; write all as shares, all in percent, or % behind each"
        )
    return [None if value is None else value / 100 for value in values.values()]


def _seed(written: str | None) -> str:
    """Return the name of a seed; `3` and `3.0` are the same.

    >>> _seed(" 3.0"), _seed("b")
    ('3', 'b')
    """
    text = (written or "").strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def setting_text(setting: str, sparsity: float | None) -> str:
    """Return a setting and its sparsity in words.

    >>> setting_text("refill", 0.59)
    'refill at 59 % sparsity'
    """
    return setting if sparsity is None else f"{setting} at {100 * sparsity:g} % sparsity"
