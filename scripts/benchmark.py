"""Times tickets of real networks against the dense ones: `python scripts/benchmark.py --help`."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from lt_lightning.files import write_json
from lt_lightning.measure.networks import Setting
from lt_lightning.measure.suite import Measurement, measure_network
from lt_lightning.models.resnet import cifar_resnet, resnet18
from lt_lightning.models.vgg import VGG
from lt_lightning.structures.base import Structure
from lt_lightning.structures.refill import Refill
from lt_lightning.structures.regroup import Regroup
from lt_lightning.structures.unstructured import Unstructured

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet18(10),
    "vgg16_bn": lambda: VGG(16, 10),
    "resnet20": lambda: cifar_resnet(20, 10),
}
STRUCTURES: dict[str, Structure] = {
    "masked": Unstructured(),
    "refill": Refill(),
    "refill_inner": Refill(coupling="inner"),
    "regroup_channels": Regroup(columns="input_channel", round_to=16, clustering="kmeans"),
    "regroup": Regroup(columns="kernel_position", clustering="kmeans"),
}


def main() -> None:
    options = _options()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = [
        Setting(batch, training, options.bf16, options.compile)
        for batch in options.batch
        for training in (False, True)
        if not (training and options.inference_only)
    ]
    structures = {name: STRUCTURES[name] for name in options.structure}
    rows: list[Measurement] = []
    print(f"{'network':10}{'variant':18}{'density':>8}  {'setting':44}{'ms':>9}{'x':>7}{'ideal':>7}{'share':>7}")
    for name in options.network:
        for density in options.density:
            for row in measure_network(
                name, NETWORKS[name], (3, 32, 32), structures, density, settings, device, options.samples
            ):
                rows.append(row)
                print(
                    f"{row.network:10}{row.variant:18}{row.density:8.2f}  {Setting(**row.setting)!s:44}"  # type: ignore[arg-type]
                    f"{row.milliseconds:9.1f}{row.speedup:7.2f}{row.ideal:7.2f}{row.share:7.2f}",
                    flush=True,
                )
    if options.output:
        write_json(options.output, {"hardware": _hardware(device), "measurements": [asdict(row) for row in rows]})
        print(f"written to {options.output}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=["resnet18", "vgg16_bn"])
    parser.add_argument("--structure", nargs="+", choices=STRUCTURES, default=list(STRUCTURES))
    parser.add_argument("--density", nargs="+", type=float, default=[0.5, 0.25, 0.1])
    parser.add_argument("--batch", nargs="+", type=int, default=[128])
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 by autocast")
    parser.add_argument("--compile", action="store_true", help="compile with torch.compile")
    parser.add_argument("--inference-only", action="store_true")
    parser.add_argument("--samples", type=int, default=7, help="turns, of which the median counts")
    parser.add_argument("--output", type=Path, help="JSON file for the measurements, with hardware and versions")
    return parser.parse_args()


def _hardware(device: str) -> dict[str, object]:
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
            "python": platform.python_version()}  # fmt: skip


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
