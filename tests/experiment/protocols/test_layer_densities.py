"""What is wrong with the search that layers' densities are asked of is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lt_lightning.tickets.making import layer_counts
from lt_lightning.tickets.ticket import Ticket

MASKS = {"a": torch.ones(4, 2, dtype=torch.bool), "b": torch.ones(2, dtype=torch.bool)}


def search(place: Path, *masks: dict[str, torch.Tensor]) -> Path:
    """A search whose rounds ended with these masks."""
    facts = [{"round": 0, "density": 1.0}]
    for number, each in enumerate(masks, start=1):
        total = sum(mask.numel() for mask in each.values())
        facts.append({"round": number, "density": sum(int(mask.sum()) for mask in each.values()) / total})
        values = {name: torch.zeros(mask.shape) for name, mask in each.items()}
        ticket = Ticket(each, values, None, None, {}, {})
        ticket.save(place / f"round_{number:02d}" / "unstructured" / "ticket")
    (place / "rounds.json").write_text(json.dumps(facts))
    return place


def test_they_are_those_of_the_round_of_that_density(tmp_path: Path) -> None:
    half = {"a": torch.tensor([[True, True]] * 2 + [[False, False]] * 2), "b": torch.tensor([True, False])}
    less = {"a": torch.tensor([[True, False]] + [[False, False]] * 3), "b": torch.tensor([False, True])}
    place = search(tmp_path, half, less)
    assert layer_counts(place, MASKS, 0.5) == {"a": 4, "b": 1}
    assert layer_counts(place, MASKS, 0.2) == {"a": 1, "b": 1}
    with pytest.raises(ValueError, match=rf"^imp={place}: .*\b0\.3\b"):
        layer_counts(place, MASKS, 0.3)


def test_a_search_that_is_not_there_or_another_network_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^imp={tmp_path}: "):
        layer_counts(tmp_path, MASKS, 0.5)
    other = search(tmp_path, {"a": torch.ones(5, dtype=torch.bool)})
    with pytest.raises(ValueError, match=f"^imp={other}: "):
        layer_counts(other, MASKS, 1.0)
