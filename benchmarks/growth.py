"""Measures what the end of a task, the table and the report cost, given how many results are there already.

    python -m benchmarks.growth results/growth.json [--sizes 1000 10000 100000] [--report-up-to 100000]

It makes a root of results that nobody has trained, in a folder for temporary files, and lets it grow. A search has 50
results; its tickets have cards, but no weights. The file is written after each size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lt_lightning.execution.machine import environment
from lt_lightning.report.contents import collect
from lt_lightning.report.writing import FOLDER, write_report
from lt_lightning.results.job_record import JobRecord, Task, TicketKind
from lt_lightning.results.records import HEADS, SUMMARY, Result, finish, write_summary
from lt_lightning.results.status import tasks_under
from lt_lightning.storage.files import write_csv, write_json
from lt_lightning.storage.litter import scratch_folder

ROUNDS, STRUCTURES = 7, ("unstructured", "refill", "refill_plus", "regroup", "regroup_channels", "nm", "filters")
TICKETS = 1 + ROUNDS * len(STRUCTURES)  # of a search
SEEDS = 5
TASKS = 20  # whose ends are timed


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.growth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="numbers of results")
    parser.add_argument("--report-up-to", type=int, default=100_000, help="largest size that a report is made of")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with scratch_folder("lt-lightning-growth-") as root:
        searches = 0
        for size in sorted(options.sizes):
            while searches * TICKETS < size:
                make_search(root, searches)
                searches += 1
            rows.append(measure(root, searches, with_report=size <= options.report_up_to))
            searches += 1
            print(json.dumps(rows[-1]), flush=True)
            write_json(options.output, {"environment": environment("cpu"), "rows": rows})


def measure(root: Path, searches: int, with_report: bool) -> dict[str, Any]:
    """Return what the ends of some tasks of a new search, a job's end, the table, the status and the report cost."""
    row: dict[str, Any] = {"results": searches * TICKETS}
    row["summary_s"] = seconds(lambda: write_summary(root))
    results = results_of_search(searches)
    row["task_end_s"] = statistics.median(seconds(lambda each=each: finish(root, [each])) for each in results[:TASKS])  # type: ignore[misc]
    finish(root, results[TASKS:])
    beside_results(root, searches, results)
    row["job_end_s"] = seconds(lambda: collect(root / results[0].search))
    row["status_s"] = seconds(lambda: tasks_under(root))
    if with_report:
        row["report_s"] = seconds(lambda: write_report(root))
        row["report_mb"] = sum(file.stat().st_size for file in (root / FOLDER).rglob("*")) / 1e6
    return row


def seconds(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def make_search(root: Path, number: int) -> None:
    """Make a finished search with its tickets and the record of its job; the table gets its rows."""
    results = results_of_search(number)
    for result in results:
        result.save(root / result.place)
    if not (root / SUMMARY).exists():
        write_csv(root / SUMMARY, HEADS, [])
    beside_results(root, number, results)


def beside_results(root: Path, number: int, results: Sequence[Result]) -> None:
    """Write what lies beside the results of a search."""
    search = root / results[0].search
    for result in results:
        write_json(root / result.place / "ticket.json", card_of(result))
    names = {"data": results[0].data, "model": results[0].model}
    config = {"seed": results[0].seed, "labels": names, "pruning": {"rate": rate_of(number)}}
    (search / "config.yaml").write_text(json.dumps(config), encoding="utf-8")  # which is YAML, too
    retrained = [result for result in results if "-" in Path(result.place).name]
    parts = tuple(root / result.place for result in results if result not in retrained)
    tasks = [Task(search, "search", 0, None, parts)]
    for result in retrained:
        folder = root / result.place
        tasks.append(Task(folder, f"{result.kind}", result.round, TicketKind(result.structure), (folder,)))
    record = JobRecord(number, {"seed": str(results[0].seed)}, tuple(tasks), tuple(range(len(tasks))))
    record.save(root / "jobs" / "sweep" / str(number))
    record.note(root / "jobs" / "sweep" / str(number))


def results_of_search(number: int) -> list[Result]:
    """Return made-up results of a search: five seeds of each setting."""
    search = f"digits-resnet8-s{number % SEEDS}-{number:08x}"
    kinds = [(0, "dense")] + [(each, name) for each in range(1, ROUNDS + 1) for name in STRUCTURES]
    results = []
    for count, name in kinds:
        density, folder = 0.8**count, name if name in ("dense", "unstructured") else f"{name}-{number:08x}"
        accuracy = 0.9 - 0.01 * count + 0.001 * (number % SEEDS)
        results.append(Result(
            data="digits", model="resnet8", seed=number % SEEDS, round=count, structure=name, target_density=density,
            density=density, accuracy=accuracy, dense_accuracy=0.9, params_ratio=density, flops_ratio=density,
            train_seconds=10.0, val_accuracy=accuracy, best_epoch=3, retained_magnitude=0.9,
            time_ratio_inference=density, time_ratio_training=density, search=search,
            place=f"{search}/round_{count:02d}/{folder}", executed=density, time_spread_inference=0.01,
            time_spread_training=0.01, time_samples=7,
        ))  # fmt: skip
    return results


def rate_of(number: int) -> float:
    """Return the option that tells the settings apart."""
    return 0.2 + (number // SEEDS) / 1e6


def card_of(result: Result) -> dict[str, Any]:
    """Return a card with two layers."""
    layer = {"form": "dense", "size": 100, "positions": 64, "target": 50, "kept": 50, "executed": 50, "note": ""}
    return {"structure": result.structure, "prunable": ["conv1", "conv2"], "layers": {"conv1": layer, "conv2": layer}}


if __name__ == "__main__":
    main()
