"""`scripts/benchmark.py` as a user starts it."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from lt_lightning.files import write_json

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "benchmark.py"
TINY = [
    *("--network", "resnet8", "--image", "3", "8", "8", "--variant", "masked", "refill", "--samples", "2"),
    *("--limit", "1", "--threads", "1", "--mode", "inference"),
]


def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_killed_benchmark_keeps_what_it_has_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "benchmark.json"
    asked = [sys.executable, str(SCRIPT), *TINY, "--batch", "1", "2", "3", "--output", str(output)]
    process = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while not output.exists():
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    kept = json.loads(output.read_text())["jobs"]
    assert 1 <= len(kept) <= 3
    main = benchmark().main
    main(asked[2:])
    told = capsys.readouterr().out
    jobs = json.loads(output.read_text())["jobs"]
    assert jobs[: len(kept)] == kept
    assert [job["job"]["batch_size"] for job in jobs] == [1, 2, 3]
    assert "refill" in told
    assert ("is slower than dense" in told) or ("Slower than dense:" in told)
    main(["--show", str(output)])
    assert told.startswith(capsys.readouterr().out)


def test_what_is_wrong_ends_in_one_line(tmp_path: Path) -> None:
    output = tmp_path / "benchmark.json"
    write_json(output, {"environment": {"threads": 7}, "jobs": []})
    with pytest.raises(SystemExit, match=r"^error: .* was measured with \w+=.*: name another file$"):
        benchmark().main([*TINY, "--output", str(output)])
    with pytest.raises(SystemExit, match="2"):
        benchmark().main(["--density", "1.5"])
