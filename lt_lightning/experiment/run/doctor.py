"""Examines this machine: what is there, what is missing, and what that turns off."""

from __future__ import annotations

import os
import platform
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from rich.console import Console
from rich.text import Text

from lt_lightning.execution.kernels.cpu import instructions, library
from lt_lightning.execution.machine import environment, version_of

State = Literal["ok", "off", "wrong"]
COLOURS: dict[State, str] = {"ok": "green", "off": "yellow", "wrong": "red"}

# What an extra of pyproject.toml is for.
EXTRAS = {
    "dashboard": "lt-lightning dashboard",
    "docs": "the documentation's pages",
    "export": "ONNX in lt-lightning export and python -m benchmarks",
    "ray": "hydra/launcher=ray",
    "sweep": "hydra/launcher=joblib, submitit_local or slurm, hydra/sweeper=tune",
    "tensorboard": "logger=tensorboard",
}
LITTLE = 1e9  # bytes on disk that a few searches fill
NEEDED = 1e8  # bytes on disk without which nothing can run


@dataclass(frozen=True)
class Check:
    """The state of one thing.

    Attributes:
        topic: name of the thing.
        finding: what is there.
        state: `ok`; `off` if a feature is turned off or slow; `wrong` if nothing can run like this.
        effect: what is turned off, or what to do.
    """

    topic: str
    finding: str
    state: State = "ok"
    effect: str = ""


def examine(conf: Path, data: Path, root: Path) -> Iterator[Check]:
    """Check everything, the compiler last: a first compilation takes some seconds.

    Args:
        conf: folder of the configuration groups, whose data sets are checked.
        data: value of `paths.data`.
        root: value of `paths.root`.
    """
    yield _python()
    yield from _packages()
    yield from _devices()
    yield _bfloat16()
    yield from _data_sets(conf / "data", data)
    yield _disk(root)
    yield _kernel()


def print_checks(checks: Iterator[Check], console: Console) -> list[Check]:
    """Print a line for each check as soon as it is made, and return them."""
    made = []
    for check in checks:
        line = Text.assemble((f"{check.state:6}", COLOURS[check.state]), f"{check.topic + ':':22}{check.finding}")
        console.print(line + Text(f"; {check.effect}" if check.effect else ""), soft_wrap=True, highlight=False)
        made.append(check)
    return made


def _python() -> Check:
    return Check("Python", f"{platform.python_version()} on {platform.platform()}")


def _packages() -> Iterator[Check]:
    """Check the package and what it requires, then each extra."""
    own = version("lt-lightning")
    needed: dict[str, list[Requirement]] = defaultdict(list)
    for text in requires("lt-lightning") or ():
        requirement = Requirement(text)
        extra = next((name for name in EXTRAS if _applies(requirement, name) and not _applies(requirement, "")), "")
        if extra or _applies(requirement, ""):
            needed[extra].append(requirement)
    wrong = _problems(needed[""])
    names = ("torch", "pytorch-lightning", "hydra-core", "wandb")
    finding = f"{own} with {', '.join(f'{name} {version_of(name)}' for name in names)}"
    effect = f"{', '.join(wrong)}: pip install -e ." if wrong else ""
    yield Check("lt-lightning", finding, "wrong" if wrong else "ok", effect)
    for extra, feature in EXTRAS.items():
        if not needed[extra]:
            continue
        if wrong := _problems(needed[extra]):
            yield Check(f"extra {extra}", ", ".join(wrong), "off", f"turns off {feature}: pip install -e '.[{extra}]'")
        else:
            there = [f"{requirement.name} {version_of(requirement.name)}" for requirement in needed[extra]]
            yield Check(f"extra {extra}", ", ".join(there))


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _problems(requirements: Iterable[Requirement]) -> list[str]:
    """Return what is wrong with requirements, such as `onnx is missing` or `torch 2.0 is not >=2.11`."""
    problems = []
    for requirement in requirements:
        installed = version_of(requirement.name)
        if installed is None:
            problems.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(installed, prereleases=True):
            problems.append(f"{requirement.name} {installed} is not {requirement.specifier}")
    return problems


def _devices() -> Iterator[Check]:
    facts = environment("cpu")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("CPU", f"{facts['cpu']}, {facts['vectors']}, {facts['threads']} threads for {cores} cores")
    if not torch.cuda.is_available():
        reason = "this PyTorch is made for the CPU" if torch.version.cuda is None else "no device or no driver"
        yield Check("GPU", f"none ({reason})", "off", "trainings run on the CPU, 2:4 sparsity runs dense")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Check(f"GPU {index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}")
    if find_spec("triton") is None:
        yield Check("Triton", "missing", "off", "regrouped layers have no kernel on the GPU: pip install triton")
    else:
        yield Check("Triton", str(version_of("triton")))


def _bfloat16() -> Check:
    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = "avx512_bf16" in instructions()
    if fast:
        return Check("bfloat16", "the device multiplies it")
    return Check("bfloat16", "emulated", "off", "trainer.precision=bf16-mixed is slower than 32-true here")


def _data_sets(groups: Path, data: Path) -> Iterator[Check]:
    """Check the data sets of `conf/data` that read files."""
    for path in sorted(groups.glob("*.yaml")):
        files = getattr(get_class(OmegaConf.load(path).data["_target_"]), "files", None)
        if files is None:
            continue
        if not (absent := files.missing(data)):
            yield Check(f"data={path.stem}", str(data / files.folder))
        elif files.downloads:
            yield Check(f"data={path.stem}", f"not in {data / files.folder}", "off", "downloaded at its first use")
        else:
            advice = f"put {', '.join(absent)} into {data / files.folder}"
            yield Check(f"data={path.stem}", f"not in {data / files.folder}", "off", advice)


def _disk(root: Path) -> Check:
    """Check the disk of the root, or of the first folder above it that exists."""
    existing = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    finding = f"{free / 1e9:.1f} GB free in {existing}"
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return Check("results", finding, "wrong", f"paths.root={root} cannot be written")
    if free < NEEDED:
        return Check("results", finding, "wrong", "no space for checkpoints and tickets")
    if free < LITTLE:
        return Check("results", finding, "off", "little for many searches")
    return Check("results", finding)


def _kernel() -> Check:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = library()
    if loaded is not None:
        return Check("compiled CPU kernel", Path(loaded._name).name)
    reason = str(caught[-1].message).partition(": ")[2] if caught else "it could not be compiled or loaded before"
    return Check("compiled CPU kernel", reason, "off", "regrouped layers run dense on the CPU: install g++ or set CXX")
