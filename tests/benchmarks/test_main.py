"""`python -m benchmarks` as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from lt_lightning.storage.files import write_json

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *("--network", "resnet8", "--image", "3", "8", "8", "--variant", "masked", "refill", "--samples", "2"),
    *("--limit", "1", "--threads", "1", "--mode", "inference"),
]


@pytest.mark.slow
def test_a_killed_benchmark_keeps_what_it_has_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "benchmark.json"
    arguments = [*TINY, "--batch", "1", "2", "3", "--output", str(output)]
    command = [sys.executable, "-m", "benchmarks", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while not output.exists():
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    kept = json.loads(output.read_text())["jobs"]
    assert 1 <= len(kept) <= 3
    main(arguments)
    printed = capsys.readouterr().out
    jobs = json.loads(output.read_text())["jobs"]
    assert jobs[: len(kept)] == kept
    assert [job["job"]["batch_size"] for job in jobs] == [1, 2, 3]
    assert "refill" in printed
    assert ("is slower than dense" in printed) or ("Slower than dense:" in printed)
    main(["--show", str(output)])
    assert printed.startswith(capsys.readouterr().out)


def test_what_is_wrong_ends_in_one_line(tmp_path: Path) -> None:
    output = tmp_path / "benchmark.json"
    write_json(output, {"environment": {"threads": 7}, "jobs": []})
    with pytest.raises(SystemExit, match=r"^error: .*\b\w+=.*$"):
        main([*TINY, "--output", str(output)])
    with pytest.raises(SystemExit, match="2"):
        main(["--density", "1.5"])
