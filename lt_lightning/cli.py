"""The commands of `lt-lightning`, which `scripts/` call, too."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lt_lightning.arguments import about, existing, parser_of, points, refuse
from lt_lightning.storage.config_groups import CONF
from lt_lightning.storage.near_names import did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Commands import what they need when they are called: help and completion are there at once.


def run() -> None:
    """Find structured lottery tickets: search, structure, retrain, time, report.

    A search trains the network, prunes it in rounds, makes structured tickets of every round, retrains each from its
    rewound weights, and compares it with the dense network. What is there already is found again, not run again.

    Example:
      lt-lightning run data=digits model=resnet8 seeds=3 density=0.5,0.1
    """
    if _asks_for_help():
        from lt_lightning.help_text import run_help

        print(_hydra_help(run, run_help()))
        return
    with _first_of_several() as first, _hydra_hands_errors_on(), ending_in_one_line():
        if first:
            sys.argv[1:] = spelled_out(sys.argv[1:])
            _by_hydra(run, _run)


def _run(config: DictConfig) -> float | None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from lt_lightning.experiment.run.command import do, do_in_sweep, from_where_it_was_typed

    hydra_config = HydraConfig.get()
    overrides, folder = list(hydra_config.overrides.task), Path(hydra_config.runtime.output_dir)
    from_where_it_was_typed(config)
    with _first_of_several() as first:  # SLURM has started this function in all of them, not the command
        if not first:
            return None
        if hydra_config.mode == RunMode.MULTIRUN:
            return do_in_sweep(config, int(hydra_config.job.num), overrides, folder)
        with ending_in_one_line():  # here, or Hydra tells of it, too
            do(config, folder, overrides)
    return None


def stability() -> None:
    """Measure stability to the data order, and find the smallest stable rewind point.

    Two trainings start at a rewind point of the dense training, or of a ticket, and see the images in different orders.
    The point is stable if no error barrier lies on the line between their ends (Frankle et al. 2020). Options are those
    of `lt-lightning run`, and a few of its own.

    Example:
      lt-lightning stability pruning.rewind=1ep stability.search=1ep
    """
    if _asks_for_help():
        from lt_lightning.help_text import stability_help

        print(_hydra_help(stability, stability_help()))
        return
    with _hydra_hands_errors_on(), ending_in_one_line():
        _by_hydra(stability, _stability)


def _stability(config: DictConfig) -> None:
    from lt_lightning.experiment.protocols.stability import measure_stability
    from lt_lightning.experiment.run.command import from_where_it_was_typed

    from_where_it_was_typed(config)
    measure_stability(config)


def _by_hydra(command: Callable[[], None], task: Callable[[DictConfig], Any]) -> None:
    """Let Hydra read the command line, and do the task with the configuration of the command's name."""
    import hydra

    from lt_lightning.experiment.config import options as job_options

    for argument in sys.argv[1:]:
        flag = argument.partition("=")[0]
        if flag.startswith("-") and not any(known.startswith(flag) for known in HYDRA_FLAGS):
            near = did_you_mean(flag, HYDRA_FLAGS)
            refuse(f"{argument}: `lt-lightning {command.__name__}` has no such flag{near}")
    job_options.register()
    hydra.main(version_base="1.3", config_path=str(CONF), config_name=command.__name__)(task)()


def _asks_for_help() -> bool:
    return bool({"-h", "--help"} & set(sys.argv[1:]))


def _hydra_help(command: Callable[[], None], options: str) -> str:
    text, example = about(command)
    usage = f"usage: lt-lightning {command.__name__} [GROUP=CHOICE ...] [KEY=VALUE ...] [-m]"
    return "\n\n".join([usage, text, options, example])


def status(arguments: Sequence[str] | None = None) -> None:
    """Show what is done, running, failed or missing under a folder of results.

    `lt-lightning run ... status=true` shows the same of one command.

    Example:
      lt-lightning status runs
    """
    parser = parser_of(status)
    parser.add_argument("root", type=existing, nargs="?", default="runs", help="folder of results (runs)")
    root = parser.parse_args(arguments).root
    from rich.console import Console

    from lt_lightning.results.status import print_status, tasks_under

    print_status(tasks_under(root), root, Console())


def options(arguments: Sequence[str] | None = None) -> None:
    """Explain the options of `lt-lightning run`: those of a group, or all that a word finds.

    Examples:
      lt-lightning options               # the groups
      lt-lightning options structure     # the choices of a group, and their options
      lt-lightning options rewind        # every option with this word
    """
    parser = parser_of(options)
    parser.add_argument("words", metavar="WORD", nargs="*", help="a group, a key, or a word of an explanation")
    words = parser.parse_args(arguments).words
    from lt_lightning.help_text import explain

    with ending_in_one_line():
        print(explain(words))


