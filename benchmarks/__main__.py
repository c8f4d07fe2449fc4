"""Times tickets of real networks against the dense ones: `python -m benchmarks --help`.

Tickets are made at random weights, with every prunable layer at the given density. Tickets of a search keep early,
costly layers denser: --layer-densities takes the layers' densities from a ticket's card, or those of the tickets of the
paper's authors from results/layer_densities_authors.json. Everything that is compared is
measured in turn in one process. With --output every finished setting is on disk at once; the same command goes on where
it was stopped, and other settings can be added to the same file.

`python -m benchmarks.training` times the training itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.jobs import Job, LayerDensities, jobs_in, make_network, model_names, open_record, rows_of, table_console
from benchmarks.layers import measure_by_paper, measure_layers
from benchmarks.networks import measure_networks
from benchmarks.tables import layer_table, network_table, paper_table, slower_than_dense
from benchmarks.variants import VARIANTS, Effort, Tickets, with_round_to
from lt_lightning.execution.cost import Setting, flops
from lt_lightning.results.tables import terminal_table


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    try:
        if options.show:
            _print_tables(jobs_in(options.show))
        elif options.operations:
            _print_operations(options)
        else:
            _benchmark(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    models = model_names()
    add(
        "--network",
        nargs="+",
        choices=models,
        default=["resnet18", "vgg16_bn"],
        metavar="NAME",
        help=f"networks of conf/model: {', '.join(models)} (resnet18 vgg16_bn)",
    )
    add("--image", nargs=3, type=int, default=[3, 32, 32], metavar=("C", "H", "W"), help="shape of an image (3 32 32)")
    add("--classes", type=int, default=10)
    add(
        "--variant",
        nargs="+",
        choices=VARIANTS,
        metavar="NAME",
        default=["masked", "refill", "regroup_channels", "regroup"],
        help=f"tickets beside the dense network: {', '.join(VARIANTS)} (masked refill regroup_channels regroup)",
    )
    add("--density", nargs="+", type=_density, default=[0.25], help="densities of every prunable layer (0.25)")
    add(
        "--layer-densities",
        type=Path,
        metavar="FILE",
        help="densities of the layers, in place of --density: a ticket's card, results/layer_densities_authors.json",
    )
    add("--operations", action="store_true", help="print what tickets execute, measure nothing")
    add("--round-to", type=int, default=16, help="kept channels are a multiple of it (16)")
    add("--batch", nargs="+", type=int, default=[128], help="batch sizes (128)")
    add("--mode", nargs="+", choices=["inference", "training"], default=["inference", "training"])
    add("--precision", nargs="+", choices=["fp32", "bf16"], default=["fp32"])
    add(
        "--engine",
        nargs="+",
        choices=["eager", "compile", "onnx"],
        default=["eager"],
        help="onnx: ONNX Runtime, for dense and refill in fp32 inference (eager)",
    )
    add("--layout", nargs="+", choices=["channels_last", "contiguous"], default=["channels_last"])
    add("--layers", action="store_true", help="measure every layer by itself, too")
    add("--layers-only", action="store_true", help="measure layers only")
    add(
        "--paper",
        type=int,
        nargs="?",
        const=64,
        metavar="BATCH",
        help="measure only by the paper's protocol: convolutions alone, 127x127 inputs (batch 64; use less on a CPU)",
    )
    add("--samples", type=int, default=5, help="number of turns, of which the median counts (5)")
    add("--limit", type=float, default=60, help="seconds after which a setting takes no further turn (60)")
    add("--threads", type=int, help="threads of the CPU (one a core)")
    add("--output", type=Path, help="JSON file, written after every setting and continued if it is there")
    add("--show", type=Path, nargs="+", metavar="FILE", help="print the tables of such files, measure nothing")
    return parser.parse_args(arguments)  # fmt: skip


def _density(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


def _benchmark(options: argparse.Namespace) -> None:
    record, device = open_record(options.output, options.threads)
    for name in options.network:
        record.measure(_jobs(name, options, device))
    _print_tables(record.jobs)
    if options.output:
        print(f"written to {options.output}")


def _jobs(name: str, options: argparse.Namespace, device: str) -> Iterator[Job]:
    """The jobs of one network."""
    tickets = _tickets(name, options)
    densities = tickets.densities or options.density
    named = {"layer_densities": whose} if (whose := _layers(options)) else {}

    def measured(rows: Sequence[Any]) -> list[dict[str, Any]]:
        return [{"network": name, "image": options.image, **named, **asdict(row)} for row in rows]

    variants = {key: with_round_to(VARIANTS[key], options.round_to) for key in options.variant}
    effort = Effort(options.samples, limit=options.limit)
    common = {"network": name, "image": options.image, "classes": options.classes, "round_to": options.round_to,
              "variants": list(variants), "densities": densities, **named,
              "samples": options.samples, "limit": options.limit}  # fmt: skip
    if options.paper:
        yield (
            {"kind": "paper", "batch_size": options.paper, **common},
            lambda: measured(measure_by_paper(tickets, variants, densities, effort, options.paper, device)),
        )
        return
    layouts = [layout == "channels_last" for layout in options.layout]

    def networks(setting: Setting) -> list[dict[str, Any]]:
        return measured(
            measure_networks(tickets, variants, densities, setting, effort, options.engine, layouts, device)
        )

    def layers(setting: Setting) -> list[dict[str, Any]]:
        return measured(measure_layers(tickets, variants, densities, setting, effort, device))

    for precision, batch_size, mode in product(options.precision, options.batch, options.mode):
        setting = Setting(batch_size, mode == "training", precision == "bf16")
        job = {"batch_size": batch_size, "training": setting.training, "bfloat16": setting.bfloat16, **common}
        if not options.layers_only:
            yield (
                {"kind": "networks", "engines": options.engine, "layouts": options.layout, **job},
                partial(networks, setting),
            )
        if options.layers or options.layers_only:
            yield (
                {"kind": "layers", **job},
                partial(layers, setting),
            )


def _layers(options: argparse.Namespace) -> str:
    """Return what the layers' densities are of; empty where all layers have the same."""
    return LayerDensities.read(options.layer_densities).name if options.layer_densities else ""


