"""Keeps the results of an experiment in one JSON file, and the tables of a page in step with such files.

    python -m benchmarks.evidence record RUNS results/NAME.json --about about.yaml
    python -m benchmarks.evidence tables [README.md]

`record` takes every result under RUNS. `about.yaml` says what was done (`what`, `commands`, `caveats`, and `pairs`: the
kinds of tickets to compare with each other). `tables` rewrites what stands in a Markdown file between
`<!-- KIND results/NAME.json -->` and `<!-- end -->`, where KIND is accuracy, comparisons or extremes.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import OmegaConf

from lt_lightning.results.aggregate import DIFFERENT_RULES, Row, aggregate, extremes
from lt_lightning.results.records import Result, find_results
from lt_lightning.results.tables import markdown_table, number
from lt_lightning.results.verdict import STANDARD, Rule, half_width, is_shown
from lt_lightning.storage.files import read_json, replacing, write_json
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED

Kind = tuple[str, str]  # structure, control ("" for a ticket)
_TIMES = (
    "train_seconds", "time_ratio_inference", "time_ratio_training", "time_spread_inference", "time_spread_training",
)  # fmt: skip
_HARDWARE = ("cpu", "gpu", "threads", "system", "python", "versions", "commit")


def evidence(root: Path, about: Mapping[str, Any], times: bool = True) -> dict[str, Any]:
    """Return all results under a root, with what their searches ran on.

    Args:
        root: root of the searches.
        about: what was done, with which commands and caveats; it comes first.
        times: whether measured times are kept; False where other work shared the machine.

    Raises:
        FileNotFoundError: if there is no result.
        ValueError: if there are several results of one kind, round and seed, which no table could tell apart.
    """
    results = find_results(root)
    if not results:
        raise FileNotFoundError(f"{root} has no finished result: name the folder that was `paths.root`")
    _refuse_several(results)
    environments = [read_json(path) for path in sorted(root.glob("*/environment.json"))]
    hardware = [{key: each[key] for key in _HARDWARE if key in each} for each in environments]
    distinct = [each for index, each in enumerate(hardware) if each not in hardware[:index]]
    return {**about, "environments": distinct, "rows": [_written(result, times) for result in results]}


def _refuse_several(results: Sequence[Result]) -> None:
    """Raise an error if tickets of one kind, round and seed were made with different settings."""
    places: dict[tuple[object, ...], str] = {}
    for each in results:
        key = each.data, each.model, each.seed, each.round, each.structure, each.control, each.origin
        if (other := places.setdefault(key, each.place)) != each.place:
            raise ValueError(f"{other} and {each.place} differ by their settings alone: keep one setting under a root")


def _written(result: Result, times: bool) -> dict[str, Any]:
    values = asdict(result) | ({} if times else dict.fromkeys(_TIMES, math.nan))
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value  # NaN is not JSON
        for key, value in values.items()
    }


def results_in(evidence: Mapping[str, Any]) -> list[Result]:
    """Return the results that a file's rows stand for."""
    return [_read(row) for row in evidence["rows"]]


def _read(row: Mapping[str, Any]) -> Result:
    values: dict[str, Any] = {key: math.nan if value is None else value for key, value in row.items()}
    return Result(**values)


def accuracy_table(results: Sequence[Result], rule: Rule) -> str:
    """Make the Markdown table of differences to the dense network, in points, by kind of ticket and by round.

    Each entry is the mean over seeds ± half of its two-sided 95 % interval; bold where the ticket is shown not to be
    worse by more than the rule's margin. Beside it stand what the ticket executes (FLOPs) and its measured times of
    inference and of a training step, the dense network's being 1; times that no ticket has are named below the table;
    and, where they are known, the epochs that the ticket and its ancestors were trained. Rounds that hold nothing but
    unstructured tickets are left out.
    """
    rows = [row for row in aggregate([("", result) for result in results], rule) if row.structure != DENSE]
    rounds = sorted({row.round for row in rows if (row.structure, row.control) != (UNSTRUCTURED, "")})
    rounds = rounds or sorted({row.round for row in rows})
    by_kind = {((row.structure, row.control), row.round): row for row in rows}
    targets = _targets(results)
    measured = [heading for heading, (cost, _) in _COSTS.items() if any(cost(row) == cost(row) for row in rows)]
    lines = [["ticket", *(each for number in rounds for each in (f"{100 * targets[number]:.0f} %", *measured))]]
    for kind in _kinds(rows):
        found = [(by_kind.get((kind, number)), targets[number]) for number in rounds]
        lines.append([_name(kind), *(cell for row, target in found for cell in _cells(row, target, measured))])
    missing = [heading for heading in _COSTS if heading not in (*measured, "epochs")]
    note = f"\nNot measured: {' and '.join(missing)}.\n" if missing else ""
    return markdown_table(lines) + note


