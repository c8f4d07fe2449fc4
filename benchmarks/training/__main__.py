"""`python -m benchmarks.training` times training, rounds and searches. Everything that is compared runs in turn.

Steps: all contenders train the same network on the same batches from the same values, and losses that have to agree
are compared. bare is a loop by hand on data on the device; dense and pruned are our trainer without and with
LotteryTicketPruning; model_pruning and prune_hooks are Lightning's and PyTorch's own pruning with the same masks;
pictures is a pipeline of PIL, DataLoader and float32 as in research code; loading is our data alone. Images are random,
unless --data names a folder with CIFAR-10.
Limit: the bare step's operations and bytes against the machine's rates, which are measured in turn with it.
"""

from __future__ import annotations

import argparse
import copy
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.jobs import Job, Record, Row, jobs_in, make_network, model_names, open_record, rows_of, table_console
from benchmarks.training.contenders import CONTENDERS
from benchmarks.training.contest import contest, steps_for
from benchmarks.training.overhead import measure_overhead, measure_round
from benchmarks.training.roofline import measure_roofline
from benchmarks.training.searches import Search, costs
from benchmarks.training.tables import training_tables, verdicts
from benchmarks.training.task import CLASSES, Setting, Task, real, synthetic
from lt_lightning.storage.files import read_json
from lt_lightning.structures.base import Structure
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup

