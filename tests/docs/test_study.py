"""The numbers of seeds on docs/study.md are those of the power of the test, by scipy's noncentral t distribution."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from scipy.stats import nct, t

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "study.md").read_text()


def needed(deviation: float, margin: float) -> int:
    """Seeds with which a ticket that is as accurate is shown to be so, with a probability of 0.8."""
    for seeds in count(2):
        limit = t.ppf(0.95, seeds - 1)
        if nct.sf(limit, seeds - 1, margin * seeds**0.5 / deviation) >= 0.8:
            return seeds
    raise AssertionError


def test_seeds() -> None:
    lines = PAGE.partition("<!-- seeds -->\n")[2].partition("\n\n")[0].splitlines()
    margins = [float(cell.removeprefix("margin ")) for cell in lines[0].strip("| ").split(" | ")[1:]]
    for line in lines[2:]:
        deviation, *seeds = line.strip("| ").split(" | ")
        assert [int(each) for each in seeds] == [needed(float(deviation), margin) for margin in margins]
    assert len(lines) == 7