def _targets(results: Sequence[Result]) -> dict[int, float]:
    """Return the density of every round: the lowest, since a control may prune nothing."""
    return {
        number: min(result.target_density for result in results if result.round == number)
        for number in {result.round for result in results}
    }


def comparison_table(results: Sequence[Result], pairs: Sequence[Sequence[str]]) -> str:
    """Make the Markdown table of pairs of kinds, the first minus the second, paired over seeds.

    Each entry is the mean difference in points ± half of its two-sided 95 % interval, and `>` or `<` where this
    interval does not contain zero. A line below the table counts the cells, since no correction is made for asking many
    questions.

    Args:
        results: results of all seeds.
        pairs: pairs of names, such as `refill reinit` for a control. Every control is compared with its ticket, too.
    """
    accuracy = {(result.structure, result.control, result.round, result.seed): result.accuracy for result in results}
    controls = sorted({(result.structure, result.control) for result in results if result.control})
    compared = [(_kind(first), _kind(second)) for first, second in pairs] + [
        ((name, ""), (name, t)) for name, t in controls
    ]
    rounds = sorted({number for first, second in compared for number in _shared(accuracy, first, second)})
    density = _targets(results)
    lines = [["first, minus second", *(f"{100 * density[number]:.0f} %" for number in rounds)]]
    for first, second in compared:
        shared = _shared(accuracy, first, second)
        cells = [_compared(shared.get(number, [])) for number in rounds]
        lines.append([f"{_name(first)}, minus {_name(second)}", *cells])
    return markdown_table(lines) + _count([cell for line in lines[1:] for cell in line[1:] if "±" in cell])


def _count(cells: Sequence[str]) -> str:
    """Say how many cells of a table are marked, and how many would be by chance alone."""
    marked = sum(cell.endswith((">", "<")) for cell in cells)
    return (
        f"\n{marked} of {len(cells)} cells are marked; if nothing differed, about {0.05 * len(cells):.2g} would be.\n"
    )


def extremes_table(results: Sequence[Result], rule: Rule) -> str:
    """Make the Markdown table of extreme sparsities, by the paper's rule and as shown (see `Extreme`).

    It has the densities of the tickets that were trained, since nothing is known of others.
    """
    rows = aggregate([("", result) for result in results], rule)
    targets = _targets(results)
    lines = [["tickets", "densities", "by the mean", "shown"]]
    best = sorted(extremes(rows, rule), key=lambda row: (row.structure != UNSTRUCTURED, row.structure))
    for row in best:
        densities = ", ".join(f"{100 * targets[int(number)]:.0f}" for number in row.rounds.split())
        sparsities = [_sparsity(value) for value in (row.sparsity_by_mean, row.sparsity_shown)]
        lines.append([row.structure, f"{densities} %", *sparsities])
    differ = any(row.sparsity_by_mean != row.sparsity_shown for row in best)
    return markdown_table(lines) + (f"\n{DIFFERENT_RULES}\n" if differ else "")


def _sparsity(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.0f} %"


def _shared(accuracy: Mapping[tuple[str, str, int, int], float], first: Kind, second: Kind) -> dict[int, list[float]]:
    """Return the differences by round, one for each seed that has both."""
    shared: dict[int, list[float]] = {}
    for (structure, control, round_, seed), value in accuracy.items():
        other = accuracy.get((*second, round_, seed))
        if (structure, control) == first and other is not None:
            shared.setdefault(round_, []).append(value - other)
    return shared


