"""Kills small jobs at random moments, starts the same command again, and compares what is left with an undisturbed run.

`python -m benchmarks.kill_loop --output results/kill_loop.json` goes on where it was stopped. SIGKILL comes at any
moment; while a regrouped ticket is retrained; while a report is written; and, of two processes, either. They are
`trainer.deterministic=true`, and nothing in them is replaced. Compared are the bits of masks, values, rewind points and
metrics, and every value of cards and results that is not a time.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.jobs import Job, Record
from lt_lightning.execution.machine import environment
from lt_lightning.tickets.ticket import Ticket

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "run.py"
OPTIONS = (
    "model.width=16", "pruning.rate=0.6", "data.limit=0.15", "data.batch_size=32", "trainer.max_epochs=2",
    "trainer.accelerator=cpu", "trainer.deterministic=true", "threads=1", "pruning.rounds=2", "pruning.rewind=1ep",
    "measure=null", "structure.regroup.group_size=4", "checkpoint.share=1", "checkpoint.seconds=0", "report=false",
)  # fmt: skip
KILLS_A_TRIAL = 5
PAUSE = 0.01  # seconds between two looks
PRELOADED = [
    "torch._dynamo", "scipy.optimize", "sklearn.datasets", "mtkahypar", "lt_lightning.report.writing",
    "lt_lightning.report.figures", "lt_lightning.experiment.run.command", "lt_lightning.experiment.run.scheduler",
    "lt_lightning.experiment.sweep", "lt_lightning.experiment.run.setup",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A kind of job and of moments at which it is killed.

    Attributes:
        kills: number of kills wanted.
        options: options of the job, besides `OPTIONS`.
        once: pattern of a file that has to appear before the job is killed; empty: any moment will do.
        finished: whether the job is finished but for its report.
        children: whether the processes that the job starts are killed, too, each as often as the job itself.
    """

    kills: int
    options: tuple[str, ...]
    once: str = ""
    finished: bool = False
    children: bool = False


REGROUP = ("structure=[regroup]", "retrain_rounds=[1,2]", "trainer.max_epochs=3")
CASES: Mapping[str, Case] = {
    "any moment": Case(35, ("structure=[refill,regroup]", "structure.refill.round_to=2", "retrain_rounds=[2]")),
    "retraining of regroup": Case(25, REGROUP, once="regroup-*/checkpoints/step-*.pt"),
    "report": Case(15, (*REGROUP, "report=true"), finished=True),
    "two processes": Case(25, ("structure=[regroup]", "retrain_rounds=[2]", "trainer=ddp_sim"), children=True),
}


# A job in a process of its own, copied from one that has imported everything already.


