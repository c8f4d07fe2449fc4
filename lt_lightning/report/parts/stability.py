"""Stability to the noise of the data order, where it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lt_lightning.files import read_json
from lt_lightning.report.figures import stability_figure
from lt_lightning.report.page import Page, heading, paragraph, table

HEADINGS = ("network", "rewind", "error at the ends %", "largest %", "barrier, points", "stable")


def add_stability(page: Page, root: Path) -> None:
    """Adds the part, if the report is of a root with measurements."""
    blocks = [block for file in sorted(root.glob("stability/*/stability-*.json")) for block in _measurement(page, file)]
    if blocks:
        about = (
            "Two trainings part at a point and see the data in other orders. Barrier: the largest test error on the "
            "line between their ends less the mean of its ends; the point is stable if it is below the threshold "
            "(Frankle et al. 2020)."
        )
        page.add("stability", "Stability", paragraph(about), *blocks)


def _measurement(page: Page, file: Path) -> Iterator[str]:
    try:
        record: Any = read_json(file)
        lines = {f"{each['network']}, {each['rewind']}": [float(e) for e in each["errors"]] for each in record["lines"]}
        threshold = float(record["options"]["threshold"])
        rows = [_cells(each, threshold) for each in record["lines"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        yield paragraph(f"{file.parent.name}/{file.name} cannot be read.")
        return
    yield heading(f"{file.parent.name}, stable below {100 * threshold:g} points")
    yield page.figure(stability_figure(lines))
    yield table(HEADINGS, rows, left=(0, 1, 5))


def _cells(line: Mapping[str, Any], threshold: float) -> tuple[str, ...]:
    errors, barrier = [100 * float(each) for each in line["errors"]], float(line["barrier"])
    return (
        Path(line["network"]).name if "/" in line["network"] else line["network"], line["rewind"],
        f"{errors[0]:.2f}, {errors[-1]:.2f}", f"{max(errors):.2f}", f"{100 * barrier:.2f}",
        "yes" if barrier < threshold else "no",
    )  # fmt: skip
