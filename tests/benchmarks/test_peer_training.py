"""Torch-Pruning's networks beside a search's tickets: no more FLOPs, as many epochs, results of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

pytest.importorskip("torch_pruning")

from benchmarks.peer_training import PEERS, Contest, main
from lt_lightning.experiment.parts import Experiment
from lt_lightning.results.records import Result, find_results
from lt_lightning.tickets.ticket import Ticket
from tests.runs import REFILL, SMALL, composing, run_of


@pytest.mark.slow
def test_peers_have_the_tickets_flops_and_epochs_and_are_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with composing(tmp_path) as composed:
        results = run_of(
            composed(
                *SMALL, *REFILL, "data.limit=0.1", "pruning.rounds=2", "pruning.rate=0.5", "pruning.rewind=1ep",
                "pruning.mode=learning_rate", "pruning.monitor=null", "grown=[refill]", "report=false",
            )
        )  # fmt: skip
    monkeypatch.setattr("benchmarks.peer_training.BATCHES", 1)
    search = str(tmp_path / results[0].search)
    main([search])
    dense = Ticket.load(tmp_path / results[0].place / "ticket")
    assert dense.trained is not None
    steps = next(int(value) for name, value in dense.trained.items() if "num_batches_tracked" in name) // 2
    peer_names = {f"torch_pruning_{name}" for name in PEERS}
    ours = {result.round: result for result in results if result.structure == "refill_grown"}
    peers = [result for result in find_results(tmp_path) if result.structure.startswith("torch_pruning_")]
    assert sorted((each.structure, each.round) for each in peers) == sorted(
        (f"torch_pruning_{name}", number)
        for name in PEERS
        for number in ours
        if number > 1 or not PEERS[name].sparse  # before the first cut there is no training that could be sparse
    )
    for peer in peers:
        ticket = ours[peer.round]
        assert ticket.flops_ratio * 0.6 < peer.flops_ratio <= ticket.flops_ratio
        assert 0 < peer.params_ratio < 1
        assert peer.total_epochs == ticket.total_epochs == 2 + peer.round
        assert peer.dense_accuracy == results[0].accuracy
        network = torch.load(tmp_path / peer.place / f"trained_{peer.round}.pt", weights_only=False)
        counted = {int(value) for name, value in network.state_dict().items() if "num_batches_tracked" in name}
        assert counted == {peer.total_epochs * steps}  # BatchNorm was trained, too
        trainings = sorted(path.name for path in (tmp_path / peer.place).glob("trained_*.pt"))
        whole = [f"trained_{number}.pt" for number in range(1, peer.round + 1)]
        assert trainings == (whole[-1:] if PEERS[peer.structure.removeprefix("torch_pruning_")].iterative else whole)

    config = OmegaConf.load(tmp_path / results[0].search / "config.yaml")
    assert isinstance(config, DictConfig)
    contest = Contest(Experiment.from_config(config), "refill_grown")
    with pytest.raises(ValueError, match="no network"):
        contest._cut(contest._trained_dense(), PEERS["magnitude"], 1e-6)
    with pytest.raises(ValueError, match=r"^--like regroup_grown: .*no ticket"):
        Contest(Experiment.from_config(config), "regroup_grown")
    config.retraining.length = 2
    with pytest.raises(ValueError, match=r"retraining\.length"):
        Contest(Experiment.from_config(config), "refill_grown")

    def refuse(*_: object) -> Result:
        raise AssertionError("it was trained again")

    monkeypatch.setattr("benchmarks.peer_training.Contest._fit", refuse)
    main([search, "--peers", "magnitude", "taylor_iterative", "--times"])
    timed = {each.structure for each in find_results(tmp_path) if each.time_samples and each.structure in peer_names}
    assert timed == {"torch_pruning_magnitude", "torch_pruning_taylor_iterative"}
