"""Tables for the terminal of what was measured of training, and the limits that it has to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from benchmarks.training.overhead import COMMON
from lt_lightning.results.tables import number, percent, terminal_table

Row = Mapping[str, Any]

LIMITS: Mapping[str, float] = {
    "pruned to dense": 1.03,
    "pruned to bare": 1.10,
    "loading to dense": 0.05,
    "waits": 0,
    "round seconds": 2.0,
    "overhead": 0.03,
}
"""The limits of a pruned step over a dense one in our trainer, and over the bare loop; of data over a step; of waits
for the device in a step; of the work between two rounds; of what only looks on, in an epoch."""


def training_tables() -> dict[str, Callable[[Sequence[Row]], Table]]:
    """Return the function that makes the table of each kind of row."""
    return {
        "steps": step_table,
        "limit": limit_table,
        "round": round_table,
        "overhead": overhead_table,
        "search": search_table,
    }


def step_table(rows: Sequence[Row]) -> Table:
    """Make the table of training steps."""
    heads = ["network", "setting", "who", "ms", "p5", "p95", "x bare", "x dense", "same losses as", "difference",
             "waits"]  # fmt: skip
    table = terminal_table("A training step, in turn; x = times as long", heads, 3)
    for row in rows:
        table.add_row(
            row["network"], _setting(row), row["contender"],
            *(f"{row[key]:.1f}" for key in ("milliseconds", "p5", "p95")),
            number(row["to_bare"], ".3f"), number(row["to_dense"], ".3f"), row["compared"],
            "" if row["difference"] is None else f"{row['difference']:.0e}", number(row["waits"], "g"),
        )  # fmt: skip
    return table


def limit_table(rows: Sequence[Row]) -> Table:
    """Make the table of steps against what the machine can do."""
    heads = ["network", "setting", "GFLOP", "GB", "GFLOP/s at most", "GB/s of a copy", "least ms", "ms", "reached"]
    table = terminal_table("The bare step against its roofline", heads, 2)
    for row in rows:
        counts = (f"{row[key] / 1e9:.1f}" for key in ("operations", "bytes", "operations_rate", "bytes_rate"))
        table.add_row(
            row["network"], _setting(row), *counts, *(f"{row[key]:.1f}" for key in ("least", "milliseconds")),
            percent(row["reached"], 1),
        )  # fmt: skip
    return table


def round_table(rows: Sequence[Row]) -> Table:
    """Make the table of the work between two rounds."""
    table = terminal_table("Between two rounds", ["network", "part", "ms", "longest"], 2)
    for row in rows:
        table.add_row(row["network"], row["part"], f"{row['milliseconds']:.0f}", f"{row['longest']:.0f}")
    return table


def overhead_table(rows: Sequence[Row]) -> Table:
    """Make the table of logging, checkpoints and bars."""
    heads = ["network", "setting", "steps", "ms a step", "hooks a step", "an epoch", "a checkpoint", "bars", "share"]
    table = terminal_table("Logging, checkpoints and bars in an epoch", heads, 2)
    for row in rows:
        times = (f"{row[key]:.2f}" for key in ("step", "per_step", "per_epoch", "checkpoint"))
        table.add_row(
            row["network"], _setting(row), str(row["steps"]), *times, percent(row["bars"], 1), percent(row["share"], 1)
        )
    return table


def search_table(rows: Sequence[Row]) -> Table:
    """Make the table of whole searches."""
    heads = ["network", "way", "rounds", "retraining", "together", "to the paper's", "hours", "to the paper's hours"]
    table = terminal_table("A whole search, in trainings of the dense network, and at the speed measured", heads, 2)
    for row in rows:
        together = row["rounds"] + row["retraining"]
        table.add_row(
            row["network"], row["way"], f"{row['rounds']:.2f}", f"{row['retraining']:.2f}", f"{together:.2f}",
            f"{row['to_paper']:.2f}", number(row["hours"], ".0f"), number(row["hours_to_paper"], ".3f"),
        )  # fmt: skip
    return table


def verdicts(rows: Mapping[str, Sequence[Row]]) -> list[str]:
    """Return, in words, whether each limit is kept."""
    lines = []
    contests: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows.get("steps", ()):
        contests.setdefault((row["network"], _setting(row)), {})[row["contender"]] = row
    for (network, setting), steps in contests.items():
        where = f"{network}, {setting}"
        if (pruned := steps.get("pruned")) is not None:
            for key, other in (("to_dense", "dense"), ("to_bare", "bare")):
                if pruned[key] is not None:
                    lines.append(
                        _verdict(f"{where}: pruned step over {other}", pruned[key], LIMITS[f"pruned to {other}"])
                    )
            lines.append(_verdict(f"{where}: waits for the device in a step", pruned["waits"], LIMITS["waits"]))
        if (loading := steps.get("loading")) is not None and loading["to_dense"] is not None:
            lines.append(_verdict(f"{where}: data over a step", loading["to_dense"], LIMITS["loading to dense"]))
    for network in dict.fromkeys(row["network"] for row in rows.get("round", ())):
        parts = {row["part"]: row["milliseconds"] / 1e3 for row in rows["round"] if row["network"] == network}
        common = sum(seconds for part, seconds in parts.items() if part in COMMON)
        for structure in (part for part in parts if part not in COMMON):
            what = f"{network}, with {structure}: seconds between two rounds"
            lines.append(_verdict(what, common + parts[structure], LIMITS["round seconds"]))
    for row in rows.get("overhead", ()):
        lines.append(_verdict(f"{row['network']}: logging, checkpoints, bars", row["share"], LIMITS["overhead"]))
    return lines


def _verdict(what: str, value: float, limit: float) -> str:
    return f"{what}: {value:.3g}, limit {limit:g}: {'kept' if value <= limit else 'MISSED'}"


def _setting(row: Row) -> str:
    precision = "bf16" if row["bfloat16"] else "fp32"
    return f"{row['device']} b{row['batch_size']} {precision} {row['engine']}"
