"""Everything that is to be run on a machine with a GPU, one step after the other, for 25 minutes at most.

`make gpu` runs it and writes `results/*_gpu.json`, with hardware and versions in each. A step that is done is not run
again; one that was stopped goes on, since every program here goes on with its own file. On a machine that is lent for
a few minutes at a time, give them (`ARGS="--seconds 540"`) and call it again. Nothing is downloaded: a machine that has
PyTorch and Lightning needs the wheels that `--wheels` lists, built here and carried there.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lt_lightning.execution.machine import environment
from lt_lightning.storage.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
DONE = "steps_gpu.json"
# Of what this package imports, what a machine with PyTorch and Lightning may lack; megabytes of each wheel.
WHEELS = {
    "hydra-core": 0.17, "omegaconf": 0.08, "antlr4-python3-runtime": 0.15, "mtkahypar": 6.46, "pooch": 0.07,
    "platformdirs": 0.09,
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """A program to run.

    Attributes:
        name: name of the step.
        arguments: arguments of Python.
    """

    name: str
    arguments: tuple[str, ...]


def steps(output: Path) -> list[Step]:
    """Return all steps, those first that may find something broken."""
    networks = ("--network", "resnet18", "vgg16_bn")
    fast = ("--batch", "512", "--precision", "bf16", "--engine", "eager", "compile")
    kinds = ("--kind", "steps", "limit", "round")
    return [
        Step("tests", ("-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider")),
        Step("networks", ("-m", "benchmarks", *networks, *fast, "--limit", "10",
                          "--output", str(output / "benchmark_gpu.json"))),
        Step("training", ("-m", "benchmarks.training", "--network", "resnet18", "--batch", "512", "--precision", "bf16",
                          "--engine", "eager", "graphs", *kinds, "--limit", "30",
                          "--output", str(output / "training_gpu.json"))),
        Step("budgets", ("-m", "benchmarks.budgets", "--batch-size", "512",
                         "--output", str(output / "budgets_gpu.json"))),
        Step("search", ("-m", "lt_lightning", "run", "model=resnet18", "trainer.max_epochs=20", "pruning.rounds=3",
                        "trainer.precision=bf16-mixed", f"paths.root={output / 'search_gpu'}")),
    ]  # fmt: skip


def run(todo: Sequence[Step], output: Path, seconds: float) -> dict[str, dict[str, float]]:
    """Run the steps that are not done, for so many seconds at most, and return how each ended.

    Args:
        todo: the steps.
        output: folder of the results; `steps_gpu.json` in it says what is done.
        seconds: seconds after which the running step is stopped, and no other begins.
    """
    output.mkdir(parents=True, exist_ok=True)
    path, end = output / DONE, time.monotonic() + seconds
    ended: dict[str, dict[str, float]] = read_json(path)["steps"] if path.is_file() else {}
    for step in todo:
        if ended.get(step.name, {}).get("status") == 0:
            continue
        if (left := end - time.monotonic()) <= 0:
            break
        print(f"{step.name}: {' '.join(step.arguments)}", flush=True)
        start = time.monotonic()
        try:
            status = subprocess.run([sys.executable, *step.arguments], cwd=ROOT, timeout=left).returncode
        except subprocess.TimeoutExpired:
            status = -1
        before = ended.get(step.name, {}).get("seconds", 0.0)
        ended[step.name] = {"status": status, "seconds": round(before + time.monotonic() - start, 1)}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        write_json(path, {"environment": environment(device), "steps": ended})
    return ended


def told(todo: Sequence[Step], ended: Mapping[str, Mapping[str, float]]) -> str:
    """Return how the steps ended, a line each."""
    words = {0: "done", -1: "stopped, goes on with the next call"}
    lines = []
    for step in todo:
        found = ended.get(step.name)
        status = None if found is None else found["status"]
        how = "not begun" if found is None else f"{words.get(int(found['status']), f'failed with {status}')}, "
        lines.append(f"{step.name:<10}{how}" + ("" if found is None else f"{found['seconds']:.0f} s"))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not done, and say how it ended; the exit code is 1 until everything is done."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "results", help="folder of the results (results)")
    parser.add_argument("--seconds", type=float, default=1500, help="seconds after which it stops (1500)")
    parser.add_argument("--wheels", action="store_true", help="list the wheels to carry, run nothing")
    options = parser.parse_args(arguments)
    if options.wheels:
        print(f"# here, with the version of Python that is there, {sum(WHEELS.values()):.0f} MB:")
        print(f"pip wheel --no-deps --constraint constraints.txt --wheel-dir wheels {' '.join(WHEELS)}")
        print("# there:\npip install --no-index --no-deps wheels/*")
        return
    if not torch.cuda.is_available():
        sys.exit("error: there is no GPU that PyTorch can use")
    todo = steps(options.output.resolve())
    ended = run(todo, options.output.resolve(), options.seconds)
    print(told(todo, ended))
    sys.exit(any(ended.get(step.name, {}).get("status") != 0 for step in todo))


if __name__ == "__main__":
    main()
