"""A training that is stopped between any two steps and goes on is the one that was never stopped."""

from __future__ import annotations

import csv
import errno
import random
import resource
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lt_lightning.data.tensors import Augment, Pairs, TensorData
from lt_lightning.experiment.logging.loggers import MetricsFile
from lt_lightning.experiment.run.checkpoints import Checkpoints, Stopped, stoppable
from lt_lightning.pruning.sparsifiers import ADMM, Gradual, Movement, Sparsifier
from lt_lightning.structures.refill import Refill
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.classifier import ImageClassifier
from tests.cases import slow_but

STEPS = 5  # of an epoch
EPOCHS = 2  # of the dense training
ROUNDS = 2
TOTAL = STEPS * (EPOCHS + ROUNDS * (EPOCHS - 1))  # rewound to 1ep


class Small(TensorData):
    """Two classes of noise, one of them brighter, cropped and mirrored at random."""

    name, classes, channels, size = "small", 2, 1, 6
    mean, std, files = (0.5,), (0.25,), None

    def _read(self) -> tuple[Pairs, Pairs]:
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(2, (60,), generator=generator)
        images = torch.randint(200, (60, 1, 6, 6), generator=generator) + 40 * labels.view(-1, 1, 1, 1)
        both = Pairs(images.to(torch.uint8), labels)
        return both, both


class Network(nn.Sequential):
    """With dropout, and noise from the other global generators."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.2),
            nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        noise = random.random() + np.random.rand() if self.training else 0.0
        logits: Tensor = super().forward(images + 0.01 * noise)  # type: ignore[no-untyped-call]
        return logits


class Verbose(ImageClassifier):
    """Logs single steps, too."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        self.log("step/loss", loss, on_step=True, on_epoch=True)
        return loss