def _tickets(name: str, options: argparse.Namespace) -> Tickets:
    of_layers = LayerDensities.read(options.layer_densities).of(name) if options.layer_densities else None
    return Tickets(make_network(name, options.classes, options.image[0]), tuple(options.image), of_layers)


def _print_operations(options: argparse.Namespace) -> None:
    """Print the share of the dense network's operations and weights that each ticket executes; both are exact."""
    table = terminal_table(
        "What tickets execute: dense = 1", ["network", "layers", "ticket", "density", "FLOPs"], left=3
    )
    for name in options.network:
        tickets = _tickets(name, options)
        whole = flops(tickets.network, tickets.example)
        for key, density in product(options.variant, tickets.densities or options.density):
            structure = with_round_to(VARIANTS[key], options.round_to).structure
            reports = tickets.ticket(structure, density).layers.values()
            left_out = sum(2 * report.positions * (report.size - report.executed) for report in reports)
            table.add_row(name, _layers(options) or "all alike", key, f"{density:g}", f"{1 - left_out / whole:.3f}")
    table_console().print(table)


def _print_tables(jobs: Sequence[Mapping[str, Any]]) -> None:
    console = table_console()
    for kind, table in (("networks", network_table), ("layers", layer_table), ("paper", paper_table)):
        if rows := rows_of(jobs, kind):
            console.print(table(rows))
            console.print()
    if networks := rows_of(jobs, "networks"):
        slower = slower_than_dense(networks)
        console.print("Slower than dense:" if slower else "Nothing is slower than dense.")
        for line in slower:
            console.print(f"  {line}", highlight=False)


if __name__ == "__main__":
    main()
