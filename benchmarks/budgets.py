"""Measures whether networks take the time that was asked for, and what hybrids keep in the time of refill and regroup.

`python -m benchmarks.budgets --output results/budgets_cpu.json` measures, goes on where it was stopped, and prints a
table; `--show FILE` prints it from what was measured. Weights are random, so that groups of filters are, too: only
times and numbers of weights are looked at. The machine must have nothing else to do.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.jobs import Job, jobs_in, make_network, open_record, rows_of, table_console
from benchmarks.variants import Tickets, as_planned
from lt_lightning.execution.cost import Setting, time_ratio
from lt_lightning.structures.base import Structure, StructureResult
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup
from lt_lightning.tickets.hybrid import Hybrid, Of

NETWORKS = ("resnet18", "vgg16_bn", "mobilenet_v1")
BUDGETS = (0.5,)
BESIDE = ("resnet18", "vgg16_bn")  # whose tickets of one form alone are timed, too
DENSITY = 0.25
ALONE: Mapping[str, Structure] = {"refill": Refill(), "regroup": Regroup(clustering="random")}


@dataclass
class Bench:
    """A network whose masks keep a quarter of every layer, and how it is timed."""

    name: str
    device: str
    batch_size: int

    @cached_property
    def tickets(self) -> Tickets:
        return Tickets(make_network(self.name, 10, 3), (3, 32, 32))

    def row(self, structure: Structure, training: bool, asked: float | None) -> dict[str, Any]:
        """Return what a structure's ticket is, and the time of the network that executes it, measured anew."""
        ticket = self.tickets.ticket(structure, DENSITY)
        setting = Setting(self.batch_size, training)
        made = as_planned(self.tickets.masked(structure, DENSITY), ticket, self.tickets.example, setting, self.device)
        how = (self.tickets.example, setting, self.device)
        ratio = time_ratio(self.tickets.network, made.network, *how, samples=9, slot=0.1, wide=0.1)
        return {"network": self.name, "training": training, "asked": asked, "time": ratio.ratio,
                "spread": ratio.spread, **_kept(ticket)}  # fmt: skip

    def budget(self, share: float, training: bool) -> list[dict[str, Any]]:
        return [{"structure": "hybrid", **self.row(self._hybrid(share, training), training, share)}]

    def beside(self, training: bool) -> list[dict[str, Any]]:
        """Return refill and regroup at a density, and a hybrid that is asked for the time of the faster one."""
        rows = [{"structure": name, **self.row(each, training, None)} for name, each in ALONE.items()]
        fastest = round(min(row["time"] for row in rows), 3)
        return [*rows, {"structure": "hybrid", **self.row(self._hybrid(fastest, training), training, fastest)}]

    def _hybrid(self, share: float, training: bool) -> Hybrid:
        of: Of = "training" if training else "inference"
        return Hybrid(f"time:{share}", of, self.batch_size, device=self.device, clustering="random")


def _kept(ticket: StructureResult) -> dict[str, Any]:
    """Return the shares of weights and of multiply-adds that are executed, and how many layers have which form."""
    layers = list(ticket.layers.values())
    forms = [layer.form for layer in layers]
    return {
        "weights": sum(layer.executed for layer in layers) / sum(layer.size for layer in layers),
        "flops": sum(layer.executed * layer.positions for layer in layers)
        / sum(layer.size * layer.positions for layer in layers),
        "layers": {form: forms.count(form) for form in sorted(set(forms))},
    }


def jobs(device: str, batch_size: int) -> Iterator[Job]:
    """Yield what is measured."""
    for name in NETWORKS:
        bench = Bench(name, device, batch_size)
        for training in (False, True):
            about = {"network": name, "training": training, "batch_size": batch_size}
            for share in BUDGETS:
                yield {"kind": "budget", "share": share, **about}, partial(bench.budget, share, training)
        for training in (False, True) if name in BESIDE else ():
            about = {"network": name, "training": training, "batch_size": batch_size}
            yield {"kind": "beside", "density": DENSITY, **about}, partial(bench.beside, training)


def table(done: Sequence[Mapping[str, Any]]) -> Table:
    """Return the table of what was measured."""
    shown = Table(title=f"Measured time over dense; masks keep {DENSITY:.0%} of every layer")
    for name in ("network", "step", "structure", "asked", "time", "weights", "FLOPs", "layers"):
        shown.add_column(name)
    for row in (*rows_of(done, "budget"), *rows_of(done, "beside")):
        layers = ", ".join(f"{count} {form}" for form, count in row["layers"].items())
        asked = "" if row["asked"] is None else f"{row['asked']:.2f}"
        step = "training" if row["training"] else "inference"
        shown.add_row(row["network"], step, row["structure"], asked, f"{row['time']:.3f}", f"{row['weights']:.2f}",
                      f"{row['flops']:.2f}", layers)  # fmt: skip
    return shown


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.budgets", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file, written after every job and continued if it is there")
    parser.add_argument("--show", type=Path, help="print the table of such a file, measure nothing")
    parser.add_argument("--threads", type=int, help="CPU threads; one a core")
    parser.add_argument("--batch-size", type=int, default=128)
    options = parser.parse_args(arguments)
    if options.show:
        done = jobs_in([options.show])
    else:
        record, device = open_record(options.output, options.threads)
        record.measure(jobs(device, options.batch_size))
        done = record.jobs
    table_console().print(table(done))


if __name__ == "__main__":
    main()
