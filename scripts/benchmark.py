"""Times tickets of real networks against the dense ones: `python scripts/benchmark.py --help`.

Tickets are made at random weights, every prunable layer at the given density. Everything that is compared is measured
in turn in one process. With --output every finished setting is on disk at once; the same command goes on where it was
stopped, and other settings can be added to the same file.

`benchmark.py training` times the training itself: `python scripts/benchmark.py training --help`.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from rich.console import Console
from torch import nn

from benchmarks.layer_table import measure_layers
from benchmarks.paper_protocol import measure_by_paper
from benchmarks.record import Record, rows_of
from benchmarks.suite import measure_networks
from benchmarks.summary import layer_table, network_table, paper_table, slower_than_dense
from benchmarks.variants import VARIANTS, Tickets, with_round_to
from lt_lightning.execution.machine import environment
from lt_lightning.execution.network_timing import Setting
from lt_lightning.execution.timing import Effort, keep_freed_memory
from lt_lightning.files import read_json

MODELS = Path(__file__).resolve().parent.parent / "conf" / "model"

Measure = Callable[[Tickets], Sequence[Any]]


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if given[:1] == ["training"]:
            from benchmarks.training.command import main as training  # slow to import, as all that needs Lightning

            training(given[1:], MODELS)
            return
        options = _options(given)
        if options.show:
            _print_tables([job for path in options.show for job in read_json(path)["jobs"]])
        else:
            _benchmark(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    models = sorted(path.stem for path in MODELS.glob("*.yaml"))
    add(
        "--network",
        nargs="+",
        choices=models,
        default=["resnet18", "vgg16_bn"],
        metavar="NAME",
        help=f"of conf/model: {', '.join(models)} (resnet18 vgg16_bn)",
    )
    add("--image", nargs=3, type=int, default=[3, 32, 32], metavar=("C", "H", "W"), help="shape of an image (3 32 32)")
    add("--classes", type=int, default=10)
    add(
        "--variant",
        nargs="+",
        choices=VARIANTS,
        metavar="NAME",
        default=["masked", "refill", "regroup_channels", "regroup"],
        help=f"beside dense: {', '.join(VARIANTS)} (masked refill regroup_channels regroup)",
    )
    add("--density", nargs="+", type=_density, default=[0.25], help="share left of every prunable layer (0.25)")
    add("--round-to", type=int, default=16, help="kept channels are a multiple of it (16)")
    add("--batch", nargs="+", type=int, default=[128], help="images at once (128)")
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
    add("--layers", action="store_true", help="also every layer by itself, forward and training step")
    add("--layers-only", action="store_true", help="nothing but that")
    add(
        "--paper",
        type=int,
        nargs="?",
        const=64,
        metavar="BATCH",
        help="only the paper's protocol: convolutions alone, 127x127 inputs (batch 64; use less on a CPU)",
    )
    add("--samples", type=int, default=5, help="turns, of which the median counts (5)")
    add("--limit", type=float, default=60, help="seconds after which a setting takes no further turn (60)")
    add("--threads", type=int, help="of the CPU (one a core)")
    add("--output", type=Path, help="JSON file, written after every setting and continued if it is there")
    add("--show", type=Path, nargs="+", metavar="FILE", help="print the tables of such files, measure nothing")
    return parser.parse_args(arguments)  # fmt: skip


def _density(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share between 0 and 1")
    return value


def _benchmark(options: argparse.Namespace) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    record = Record(options.output, environment(device, freed_memory_kept=keep_freed_memory()))
    console = Console(stderr=True)
    for name in options.network:
        tickets = _tickets(name, options)
        for job, measure in _jobs(name, options, device):
            if record.has(job):
                continue
            what = ", ".join(f"{key} {value}" for key, value in job.items() if not isinstance(value, (list, tuple)))
            console.print(f"{time.strftime('%H:%M:%S')}  {what}", highlight=False)
            start = time.perf_counter()
            rows = [{"network": name, "image": options.image, **asdict(row)} for row in measure(tickets)]
            record.add(job, rows, time.perf_counter() - start)
            torch._dynamo.reset()  # what was compiled is not needed again
            gc.collect()
    _print_tables(record.jobs)
    if options.output:
        print(f"written to {options.output}")


def _tickets(name: str, options: argparse.Namespace) -> Tickets:
    channels, *_ = options.image
    config = {
        "dataset": {"classes": options.classes, "channels": channels},
        "model": OmegaConf.load(MODELS / f"{name}.yaml"),
    }
    torch.manual_seed(0)
    network: nn.Module = instantiate(OmegaConf.create(config).model)
    return Tickets(network, tuple(options.image))


def _jobs(name: str, options: argparse.Namespace, device: str) -> Iterator[tuple[dict[str, Any], Measure]]:
    """What is to be measured of a network: its description, by which it is found again, and how."""
    variants = {key: with_round_to(VARIANTS[key], options.round_to) for key in options.variant}
    effort = Effort(options.samples, limit=options.limit)
    common = {"network": name, "image": options.image, "classes": options.classes, "round_to": options.round_to,
              "variants": list(variants), "densities": options.density, "samples": options.samples,
              "limit": options.limit}  # fmt: skip
    if options.paper:
        yield (
            {"kind": "paper", "batch_size": options.paper, **common},
            lambda tickets: measure_by_paper(tickets, variants, options.density, effort, options.paper, device),
        )
        return
    layouts = [layout == "channels_last" for layout in options.layout]
    for precision, batch_size, mode in product(options.precision, options.batch, options.mode):
        setting = Setting(batch_size, mode == "training", precision == "bf16")
        asked = {"batch_size": batch_size, "training": setting.training, "bfloat16": setting.bfloat16, **common}
        if not options.layers_only:
            yield (
                {"kind": "networks", "engines": options.engine, "layouts": options.layout, **asked},
                lambda tickets, setting=setting: measure_networks(  # type: ignore[misc]
                    tickets, variants, options.density, setting, effort, options.engine, layouts, device
                ),
            )
        if options.layers or options.layers_only:
            yield (
                {"kind": "layers", **asked},
                lambda tickets, setting=setting: measure_layers(  # type: ignore[misc]
                    tickets, variants, options.density, setting, effort, device
                ),
            )


def _print_tables(jobs: Sequence[Mapping[str, Any]]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 240, soft_wrap=True)
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
