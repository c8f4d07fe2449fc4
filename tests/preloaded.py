"""What the processes that tests start in no time have imported, and done once, already; for the fork server."""

from __future__ import annotations

import functools
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest  # noqa: F401
import sklearn.datasets  # noqa: F401
import torch

import benchmarks.kill_loop  # noqa: F401
import lt_lightning.cli
import lt_lightning.experiment.run.command
import lt_lightning.experiment.sweep
import lt_lightning.report.figures
import lt_lightning.training.processes  # noqa: F401
from lt_lightning.experiment.config import options
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.job import Job
from tests.runs import BOTH, SMALL, composing, timed_in_no_time

torch.set_num_threads(1)  # threads would not be there in the processes
registry: Any = import_module("lightning_fabric.utilities.registry")
forms: Any = import_module("lt_lightning.execution.form_choice")
registry.entry_points = functools.cache(entry_points)  # as in the tests themselves
forms.time_layers = timed_in_no_time
options.register()
with composing(Path("runs")) as composed:
    Experiment.from_config(Job.of(composed(*SMALL, *BOTH)).config)
