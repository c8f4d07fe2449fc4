"""A job on two machines, which two agents of torchrun stand for; one of them is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lt_lightning.results.records import find_results
from tests.runs import SMALL

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "run.py"
OPTIONS = (
    *SMALL, "trainer=ddp_sim", "trainer.devices=1", "trainer.num_nodes=2", "structure=[]", "report=false",
    "checkpoint.seconds=0", "checkpoint.share=1",
)  # fmt: skip
Nodes = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    """Starts a job on two machines; whatever is left at the end is killed, and its processes with it."""
    with ExitStack() as stack:

        def nodes(*overrides: str) -> list[subprocess.Popen[str]]:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
            where = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}"]
            agents = []
            for rank in range(2):
                command = [sys.executable, "-m", "torch.distributed.run", *where, f"--node-rank={rank}", str(SCRIPT)]
                command += [f"paths.root={tmp_path}", *OPTIONS, *overrides]
                agents.append(
                    subprocess.Popen(
                        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                    )
                )
                stack.callback(agents[-1].wait)
                stack.callback(agents[-1].kill)
            return agents

        yield nodes


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_job_of_two_nodes_ends_when_one_is_killed_and_goes_on(killed: int, nodes: Nodes, tmp_path: Path) -> None:
    agents = nodes("trainer.max_epochs=10")
    wait_for(lambda: list(tmp_path.rglob("step-*.pt")) or any(agent.poll() is not None for agent in agents))
    assert all(agent.poll() is None for agent in agents), [agent.communicate()[0] for agent in agents]
    workers = [child for agent in agents for child in children(agent.pid)]
    assert len(workers) == 2
    agents[killed].send_signal(signal.SIGKILL)
    told = agents[1 - killed].communicate(timeout=120)[0]
    assert agents[1 - killed].returncode != 0, told
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert not find_results(tmp_path)
    printed = [agent.communicate(timeout=400)[0] for agent in nodes("trainer.max_epochs=10")]
    assert "goes on in epoch" in printed[0]
    assert [(result.round, result.structure) for result in find_results(tmp_path)] == [
        (0, "dense"),
        (1, "unstructured"),
    ]
    assert "epoch" not in printed[1]


@pytest.mark.slow
def test_what_was_started_must_be_what_the_job_asks_for(nodes: Nodes) -> None:
    agents = nodes("trainer.num_nodes=3")
    printed = [agent.communicate(timeout=200)[0] for agent in agents]
    assert agents[0].returncode == 1
    assert any("num_nodes=3" in line for line in printed[0].splitlines() if line.startswith("error: trainer"))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
