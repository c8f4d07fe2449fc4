"""The table of networks: what is measured of three small ones, and of one of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.compatibility.__main__ import look_at, main
from benchmarks.compatibility.measure import measure
from benchmarks.compatibility.networks import Case, LSTMClassifier, UNet, cases
from benchmarks.compatibility.peer import measure_peer
from benchmarks.compatibility.table import behind, insert, table
from tests.cases import slow_but


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


class Kept(nn.Module):
    """The channels of `first` are an output, those of `second` are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(4, 24), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.last(self.second(x).relu())


def test_a_perceptron_by_hand() -> None:
    """At a fourth of the 320 weights, at most 80 are left of the two layers that are pruned, and nearly so many."""
    found = measure(Case("perceptron", "own", perceptron, torch.zeros(1, 4)), [0.25])
    assert found.parameters == 4 * 16 + 16 + 16 * 16 + 16 + 16 * 3 + 3
    assert found.droppable == 1
    assert found.problem == ""
    left = found.left["0.25"]
    widths = [(a, b) for a in range(1, 17) for b in range(1, 17) if 64 <= 4 * a + a * b <= 80]
    assert round(left.parameters * found.parameters) in [5 * a + a * b + b + 3 * b + 3 for a, b in widths]
    assert 0 <= left.evaluation < 1e-12
    assert left.training is not None
    assert 0 <= left.training < 1e-12
    assert found.regroup is not None
    assert found.regroup < 1e-12


def test_what_is_kept_does_not_count_as_droppable_and_says_why() -> None:
    found = measure(Case("kept", "own", Kept, torch.zeros(1, 4)), [0.5])
    assert found.droppable == pytest.approx(4 * 24 / (4 * 8 + 4 * 24))
    assert found.kept == {"output of the network": pytest.approx(4 * 8 / (4 * 8 + 4 * 24))}


@pytest.mark.parametrize(
    "case",
    [
        Case("U-Net", "own", lambda: UNet(8, 2), torch.zeros(1, 3, 16, 16)),
        Case("LSTM", "own", LSTMClassifier, torch.arange(6)[None]),
    ],
    ids=lambda case: case.name,
)
def test_transposed_convolutions_and_what_an_lstm_gives_can_be_dropped(case: Case) -> None:
    found = measure(case, [0.25])
    assert (found.droppable, found.problem) == (1, "")
    assert found.left["0.25"].evaluation < 1e-12


def test_the_peer_is_measured_on_the_same_network() -> None:
    pytest.importorskip("torch_pruning")
    found = measure_peer(Case("perceptron", "own", perceptron, torch.zeros(1, 4)), [0.25])
    assert (found.droppable, found.problem) == (1, "")
    # 8 of 16 units twice: weights 4 x 8, 8 x 8, 8 x 3, and the biases.
    assert found.left["0.25"].parameters == (32 + 8 + 64 + 8 + 24 + 3) / 403
    assert found.left["0.25"].evaluation < 1e-12


def test_the_table_goes_between_the_marks_of_a_page_and_names_what_is_behind(tmp_path: Path) -> None:
    row = look_at(Case("perceptron", "own", perceptron, torch.zeros(1, 4)), [0.5, 0.25], peer=False)
    worse = {**row, "network": "worse", "droppable": 0.5, "regroup": 1e-3}
    worse["peer"] = {"droppable": 0.75, "left": {}, "problem": ""}
    worse["left"] = {"0.5": {**row["left"]["0.5"], "training": 0.5}}
    assert behind([row]) == []
    found = behind([worse])
    assert len(found) == 3
    assert all(word in line for word, line in zip(("differs by 5e-01", "regrouped", "0.750"), found, strict=True))
    page = tmp_path / "page.md"
    page.write_text(
        "Before.\n\n<!-- table: python -m benchmarks.compatibility --write -->\nold\n<!-- end of the table -->\n"
    )
    insert(page, table([row]))
    text = page.read_text()
    assert text.startswith("Before.")
    assert "old" not in text
    assert "| perceptron | 100 % |" in text
    insert(page, table([row]))
    assert page.read_text() == text


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Nothing here.\n")
    with pytest.raises(ValueError, match=r"page\.md"):
        insert(page, "")


def test_a_pattern_that_names_no_network_is_refused() -> None:
    with pytest.raises(SystemExit, match="--network nonsense"):
        main(["--network", "nonsense"])


@pytest.mark.parametrize("name", slow_but(["GPT2"], ["Bert", "GPT2", "ConvNext", "Segformer"]))
def test_networks_of_transformers_lose_channels_exactly(name: str) -> None:
    pytest.importorskip("transformers")
    found = measure(next(case for case in cases() if (case.name, case.source) == (name, "transformers")), [0.25])
    assert (found.droppable, found.problem) == (1, "")
    left = found.left["0.25"]
    assert max(left.evaluation, left.training or 0.0) < 1e-9


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "googlenet", "shufflenet_v2_x0_5"])
def test_networks_of_torchvision_lose_channels_exactly(name: str) -> None:
    pytest.importorskip("torchvision")
    found = measure(next(case for case in cases() if case.name == name), [0.25])
    assert found.problem == ""
    assert found.droppable > 0.99
    left = found.left["0.25"]
    assert max(left.evaluation, left.training or 0.0) < 1e-9


def test_a_mixer_of_timm_loses_channels_exactly() -> None:
    pytest.importorskip("timm")
    found = measure(next(case for case in cases() if case.name == "MlpMixer"), [0.25])
    assert (found.droppable, found.problem) == (1, "")
    assert found.left["0.25"].evaluation < 1e-9
