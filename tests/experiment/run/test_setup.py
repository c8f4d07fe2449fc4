"""What is printed at the start, and that a terminal, a file and NO_COLOR each get what is for them."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import nn

from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.job import Job
from lt_lightning.experiment.run.progress import JobProgress
from lt_lightning.experiment.run.setup import (
    built,
    configuration_lines,
    layers_line,
    layers_table,
    pruned_layers,
    show_setup,
)
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.pruning.layers import find_layers

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")


def test_layers_are_told_with_their_share_and_why_they_are_exempt(conv_net: Callable[[], nn.Module]) -> None:
    """By hand: 36 weights at 36 positions, 216 at 36, 18 at one: 9090 multiply-adds."""
    exempt = ["stem", "8"]
    layers = pruned_layers(find_layers(conv_net(), torch.zeros(1, 1, 6, 6)).values(), exempt)
    console = Console(file=io.StringIO(), width=80)
    console.print(layers_table(layers, exempt))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    rows = [line.split() for line in text.splitlines() if re.match(r" *\d", line)][:3]
    assert rows == [
        ["0", "4x1x3x3", "36", "14.3%", "no:", "stem"],
        ["3", "6x4x3x3", "216", "85.5%", "yes"],
        ["8", "3x6", "18", "0.2%", "no:", "8"],
    ]
    told = "1 of 3 layers are pruned: 80.0% of 270 weights, 85.5% of the FLOPs; exempt: stem, 8"
    assert layers_line(layers, exempt) == told
    assert " ".join(text.split()).endswith(told)


def test_choices_and_changes_are_told(composed: Callable[..., DictConfig]) -> None:
    experiment = Experiment.from_config(
        composed("model=resnet14", "model.width=8", "structure=[refill]", "+trainer.detect_anomaly=false")
    )
    choices, changed, where = configuration_lines(experiment)
    assert {"data=digits", "model=resnet14", "pruning=imp"} <= set(choices.split())
    assert "hydra" not in choices
    assert set(changed.split()) >= {"changed:", "model.width=8", "+trainer.detect_anomaly=false"}
    assert "model=resnet14" not in changed
    assert where == f"Configuration: {experiment.search_folder / 'config.yaml'}"


def test_a_file_gets_one_line_of_layers_and_no_escape_codes(composed: Callable[..., DictConfig]) -> None:
    job = Job.of(composed("model.width=8"))
    for environment in ({}, {"TERM": "dumb"}):
        text = shown(job, environment, terminal=bool(environment))
        assert "stages.0.0.conv1" not in text
        assert "7 of 9 layers are pruned" in text or "layers are pruned" in text
        assert "\x1b" not in text
        assert "[2/2 epochs, " in text


def frozen_resnet8(**options: Any) -> nn.Module:
    network = cifar_resnet(**options)
    network.get_parameter("stages.1.0.conv1.weight").requires_grad_(False)
    return network


def test_frozen_layers_are_told_with_their_share(
    composed: Callable[..., DictConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: of 19,464 weights 16 x 8 x 3 x 3 are the frozen layer's."""
    module = ModuleType("frozen")
    module.frozen_resnet8 = frozen_resnet8  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "frozen", module)
    job = Job.of(composed("model.width=8", "model._target_=frozen.frozen_resnet8", "labels.model=frozen"))
    experiment = built(job)
    share = 16 * 8 * 9 / 19_464
    for terminal in (False, True):
        console = Console(file=io.StringIO(), width=200, force_terminal=terminal, no_color=True)
        show_setup(job, experiment, console)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert f": stages.1.0.conv1 {share:.1%}\n" in text
        assert f"{share:.1%} of the weights are those of frozen layers" in text
        assert "7 of 10 layers are pruned" in text
    assert "no: frozen" in text


def test_a_terminal_gets_the_table_and_bars(composed: Callable[..., DictConfig]) -> None:
    job = Job.of(composed("model.width=8"))
    text = shown(job, {}, terminal=True)
    assert "stages.0.0.conv1" in text
    assert "whole job" in text
    assert COLOUR.search(text)
    assert not COLOUR.search(shown(job, {"NO_COLOR": "1"}, terminal=True))


def test_bars_tell_all_in_eighty_columns() -> None:
    """A long name is shortened, not what stands behind it."""
    file = io.StringIO()
    with JobProgress(362, Console(file=file, width=80, force_terminal=True, no_color=True)) as job:
        job.start("reinit of regroup_channels_random, round 5 of 5", 20, 17, lambda: 0.25)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).splitlines()[-2:]
    assert all(line.endswith("0:00:00 time left unknown") for line in last)
    assert "0/362 epochs" in last[0]
    assert last[1].startswith("reinit of regroup_c")
    assert "epoch 18/20" in last[1]


def test_a_terminal_shows_what_an_epoch_reached_and_keeps_a_line_for_each_training() -> None:
    for width in (80, 140):
        file = io.StringIO()
        with JobProgress(362, Console(file=file, width=width, force_terminal=True, no_color=True)) as job:
            job.start("search, round 1 of 6", 11, 3)
            job.reach({"pruning/density": 0.8, "val/accuracy": 0.975, "val/loss": 0.1}, best=0.98)
            job.finish("search, round 1 of 6")
            job.start("search, round 2 of 6", 11)
        lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue()).splitlines()
        assert "search, round 1 of 6" in lines
        assert "density 80.0 %  validation accuracy 97.50 % (best 98.00 %)" in map(str.strip, lines)
        assert max(map(len, lines)) <= width


def shown(job: Job, environment: Mapping[str, str], terminal: bool) -> str:
    """What is printed at the start and by a training, in colours of a terminal that has them."""
    file = io.StringIO()
    env = {"TERM": "xterm-256color", **environment}
    console = Console(file=file, width=100, force_terminal=terminal, _environ=env)
    show_setup(job, built(job), console)
    with JobProgress(2, console) as progress:
        progress.start("dense network", 2)
        progress.advance(2)
        progress.finish("dense network")
    return file.getvalue()


def test_the_script_in_a_terminal_without_colour(
    start: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From end to end in a pseudo-terminal: everything is there, and no escape code for a colour."""
    for key, value in (("NO_COLOR", "1"), ("TERM", "xterm-256color"), ("COLUMNS", "100")):
        monkeypatch.setenv(key, value)
    main, other = pty.openpty()
    process = start(Path(os.ttyname(other)), "debug=fdr", f"paths.root={tmp_path}", "model.width=8", "structure=[]")
    with ThreadPoolExecutor(1) as reader:
        written = reader.submit(everything, main)
        code = process.wait()
        os.close(other)
    text = written.result().decode()
    os.close(main)
    assert code == 0, text
    for told in ("debug=fdr", "changed: ", "Configuration", "width=8", "What is pruned", "no: stem", "whole job"):
        assert told in text
    assert "epoch 1/1" in text
    assert "unstructured" in text
    assert not COLOUR.search(text)


def everything(descriptor: int) -> bytes:
    """All that is written to a terminal until nobody has it open any more."""
    written = b""
    try:
        while part := os.read(descriptor, 1 << 16):
            written += part
    except OSError:  # how Linux tells that the other end is closed
        pass
    return written