KINDS = ("steps", "limit", "round", "overhead", "search")
TRAINING_IMAGES = 45_000  # of CIFAR-10, in an epoch
PAPER = Search(rounds=10, epochs=160, rewind=8)
STRUCTURES: dict[str, Structure] = {"refill": Refill(), "regroup": Regroup(granularity="kernel_position")}
BETWEEN = STRUCTURES | {"regroup in random groups": Regroup(granularity="kernel_position", clustering="random")}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    try:
        if options.show:
            show(jobs_in(options.show))
        else:
            _benchmark(options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


def _benchmark(options: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    record, device = open_record(options.output, options.threads, pytorch_lightning=version("pytorch-lightning"))
    for name in options.network:
        record.measure(_jobs(name, make_network(name, CLASSES, 3), options, device, record))
    show(record.jobs)
    if options.output:
        print(f"written to {options.output}")


def show(jobs: Sequence[Mapping[str, Any]]) -> None:
    """Print the tables, and whether each limit is kept."""
    console = table_console()
    rows = {kind: rows_of(jobs, kind) for kind in KINDS}
    for kind, table in training_tables().items():
        if rows[kind]:
            console.print(table(rows[kind]))
            console.print()
    for line in verdicts(rows):
        console.print(line, highlight=False)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    models = model_names()
    add("--network", nargs="+", choices=models, default=["resnet18", "resnet20"], metavar="NAME",
        help=f"networks of conf/model: {', '.join(models)} (resnet18 resnet20)")  # fmt: skip
    add("--kind", nargs="+", choices=KINDS, default=list(KINDS), help=f"kinds of measurement ({' '.join(KINDS)})")
    add("--contender", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME",
        help=f"contenders of the steps: {', '.join(CONTENDERS)} (all)")  # fmt: skip
    add("--batch", nargs="+", type=int, default=[128], help="batch sizes (128)")
    add("--size", type=int, default=32, help="height and width of an image (32)")
    add("--density", type=float, default=0.25, help="density of the masks (0.25)")
    add("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    add("--engine", nargs="+", choices=["eager", "compile", "graphs"], default=["eager"],
        help="graphs: compiled, with CUDA graphs (eager)")  # fmt: skip
    add("--layout", nargs="+", choices=["channels_last", "contiguous"], default=["channels_last"])
    add(
        "--samples",
        type=int,
        default=9,
        help="number of turns, of which the median counts; for the overhead, of steps (9)",
    )
    add("--steps", type=int, help="number of steps of a turn (1; on CUDA 10, so that it can work ahead)")
    add("--limit", type=float, default=100, help="seconds after which the steps take no further turn (100)")
    add("--data", type=Path, help="folder of data sets with CIFAR-10, instead of random images")
    add("--threads", type=int, help="threads of the CPU (one a core)")
    add("--tickets", type=Path, metavar="FILE",
        help="file of `python -m benchmarks` with tickets' steps, for the cost of a search")  # fmt: skip
    add("--output", type=Path, help="JSON file, written after every job and continued if it is there")
    add("--show", type=Path, nargs="+", metavar="FILE", help="print the tables of such files, measure nothing")
    return parser.parse_args(arguments)


def _jobs(name: str, network: nn.Module, options: argparse.Namespace, device: str, record: Record) -> Iterator[Job]:
    """The jobs of one network."""
    repeats = options.steps or (10 if device == "cuda" else 1)
    settings = [
        Setting(batch, device, precision == "bf16", engine, layout == "channels_last")
        for batch, precision, engine, layout in product(
            options.batch, options.precision, options.engine, options.layout
        )
    ]
    for setting in settings if "steps" in options.kind else ():
        what = {"network": name, **asdict(setting), "size": options.size, "density": options.density}
        job = {"kind": "steps", **what, "contenders": options.contender, "samples": options.samples, "steps": repeats,
               "limit": options.limit, "data": "CIFAR-10" if options.data else "random"}  # fmt: skip

        def steps(setting: Setting = setting, what: dict[str, Any] = what) -> list[dict[str, Any]]:
            task = _task(network, setting, steps_for(options.samples, repeats), options)
            measured = contest(task, options.contender, options.samples, repeats, options.limit)
            return [{**what, **asdict(step)} for step in measured]

        yield job, steps
    for setting in settings if "limit" in options.kind else ():
        what = {"network": name, **asdict(setting), "size": options.size}

        def limit(setting: Setting = setting, what: dict[str, Any] = what) -> list[dict[str, Any]]:
            return [what | asdict(measure_roofline(_task(network, setting, 1, options), options.samples))]

        yield {"kind": "limit", **what, "samples": options.samples}, limit
    if "round" in options.kind:
        example = torch.zeros(1, 3, options.size, options.size, device=device)
        yield (
            {"kind": "round", "network": name, "size": options.size, "density": options.density},
            lambda: [
                {"network": name, **asdict(part)}
                for part in measure_round(copy.deepcopy(network).to(device), example, BETWEEN, options.density)
            ],
        )
    if "overhead" in options.kind:
        setting = replace(settings[0], engine="eager")
        whole = TRAINING_IMAGES // setting.batch_size
        yield (
            {"kind": "overhead", "network": name, **asdict(setting), "size": options.size, "samples": options.samples},
            lambda: [
                {"network": name, **asdict(setting)}
                | asdict(measure_overhead(_task(network, setting, max(8, options.samples), options), whole))
            ],
        )
    if "search" in options.kind and options.tickets:
        yield (
            {"kind": "search", "network": name, **asdict(settings[0]), "tickets": options.tickets.name},
            lambda: _search(name, settings[0], options.tickets, record),
        )


def _task(network: nn.Module, setting: Setting, steps: int, options: argparse.Namespace) -> Task:
    count = setting.batch_size * steps + 1
    pairs = real(count, options.data) if options.data else synthetic(count, (3, options.size, options.size))
    return Task(network, options.density, *pairs, setting, steps)


def _search(name: str, setting: Setting, tickets: Path, record: Record) -> list[dict[str, Any]]:
    """Return the cost of the paper's search at measured speeds; in hours, the paper's with a pipeline of pictures."""
    measured = shares_of(read_json(tickets)["jobs"], name, setting)
    steps = {
        row["contender"]: row["milliseconds"] for row in rows_of(record.jobs, "steps") if _is_of(row, name, setting)
    }
    epochs = PAPER.epochs * (TRAINING_IMAGES // setting.batch_size) / 3.6e6
    rows = []
    for cost in costs(PAPER, measured):
        step = steps.get("pictures" if cost.to_paper == 1 else "pruned")
        hours = None if step is None else (cost.rounds + cost.retraining) * step * epochs
        rows.append({"network": name, **asdict(PAPER), **asdict(cost), "hours": hours})
        whole = rows[0]["hours"]
        rows[-1]["hours_to_paper"] = None if hours is None or whole is None else hours / whole
    return rows


def shares_of(jobs: Sequence[Mapping[str, Any]], name: str, setting: Setting) -> dict[str, dict[float, float]]:
    """Return the time of tickets' training steps over the dense one, by structure and density.

    Args:
        jobs: as `python -m benchmarks` measured them.
        name: name of the network.
        setting: setting of the steps.

    Raises:
        ValueError: if they were not measured in this setting.
    """
    shares: dict[str, dict[float, float]] = {structure: {} for structure in STRUCTURES}
    for job in jobs:
        what = job["job"]
        if what["kind"] != "networks" or not what["training"] or what["batch_size"] != setting.batch_size:
            continue
        for row in job["rows"]:
            how = row["setting"]
            same = (row["network"], how["bfloat16"], how["engine"]) == (name, setting.bfloat16, setting.engine)
            if same and how["channels_last"] == setting.channels_last and row["variant"] in shares:
                shares[row["variant"]].setdefault(row["density"], 1 / row["speedup"])
    if missing := [structure for structure, known in shares.items() if not known]:
        raise ValueError(
            f"--tickets has no training step of {name} with {missing[0]} at batch {setting.batch_size}: "
            "measure it with `python -m benchmarks`, or leave out --kind search"
        )
    return shares


def _is_of(row: Row, name: str, setting: Setting) -> bool:
    return row["network"] == name and all(row[key] == value for key, value in asdict(setting).items())


if __name__ == "__main__":
    main()
