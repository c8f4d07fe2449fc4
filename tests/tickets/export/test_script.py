"""`lt-lightning export` as a user starts it, on a ticket that `lt-lightning run` made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from lt_lightning import load_network
from lt_lightning.data.digits import Digits
from tests.runs import REFILL, SMALL

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"


def start(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def accuracy(network: nn.Module) -> float:
    """On the test set, which no seed changes."""
    data = Digits(".", 64)
    data.setup()
    with torch.no_grad():
        right = [network(images).argmax(1) == labels for images, labels in data.test_dataloader()]
    return float(torch.cat(right).float().mean())


@pytest.mark.slow
def test_from_a_search_to_exported_files(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["run.py", f"paths.root={tmp_path / 'runs'}", *SMALL, *REFILL, "data.limit=0.5", "report=false"]
    monkeypatch.setattr(sys, "argv", asked)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")  # set by the script
    script.run()
    (ticket,) = (path.parent for path in tmp_path.glob("runs/*/round_01/refill-*/ticket.safetensors"))
    output = tmp_path / "exported"
    done = start("export.py", str(ticket), str(output))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("Logits differ from the masked network's by at most ")
    card = json.loads((output / "card.json").read_text())
    for name in ("network.safetensors", "network.json", "network.pt2", "network.onnx"):
        assert str(output / name) in done.stdout
        assert (output / name).is_file()
    result = json.loads((ticket / "result.json").read_text())
    assert card["result"] == result
    assert card["input"]["mean"] == list(Digits.mean)
    assert accuracy(load_network(output)) == pytest.approx(result["accuracy"], abs=1e-6)
    assert result["accuracy"] > 0.2  # it has learned something


@pytest.mark.parametrize("formats", [["safetensors", "pt2"]])
def test_what_is_wrong_ends_in_one_line(tmp_path: Path, formats: list[str]) -> None:
    done = start("export.py", str(tmp_path / "nothing"), str(tmp_path / "out"), "--formats", *formats)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "nothing") in line
