"""Looks at networks of several libraries: `python -m benchmarks.compatibility --help`.

With --output every network is on disk at once, in place of what was there of it. --write puts the table of such a file
into a page of the documentation.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.compatibility.measure import DENSITIES, measure
from benchmarks.compatibility.networks import Case, cases
from benchmarks.compatibility.peer import is_there, measure_peer
from benchmarks.compatibility.table import behind, insert, table
from lt_lightning.storage.files import read_json, write_json

_PACKAGES = ("torch", "transformers", "torchvision", "timm", "torch-pruning")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.compatibility", description=__doc__)
    add = parser.add_argument
    add("--network", nargs="+", default=["*"], metavar="PATTERN", help="networks by name or source (all)")
    add("--output", type=Path, help="JSON file, written after every network")
    add("--missing", action="store_true", help="leave out networks that the file has")
    add("--no-peer", action="store_true", help="leave Torch-Pruning out")
    add("--threads", type=int, help="threads of the CPU (one a core)")
    add("--write", type=Path, metavar="PAGE", help="put the table of --output into this page, measure nothing")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = (
        read_json(options.output)["networks"] if options.output and options.output.exists() else []
    )
    if options.write:
        insert(options.write, table(rows))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    there = cases()
    chosen = [
        case for case in there if any(fnmatchcase(key, p) for key in (case.name, case.source) for p in options.network)
    ]
    if not chosen:
        sys.exit(f"error: --network {' '.join(options.network)}: names none of {', '.join(c.name for c in there)}")
    order = {(case.source, case.name): index for index, case in enumerate(there)}
    for case in chosen:
        if options.missing and any((row["source"], row["network"]) == (case.source, case.name) for row in rows):
            continue
        row = look_at(case, peer=is_there() and not options.no_peer)
        rows = [each for each in rows if (each["source"], each["network"]) != (case.source, case.name)] + [row]
        rows.sort(key=lambda each: order.get((each["source"], each["network"]), len(order)))
        print(json.dumps(row), flush=True)
        if options.output:
            write_json(options.output, {"packages": _versions(), "networks": rows})
    for line in behind(rows):
        print(line)


def _is_meant(case: Case, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(key, pattern) for key in (case.name, case.source) for pattern in patterns)


def look_at(case: Case, densities: Sequence[float] = DENSITIES, peer: bool = True) -> dict[str, Any]:
    """Return what was found out about a network, as it is written to the file."""
    logging.disable(logging.WARNING)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours = asdict(measure(case, densities))
        theirs = asdict(measure_peer(case, densities)) if peer else None
    logging.disable(logging.NOTSET)
    return {
        "network": case.name,
        "source": case.source,
        **ours,
        "peer": theirs,
        "all_seconds": time.perf_counter() - began,
    }


def _versions() -> Mapping[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