def _compared(differences: Sequence[float]) -> str:
    if len(differences) < 2:
        return "".join(f"{100 * each:+.2f}" for each in differences)
    mean, half = fmean(differences), half_width(stdev(differences), len(differences))
    sign = "" if not is_shown(differences) else " >" if mean > 0 else " <"
    return f"{_points(mean, half)}{sign}"


def _points(mean: float, half: float | None) -> str:
    return f"{100 * mean:+.2f}" + ("" if half is None else f" ± {100 * half:.2f}")


_COSTS: Mapping[str, tuple[Callable[[Row], float], str]] = {
    "FLOPs": (lambda row: row.flops_ratio, ".2f"),
    "time of inference": (lambda row: row.time_ratio_inference, ".2f"),
    "time of training": (lambda row: row.time_ratio_training, ".2f"),
    "epochs": (lambda row: row.total_epochs or math.nan, ".0f"),
}
"""What a ticket costs, by the heading of its column, and how it is written; NaN where it is not known."""


def _cells(row: Row | None, target: float, costs: Sequence[str]) -> list[str]:
    """Return the difference to the dense network, and the named costs beside it."""
    if row is None:
        return [""] * (1 + len(costs))
    columns = [_COSTS[cost] for cost in costs]
    return [_difference(row, target), *(number(cost(row), form) for cost, form in columns)]


def _difference(row: Row, target: float) -> str:
    text = _points(row.difference, half_width(row.difference_sd, row.seeds))
    text = f"**{text}**" if row.wins else text
    return text if abs(row.density - target) < 0.005 else f"{text} (at {100 * row.density:.1f} %)"


def _kinds(rows: Sequence[Row]) -> list[Kind]:
    """Return the kinds: unstructured first, each ticket before its controls."""
    kinds = {(row.structure, row.control) for row in rows}
    return sorted(kinds, key=lambda kind: (kind[0] != UNSTRUCTURED, kind))


def _kind(name: str) -> Kind:
    structure, _, control = name.partition(" ")
    return structure, control


def _name(kind: Kind) -> str:
    return " ".join(filter(None, kind))


# The tables of a page, and the command.

_TABLE = re.compile(r"(<!-- (accuracy|comparisons|extremes) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str, folder: Path) -> str:
    """Return the Markdown text with its tables made anew; files are named relative to the folder."""

    def table(match: re.Match[str]) -> str:
        read = read_json(folder / match[3])
        results = results_in(read)
        tables = {
            "accuracy": lambda: accuracy_table(results, STANDARD),
            "comparisons": lambda: comparison_table(results, read.get("pairs", [])),
            "extremes": lambda: extremes_table(results, STANDARD),
        }
        return f"{match[1]}{tables[match[2]]()}{match[4]}"

    return _TABLE.sub(table, text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record", help="write the results under a root to a file")
    record.add_argument("root", type=Path, help="the searches' `paths.root`")
    record.add_argument("file", type=Path, help="results/NAME.json")
    record.add_argument("--about", type=Path, required=True, help="YAML: what, commands, caveats, pairs")
    record.add_argument("--without-times", action="store_true", help="leave times out: the machine was shared")
    tables = commands.add_parser("tables", help="write a Markdown file's tables anew")
    tables.add_argument("file", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent / "README.md")
    options = parser.parse_args(arguments)
    try:
        if options.command == "record":
            about = OmegaConf.to_container(OmegaConf.load(options.about))
            if not isinstance(about, dict):
                raise ValueError(f"{options.about}: must be keys and values: what, commands, caveats, pairs")
            named = {str(key): value for key, value in about.items()}
            write_json(options.file, evidence(options.root, named, times=not options.without_times))
        else:
            text = with_tables(options.file.read_text(encoding="utf-8"), options.file.parent)
            with replacing(options.file) as partial:
                partial.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
