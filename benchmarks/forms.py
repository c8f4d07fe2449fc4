"""Measures which form of a layer of blocks is the fastest, and learns the rule of `execution.form_rule` from it.

`python -m benchmarks.forms --output results/forms_cpu.json` measures, goes on where it was stopped, and prints the
rule; `--show FILE` prints it from what was measured.

The times are of the processor, not of the clock, in one thread, so that other work on the machine disturbs them little.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.jobs import Job, jobs_in, open_record, rows_of
from lt_lightning.execution.execute import DENSE_FORM, forms_of
from lt_lightning.execution.form_rule import BLOCKS, BlockTime
from lt_lightning.execution.timing import by_clock, time_layers
from lt_lightning.structures.plan import Block, BlockPlan, Granularity

GROUPS = (8, 32)  # filters of a block
DENSITIES = (0.2, 0.35, 0.5, 0.65, 0.8)
IMAGES, VECTORS = 16, 512  # of a batch, for a convolution and for a linear layer


@dataclass(frozen=True)
class Geometry:
    """The shape of a layer: its inputs and outputs, and for a convolution its kernel and the size of its images."""

    outputs: int
    inputs: int
    kernel: int = 0
    size: int = 0

    def layer(self) -> nn.Module:
        """Return the layer, at random values."""
        if not self.kernel:
            return nn.Linear(self.inputs, self.outputs)
        return nn.Conv2d(self.inputs, self.outputs, self.kernel, padding=self.kernel // 2, bias=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample of the input."""
        return (self.inputs, self.size, self.size) if self.kernel else (self.inputs,)


GEOMETRIES = (
    Geometry(16, 16, 3, 8),
    Geometry(32, 32, 3, 32),
    Geometry(64, 64, 3, 32),
    Geometry(128, 128, 3, 16),
    Geometry(256, 256, 3, 8),
    Geometry(64, 32, 1, 16),
    Geometry(512, 256, 1, 8),
    Geometry(64, 64),
    Geometry(512, 512),
)


def blocks_of(geometry: Geometry, granularity: Granularity, group: int, density: float) -> list[Block]:
    """Return blocks of so many filters, each with random columns."""
    taps = geometry.kernel**2 if geometry.kernel and granularity == "kernel_position" else 1
    columns = geometry.inputs * taps
    generator = torch.Generator().manual_seed(0)
    filters = torch.randperm(geometry.outputs, generator=generator).view(-1, group)
    count = max(1, round(columns * density))
    return [Block(each.sort().values, torch.randperm(columns, generator=generator)[:count].sort().values)
            for each in filters]  # fmt: skip


def measure(geometry: Geometry, training: bool) -> list[dict[str, Any]]:
    """Return the times of a layer's forms, the dense one among them, for several plans."""
    rows = []
    layer, batch_size = geometry.layer(), IMAGES if geometry.kernel else VECTORS
    granularities: Sequence[Granularity] = ("kernel_position", "input_channel")
    for granularity, group, density in product(granularities, GROUPS, DENSITIES):
        if group > geometry.outputs // 2:
            continue
        plan = BlockPlan(granularity, {"": blocks_of(geometry, granularity, group, density)})
        forms = {DENSE_FORM: layer, **forms_of(layer, plan, "")}
        timings = time_layers(
            {name: (form, geometry.shape) for name, form in forms.items()}, batch_size, training,
            samples=5, slot=0.005, limit=0.3, measure=by_clock(time.process_time),
        )  # fmt: skip
        rows.append({
            **asdict(geometry), "granularity": granularity, "group": group, "density": density,
            "batch_size": batch_size, "training": training, "load": round(os.getloadavg()[0], 2),
            "microseconds": {name: round(1e6 * each.median, 1) for name, each in timings.items()},
        })  # fmt: skip
    return rows


def jobs() -> Iterator[Job]:
    """Yield what is measured."""
    for geometry, training in product(GEOMETRIES, (False, True)):
        job = {"kind": "forms", **asdict(geometry), "training": training}
        yield job, partial(measure, geometry, training)


# What is learned of it.


def rows_for(rows: Sequence[Mapping[str, Any]], kind: str, training: bool) -> list[Mapping[str, Any]]:
    """Return the rows of convolutions, or of linear layers (`linear`), in training or in inference."""
    return [row for row in rows if (row["kernel"] == 0) is (kind == "linear") and row["training"] is training]


def learned(rows: Sequence[Mapping[str, Any]]) -> BlockTime:
    """Return the time of the block kernel that fits what was measured best, by least squares."""
    terms = torch.tensor([_terms(row) for row in rows], dtype=torch.float64)
    times = torch.tensor([[_relative(row, BLOCKS)] for row in rows], dtype=torch.float64)
    least, of_share, of_size = torch.linalg.lstsq(terms, times).solution.flatten().tolist()
    return BlockTime(round(least, 2), round(of_share, 2), round(of_size))


def time_lost(rows: Sequence[Mapping[str, Any]], rule: BlockTime) -> float:
    """Return by how much longer, on average, what the rule takes is than the fastest form."""
    lost = []
    for row in rows:
        times = row["microseconds"]
        form = BLOCKS if rule(row["density"], row["inputs"], max(row["kernel"], 1) ** 2) < 1 else DENSE_FORM
        lost.append(float(times[form] / min(times.values()) - 1))
    return statistics.fmean(lost)


def _terms(row: Mapping[str, Any]) -> list[float]:
    return [1.0, row["density"], 1 / (row["inputs"] * max(row["kernel"], 1))]


def _relative(row: Mapping[str, Any], form: str) -> float:
    return float(row["microseconds"][form] / row["microseconds"][DENSE_FORM])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the rule."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.forms", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file, written after every layer and continued if it is there")
    parser.add_argument("--show", type=Path, help="print the rule that such a file gives, measure nothing")
    options = parser.parse_args(arguments)
    if options.show:
        done = jobs_in([options.show])
    else:
        record, _ = open_record(options.output, 1)
        record.measure(jobs())
        done = record.jobs
    rows = rows_of(done, "forms")
    for kind, training in product(("linear", "convolution"), (False, True)):
        mine = rows_for(rows, kind, training)
        rule = learned(mine)
        how = "training" if training else "inference"
        print(f"{kind}, {how}: {rule}, {100 * time_lost(mine, rule):.1f} % of time lost")


if __name__ == "__main__":
    main()
