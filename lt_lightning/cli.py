"""The commands that `scripts/` call: run, stability, report, export, dashboard, doctor."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import lt_lightning.experiment  # noqa: F401  (makes the defaults of a job known to Hydra)
from lt_lightning.results.failures import EXPECTED, one_line

CONF: Final = Path(__file__).resolve().parent.parent / "conf"


def run() -> None:
    """Find structured lottery tickets: `python scripts/run.py KEY=VALUE ...`; `--help` lists the options."""
    with _first_of_several() as first, _hydra_hands_errors_on(), ending_in_one_line():
        if first:
            sys.argv[1:] = spelled_out(sys.argv[1:])
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="run")(_run)()


def _run(config: DictConfig) -> float | None:
    from lt_lightning.experiment.run.command import do, do_in_sweep  # not needed for `--help`

    hydra_config = HydraConfig.get()
    overrides, folder = list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir)
    with _first_of_several() as first:  # SLURM has started this function in all of them, not the command
        if not first:
            return None
        if hydra_config.mode == RunMode.MULTIRUN:
            return do_in_sweep(config, int(hydra_config.job.num), overrides, folder)
        with ending_in_one_line():  # here, or Hydra tells of it, too
            do(config, folder, overrides)
    return None


def stability() -> None:
    """Measure stability to the data order, and find the smallest stable rewind point: see `conf/stability.yaml`."""
    with _hydra_hands_errors_on(), ending_in_one_line():
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="stability")(_stability)()


def _stability(config: DictConfig) -> None:
    from lt_lightning.experiment.protocols.stability import measure_stability  # not needed for `--help`

    measure_stability(config)


def report(arguments: Sequence[str] | None = None) -> None:
    """Write a report of what has been run: `python scripts/report.py runs`.

    It reads a search's folder, the folder of a sweep's jobs, or a root with any number of both, and writes one HTML
    file that opens offline, PNGs of the main figures, and the table of all tickets as Markdown, CSV and LaTeX.
    """
    parser = _parser(report.__doc__)
    parser.add_argument("path", type=Path, help="folder of a search, of a sweep's jobs (jobs/...), or root of both")
    parser.add_argument("--output", type=Path, help="folder to write to (report, under PATH)")
    options = parser.parse_args(arguments)
    from lt_lightning.report.writing import write_report  # not needed for `--help`

    try:
        print(f"Report: {write_report(options.path, options.output)}")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def export(arguments: Sequence[str] | None = None) -> None:
    """Export the network that a finished ticket executes, for use elsewhere: safetensors, torch.export, ONNX.

    python scripts/export.py runs/digits-resnet8-s0-HASH/round_03/refill-HASH exported
    """
    from hydra.errors import InstantiationException

    from lt_lightning.tickets.export.exporting import FORMATS, export_ticket

    parser = _parser(export.__doc__)
    parser.add_argument("ticket", type=Path, help="folder of a finished ticket: SEARCH/round_NN/STRUCTURE")
    parser.add_argument("output", type=Path, help="folder to write, new or empty")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument(
        "--batch-size", type=int, help="compute a layer by blocks only where that is measured faster at this batch size"
    )
    options = parser.parse_args(arguments)
    try:
        card = export_ticket(options.ticket, options.output, options.formats, options.batch_size)
    except (ValueError, OSError, ImportError, RuntimeError, InstantiationException) as error:
        sys.exit(f"error: {str(error).strip().splitlines()[0]}")
    for name, facts in card["formats"].items():
        for file, size in facts["bytes"].items():
            print(f"{options.output / file}  {size / 1e6:.3f} MB")
        if facts.get("run_dense"):
            print(f"  {name} has no operator for these layers, which run dense: {', '.join(facts['run_dense'])}")
    worst = max(facts["difference"] for facts in card["formats"].values())
    print(f"Logits differ from the masked network's by at most {worst:.1e} of the largest.")


def dashboard(arguments: Sequence[str] | None = None) -> None:
    """Make the W&B dashboard of a project's runs: `python scripts/dashboard.py ENTITY [--project lt-lightning]`.

    Panels: accuracy over density, over measured time and over operations, by structure; learning curves; times; mask
    pictures; tables of rounds and timings. With --json the description is written to a file, and nothing is sent.
    """
    parser = _parser(dashboard.__doc__)
    parser.add_argument("entity", help="user or team that the project belongs to")
    parser.add_argument("--project", default="lt-lightning", help="logger.wandb.project of the runs (lt-lightning)")
    parser.add_argument("--group", help="show one sweep alone: the name that its runs have in common")
    parser.add_argument("--json", type=Path, help="write the description to this file, and send nothing")
    options = parser.parse_args(arguments)
    from lt_lightning.storage.files import write_json

    try:
        from lt_lightning.experiment.logging import dashboard as panels
    except ImportError as error:
        sys.exit(f"error: {error.name} is missing: pip install -e '.[dashboard]'")
    workspace = panels.make_dashboard(options.entity, options.project, options.group)
    if options.json is not None:
        write_json(options.json, panels.workspace_json(workspace))
        print(f"Description: {options.json}")
        return
    try:
        workspace.save()  # type: ignore[no-untyped-call]
    except Exception as error:  # W&B's client raises whatever its server or the network brings about
        sys.exit(f"error: W&B did not take the dashboard: {next(iter(str(error).splitlines()), type(error).__name__)}")
    print(f"Dashboard: {workspace.url}")


def doctor(arguments: Sequence[str] | None = None) -> None:
    """Tell what is here, what is missing, and what that turns off: `python scripts/doctor.py [--data PATH]`.

    It ends with exit code 1 if nothing can be run as things are, else with 0.
    """
    parser = _parser(doctor.__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="paths.data (data)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="paths.root (runs)")
    options = parser.parse_args(arguments)
    from rich.console import Console

    from lt_lightning.experiment.run.doctor import examine, print_checks

    checks = print_checks(examine(CONF, options.data, options.root), Console())
    if wrong := [check for check in checks if check.state == "wrong"]:
        sys.exit(f"error: {wrong[0].topic}: {wrong[0].effect}")
    off = sum(check.state == "off" for check in checks)
    print(f"Ready to run; {off} of {len(checks)} are off or slow." if off else "Ready to run.")


# What commands share

FULL_ERROR: Final = bool(os.environ.get("HYDRA_FULL_ERROR"))  # asked for by the user


@contextmanager
def ending_in_one_line() -> Iterator[None]:
    """Let an error that is to be expected end the process with one line; a defect of ours keeps its traceback."""
    try:
        yield
    except EXPECTED as error:
        if FULL_ERROR:
            raise
        sys.exit(f"error: {one_line(error)}")
    except ExceptionGroup as group:
        if FULL_ERROR or group.split(EXPECTED)[1] is not None:
            raise
        sys.exit(f"error: {one_line(group)}")


@contextmanager
def _hydra_hands_errors_on() -> Iterator[None]:
    """Let Hydra raise what its job raised, instead of printing it and ending the process."""
    before = os.environ.get("HYDRA_FULL_ERROR", "")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _first_of_several() -> Iterator[bool]:
    """Say whether this process is the first of those that torchrun or SLURM has started, and let the others follow."""
    if "TORCHELASTIC_RUN_ID" not in os.environ and os.environ.get("SLURM_NTASKS", "1") == "1":
        yield True
        return
    from lt_lightning.training.processes import led  # not needed for `--help`

    with led() as first:
        yield first


def _parser(about: str | None) -> argparse.ArgumentParser:
    description = inspect.cleandoc(about or "")
    return argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)


# What may be written shorter on the command line: `seeds=5`, and densities without their group

SWEEP = ("-m", "--multirun")


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as Hydra knows them.

    `seeds=5` stands for `seed=0,1,2,3,4`, and the command is a sweep then, as with `-m`; `density=0.5,0.1` stands for
    `pruning.density=[0.5,0.1]`, which one search passes through.

    Args:
        arguments: arguments of the command line, without the command.

    Raises:
        ValueError: if `seeds` is no number of seeds, or if single seeds are named beside it.

    >>> spelled_out(["data=digits", "seeds=3", "density=0.5,0.1"])
    ['-m', 'data=digits', 'seed=0,1,2', 'pruning.density=[0.5,0.1]']
    >>> spelled_out(["density=0.5", "model.width=8"])
    ['pruning.density=0.5', 'model.width=8']
    """
    seeds = [argument for argument in arguments if argument.startswith(("seed=", "seeds="))]
    if len({argument.partition("=")[0] for argument in seeds}) == 2:
        raise ValueError(f"{' '.join(seeds)}: seeds counts from 0, seed names single ones; write one of the two")
    written = [_spelled_out(argument) for argument in arguments]
    several = any(
        before.startswith("seeds=") and "," in after for before, after in zip(arguments, written, strict=True)
    )
    return [SWEEP[0]] * (several and not set(SWEEP) & set(arguments)) + written


def _spelled_out(argument: str) -> str:
    key, _, value = argument.partition("=")
    if key == "density":
        return f"pruning.density=[{value}]" if "," in value and not value.startswith("[") else f"pruning.{argument}"
    if key != "seeds":
        return argument
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{argument}: must be the number of seeds, at least 1; single ones are named as seed=3,4")
    return f"seed={','.join(map(str, range(int(value))))}"
