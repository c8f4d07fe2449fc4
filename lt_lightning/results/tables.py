"""Tables of tickets and rows: of a job, a sweep, published figures and papers; and how tables are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lt_lightning.results.aggregate import Row, short_setting
from lt_lightning.results.published_figures import Comparison, compare, figures_of
from lt_lightning.results.records import Result, is_wide
from lt_lightning.results.verdict import STANDARD, Rule, half_width
from lt_lightning.storage.files import replacing, write_csv


def terminal_table(title: str, heads: Sequence[str], left: int) -> Table:
    """Return an empty table without rules, whose first `left` columns are aligned left and the others right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for index, head in enumerate(heads):
        table.add_column(head, justify="left" if index < left else "right", no_wrap=True)
    return table


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in GitHub's dialect.

    Args:
        lines: cells of each line; the first has the headings.

    >>> print(markdown_table([["ticket", "50 %"], ["refill", "+0.10"]]), end="")
    | ticket | 50 % |
    |-|-|
    | refill | +0.10 |
    """
    rows = ["| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines]
    rows.insert(1, "|-" * len(lines[0]) + "|\n")
    return "".join(rows)


def number(value: float | None, form: str) -> str:
    """Return a number in a format; nothing where it is not known (None or NaN).

    >>> number(1.25, ".1f"), number(float("nan"), ".1f"), number(None, "g")
    ('1.2', '', '')
    """
    return "" if value is None or value != value else format(value, form)


def time_text(ratio: float, spread: float, form: str) -> str:
    """Return a ratio of times, marked by ~ if its spread is wide; nothing where it is not known (NaN).

    >>> time_text(0.5, 0.01, ".2f"), time_text(0.5, 0.9, ".2f"), time_text(float("nan"), 0.9, ".2f")
    ('0.50', '~0.50', '')
    """
    text = number(ratio, form)
    return f"~{text}" if text and is_wide(spread) else text


def percent(share: float, decimals: int = 0) -> str:
    """Return a share in per cent; nothing where it is not known (NaN).

    >>> percent(0.125, 1), percent(float("nan"))
    ('12.5 %', '')
    """
    return "" if share != share else f"{100 * share:.{decimals}f} %"


EPOCHS = "Epochs: those that the ticket and its ancestors were trained."


def epochs_text(epochs: float) -> str:
    """Return a number of epochs; nothing where it is not known (0).

    >>> epochs_text(30), epochs_text(0)
    ('30', '')
    """
    return f"{epochs:.0f}" if epochs else ""


# Tables of results: for the terminal, at the end of a job or a sweep, and as files for papers.

LEFT = ("data", "model", "setting", "ticket", "published")  # columns of text

# The table that a job ends with.


WIDE = 118  # characters of a line in which a job's table has all its columns


def results_table(results: Sequence[Result], title: str, width: int = 80) -> Table:
    """Return a table with a line for each ticket and its controls below it, ordered by round.

    Accuracies are in per cent, differences to the dense network in points. Where there is room, columns say what
    the validation reached, how much of the search's magnitude the ticket retains, how many seconds it trained, and
    how many epochs it and its ancestors were trained.

    Args:
        results: results of one job.
        title: title of the table.
        width: characters of a line.
    """
    headings = ["round", "ticket", "density", "accuracy", "vs dense", "params", "FLOPs", "infer", "train"]
    wide = width >= WIDE
    headings += ["validation", "best epoch", "retained", "seconds", "epochs"] * wide
    table = _table(title, _job_caption(results, wide), headings)
    structures = list(dict.fromkeys((result.structure, result.origin) for result in results))
    ordered = sorted(results, key=lambda r: (r.round, structures.index((r.structure, r.origin)), bool(r.control)))
    for index, result in enumerate(ordered):
        last_of_round = index + 1 == len(ordered) or ordered[index + 1].round != result.round
        table.add_row(*_job_cells(result)[: len(headings)], end_section=last_of_round)
    return table


def _job_cells(result: Result) -> list[str]:
    points = 100 * (result.accuracy - result.dense_accuracy)
    return [
        str(result.round),
        _label(result),
        f"{result.density:.1%}",
        f"{result.accuracy:.2%}",
        "" if result.round == 0 and not result.control else f"{points:+.2f}",
        f"{result.params_ratio:.2f}",
        f"{result.flops_ratio:.2f}",
        time_text(result.time_ratio_inference, result.time_spread_inference, ".2f"),
        time_text(result.time_ratio_training, result.time_spread_training, ".2f"),
        number(result.val_accuracy, ".2%"),
        str(result.best_epoch),
        number(result.retained_magnitude, ".0%"),
        f"{result.train_seconds:.0f}",
        epochs_text(result.total_epochs),
    ]


def _job_caption(results: Sequence[Result], wide: bool) -> str:
    seeds = len({result.seed for result in results})
    verdict = "One seed: no verdict. " if seeds == 1 else ""
    epochs = f" {EPOCHS}" if wide else ""
    return (
        f"{verdict}Density: share of the prunable weights that the ticket executes (an unstructured one keeps them but "
        "runs whole). Parameters, FLOPs, measured time of inference and of a training step: whole network, dense = 1; "
        f"~: uncertain, since the machine was busy.{epochs}"
    )


# The table that a sweep ends with.


def aggregate_table(rows: Sequence[Row], rule: Rule = STANDARD) -> Table:
    """Return a table of means over seeds, intervals of the differences to the dense network, costs and verdicts.

    Accuracies are in per cent, differences in points. Times have columns where any was measured.
    """
    data, models = (sorted(set(names)) for names in ((row.data for row in rows), (row.model for row in rows)))
    caption = _sweep_caption(rule) if any(row.seeds > 1 for row in rows) else "One seed: no verdict."
    shown = {"data": len(data) > 1, "model": len(models) > 1, "setting": any(row.setting for row in rows)}
    headings = [heading for heading, varies in shown.items() if varies]
    times = {
        "infer": [number(row.time_ratio_inference, ".2f") for row in rows],
        "train": [number(row.time_ratio_training, ".2f") for row in rows],
    }
    measured = {heading: cells for heading, cells in times.items() if any(cells)}
    headings += ["round", "ticket", "density", "accuracy", "vs dense", "lower", "FLOPs", *measured, "n"]
    table = _table(", ".join(data + models * (len(models) == 1)), caption, headings)
    for index, (row, after) in enumerate(zip(rows, [*rows[1:], None], strict=True)):
        last = after is None or (row.data, row.model, row.setting) != (after.data, after.model, after.setting)
        apart = {"data": row.data, "model": row.model, "setting": short_setting(row.setting)}
        named = [apart[key] for key, varies in shown.items() if varies]
        costs = [f"{row.flops_ratio:.2f}", *(cells[index] for cells in measured.values())]
        table.add_row(*named, *_sweep_cells(row), *costs, str(row.seeds), end_section=last)
    return table


def _sweep_cells(row: Row) -> list[str]:
    return [
        str(row.round),
        _label(row),
        f"{row.density:.1%}",
        f"{100 * row.accuracy:.2f}",
        ""
        if row.round == 0 and not row.control
        else _with_interval(row.difference, half_width(row.difference_sd, row.seeds)),
        "" if row.lower is None else f"{100 * row.lower:+.2f} {'✓' if row.wins else '✗'}",
    ]


def _with_interval(mean: float, half: float | None) -> str:
    text = f"{100 * mean:+.2f}"
    return text if half is None else f"{text} ±{100 * half:.2f}"


def _sweep_caption(rule: Rule) -> str:
    return (
        "±: half of the two-sided 95 % interval of the mean difference over n paired seeds. Lower: lower end of the "
        f"one-sided {100 * rule.confidence:g} % interval; ✓: above the margin of {-100 * rule.margin:g} points, ✗: not "
        "shown. By the paper's rule a ticket wins whose mean difference is not negative. FLOPs and measured times of "
        "inference and of a training step: whole network, dense = 1."
    )


# Published figures beside ours.

COMPARISON_HEADINGS = ("published", "ticket", "remaining", "value", "ours: remaining", "value", "difference", "seeds")


def comparison_cells(comparison: Comparison) -> list[str]:
    """Return the cells under `COMPARISON_HEADINGS`; what is not known is empty."""
    figure = comparison.figure
    return [
        figure.quantity.replace("_", " "), figure.ticket, number(figure.remaining, ".1f"), f"{figure.value:.2f}",
        number(comparison.remaining, ".1f"), f"{comparison.value:.2f}", f"{comparison.difference:+.2f}",
        str(comparison.seeds),
    ]  # fmt: skip


def comparison_table(comparisons: Sequence[Comparison], title: str) -> Table:
    """Return a table of published figures, ours and the difference in points."""
    caption = (
        "Remaining: per cent of the prunable weights, by the paper's count. Values in per cent, FLOPs and time over "
        "the dense network's. The paper timed its convolutions alone, on larger images than the network's own."
    )
    table = _table(title, caption, COMPARISON_HEADINGS)
    for comparison in comparisons:
        table.add_row(*comparison_cells(comparison))
    return table


def print_comparison(config: Mapping[str, Any], results: Sequence[Result], title: str, console: Console) -> None:
    """Print the table, if a job's configuration names published figures that its results can be set beside.

    Args:
        config: configuration of the job as plain values; `published` and `structure` count.
        results: results of one setting.
        title: what the results are of.
        console: console to print to.
    """
    figures = figures_of(config.get("published") or {})
    if figures and (comparisons := compare(figures, results, config["structure"])):
        wide = console if console.is_terminal else Console(width=200)  # a file or pipe has no width to keep to
        wide.print(comparison_table(comparisons, f"{title}: published, and ours"))


def _table(title: str, caption: str, headings: Sequence[str]) -> Table:
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in LEFT else "right", no_wrap=True)
    return table


def _label(ticket: Row | Result) -> str:
    """Return the name of a ticket; that of a control, which stands under its ticket, is indented."""
    return f"  {ticket.control}" if ticket.control else str(ticket.kind)


# The table of all tickets over seeds, as Markdown, CSV and LaTeX.

HEADINGS = (
    "data", "network", "setting", "round", "ticket", "density %", "accuracy %", "± 95 %", "vs dense", "wins", "params",
    "FLOPs", "infer", "train", "epochs", "seeds",
)  # fmt: skip

LATEX = {"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#", "±": r"$\pm$", "$": r"\$", "~": r"\textasciitilde{}",
         "{": r"\{", "}": r"\}", "\\": r"\textbackslash{}", "^": r"\textasciicircum{}"}  # fmt: skip


def row_cells(row: Row) -> list[str]:
    """Return the cells under `HEADINGS`; what is not known is empty."""
    half = half_width(row.accuracy_sd, row.seeds)
    wins = {None: "", True: "yes", False: "not shown"}[row.wins]
    return [
        row.data, row.model, short_setting(row.setting), str(row.round), str(row.kind), f"{100 * row.density:.1f}",
        f"{100 * row.accuracy:.2f}", "" if half is None else f"{100 * half:.2f}",
        "" if row.round == 0 and not row.control else f"{100 * row.difference:+.2f}", wins,
        number(row.params_ratio, ".3f"), number(row.flops_ratio, ".3f"),
        time_text(row.time_ratio_inference, row.time_spread_inference, ".3f"),
        time_text(row.time_ratio_training, row.time_spread_training, ".3f"), epochs_text(row.total_epochs),
        str(row.seeds),
    ]  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """Return a table in GitHub's dialect."""
    return markdown_table([HEADINGS, *map(row_cells, rows)])


def latex(rows: Sequence[Row]) -> str:
    """Return a tabular with the rules of booktabs."""
    columns = "lllrl" + "r" * (len(HEADINGS) - 5)
    body = "".join(" & ".join(map(_escaped, row_cells(row))) + " \\\\\n" for row in rows)
    heading = " & ".join(map(_escaped, HEADINGS)) + " \\\\\n"
    return f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{heading}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"


def write_tables(folder: Path, rows: Sequence[Row]) -> None:
    """Write `table.md`, `table.csv` and `table.tex`."""
    for name, text in (("table.md", markdown(rows)), ("table.tex", latex(rows))):
        with replacing(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    write_csv(folder / "table.csv", HEADINGS, map(row_cells, rows))


def _escaped(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in text)
