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
from benchmarks.jobs import make_network
from benchmarks.variants import Tickets
from lt_lightning.pruning.layers import prunable_layers
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


AUTHORS = ROOT / "results" / "layer_densities_authors.json"


@pytest.mark.slow
def test_layers_have_the_densities_of_a_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = tmp_path / "round_02" / "refill" / "ticket.json"
    names = prunable("resnet8", (3, 8, 8))
    write_json(card, {"prunable": names, "layers": {name: {"size": 100, "target": 40} for name in names}})
    main([*TINY, "--batch", "1", "--layer-densities", str(card), "--output", str(tmp_path / "benchmark.json")])
    assert "0.4 (found search, round_02)" in capsys.readouterr().out
    rows = json.loads((tmp_path / "benchmark.json").read_text())["jobs"][0]["rows"]
    assert {(row["variant"], row["density"]) for row in rows} == {("dense", 1), ("masked", 0.4), ("refill", 0.4)}


def prunable(name: str, shape: tuple[int, ...]) -> list[str]:
    layers = Tickets(make_network(name, 10, shape[0]), shape).layers
    return [layer.name for layer in prunable_layers(layers, ("stem", "classifier"))]


def test_what_the_authors_tickets_execute(capsys: pytest.CaptureFixture[str]) -> None:
    """Summed up here by hand from shapes: a convolution's operations are its weights times its positions."""
    of_layers = json.loads(AUTHORS.read_text())["networks"]["vgg16_bn"]
    widths = {0: (64, 64), 1: (128, 128), 2: (256, 256, 256), 3: (512,) * 3, 4: (512,) * 3}
    before, kept, whole = 3, 0.0, 0.0
    for stage, outputs in widths.items():
        for index, width in enumerate(outputs):
            operations = 9 * before * width * (32 >> stage) ** 2
            kept += operations * of_layers.get(f"stages.{stage}.conv{index + 1}", 1.0)
            whole += operations
            before = width
    main(["--operations", "--network", "vgg16_bn", "--variant", "regroup", "--layer-densities", str(AUTHORS)])
    printed = float(capsys.readouterr().out.split()[-1])
    assert printed == pytest.approx((kept + 5120) / (whole + 5120), abs=0.001) == pytest.approx(0.581, abs=0.001)


def test_layer_densities_of_another_network_are_refused(tmp_path: Path) -> None:
    arguments = ["--operations", "--network", "resnet8", "--layer-densities"]
    with pytest.raises(SystemExit, match=r"^error: --network=resnet8: "):
        main([*arguments, str(AUTHORS)])
    other = tmp_path / "other.json"
    write_json(other, {"name": "n", "networks": {"resnet8": {"nowhere": 0.5}}})
    with pytest.raises(SystemExit, match=r"^error: layer densities: '"):
        main([*arguments, str(other)])
    write_json(other, {"networks": 7})
    with pytest.raises(SystemExit, match=f"^error: {other}: "):
        main([*arguments, str(other)])


def test_what_is_wrong_ends_in_one_line(tmp_path: Path) -> None:
    output = tmp_path / "benchmark.json"
    write_json(output, {"environment": {"threads": 7}, "jobs": []})
    with pytest.raises(SystemExit, match=r"^error: .*\b\w+=.*$"):
        main([*TINY, "--output", str(output)])
    with pytest.raises(SystemExit, match="2"):
        main(["--density", "1.5"])
