"""Tables for the terminal of what a benchmark measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isnan, nan
from typing import Any

from rich.table import Table

from benchmarks.network_costs import share_of_ideal
from lt_lightning.results.tables import number, percent, terminal_table

Row = Mapping[str, Any]
Columns = Mapping[str, str]

_SAME = ("job", "network", "image", "batch_size", "training", "bfloat16")


def summarised(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one row for every variant at every density of a job, in its best engine and memory format of PyTorch.

    Only what was measured in turn, in one job, is compared. `speedup` compares the best ones of the variant and of
    dense, `onnx` those of ONNX Runtime; `milliseconds` has the median of each engine and format; `peak_megabytes` is
    seen in eager mode only (on the CPU). Everything else is that of the best one.
    """
    contests: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        how = {**row["setting"], **row}
        contests.setdefault(tuple(str(how[key]) for key in _SAME), []).append(row)
    return [summary for contest in contests.values() for summary in _contest(contest)]


def _contest(rows: Sequence[Row]) -> Iterable[dict[str, Any]]:
    by_variant: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        by_variant.setdefault((row["variant"], row["density"]), []).append(row)
    dense = _best(by_variant["dense", 1.0])
    for mine in by_variant.values():
        best = _best(mine)
        speedup = dense["milliseconds"] / best["milliseconds"]
        yield {
            **best,
            "milliseconds": {_name(row): row["milliseconds"] for row in mine},
            "best": _name(best),
            "speedup": speedup,
            "share": share_of_ideal(speedup, best["ideal"]),
            "onnx": next((row["speedup"] for row in mine if row["setting"]["engine"] == "onnx"), None),
            "peak_megabytes": next((peak for row in mine if not isnan(peak := row["peak_megabytes"])), nan),
            "difference": max(row["difference"] for row in mine),
        }


def _best(rows: Sequence[Row]) -> Row:
    ours = [row for row in rows if row["setting"]["engine"] != "onnx"]
    return min(ours or rows, key=lambda row: float(row["milliseconds"]))


def _name(row: Row) -> str:
    """Return the engine, and the memory format where it is not the usual one."""
    setting = row["setting"]
    plain = setting["channels_last"] or setting["engine"] == "onnx"
    return str(setting["engine"]) + ("" if plain else " nchw")


def slower_than_dense(rows: Sequence[Row]) -> list[str]:
    """Return the tickets whose best time is longer than that of dense, in words."""
    return [
        f"{row['network']} {row['variant']} at {row['density']:g}, {_setting(row)}: {row['speedup']:.3f} x"
        for row in summarised(rows)
        if row["speedup"] < 1 and row["variant"] != "dense"
    ]


def network_table(rows: Sequence[Row]) -> Table:
    """Make the table of whole networks."""
    summaries = summarised(rows)
    ways = list(dict.fromkeys(way for row in summaries for way in row["milliseconds"]))
    heads = ["network", "setting", "variant", "density", *(f"{way} ms" for way in ways), "x", "ideal", "x/ideal",
             "share", "ONNX x", "Mparam", "file MB", "peak MB", "difference", "left dense"]  # fmt: skip
    table = terminal_table(
        "Whole networks: x = times faster than dense, each in its best engine and format", heads, left=3
    )
    before = None
    for row in summaries:
        setting = (row["network"], _setting(row))
        contest = (row["job"], *setting)
        if before not in (None, contest):
            table.add_section()
        first, before = contest != before, contest
        table.add_row(
            *(setting if first else ("", "")),
            row["variant"],
            _density(row),
            *(number(row["milliseconds"].get(way), ".1f") for way in ways),
            f"{row['speedup']:.2f}",
            f"{row['ideal']:.2f}",
            percent(row["speedup"] / row["ideal"]),
            percent(row["share"]),
            number(row["onnx"], ".2f"),
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['file_megabytes']:.1f}",
            number(row["peak_megabytes"], ".0f"),
            f"{row['difference']:.0e}",
            str(len(row["left_dense"]) or ""),
        )
    return table


def layer_table(rows: Sequence[Row]) -> Table:
    """Make the table of single layers."""
    heads = ["network", "layer", "input", "setting", "variant", "density", "form", "dense ms", "ms", "x", "ideal",
             "share", "difference"]  # fmt: skip
    table = terminal_table("Layers at their true shapes", heads, left=5)
    for row in rows:
        more = len(row["layers"]) - 1
        table.add_row(
            row["network"],
            row["layers"][0] + (f" (+{more})" if more else ""),
            "x".join(map(str, row["input_shape"])),
            _setting(row),
            row["variant"],
            _density(row),
            row["form"],
            f"{row['dense_milliseconds']:.2f}",
            f"{row['milliseconds']:.2f}",
            f"{row['speedup']:.2f}",
            f"{row['ideal']:.2f}",
            percent(row["share"]),
            f"{row['difference']:.0e}",
        )
    return table


def paper_table(rows: Sequence[Row]) -> Table:
    """Make the table of the paper's protocol."""
    title = "; ".join(dict.fromkeys(row["protocol"] for row in rows))
    heads = ["network", "variant", "density", "dense ms", "ms", "time saved", "operations saved"]
    table = terminal_table(title, heads, left=2)
    for row in rows:
        table.add_row(
            row["network"],
            row["variant"],
            _density(row),
            f"{row['dense_milliseconds']:.0f}",
            f"{row['milliseconds']:.0f}",
            percent(row["saved"]),
            percent(row["ideal_saved"]),
        )
    return table


def _density(row: Row) -> str:
    """Return the density of a row's ticket, and whose layers' densities it has; files of old rows have none."""
    layers = row.get("layer_densities", "")
    return f"{row['density']:g}" + (f" ({layers})" if layers and row["variant"] != "dense" else "")


def _setting(row: Row) -> str:
    setting = row["setting"]
    kind = "training" if setting["training"] else "inference"
    return f"{kind} b{setting['batch_size']} {'bf16' if setting['bfloat16'] else 'fp32'}"
