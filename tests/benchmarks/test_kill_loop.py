"""What a killed job leaves is compared bit by bit; and a few kills, as the loop makes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.kill_loop import CASES, Runner, alive, bits, children_of, cpu_seconds, differing, left_in, timeless
from lt_lightning.tickets.ticket import Ticket


def test_one_bit_is_a_difference() -> None:
    value = {"a": [torch.ones(3, dtype=torch.bfloat16), {"b": 2}]}
    other = {"a": [torch.ones(3, dtype=torch.bfloat16), {"b": 2}]}
    assert differing(bits(value), bits(other)) == []
    other["a"][0].view(torch.int16)[1] ^= 1  # type: ignore[attr-defined]
    assert differing(bits(value), bits(other)) == ["a"]
    assert differing({"a": 1, "b": 2}, {"a": 1, "c": 2}) == ["b", "c"]


def test_times_are_no_difference_and_all_else_is(tmp_path: Path) -> None:
    folder = tmp_path / "digits-x"
    folder.mkdir()
    (tmp_path / "summary.csv").write_text("place,accuracy,train_seconds\na,0.5,1.0\n")
    ticket = Ticket({"w": torch.ones(2, dtype=torch.bool)}, {"w": torch.zeros(2)}, card={"seed": 1})
    ticket.with_facts(train_seconds=1.0).save(folder / "ticket")
    (folder / "result.json").write_text(json.dumps({"accuracy": 0.5, "train_seconds": 1.0}))
    before = left_in(tmp_path)
    ticket.with_facts(train_seconds=2.0).save(folder / "ticket")
    (folder / "result.json").write_text(json.dumps({"accuracy": 0.5, "train_seconds": 2.0}))
    (tmp_path / "summary.csv").write_text("place,accuracy,train_seconds\na,0.5,2.0\n")
    assert differing(before, left_in(tmp_path)) == []
    assert timeless({"accuracy": 0.5, "train_seconds": 2.0}) == {"accuracy": 0.5}
    ticket.with_facts(seed=2).save(folder / "ticket")
    (folder / "result.json").write_text(json.dumps({"accuracy": 0.25}))
    (tmp_path / "summary.csv").write_text("place,accuracy\na,0.25\n")
    (folder / "litter").touch()
    assert differing(before, left_in(tmp_path)) == ["litter", "result.json", "summary", "ticket.safetensors"]


def test_steps_that_stand_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "digits-x").mkdir()
    (tmp_path / "digits-x" / "metrics.csv").write_text("step,loss\n1,0.5\n1,0.5\n")
    with pytest.raises(ValueError, match=r"metrics\.csv"):
        left_in(tmp_path)


def test_processes_are_seen_while_they_run() -> None:
    process = subprocess.Popen([sys.executable, "-c", "sum(range(10 ** 12))"])
    assert alive(process.pid)
    assert process.pid in children_of(os.getpid())
    while cpu_seconds(process.pid) < 0.02:
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not alive(process.pid)
    assert cpu_seconds(process.pid) == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_it_leaves_the_same(case: str, tmp_path: Path) -> None:
    rows = Runner(tmp_path).trial(case, 0)
    assert rows
    assert {tuple(row["differences"]) for row in rows} == {()}
