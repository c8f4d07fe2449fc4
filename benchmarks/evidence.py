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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import OmegaConf

from lt_lightning.results.aggregate import Row, aggregate, extremes
from lt_lightning.results.records import Result, find_results
from lt_lightning.results.tables import markdown_table
from lt_lightning.results.verdict import STANDARD, Rule, lower_limit
from lt_lightning.storage.files import read_json, replacing, write_json
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED

Kind = tuple[str, str]  # structure, control ("" for a ticket)
_TIMES = ("train_seconds", "time_ratio_inference", "time_ratio_training")
_HARDWARE = ("cpu", "gpu", "threads", "system", "python", "versions", "commit")


def evidence(root: Path, about: Mapping[str, Any], times: bool = True) -> dict[str, Any]:
    """Return all results under a root, with what their searches ran on.

    Args:
        root: root of the searches.
        about: what was done, with which commands and caveats; it comes first.
        times: whether measured times are kept; False where other work shared the machine.

    Raises:
        FileNotFoundError: if there is no result.
    """
    results = find_results(root)
    if not results:
        raise FileNotFoundError(f"{root} has no finished result: name the folder that was `paths.root`")
    environments = [read_json(path) for path in sorted(root.glob("*/environment.json"))]
    hardware = [{key: each[key] for key in _HARDWARE if key in each} for each in environments]
    distinct = [each for index, each in enumerate(hardware) if each not in hardware[:index]]
    return {**about, "environments": distinct, "rows": [_written(result, times) for result in results]}


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

    Each entry is the mean over seeds ± the standard deviation; bold where the ticket is shown not to be worse by more
    than the rule's margin. Rounds that hold nothing but unstructured tickets are left out.
    """
    rows = [row for row in aggregate([("", result) for result in results], rule) if row.structure != DENSE]
    rounds = sorted({row.round for row in rows if (row.structure, row.control) != (UNSTRUCTURED, "")})
    rounds = rounds or sorted({row.round for row in rows})
    by_kind = {((row.structure, row.control), row.round): row for row in rows}
    targets = {result.round: result.target_density for result in results}
    lines = [["ticket", *(f"{100 * targets[number]:.0f} %" for number in rounds)]]
    for kind in _kinds(rows):
        cells = [_difference(by_kind.get((kind, number)), targets[number]) for number in rounds]
        lines.append([_name(kind), *cells])
    return markdown_table(lines)


def comparison_table(results: Sequence[Result], pairs: Sequence[Sequence[str]], rule: Rule) -> str:
    """Make the Markdown table of pairs of kinds, the first minus the second, paired over seeds.

    Each entry is the mean difference in points ± the standard deviation, and `>` or `<` where the one-sided interval
    shows that the first is better or worse. No correction is made for asking many questions.

    Args:
        results: results of all seeds.
        pairs: pairs of names, such as `refill reinit` for a control. Every control is compared with its ticket, too.
        rule: rule whose confidence counts.
    """
    accuracy = {(result.structure, result.control, result.round, result.seed): result.accuracy for result in results}
    controls = sorted({(result.structure, result.control) for result in results if result.control})
    compared = [(_kind(first), _kind(second)) for first, second in pairs] + [
        ((name, ""), (name, t)) for name, t in controls
    ]
    rounds = sorted({number for first, second in compared for number in _shared(accuracy, first, second)})
    density = {result.round: result.target_density for result in results}
    lines = [["first, minus second", *(f"{100 * density[number]:.0f} %" for number in rounds)]]
    for first, second in compared:
        shared = _shared(accuracy, first, second)
        cells = [_compared(shared.get(number, []), rule.confidence) for number in rounds]
        lines.append([f"{_name(first)}, minus {_name(second)}", *cells])
    return markdown_table(lines)


def extremes_table(results: Sequence[Result], rule: Rule) -> str:
    """Make the Markdown table of extreme sparsities, by the paper's rule and as shown (see `Extreme`).

    It has the densities of the tickets that were trained, since nothing is known of others.
    """
    rows = aggregate([("", result) for result in results], rule)
    targets = {result.round: result.target_density for result in results}
    lines = [["tickets", "densities", "by the mean", "shown"]]
    best = sorted(extremes(rows, rule), key=lambda row: (row.structure != UNSTRUCTURED, row.structure))
    for row in best:
        densities = ", ".join(f"{100 * targets[int(number)]:.0f}" for number in row.rounds.split())
        sparsities = [_sparsity(value) for value in (row.sparsity_by_mean, row.sparsity_shown)]
        lines.append([row.structure, f"{densities} %", *sparsities])
    return markdown_table(lines)


def _sparsity(value: float | None) -> str:
    return "none" if value is None else f"{100 * value:.0f} %"


def _shared(accuracy: Mapping[tuple[str, str, int, int], float], first: Kind, second: Kind) -> dict[int, list[float]]:
    """Return the differences by round, one for each seed that has both."""
    shared: dict[int, list[float]] = {}
    for (structure, control, number, seed), value in accuracy.items():
        other = accuracy.get((*second, number, seed))
        if (structure, control) == first and other is not None:
            shared.setdefault(number, []).append(value - other)
    return shared


def _compared(differences: Sequence[float], confidence: float) -> str:
    if len(differences) < 2:
        return "".join(f"{100 * each:+.2f}" for each in differences)
    above = lower_limit(differences, confidence)
    below = lower_limit([-each for each in differences], confidence)
    sign = " >" if above is not None and above > 0 else " <" if below is not None and below > 0 else ""
    return f"{100 * fmean(differences):+.2f} ± {100 * stdev(differences):.2f}{sign}"


def _difference(row: Row | None, target: float) -> str:
    if row is None:
        return ""
    text = f"{100 * row.difference:+.2f}"
    if row.difference_sd is not None:
        text += f" ± {100 * row.difference_sd:.2f}"
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
            "comparisons": lambda: comparison_table(results, read.get("pairs", []), STANDARD),
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
