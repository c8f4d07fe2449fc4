"""Parts of the page on searches: learning curves, time, stability, and where everything comes from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from lt_lightning.report.contents import Contents, Search, data_digest_of, environment_of, metrics_of
from lt_lightning.report.page import (
    Html,
    Page,
    bar,
    chooser,
    first_of,
    folded,
    heading,
    paragraph,
    side_by_side,
    table,
)
from lt_lightning.report.plots import Looks, Training, learning_figure, stability_figure
from lt_lightning.results.job_record import TicketKind
from lt_lightning.results.tables import number
from lt_lightning.storage.files import read_json
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED

# Learning curves of all rounds, and of the tickets that were retrained alone.

CURVES = (("val/accuracy", "validation accuracy in %", 100.0), ("train/loss", "training loss", 1.0))
LEARNING = 8  # searches whose learning curves are shown
SEARCHES = 200  # searches with lines of their own in tables
Metrics = list[dict[str, float]]


def add_learning(page: Page, searches: Sequence[Search], looks: Looks) -> None:
    """Add the part with learning curves, if there are any."""
    drawn, rest = first_of(searches, LEARNING, "searches", "the curves of the others are in their metrics.csv")
    choices = {}
    for search in drawn:
        trainings = _trainings(search)
        if figures := list(_curves(page, search.folder.name, trainings, looks)):
            choices[search.folder.name] = side_by_side(*figures)
    if choices:
        about = (
            "All trainings of a search on one axis. The colour tells the ticket, the strength the round. At first the "
            "dense network and the last round are shown; a click on the legend shows and hides tickets and rounds. "
            "Tickets are trained from the rewind point on. Of seeds the first is shown."
        )
        page.add("learning", "Learning curves", paragraph(about), *rest, chooser("learning-choice", "Search", choices))


def _trainings(search: Search) -> dict[Training, Metrics]:
    """Return the metrics of every training of the search and of its tickets, by what was trained and by round."""
    trainings: dict[Training, Metrics] = {}
    for row in metrics_of(search.folder):
        if "pruning/round" in row:
            number = int(row["pruning/round"])
            trainings.setdefault((TicketKind(UNSTRUCTURED if number else DENSE), number), []).append(row)
    kinds = {search.folder_of(result): result.kind for result in search.results}
    for folder in sorted(search.folder.glob("round_*/*")):
        if rows := metrics_of(folder):
            name = re.sub("-[0-9a-f]{8}$", "", folder.name)
            kind = kinds.get(folder, TicketKind(f"{name}, not finished"))
            trainings[kind, int(folder.parent.name.rpartition("_")[2])] = rows
    return trainings


def _curves(page: Page, search: str, trainings: Mapping[Training, Metrics], looks: Looks) -> Iterator[str]:
    for key, label, unit in CURVES:
        lines = {
            name: [(epoch, unit * row[key]) for epoch, row in enumerate(rows, 1) if key in row]
            for name, rows in trainings.items()
        }
        if lines := {name: points for name, points in lines.items() if points}:
            name = f"{key.replace('/', '-')}-{search}"
            yield page.figure(learning_figure(lines, label, looks), name, file=False)


# Where the time of the searches went, and what they cost in dense trainings.

DENSE_TRAINING, ROUNDS, ALL = "dense training (round 0)", "rounds of pruning", "together"


@dataclass(frozen=True)
class TrainingCost:
    """What one part of a search cost.

    Attributes:
        part: name of the part.
        trainings: number of trainings, as the paper counts: one a round, the dense one too, and one a ticket.
        seconds: wall time of all of them.
        in_dense: the same over the time of the dense training; NaN if that is not known.
    """

    part: str
    trainings: int
    seconds: float
    in_dense: float


def training_costs(search: Search) -> list[TrainingCost]:
    """Return costs of the dense training, the rounds, each kind of ticket that was retrained, and all together.

    There are fewer where the search is not finished, and none without any training.
    """
    parts: dict[str, list[float]] = {}
    for facts in search.rounds:
        if (seconds := _seconds(facts)) is not None:
            parts.setdefault(ROUNDS if facts["round"] else DENSE_TRAINING, []).append(seconds)
    dense = next(iter(parts.get(DENSE_TRAINING, [])), math.nan)
    for result in sorted(search.results, key=lambda result: bool(result.control)):
        if was_retrained(result.place):
            parts.setdefault(str(result.kind), []).append(result.train_seconds)
    if parts:
        parts[ALL] = [each for seconds in parts.values() for each in seconds]
    return [
        TrainingCost(part, len(seconds), sum(seconds), sum(seconds) / dense if dense > 0 else math.nan)
        for part, seconds in parts.items()
    ]


def was_retrained(place: str) -> bool:
    """Whether a ticket was trained outside of the search's rounds, by its folder.

    >>> was_retrained("search/round_01/refill-0a1b2c3d"), was_retrained("search/round_01/unstructured")
    (True, False)
    """
    return re.search(r"-[0-9a-f]{8}$", place) is not None


def _seconds(facts: Mapping[str, Any]) -> float | None:
    """Return the time of a round, with what pruning took; None if it is not known."""
    values = (facts.get("train_seconds"), facts.get("sparsify_seconds", 0.0))
    if not isinstance(facts.get("round"), int) or not all(isinstance(value, (int, float)) for value in values):
        return None
    return float(sum(values))


def add_costs(page: Page, searches: Sequence[Search]) -> None:
    """Add the part on time, if anything was trained."""
    drawn, rest = first_of(searches, SEARCHES, "searches", "the times of the others are in their result.json")
    costs = {search.folder.name: each for search in drawn if (each := training_costs(search))}
    if not costs:
        return
    about = (
        "Times are wall times of the trainings, without tests and measurements; a dense training is that of round 0. "
        "The paper counts trainings, however long they take: one a round, the dense one included, and one a ticket. "
        "Those that are rewound are shorter, and those of smaller networks faster. Bars are shares of the search."
    )
    lines = [
        (name, cost.part, str(cost.trainings), f"{cost.seconds:.1f}", number(cost.in_dense, ".2f"),
         bar(cost.seconds / max(each[-1].seconds, 1e-9), f"{cost.seconds / max(each[-1].seconds, 1e-9):.0%}"))
        for name, each in costs.items()
        for cost in each
    ]  # fmt: skip
    headings = ("search", "part", "trainings, the paper's count", "seconds", "in dense trainings", "share")
    first = int(len(costs) == 1)  # column: the name of a single search says nothing
    columns = range(2 - first)
    page.add(
        "costs", "Time", paragraph(about), *rest,
        table(headings[first:], [line[first:] for line in lines], left=(*columns, 5 - first)),
    )  # fmt: skip


# Stability to the noise of the data order, where it was measured.

STABILITY_HEADINGS = ("network", "rewind", "error at the ends %", "largest %", "barrier, points", "stable")


def add_stability(page: Page, root: Path) -> None:
    """Add the part on stability, if the report is of a root with measurements."""
    blocks = [block for file in sorted(root.glob("stability/*/stability-*.json")) for block in _measurement(page, file)]
    if blocks:
        about = (
            "Two trainings part at a point and see the data in other orders. Their barrier is the largest test error "
            "on the line between their ends less the mean of its ends; the point is stable if it is below the "
            "threshold (Frankle et al. 2020)."
        )
        page.add("stability", "Stability", paragraph(about), *blocks)


def _measurement(page: Page, file: Path) -> Iterator[str]:
    try:
        record: Any = read_json(file)
        lines = {f"{each['network']}, {each['rewind']}": [float(e) for e in each["errors"]] for each in record["lines"]}
        threshold = float(record["options"]["threshold"])
        rows = [_stability_cells(each, threshold) for each in record["lines"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        yield paragraph(f"{file.parent.name}/{file.name} cannot be read.")
        return
    yield heading(f"{file.parent.name}, stable below {100 * threshold:g} points")
    yield page.figure(stability_figure(file.parent.name, lines), f"stability-{file.parent.name}", file=False, wide=True)
    yield table(STABILITY_HEADINGS, rows, left=(0, 1, 5))


def _stability_cells(line: Mapping[str, Any], threshold: float) -> tuple[str, ...]:
    errors, barrier = [100 * float(each) for each in line["errors"]], float(line["barrier"])
    return (
        Path(line["network"]).name if "/" in line["network"] else line["network"], line["rewind"],
        f"{errors[0]:.2f}, {errors[-1]:.2f}", f"{max(errors):.2f}", f"{100 * barrier:.2f}",
        "yes" if barrier < threshold else "no",
    )  # fmt: skip


FILES = ("config.yaml", "metrics.csv", "rounds.json", "environment.json")

# Where everything comes from: commands, hardware, versions, seeds, configuration.


def add_origin(page: Page, contents: Contents) -> None:
    """Add the part on commands, hardware, versions and configurations."""
    blocks = [heading("Searches"), *_searches(page, contents.searches), heading("Made again by")]
    if contents.commands:
        commands = list(dict.fromkeys(command.text for command in contents.commands))
        drawn, rest = first_of(commands, SEARCHES, "commands", "the others are below the folder jobs")
        blocks += [f"<pre>{escape(chr(10).join(drawn))}</pre>", *rest]
    else:
        blocks.append(paragraph("The commands are not known, since no record of jobs lies beside the searches."))
    blocks.append(heading("Hardware and versions"))
    blocks += [_environment(names, facts) for names, facts in _environments(contents.searches)]
    if configured := [search for search in contents.searches if search.config]:
        text = yaml.safe_dump(dict(configured[0].config), sort_keys=False, allow_unicode=True)
        blocks.append(heading("Configuration"))
        blocks.append(folded(f"All options of {configured[0].folder.name}", f"<pre>{escape(text)}</pre>"))
    page.add("origin", "Origin", *blocks)


def _searches(page: Page, searches: Sequence[Search]) -> list[str]:
    """Return a table of searches with links to their folders and files."""
    drawn, rest = first_of(searches, SEARCHES, "searches", "the others lie beside them")
    headings = ("search", "data and network", "setting", "seed", "results", "data digest", "files")
    lines = [
        (page.link(search.folder, search.folder.name), ", ".join(search.data_and_model), search.setting,
         str("" if search.seed is None else search.seed), str(len(search.results)), data_digest_of(search.folder)[:12],
         Html(" ".join(page.link(file, name) for name in FILES if (file := search.folder / name).is_file())))
        for search in drawn
    ]  # fmt: skip
    return [table(headings, lines, left=(0, 1, 2, 5, 6)), *rest]


def _environments(searches: Sequence[Search]) -> list[tuple[list[str], Mapping[str, Any]]]:
    """Return pairs of the names of searches and what these ran with."""
    pairs: dict[str, tuple[list[str], Mapping[str, Any]]] = {}
    for search in searches:
        facts = environment_of(search.folder)
        pairs.setdefault(repr(facts), ([], facts))[0].append(search.folder.name)
    return list(pairs.values())


def _environment(names: Sequence[str], facts: Mapping[str, Any]) -> str:
    several = f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0]
    if not facts:
        return paragraph(f"{several}: not recorded.")
    rows = [(key, _value_text(value)) for key, value in facts.items()]
    return folded(several, table(("what", "value"), rows, left=(0, 1)))


def _value_text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return str(value)