def verdict(arguments: Sequence[str] | None = None) -> None:
    """Judge a table of accuracies of any origin: intervals, margins, seeds needed.

    The table has a line for each training: setting, seed, accuracy, and perhaps sparsity. Each setting is compared with
    a reference over the seeds that both have: the difference with its interval, whether it is shown to be no worse than
    a margin, and how many seeds that takes. The extreme sparsity of a setting is asked from dense to sparse.

    Examples:
      lt-lightning verdict results.csv
      lt-lightning verdict results.csv --setting method --accuracy test_acc
                                       --sparsity sparsity --reference baseline
      lt-lightning verdict runs/summary.csv --setting structure round
                                            --reference "dense 0"
    """
    parser = parser_of(verdict)
    parser.add_argument(
        "table", type=existing, help="a line of names, then data; comma, semicolon or tab between columns"
    )
    parser.add_argument("--setting", nargs="+", default=["setting"], metavar="COLUMN", help="of the setting (setting)")
    parser.add_argument("--seed", default="seed", metavar="COLUMN", help="of the seed (seed)")
    parser.add_argument("--accuracy", default="accuracy", metavar="COLUMN", help="of the accuracy (accuracy)")
    sparse = parser.add_mutually_exclusive_group()
    sparse.add_argument("--sparsity", metavar="COLUMN", help="of the sparsity, if there is one")
    sparse.add_argument("--density", metavar="COLUMN", help="of the density, in place of one of the sparsity")
    parser.add_argument(
        "--reference", metavar="SETTING", help="what the others are compared with (dense, or what has no sparsity)"
    )
    parser.add_argument("--margin", type=points, default=0.005, metavar="POINTS", help="in percentage points (0.5)")
    parser.add_argument("--confidence", type=float, default=0.95, metavar="SHARE", help="one-sided (0.95)")
    parser.add_argument("--power", type=float, default=0.8, metavar="SHARE", help="of the seeds that are needed (0.8)")
    parser.add_argument("--json", action="store_true", help="print JSON, with shares in place of points")
    options = parser.parse_args(arguments)
    from rich.console import Console

    from lt_lightning.results.accuracy_table import ColumnNames, read_table
    from lt_lightning.results.comparison import compare_settings, print_settings
    from lt_lightning.results.verdict import Rule

    columns = ColumnNames(tuple(options.setting), options.seed, options.accuracy, options.sparsity, options.density)
    with ending_in_one_line():
        rule = Rule(options.margin, options.confidence)
        comparison = compare_settings(read_table(options.table, columns), options.reference, rule, options.power)
    if options.json:
        print(json.dumps(comparison.as_json(), indent=2))
    else:
        print_settings(comparison, Console())


def report(arguments: Sequence[str] | None = None) -> None:
    """Write a report of what has been run: one HTML page, figures, tables.

    It reads a search's folder, the folder of a sweep's jobs, or a root with any number of both, and writes one HTML
    file that opens offline, the figures as SVG, and the table of all tickets as Markdown, CSV and LaTeX.

    Example:
      lt-lightning report runs
    """
    parser = parser_of(report)
    parser.add_argument("path", type=existing, help="folder of a search, of a sweep's jobs (jobs/...), or root of both")
    parser.add_argument("--output", type=Path, help="folder to write to (report, under PATH)")
    options = parser.parse_args(arguments)
    from lt_lightning.report.writing import write_report

    with ending_in_one_line():
        print(f"Report: {write_report(options.path, options.output)}")


def export(arguments: Sequence[str] | None = None) -> None:
    """Export the network that a ticket executes: safetensors, torch.export, ONNX.

    Every file is read back and compared with the masked network before the command ends.

    Example:
      lt-lightning export runs/SEARCH/round_03/refill-HASH exported
    """
    parser = parser_of(export)
    parser.add_argument("ticket", type=existing, help="folder of a finished ticket: SEARCH/round_NN/STRUCTURE-HASH")
    parser.add_argument("output", type=Path, help="folder to write, new or empty")
    parser.add_argument("--formats", nargs="+", help="of safetensors, pt2, onnx (all)")
    parser.add_argument(
        "--batch-size", type=int, help="compute a layer by blocks only where that is measured faster at this batch size"
    )
    parser.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="PACKAGE",
        help="packages of your own whose classes the search may name",
    )
    options = parser.parse_args(arguments)
    from lt_lightning.tickets.export.exporting import export_ticket

    with ending_in_one_line(ImportError, RuntimeError):
        card = export_ticket(options.ticket, options.output, options.formats, options.batch_size, options.allow)
    for name, facts in card["formats"].items():
        for file, size in facts["bytes"].items():
            print(f"{options.output / file}  {size / 1e6:.3f} MB")
        if facts.get("run_dense"):
            print(f"  {name} has no operator for these layers, which run dense: {', '.join(facts['run_dense'])}")
    worst = max(facts["difference"] for facts in card["formats"].values())
    print(f"Logits differ from the masked network's by at most {worst:.1e} of the largest.")


