"""The real script, killed at any moment and started again by the same command, ends as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import wandb

from benchmarks.kill_loop import alive, found, left_in
from lt_lightning.tickets.ticket import Ticket

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "run.py"
OPTIONS = [
    "model.width=16", "pruning.rate=0.6", "data.limit=0.15", "data.batch_size=32", "trainer.max_epochs=2",
    "trainer.accelerator=cpu", "trainer.deterministic=true", "threads=1", "pruning.rounds=2", "pruning.rewind=1ep",
    "pruning.gradient_batches=2", "structure=[refill,regroup]", "structure.refill.round_to=2",
    "structure.refill.score=saliency", "structure.regroup.group_size=4", "structure.regroup.clustering=random",
    "measure.samples=2", "measure.slot=0.001", "checkpoint.share=1", "checkpoint.seconds=0", "retrain_rounds=[2]",
    "report=false",
]  # fmt: skip

Kill = Callable[[int, Path], None]
Start = Callable[..., Any]  # see `conftest.py`


class Starter:
    """Starts the script and ends it as asked."""

    def __init__(self, start: Start, folder: Path) -> None:
        self.log = folder / "log.txt"
        self._start = start

    def run(
        self, root: Path, kill: Kill | None = None, delay: float = 0.0, *more: str, options: Sequence[str] = OPTIONS
    ) -> int:
        """The exit code: negative for a signal. `kill` is called with the script's process while it runs."""
        process = self._start(self.log, f"paths.root={root}", *options, *more, delay=delay)
        if kill is not None:
            kill(process.pid, root)
        code: int = process.wait()
        return code


