"""The loggers of one training: `metrics.csv` always, W&B and TensorBoard where they are asked for."""

from __future__ import annotations

import csv
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from lt_lightning.experiment.config.fingerprint import hash_of
from lt_lightning.experiment.logging.wandb_record import Entry, define_axes, record_tickets
from lt_lightning.experiment.sweep import Multirun
from lt_lightning.storage.files import read_csv, write_csv
from lt_lightning.training.lightning_internals import drop_outdated_settings


class MetricsFile(Logger):
    """Writes logged scalars to a CSV file; metrics logged at the same step share a row.

    Attributes:
        rows: metrics by step, beginning with those that the file contains.

    Args:
        path: path of the file, which is written anew at every save, to a temporary name first.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows = _read(path) if path.is_file() else {}
        self._saved = True

    @property
    def name(self) -> str:
        return "metrics"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        """Return the training's folder, where Lightning's profiler writes."""
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        row = self.rows.setdefault(len(self.rows) if step is None else step, {})
        row.update({name: float(value) for name, value in metrics.items()})
        self._saved = False

    @rank_zero_only
    def drop_after(self, step: int) -> None:
        """Remove the rows of later steps, since a training goes on after this one."""
        self.rows = {number: row for number, row in self.rows.items() if number <= step}

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the configuration is in a file of its own."""

    @rank_zero_only
    def save(self) -> None:
        if self._saved:
            return
        names = dict.fromkeys(name for row in self.rows.values() for name in row)
        rows = ((step, *map(row.get, names)) for step, row in sorted(self.rows.items()))
        write_csv(self.path, ["step", *names], rows)
        self._saved = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()


def _read(path: Path) -> dict[int, dict[str, float]]:
    try:
        rows = [{name: float(value) for name, value in row.items() if value} for row in read_csv(path)]
        return {int(row.pop("step")): row for row in rows}
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error):
        raise ValueError(f"{path} is damaged: it is not a table of metrics by step") from None


# Loggers of one training: our CSV always, W&B and TensorBoard by choice.


class MetricsMirror(Logger):
    """Gives another logger the rows of the metrics file, each once, and whole: as soon as a later one has begun.

    Args:
        source: metrics file; it must come before this logger in the trainer's list.
        target: logger that gets its rows.
        known: last step whose row the target has already.
    """

    def __init__(self, source: MetricsFile, target: Logger, known: int = -1) -> None:
        super().__init__()
        self.target = target
        self._source = source
        self._known = known

    @property
    def name(self) -> str | None:
        return self.target.name

    @property
    def version(self) -> int | str | None:
        return self.target.version

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._hand_over(sorted(self._source.rows)[:-1])

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.target.log_hyperparams(params)

    def save(self) -> None:
        self.target.save()

    def finalize(self, status: str) -> None:
        self._hand_over(sorted(self._source.rows))
        self.target.finalize(status)

    def _hand_over(self, steps: list[int]) -> None:
        for step in steps:
            if step > self._known:
                self.target.log_metrics(self._source.rows[step], step)
                self._known = step


def make_loggers(
    config: DictConfig, folder: Path, root: Path, name: str, job_type: str, ticket: Mapping[str, Any]
) -> list[Logger]:
    """Return the loggers of one training.

    What a killed attempt has given to W&B (offline) and TensorBoard is removed: they get it again from `metrics.csv`,
    as far as that goes. So each step is logged once. W&B online goes on with the same run.

    Args:
        config: configuration of the job; its group `logger` names the loggers beside the CSV file.
        folder: folder of the training; `metrics.csv` is written there.
        root: folder under which W&B and TensorBoard write.
        name: name of the run.
        job_type: `search` or `retrain`.
        ticket: facts of the ticket (round, structure, control), to choose and to group runs by.
    """
    file = MetricsFile(folder / "metrics.csv")
    mirrors: list[Logger] = []
    for choice, node in config.logger.items():
        extra: dict[str, Any] = {"save_dir": str(root if choice == "wandb" else root / "tensorboard"), "name": name}
        if choice == "wandb":
            os.environ.setdefault("WANDB_SILENT", "true")  # its summary would drown ours
            # A service shared with other processes regards the run of a killed process as in use for ever.
            os.environ.pop("WANDB_SERVICE", None)
            (root / "wandb").mkdir(parents=True, exist_ok=True)
            extra |= {"job_type": job_type, "id": hash_of({"place": str(folder.resolve())}), "group": _group(config)}
            earlier = list((root / "wandb").glob(f"offline-run-*-{extra['id']}*"))
        else:
            earlier = [root / "tensorboard" / name]
        for path in earlier:
            shutil.rmtree(path, ignore_errors=True)
        logger: Logger = instantiate(node, **extra)
        logger.log_hyperparams({**OmegaConf.to_container(config, resolve=True), "ticket": dict(ticket)})  # type: ignore[dict-item]
        known = -1
        if isinstance(logger, WandbLogger):
            drop_outdated_settings(logger)
            define_axes(logger.experiment)
            known = logger.experiment.summary.get("trainer/global_step", -1)  # set where a run goes on online
        mirrors.append(MetricsMirror(file, logger, known))
    return [file, *mirrors]


def _group(config: DictConfig) -> str:
    """Return the name that groups the runs of a sweep, also when it is started again, or those of one data and network.

    A group that the configuration names comes first.
    """
    group = config.logger.wandb.get("group")
    if group is None and (sweep := Multirun.of(config)) is not None:
        return sweep.name
    return group or f"{config.labels.data}-{config.labels.model}"


@contextmanager
def closing_wandb() -> Iterator[None]:
    """End the W&B run after the context whatever happens, so that the next training does not write into it."""
    failed = True
    try:
        yield
        failed = False
    finally:
        if (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
            wandb.finish(exit_code=int(failed))


def record(loggers: Sequence[Logger], entries: Iterable[Entry]) -> None:
    """Give results and tickets to W&B: figures, tables, tickets as artifacts, mask pictures.

    Args:
        loggers: loggers of the training that has ended.
        entries: tickets that it has trained; they are made only where W&B takes them.
    """
    for logger in loggers:
        if isinstance(logger, MetricsMirror) and isinstance(logger.target, WandbLogger):
            logger.finalize("success")  # hands over all rows where nothing was trained in this attempt
            record_tickets(logger.target.experiment, list(entries))
