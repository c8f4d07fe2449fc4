"""Two jobs of two processes each on one root: what both need is run once, by one or the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lt_lightning.results.records import find_results
from tests.runs import BOTH, SMALL

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "run.py"
OPTIONS = (*SMALL, "trainer=ddp_sim", "trainer.max_epochs=4", "pruning.rounds=2", "report=false")
RETRAINED = {(n, s) for n in (1, 2) for s in ("refill", "regroup")}
WHOLE = {(0, "dense"), (1, "unstructured"), (2, "unstructured")} | RETRAINED
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a job; whichever is left at the end is killed, and its processes with it."""
    with ExitStack() as stack:

        def start(*overrides: str) -> subprocess.Popen[str]:
            command = [sys.executable, str(SCRIPT), f"paths.root={tmp_path}", *OPTIONS, *overrides]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return process

        yield start


def trained(printed: str) -> list[str]:
    """What a job says that it has trained."""
    return [line.split("] ")[1].split(", validation")[0] for line in printed.splitlines() if ", validation" in line]


@pytest.mark.slow
def test_two_jobs_share_the_work_and_both_end_with_all_of_it(start: Start, tmp_path: Path) -> None:
    jobs = [start(*BOTH, f"threads={n + 1}") for n in range(2)]
    printed = [job.communicate(timeout=400)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], printed
    labels = {"dense network (round 0)", "search, round 1 of 2", "search, round 2 of 2"}
    labels |= {f"{structure}, round {n} of 2" for n, structure in RETRAINED}
    assert sorted(trained(printed[0]) + trained(printed[1])) == sorted(labels)
    for text in printed:
        table = [tuple(line.split()[:2]) for line in text.splitlines() if line.startswith(" ") and "%" in line]
        assert {(int(n), structure) for n, structure in table} == WHOLE
    assert {(r.round, r.structure) for r in find_results(tmp_path)} == WHOLE
    assert len(list(tmp_path.glob("digits-*"))) == 1
    assert not list(tmp_path.rglob(".*.partial")) + list(tmp_path.rglob(".lock"))


@pytest.mark.slow
def test_a_waiting_job_goes_on_where_a_killed_one_was(start: Start, tmp_path: Path) -> None:
    """All three processes of the first are killed by the death of the one that watches."""
    options = ("checkpoint.share=1", "checkpoint.seconds=0", "structure=[]")
    first = start(*options)
    wait_for(lambda: list(tmp_path.rglob("step-*.pt")) or first.poll() is not None)
    assert first.poll() is None, first.communicate()[0]
    children = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    processes = [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(processes) == 2
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)  # so that they do not finish before the second has started
    try:
        second = start(*options)
        assert second.stdout is not None
        lines: list[str] = []
        while not lines or "in the hands of" not in lines[-1]:
            lines.append(second.stdout.readline())
            assert lines[-1], lines
        assert f"process {processes[0]} on" in lines[-1]
        first.kill()
    finally:
        for pid in processes:
            os.kill(pid, signal.SIGCONT)
    told = second.communicate(timeout=400)[0]
    assert second.returncode == 0, told
    assert "goes on in epoch" in told
    assert {(r.round, r.structure) for r in find_results(tmp_path)} == WHOLE - RETRAINED
    assert not list(tmp_path.rglob("step-*.pt")) + list(tmp_path.rglob(".*.partial")) + list(tmp_path.rglob(".lock"))


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 500
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
