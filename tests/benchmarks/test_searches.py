"""What a round, what looks on, and a whole search cost."""

from __future__ import annotations

import pytest
import torch

from benchmarks.training.overhead import measure_overhead, measure_round
from benchmarks.training.searches import Search, costs, halvings, papers, step_share
from benchmarks.training.task import Setting, Task, synthetic
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.structures.refill import Refill


def test_the_papers_search_is_a_training_a_round_and_a_ticket() -> None:
    assert papers(Search(10, 160, 8), 2) == 31
    assert papers(Search(3, 10, 0), 0) == 4


def test_ours_counted_by_hand() -> None:
    """Two rounds of four epochs, rewound to the first; steps take 0.6 of the time at density 0.5, all at 1."""
    search = Search(2, 4, 1, rate=0.5)
    paper, masked, shrunk, halved, grown, larger = costs(search, {"refill": {0.5: 0.6}})
    assert (paper.rounds, paper.retraining, paper.to_paper) == (3, 2, 1)
    assert (masked.rounds, masked.retraining) == pytest.approx((1 + 2 * 0.75, 2 * 0.75))
    assert shrunk.retraining == pytest.approx(0.75 * 0.6 + 0.75 * 0.6)  # below 0.5 as at 0.5
    assert halved.retraining == pytest.approx(shrunk.retraining)  # of two tickets both are looked at
    assert shrunk.to_paper == pytest.approx((2.5 + 0.9) / 5)
    assert (grown.rounds, grown.retraining) == pytest.approx((1 + 0.9, 0))
    assert larger.rounds == pytest.approx(1 + 0.75 * 0.6)  # one round that prunes to a quarter


def test_bisection_looks_at_the_dearest_tickets_at_most() -> None:
    search = Search(10, 160, 8)
    measured = {"refill": {0.5: 0.5, 0.1: 0.1}}
    shrunk, halved = costs(search, measured)[2:4]
    each = sorted(0.95 * step_share(0.8**n, measured["refill"]) for n in range(1, 11))
    assert shrunk.retraining == pytest.approx(sum(each))
    assert halved.retraining == pytest.approx(sum(each[-4:]))


@pytest.mark.parametrize("rounds", range(1, 40))
def test_as_many_halvings_as_a_bisection_needs(rounds: int) -> None:
    """Tried for every last round that wins."""

    def looked_at(last: int) -> int:
        low, high, count = 0, rounds, 0  # the last that wins is in low..high
        while low < high:
            middle = (low + high + 1) // 2
            count += 1
            low, high = (middle, high) if middle <= last else (low, middle - 1)
        return count

    assert halvings(rounds) == max(looked_at(last) for last in range(rounds + 1))


def test_shares_of_a_step_lie_between_what_was_measured() -> None:
    measured = {0.5: 0.6, 0.25: 0.3}
    assert [step_share(d, measured) for d in (1.0, 0.75, 0.5, 0.375, 0.25, 0.1)] == pytest.approx(
        [1, 0.8, 0.6, 0.45, 0.3, 0.3]
    )
    with pytest.raises(ValueError, match=r"density=1\.5"):
        step_share(1.5, measured)
    with pytest.raises(ValueError, match=r"^rewind=4: "):
        Search(2, 4, 4)


def test_the_parts_of_a_round_leave_the_network_alone() -> None:
    torch.manual_seed(0)
    network = cifar_resnet(8, 10, width=4)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    parts = measure_round(network, torch.zeros(1, 3, 8, 8), {"refill": Refill(round_to=1)}, 0.5, samples=2)
    assert [part.part for part in parts] == ["prune", "rewind", "ticket to disk", "refill"]
    assert all(0 < part.milliseconds <= part.longest and part.samples == 2 for part in parts)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_what_looks_on_is_a_part_of_an_epoch() -> None:
    torch.manual_seed(0)
    steps = 6
    task = Task(cifar_resnet(8, 10, width=4), 0.5, *synthetic(4 * steps + 1, (3, 8, 8)), Setting(4), steps)
    few, many = (measure_overhead(task, count) for count in (10, 10_000))
    for told in (few, many):
        assert 0 < told.per_step < told.step
        assert told.per_epoch > 0
        assert told.checkpoint > 0
        assert told.checkpoints <= 0.0101
        looking = (told.per_step + told.per_epoch / told.steps) / told.step
        assert told.share == pytest.approx(looking + told.checkpoints + told.bars)