def run_script(options: Sequence[str], log: str) -> None:
    """Do what `python scripts/run.py OPTIONS` does, its output in a file, and end this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    started_by: Any = import_module("lt_lightning.training.processes")
    started_by.START = "fork"  # in no time
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [str(SCRIPT), *options]
    code = 1
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        print(error)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        sys.stdout.flush()
        os._exit(code)


def alive(pid: int) -> bool:
    """Return whether a process is there and runs."""
    try:
        return _status(pid)[0] != "Z"
    except OSError:
        return False


def cpu_seconds(pid: int) -> float:
    """Return the processor's time that a process and those that it has started have taken; 0 of one that is gone."""
    ticks = 0
    for each in (pid, *children_of(pid)):
        with suppress(OSError):
            ticks += sum(map(int, _status(each)[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    with suppress(OSError):
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _status(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@dataclass(frozen=True)
class Runner:
    """Runs jobs in a folder.

    Attributes:
        work: folder for everything.
        commit: commit of the code.
    """

    work: Path
    commit: object = ""

    def start(self, root: Path, case: Case) -> Any:
        """Start a job that writes under a root."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        options = (f"paths.root={root}", *OPTIONS, *case.options)
        process = context.Process(target=run_script, args=(options, str(self.work / "log.txt")))
        process.start()
        return process

    def finish(self, root: Path, case: Case) -> float:
        """Run a job to its end, and return the processor's time that it took.

        Raises:
            RuntimeError: if it fails.
        """
        process, seconds = self.start(root, case), 0.0
        while alive(process.pid):
            seconds = max(seconds, cpu_seconds(process.pid))
            time.sleep(PAUSE)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the job under {root} failed:\n{(self.work / 'log.txt').read_text()}")
        return seconds

    def reference(self, name: str, case: Case) -> tuple[Path, float]:
        """Return the folder of an undisturbed run, made once, and the processor's time that it took."""
        root, note = self.work / "undisturbed" / name.replace(" ", "_"), self.work / f"{name.replace(' ', '_')}.json"
        if not note.is_file():
            shutil.rmtree(root, ignore_errors=True)
            seconds = self.finish(root, case)
            if case.finished:  # the time of the report alone
                _without_report(root)
                seconds = self.finish(root, case)
            note.write_text(json.dumps(seconds))
        return root, float(json.loads(note.read_text()))

    def trial(self, name: str, number: int) -> list[dict[str, Any]]:
        """Kill a job several times, let it end, and compare; return a row for each kill."""
        case, draw = CASES[name], random.Random(f"{name} {number}")
        whole, seconds = self.reference(name, case)
        root = self.work / "killed"
        shutil.rmtree(root, ignore_errors=True)
        if case.finished:
            shutil.copytree(whole, root)
            _without_report(root)
        rows = []
        for _ in range(KILLS_A_TRIAL):
            process = self.start(root, case)
            row = self._kill(process, root, case, draw, seconds)
            process.join()
            if row is None:
                break
            rows.append(row)
        self.finish(root, case)
        differences = differing(left_in(whole), left_in(root))
        return [{**row, "differences": differences, "commit": self.commit} for row in rows]

    def _kill(self, process: Any, root: Path, case: Case, draw: random.Random, seconds: float) -> dict[str, Any] | None:
        """Kill a job at a random moment; return what was killed, and what it had written last; None if it had ended."""
        seen = found(root, case.once)
        while case.once and alive(process.pid) and not found(root, case.once) - seen:
            time.sleep(PAUSE)
        begun = cpu_seconds(process.pid) if case.once else 0.0
        until = begun + draw.uniform(0, 0.03 if case.once else 0.9) * seconds
        while alive(process.pid) and (now := cpu_seconds(process.pid)) < until:
            time.sleep(PAUSE)
        victims = [process.pid, *(children_of(process.pid) if case.children else [])]
        number = draw.randrange(len(victims))
        if not alive(process.pid):
            return None
        os.kill(victims[number], signal.SIGKILL)
        last = _last_written(root)
        return {"after_cpu_seconds": round(now, 2), "killed": "child" if number else "job", "last_written": last}


def _without_report(root: Path) -> None:
    for folder in root.glob("*/report"):
        shutil.rmtree(folder)


def found(root: Path, pattern: str) -> set[Path]:
    """Return the files that match a pattern; none if it is empty."""
    try:
        return set(root.rglob(pattern)) if pattern else set()
    except FileNotFoundError:  # a folder went away meanwhile
        return set()


def _last_written(root: Path) -> str:
    """Return the file that changed last, without what tells runs apart."""
    times = {}
    for path in found(root, "*"):
        try:
            times[path] = path.stat().st_mtime_ns if path.is_file() else 0
        except OSError:
            continue
    last = max(times, key=lambda path: times[path], default=None)
    return "/".join(last.relative_to(root).parts[1:]) if last else ""


# What a job leaves, but for times.

TIMES = (
    "train_seconds", "time_ratio_inference", "time_ratio_training", "time_spread_inference", "time_spread_training",
    "time_samples", "digest",
)  # fmt: skip


def left_in(root: Path) -> dict[str, Any]:
    """Return what a job left that has one search, by file: digests of bits, and values.

    Raises:
        ValueError: if a step stands twice in the metrics.
    """
    (search,) = root.glob("digits-*")
    left = {str(path.relative_to(search)): _content(path) for path in sorted(search.rglob("*"))}
    with (root / "summary.csv").open() as file:
        left["summary"] = {row["place"]: timeless(row) for row in csv.DictReader(file)}  # the last of a place counts
    return left


def _content(path: Path) -> Any:
    if path.is_dir():
        return "folder"
    if path.parent.name == "report":
        return "there"
    match path.name:
        case "metrics.csv":
            return _steps(path)
        case "rounds.json":
            return [timeless(facts) for facts in json.loads(path.read_text())]
        case "result.json":
            return timeless(json.loads(path.read_text()))
        case "ticket.safetensors":
            ticket = Ticket.load(path)
            return [timeless(dict(ticket.card)), *map(bits, (ticket.masks, ticket.rewind, ticket.trained))]
        case "restart.pt" | "gradients.pt":
            return bits(torch.load(path, weights_only=True))
        case "environment.json":  # the checkout may be worked on meanwhile
            return {key: value for key, value in json.loads(path.read_text()).items() if key != "commit"}
        case "layer_times.json":
            return {key: value for key, value in json.loads(path.read_text()).items() if key != "seconds"}
        case "ticket.json" | "config.yaml" | "trained.json" | "jobs.txt":  # paths, times, and what others tell
            return "there"
        case _:
            return hashlib.sha256(path.read_bytes()).hexdigest()


def timeless(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts without those that are times."""
    return {key: value for key, value in facts.items() if key not in TIMES}


def bits(value: Any) -> Any:
    """Return nested values, each tensor as a digest of its bits."""
    match value:
        case torch.Tensor():
            return hashlib.sha256(value.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        case Mapping():
            return {key: bits(each) for key, each in value.items()}
        case list():
            return [bits(each) for each in value]
        case _:
            return value


def _steps(path: Path) -> str:
    with path.open() as file:
        steps = [int(row["step"]) for row in csv.DictReader(file)]
    if steps != sorted(set(steps)):
        raise ValueError(f"{path}: a step stands twice")
    return path.read_text()


def differing(expected: Mapping[str, Any], left: Mapping[str, Any]) -> list[str]:
    """Return the names of what two runs left differently, or one of them alone."""
    return [name for name in sorted({*expected, *left}) if expected.get(name) != left.get(name)]


# The loop.


def _jobs(record: Record, runner: Runner, cases: Sequence[str]) -> Iterator[Job]:
    """Yield trials of each case until there are as many kills as it wants."""
    for name in cases:
        number = 0
        while len(_rows(record, name)) < CASES[name].kills:
            yield {"kind": "kills", "case": name, "trial": number}, partial(runner.trial, name, number)
            number += 1


def _rows(record: Record, name: str) -> list[dict[str, Any]]:
    return [row for done in record.jobs if done["job"]["case"] == name for row in done["rows"]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.kill_loop", description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file, written after every trial and continued if it is there")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES), help="kinds of moments (all)")
    parser.add_argument("--work", type=Path, help="folder for the jobs (a temporary one)")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        facts = environment("cpu")
        runner = Runner(options.work or Path(folder), facts.pop("commit"))
        runner.work.mkdir(parents=True, exist_ok=True)
        record = Record(options.output, facts)
        record.measure(_jobs(record, runner, options.case))
    different = 0
    for name in CASES:
        rows = _rows(record, name)
        wrong = sum(bool(row["differences"]) for row in rows)
        different += wrong
        print(f"{name}: {len(rows)} kills, {wrong} followed by a difference")
    sys.exit(bool(different))


if __name__ == "__main__":
    main()