@pytest.fixture(scope="module")
def starter(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Starter:
    return Starter(start, tmp_path_factory.mktemp("starter"))


def after(seconds: float, number: int = signal.SIGKILL) -> Kill:
    """Sends a signal at a time."""

    def kill(pid: int, root: Path) -> None:
        time.sleep(seconds)
        _send(pid, number)

    return kill


def when(pattern: str, times: int = 1, number: int = signal.SIGKILL) -> Kill:
    """Sends a signal when a file appears that was not there before, for the n-th time."""

    def kill(pid: int, root: Path) -> None:
        seen = found(root, pattern)
        left = times
        while left and alive(pid):
            new = found(root, pattern) - seen
            left -= bool(new)
            seen |= new
            time.sleep(0.002)
        _send(pid, number)

    return kill


def _send(pid: int, number: int) -> None:
    if alive(pid):
        os.kill(pid, number)


@pytest.fixture(scope="module")
def whole(starter: Starter, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a run leaves that nobody disturbed, and that writes no checkpoint; and how long it takes."""
    root = tmp_path_factory.mktemp("whole")
    start = time.monotonic()
    assert starter.run(root, None, 0.0, "checkpoint.seconds=1e9") == 0, starter.log.read_text()
    left = left_in(root)
    assert len([name for name in left if name.endswith("result.json")]) == 3 + 2
    cards = [Ticket.load(path.parent / "ticket").card for path in root.rglob("regroup*/result.json")]
    assert [{*card["choice"].values()} for card in cards] == [{"blocks", "dense"}]
    assert {by for card in cards for by in card["decided_by"].values()} == {"rule"}
    return {"left": left, "seconds": time.monotonic() - start}


def test_killed_while_a_ticket_is_written_and_stopped_in_a_retraining_it_ends_the_same(
    starter: Starter, whole: dict[str, Any], tmp_path: Path
) -> None:
    assert starter.run(tmp_path, when(".ticket.safetensors.*.partial", 3), 0.05) == -signal.SIGKILL
    assert list(tmp_path.rglob(".*.partial"))
    assert starter.run(tmp_path, when("regroup-*/checkpoints/step-*", 2, signal.SIGTERM)) == 143
    assert "stopped by SIGTERM: the same command goes on" in starter.log.read_text()
    assert "Traceback" not in starter.log.read_text()
    assert starter.run(tmp_path) == 0, starter.log.read_text()
    assert "goes on in epoch" in starter.log.read_text()
    assert not list(tmp_path.rglob(".*.partial"))
    assert left_in(tmp_path) == whole["left"]


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(starter: Starter, whole: dict[str, Any], tmp_path: Path) -> None:
    random.seed(0)
    for _ in range(3):
        starter.run(tmp_path, after(random.uniform(0.2, 0.8) * whole["seconds"]))
    assert starter.run(tmp_path) == 0, starter.log.read_text()
    assert left_in(tmp_path) == whole["left"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "times"),
    [(".step-*.partial", 5), (".ticket.safetensors.*.partial", 3), (".result.json.*.partial", 2)],
)
def test_killed_while_a_file_is_written_it_ends_the_same(
    pattern: str, times: int, starter: Starter, whole: dict[str, Any], tmp_path: Path
) -> None:
    """Twice in a row, with the file half there."""
    for _ in range(2):
        assert starter.run(tmp_path, when(pattern, times), 0.05) == -signal.SIGKILL
        assert list(tmp_path.rglob(".*.partial"))
    assert starter.run(tmp_path) == 0, starter.log.read_text()
    assert not list(tmp_path.rglob(".*.partial"))
    assert left_in(tmp_path) == whole["left"]


@pytest.mark.slow
def test_sigterm_ends_with_143_and_one_line_and_the_same_command_goes_on(
    starter: Starter, whole: dict[str, Any], tmp_path: Path
) -> None:
    """In the search, in a retraining, and with Ctrl-C in between."""
    assert starter.run(tmp_path, when("round_01", 1, signal.SIGTERM), 0.0, "checkpoint.seconds=1e9") == 143
    assert "stopped by SIGTERM: the same command goes on" in starter.log.read_text()
    assert "Traceback" not in starter.log.read_text()
    assert len(list(tmp_path.rglob("step-*.pt"))) == 1
    assert starter.run(tmp_path, when("round_02", 1, signal.SIGINT)) == 130
    assert starter.run(tmp_path, when("regroup-*/checkpoints/step-*", 2, signal.SIGTERM)) == 143
    assert starter.run(tmp_path) == 0, starter.log.read_text()
    assert "goes on in epoch" in starter.log.read_text()
    assert left_in(tmp_path) == whole["left"]


@pytest.mark.slow
def test_a_control_killed_in_its_training_ends_the_same(starter: Starter, tmp_path: Path) -> None:
    """One that is trained for the whole schedule from other initial values, and one with other weights kept."""
    options = [each for each in OPTIONS if "regroup" not in each]
    options += ["structure=[refill]", "controls=[reinit,shuffle]", "retrain_rounds=[1]", "pruning.rounds=1"]
    assert starter.run(tmp_path / "whole", options=options) == 0, starter.log.read_text()
    for name in ("reinit", "shuffle"):
        kill = when(f"refill-{name}-*/checkpoints/step-*", 2)
        assert starter.run(tmp_path / "killed", kill, options=options) == -signal.SIGKILL
        (checkpoints,) = (tmp_path / "killed").rglob("checkpoints")
        assert name in checkpoints.parent.name
    assert starter.run(tmp_path / "killed", options=options) == 0, starter.log.read_text()
    left = left_in(tmp_path / "killed")
    assert left == left_in(tmp_path / "whole")
    assert len([name for name in left if name.endswith("ticket.safetensors")]) == 2 + 1 + 3


@pytest.fixture
def shared_service() -> Iterator[None]:
    """A W&B service that processes inherit and that outlives them: it would hold a killed one's run as one in use."""
    wandb.teardown()
    wandb.setup()
    assert "WANDB_SERVICE" in os.environ
    yield
    wandb.teardown()


@pytest.mark.usefixtures("shared_service")
@pytest.mark.slow
def test_wandb_holds_each_step_and_ticket_once_after_kills(
    starter: Starter, wandb_records: Callable[[Path], list[Any]], tmp_path: Path
) -> None:
    options = ("logger=wandb",)
    for count in (2, 6):
        ended = starter.run(tmp_path, when("step-*.pt", count), 0.0, *options)
        assert ended == -signal.SIGKILL, starter.log.read_text()
    assert starter.run(tmp_path, when("regroup-*/checkpoints/step-*.pt", 3), 0.0, *options) == -signal.SIGKILL
    assert starter.run(tmp_path, None, 0.0, *options) == 0, starter.log.read_text()
    runs = list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 3
    records = [wandb_records(path) for path in runs]
    recorded = sorted(map(_history, records))
    assert recorded == sorted(_rows(path) for path in tmp_path.glob("digits-*/**/metrics.csv"))
    assert all(len(rows) >= 1 for rows in recorded)
    assert sorted(map(_tickets, records)) == [[0, 1, 2], [2], [2]]
    names = [each.artifact.name for own in records for each in own if each.WhichOneof("record_type") == "artifact"]
    shrunk = [name for name in names if name.endswith("-shrunk")]
    assert len(shrunk) == len(set(shrunk)) == 2


def _history(records: list[Any]) -> list[tuple[int, list[tuple[str, float]]]]:
    """Rows of the training; those of the finished tickets, and their tables, stand behind the last step."""
    rows = []
    for record in records:
        items = {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        step = items.pop("trainer/global_step", None)
        if "train/loss" in items:
            rows.append((step, sorted((key, value) for key, value in items.items() if not key.startswith("_"))))
    return rows


def _tickets(records: list[Any]) -> list[int]:
    """Rounds of the finished tickets."""
    rows = [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for record in records
    ]
    return [row["round"] for row in rows if "ticket/accuracy" in row]


def _rows(path: Path) -> list[tuple[int, list[tuple[str, float]]]]:
    with path.open() as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [(int(row.pop("step")), sorted(row.items())) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_killed_again_and_again_it_ends_the_same(
    seed: int, starter: Starter, whole: dict[str, Any], tmp_path: Path
) -> None:
    """At random moments and while random files are written, by SIGKILL, SIGTERM and Ctrl-C."""
    draw = random.Random(seed)
    patterns = (
        "*.partial",
        "step-*.pt",
        "ticket.safetensors",
        "metrics.csv",
        "restart.pt",
        "gradients.pt",
        "result.json",
    )
    for _ in range(12):
        number = draw.choices((signal.SIGKILL, signal.SIGTERM, signal.SIGINT), (4, 1, 1))[0]
        if draw.random() < 0.5:
            kill = after(draw.uniform(0, 1) * whole["seconds"], number)
        else:
            kill = when(draw.choice(patterns), draw.randint(1, 4), number)
        seconds = draw.choice((0, 0, 0.5, 1e9))
        starter.run(tmp_path, kill, draw.choice((0.0, 0.02)), f"checkpoint.seconds={seconds}")
    assert starter.run(tmp_path) == 0, starter.log.read_text()
    assert left_in(tmp_path) == whole["left"]


@pytest.mark.slow
def test_the_script_itself_killed_by_the_system_goes_on(tmp_path: Path) -> None:
    """Without any preparation: a process of its own each time."""

    def command(root: Path) -> list[str]:
        return [sys.executable, str(SCRIPT), f"paths.root={root}", *OPTIONS]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(tmp_path / "whole"), check=True, env=environment, capture_output=True)
    for times in (2, 6, 8):
        process = subprocess.Popen(command(tmp_path / "killed"), env=environment, stdout=subprocess.DEVNULL)
        when("step-*.pt", times)(process.pid, tmp_path)
        assert process.wait() == -signal.SIGKILL
    subprocess.run(command(tmp_path / "killed"), check=True, env=environment, capture_output=True)
    assert left_in(tmp_path / "killed") == left_in(tmp_path / "whole")