class Crash(pl.Callback):
    """Raises at a moment."""

    def __init__(self, hook: str, step: int) -> None:
        self._step = step
        setattr(self, hook, self._crash)

    def _crash(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            raise ConnectionAbortedError("crashed")


class Run:
    """One attempt at the same training in the same place."""

    def __init__(
        self, place: Path, *extra: pl.Callback, epochs: int = EPOCHS, validation: int = 20, accumulate: int = 1,
        seconds: float = 0, **options: Any,
    ) -> None:  # fmt: skip
        pl.seed_everything(3, verbose=False)
        structures = {"refill": Refill(score="saliency", round_to=1)}
        options = {
            "rounds": ROUNDS, "structures": structures, "gradient_batches": 3, "rewind": "1ep",
            "monitor": "val/accuracy", **options,
        }  # fmt: skip
        self.pruning = LotteryTicketPruning(directory=place, **options)
        self.data = Small(".", batch_size=8, validation=validation, augment=Augment(pad=1, flip=True))
        self.checkpoints = Checkpoints(place / "checkpoints", share=1, seconds=seconds)
        self.classifier = Verbose(Network(), classes=2)
        self.place = place
        self.trainer = pl.Trainer(
            accelerator="cpu", devices=1, max_epochs=epochs, log_every_n_steps=2, deterministic=True,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
            accumulate_grad_batches=accumulate, logger=[MetricsFile(place / "metrics.csv")],
            callbacks=[self.pruning, *extra, self.checkpoints],
        )  # fmt: skip

    def fit(self) -> Run:
        self.trainer.fit(self.classifier, self.data, ckpt_path=self.checkpoints.latest(), weights_only=True)
        return self


def left_by(place: Path) -> dict[str, Any]:
    """All that a training leaves, but for times."""
    left: dict[str, Any] = {"metrics": (place / "metrics.csv").read_text()}
    left["rounds"] = [
        {key: value for key, value in facts.items() if not key.endswith("seconds")}
        for facts in torch.load(place / "history.pt", weights_only=True)
    ]
    for path in sorted(place.rglob("ticket.safetensors")):
        ticket = Ticket.load(path)
        name = str(path.relative_to(place))
        left[f"{name} card"] = {key: value for key, value in ticket.card.items() if key != "train_seconds"}
        for part in ("masks", "rewind", "trained"):
            left[f"{name} {part}"] = {
                key: value.numpy().tobytes() for key, value in (getattr(ticket, part) or {}).items()
            }
    return left


def finished(run: Run) -> dict[str, Any]:
    torch.save(list(run.pruning.history), run.place / "history.pt")
    state = {name: value.numpy().tobytes() for name, value in run.classifier.state_dict().items()}
    return {**left_by(run.place), "network": state}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the training leaves that nobody disturbed, and that wrote no checkpoint."""
    return finished(Run(tmp_path_factory.mktemp("whole"), seconds=1e9).fit())


def test_checkpoints_change_nothing(whole: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path).fit()
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert finished(run) == whole
    run.checkpoints.finish()
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("every", slow_but([7], [1, 7]))
@pytest.mark.parametrize(
    "hook", ["on_train_batch_start", "on_before_optimizer_step", "on_train_batch_end", "on_validation_start"]
)
def test_a_training_that_crashed_at_any_step_goes_on_exactly(
    hook: str, every: int, whole: dict[str, Any], tmp_path: Path
) -> None:
    """One after the other in the same place: in the dense training, and in the rounds."""
    for step in range(1, TOTAL + 1, every):
        run = Run(tmp_path, Crash(hook, step))
        try:
            run.fit()
        except ConnectionAbortedError:
            continue
    assert finished(Run(tmp_path).fit()) == whole


SPARSIFIERS: tuple[Sparsifier, ...] = (Gradual(6, end=1.0), Movement(6, end=0.5), ADMM(0.1, 3))


@pytest.mark.parametrize("sparsifier", slow_but(SPARSIFIERS[1:2], SPARSIFIERS), ids=str)
def test_a_training_that_crashed_while_masks_came_to_be_in_it_goes_on_exactly(
    sparsifier: Sparsifier, tmp_path: Path
) -> None:
    """Before every step of such a training: steps 9 to 14, three an epoch."""
    options: dict[str, Any] = {
        "rounds": 1,
        "structures": {},
        "gradient_batches": 0,
        "density": 0.25,
        "scores_from": "dense",
    }

    def attempt(place: str, *extra: pl.Callback, seconds: float = 0) -> Run:
        return Run(tmp_path / place, *extra, epochs=3, validation=36, seconds=seconds, sparsifier=sparsifier, **options)

    run = attempt("whole", seconds=1e9).fit()
    expected = finished(run)
    assert len(expected) == 3 + 2 * 4  # two tickets
    assert run.pruning.history[1]["sparsify_seconds"] > 0
    for step in range(10, 15):
        with pytest.raises(ConnectionAbortedError):
            attempt("crashed", Crash("on_train_batch_start", step)).fit()
    assert finished(attempt("crashed").fit()) == expected
    with (tmp_path / "whole" / "metrics.csv").open() as file:
        logged = [float(row["pruning/density"]) for row in csv.DictReader(file) if row["pruning/density"]]
    assert logged[:3] == [1.0] * 3  # the dense network
    assert logged[-2:] == [0.25] * 2  # the ticket
    middle = {Gradual: 0.25 + 0.75 / 8, Movement: 0.25, ADMM: 1.0}[type(sparsifier)]
    assert logged[3:5] == [1.0, pytest.approx(round(middle * 216) / 216)]  # on the way


class Signal(pl.Callback):
    """Sends signals to this process."""

    def __init__(self, hook: str, step: int, *numbers: int) -> None:
        self._step = step
        self._numbers = numbers
        setattr(self, hook, self._send)

    def _send(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self._step:
            for number in self._numbers:
                signal.raise_signal(number)


@pytest.mark.parametrize(("number", "hook", "step", "saved"), [
    (signal.SIGTERM, "on_before_optimizer_step", 6, 7), (signal.SIGINT, "on_train_batch_start", 3, 4),
    (signal.SIGTERM, "on_validation_start", 10, 11),
    (signal.SIGINT, "on_train_batch_start", 9, 11),  # the epoch's last step: the next one is done too
])  # fmt: skip
def test_a_signal_finishes_the_step_saves_and_ends(
    number: int, hook: str, step: int, saved: int, whole: dict[str, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run = Run(tmp_path, Signal(hook, step, number), seconds=1e9)
    with pytest.raises(Stopped) as stopped, stoppable():
        run.fit()
    assert stopped.value.code == 128 + number
    first, last = capsys.readouterr().err.splitlines()
    assert signal.Signals(number).name in first
    assert signal.Signals(number).name in last
    path = run.checkpoints.latest()
    assert path is not None
    assert torch.load(path, weights_only=True)["global_step"] == saved
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert finished(Run(tmp_path).fit()) == whole


def test_a_signal_in_the_last_epoch_ends_the_job_when_the_result_is_there(
    whole: dict[str, Any], tmp_path: Path
) -> None:
    with stoppable():
        run = Run(tmp_path, Signal("on_train_batch_start", TOTAL - 1, signal.SIGTERM)).fit()
        assert finished(run) == whole
        with pytest.raises(Stopped):
            run.checkpoints.finish()


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    run = Run(tmp_path, Signal("on_train_batch_start", 3, signal.SIGINT, signal.SIGINT), seconds=1e9)
    with pytest.raises(Stopped), stoppable():
        run.fit()
    assert run.checkpoints.latest() is None


@pytest.mark.parametrize("step", [1, 3])
def test_a_signal_is_heeded_where_an_epoch_has_a_single_step(step: int, tmp_path: Path) -> None:
    """In the dense training, and before the first epoch of a round."""
    options: dict[str, Any] = {"epochs": 4, "validation": 52, "rounds": 1, "rewind": "2ep", "gradient_batches": 1}
    expected = finished(Run(tmp_path / "whole", seconds=1e9, **options).fit())
    place = tmp_path / "stopped"
    run = Run(place, Signal("on_before_optimizer_step", step, signal.SIGTERM), seconds=1e9, **options)
    with pytest.raises(Stopped), stoppable():
        run.fit()
    assert run.trainer.global_step == step + 1
    assert finished(Run(place, seconds=1e9, **options).fit()) == expected


LATE = """
import os, signal, sys, time
from lt_lightning.experiment.run import checkpoints
checkpoints.LIMIT = 1
with checkpoints.stoppable():
    signals = checkpoints.StopSignals()
    signals.listen()
    os.kill(os.getpid(), signal.SIGTERM)
    print(signals.number, flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_job_that_hangs_is_ended_some_time_after_the_first_signal() -> None:
    """Also where it was started in the background of a script, in which Ctrl-C is ignored."""

    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    hanging = subprocess.run(
        [sys.executable, "-c", LATE], preexec_fn=ignore, capture_output=True, text=True, timeout=300
    )
    assert hanging.returncode == -signal.SIGALRM
    assert hanging.stdout == f"{signal.SIGTERM.value}\n"
    (line,) = hanging.stderr.splitlines()
    assert "SIGTERM" in line


def test_outside_a_training_a_signal_ends_at_once() -> None:
    with pytest.raises(Stopped), stoppable():
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_someone_else_does_at_sigterm_stays() -> None:
    """submitit puts a preempted job back into the queue itself."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with stoppable():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def crashed(place: Path, step: int = 8) -> Run:
    run = Run(place, Crash("on_train_batch_start", step))
    with pytest.raises(ConnectionAbortedError):
        run.fit()
    return run


@pytest.mark.parametrize("damage", slow_but(["flip"], ["cut", "flip", "empty"]))
def test_a_damaged_checkpoint_is_passed_over(damage: str, whole: dict[str, Any], tmp_path: Path) -> None:
    crashed(tmp_path)
    older, newer = sorted((tmp_path / "checkpoints").iterdir())
    content = bytearray(newer.read_bytes())
    with zipfile.ZipFile(newer) as file:
        largest = max(file.infolist(), key=lambda info: info.file_size)
        content[content.index(file.read(largest)) + 5] ^= 1
    damaged = {"cut": bytes(content[: len(content) // 2]), "flip": bytes(content), "empty": b""}
    newer.write_bytes(damaged[damage])
    run = Run(tmp_path)
    with pytest.warns(UserWarning, match=rf"{newer.name} "):
        assert run.checkpoints.latest() == older
    with pytest.warns(UserWarning, match=rf"{newer.name} "):
        assert finished(run.fit()) == whole


def test_without_a_whole_checkpoint_the_training_starts_anew(whole: dict[str, Any], tmp_path: Path) -> None:
    crashed(tmp_path)
    for path in (tmp_path / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"step-\d+\.pt "):
        assert finished(Run(tmp_path).fit()) == whole


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a full disk: a file cannot grow beyond the size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Full(pl.Callback):
    """From a step on the disk is full."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == self._step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint_before_it(whole: dict[str, Any], tmp_path: Path) -> None:
    with largest_file(10_000_000), pytest.raises(OSError, match=r"step-\d+\.pt") as caught:
        Run(tmp_path, Full(7)).fit()
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("*.partial"))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2
    assert finished(Run(tmp_path).fit()) == whole


def test_accumulated_gradients_are_never_cut(tmp_path: Path) -> None:
    place = tmp_path / "whole"
    expected = finished(Run(place, seconds=1e9, accumulate=2, rewind="1it", gradient_batches=2).fit())
    place = tmp_path / "crashed"
    for step in range(1, 22, 5):
        try:
            run = Run(
                place, Crash("on_before_optimizer_step", step), accumulate=2, rewind="1it", gradient_batches=2
            ).fit()
        except ConnectionAbortedError:
            continue
    assert finished(run) == expected


def test_another_number_of_processes_is_refused_in_one_line(tmp_path: Path) -> None:
    path = crashed(tmp_path).checkpoints.latest()
    assert path is not None
    state = torch.load(path, weights_only=True)
    state["lt_lightning"]["processes"] *= 2
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"\b2 process.*\b1\b") as caught:
        Run(tmp_path).fit()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("share", "seconds", "told"), [
    (0, 1, "checkpoint.share=0"), (1.5, 1, "checkpoint.share=1.5"), (0.1, -1, "checkpoint.seconds=-1"),
    (0.1, float("nan"), "checkpoint.seconds=nan"),
])  # fmt: skip
def test_wrong_arguments_are_named(share: float, seconds: float, told: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=told):
        Checkpoints(tmp_path, share, seconds)


def test_checkpoints_take_at_most_their_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which a step takes 1 s and a checkpoint 3 s."""
    now = [0.0]
    saved: list[float] = []
    monkeypatch.setattr("lt_lightning.experiment.run.checkpoints.time.monotonic", lambda: now[0])

    def save(trainer: pl.Trainer, path: Path) -> None:
        saved.append(now[0])
        now[0] += 3

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", save)

    class Clock(pl.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            now[0] += 1

    run = Run(tmp_path, Clock())
    run.checkpoints = run.trainer.callbacks[-1] = Checkpoints(tmp_path, share=0.25, seconds=2)  # type: ignore[attr-defined]
    run.fit()
    pauses = np.diff(saved) - 3
    assert saved[0] == 2
    assert all(9 <= pause <= 11 for pause in pauses)  # 3 of 12 seconds; a step more where it would be an epoch's last
    assert len(saved) == 2