def dashboard(arguments: Sequence[str] | None = None) -> None:
    """Make the W&B dashboard of a project's runs.

    It has panels of accuracy over density, over measured time and over operations, of learning curves, times and mask
    pictures, and tables of rounds and timings.

    Example:
      lt-lightning dashboard my-team --project lt-lightning --json dashboard.json
    """
    parser = parser_of(dashboard)
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
    """Tell what is here, what is missing, and what that turns off.

    It ends with exit code 1 if nothing can be run as things are, else with 0.

    Example:
      lt-lightning doctor --data /my/data
    """
    parser = parser_of(doctor)
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
HYDRA_FLAGS: Final = (
    "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run", "-r", "--multirun", "-m",
    "--shell-completion", "-sc", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--experimental-rerun", "--info", "-i",
)  # fmt: skip


@contextmanager
def ending_in_one_line(*others: type[Exception]) -> Iterator[None]:
    """Let an error that is to be expected end the process with one line; a defect of ours keeps its traceback.

    The exit code is 2 if what was asked for is impossible, and 1 if it was begun and failed.

    Args:
        others: further errors that are to be expected.
    """
    from lt_lightning.results.failures import EXPECTED, IMPOSSIBLE, one_line

    expected: tuple[type[Exception], ...] = (*EXPECTED, *others)
    try:
        yield
    except expected as error:
        if FULL_ERROR:
            raise
        if isinstance(error, IMPOSSIBLE):
            refuse(one_line(error))
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
    from lt_lightning.training.processes import led

    with led() as first:
        yield first


# What may be written shorter on the command line: `seeds=5`, and densities without their group

SWEEP = ("-m", "--multirun")


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """Return the arguments as Hydra knows them.

    `seeds=5` stands for `seed=0,1,2,3,4`, and the command is a sweep then, as with `-m`; `density=0.5,0.1` stands for
    `pruning.density=[0.5,0.1]`, which one search passes through; `budget=time:0.5` for the structure `hybrid` with that
    budget. The flag of a sweep comes first, since Hydra takes no overrides on both sides of it.

    Args:
        arguments: arguments of the command line, without the command.

    Raises:
        ValueError: if `seeds` is no number of seeds, or if single seeds are named beside it.

    >>> spelled_out(["data=digits", "seeds=3", "density=0.5,0.1"])
    ['-m', 'data=digits', 'seed=0,1,2', 'pruning.density=[0.5,0.1]']
    >>> spelled_out(["density=0.5", "model.width=8"])
    ['pruning.density=0.5', 'model.width=8']
    >>> spelled_out(["data=digits", "-m", "seed=0,1"])
    ['-m', 'data=digits', 'seed=0,1']
    >>> spelled_out(["budget=time:0.5"])
    ['structure=hybrid', 'structure.hybrid.budget=time:0.5']
    """
    seeds = [argument for argument in arguments if argument.startswith(("seed=", "seeds="))]
    if len({argument.partition("=")[0] for argument in seeds}) == 2:
        raise ValueError(f"{' '.join(seeds)}: seeds counts from 0, seed names single ones; write one of the two")
    written = [each for argument in arguments for each in _spelled_out(argument)]
    several = any(argument.startswith("seeds=") for argument in arguments) and any(
        argument.startswith("seed=") and "," in argument for argument in written
    )
    is_sweep = several or bool(set(SWEEP) & set(arguments))
    return [SWEEP[0]] * is_sweep + [argument for argument in written if argument not in SWEEP]


def _spelled_out(argument: str) -> list[str]:
    key, _, value = argument.partition("=")
    match key:
        case "density":
            several = "," in value and not value.startswith("[")
            return [f"pruning.density=[{value}]" if several else f"pruning.{argument}"]
        case "budget":
            return ["structure=hybrid", f"structure.hybrid.{argument}"]
        case "seeds":
            if not value.isdecimal() or int(value) < 1:
                raise ValueError(
                    f"{argument}: must be the number of seeds, at least 1; single ones are named as seed=3,4"
                )
            return [f"seed={','.join(map(str, range(int(value))))}"]
    return [argument]
