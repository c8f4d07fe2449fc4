"""Trains Torch-Pruning's networks beside a search's own tickets, at equal FLOPs and equal epochs.

    python -m benchmarks.peer_training RUNS/SEARCH [RUNS/SEARCH ...] [--like refill_grown] [--times]

Every peer starts from the dense network that the search has trained, and has the FLOPs of the ticket `--like` of each
round, in as many trainings as that ticket's ancestors had, all with the search's own schedule. Results are written
beside those of the search's tickets, so that tables, verdicts and the report hold them. A killed command goes on with
the training in which it was stopped. With `--times`, on a machine that has nothing else to do, finished networks are
timed as tickets are.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor, nn
from torch.nn import functional as F

from lt_lightning.execution.cost import Setting, time_ratio
from lt_lightning.execution.shrink_channels import avoid_defect
from lt_lightning.experiment.parts import Experiment
from lt_lightning.experiment.run.measuring import with_times
from lt_lightning.pruning.examples import copied
from lt_lightning.pruning.layers import Layer, find_layers
from lt_lightning.pruning.rewinding import Restart
from lt_lightning.results.records import WIDE, Result, find_results, finish, write_summary
from lt_lightning.storage.files import replacing
from lt_lightning.storage.layout import DENSE, TICKET, round_folder
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.retraining import TicketTraining

BATCHES = 8  # whose gradients Taylor's importance adds up
HALVINGS = 12


@dataclass(frozen=True)
class Peer:
    """A way of Torch-Pruning to make a network smaller.

    Attributes:
        importance: what scores channels.
        iterative: whether each round cuts the network of the last round; else the dense network is cut once.
        sparse: whether the trainings before the cut push whole channels towards zero (group norm, DepGraph).
    """

    importance: Literal["GroupMagnitudeImportance", "GroupTaylorImportance"]
    iterative: bool = False
    sparse: bool = False


PEERS = {
    "magnitude": Peer("GroupMagnitudeImportance"),
    "magnitude_iterative": Peer("GroupMagnitudeImportance", iterative=True),
    "taylor": Peer("GroupTaylorImportance"),
    "taylor_iterative": Peer("GroupTaylorImportance", iterative=True),
    "group_norm": Peer("GroupMagnitudeImportance", sparse=True),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the peers of each search that is named."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.peer_training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("searches", type=Path, nargs="+", metavar="SEARCH", help="folders of finished searches")
    parser.add_argument("--like", default="refill_grown", help="ticket whose FLOPs the peers have")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS), help="which peers")
    parser.add_argument("--times", action="store_true", help="time what is finished and has no times")
    options = parser.parse_args(arguments)
    for search in options.searches:
        config = OmegaConf.load(search / "config.yaml")
        assert isinstance(config, DictConfig)
        with open_dict(config):
            config.paths.root = str(search.resolve().parent)
        experiment = Experiment.from_config(config)
        if experiment.search_folder.name != search.resolve().name:
            parser.error(
                f"{search}: is no folder of a search, or of another version: it would be {experiment.search_folder}"
            )
        contest = Contest(experiment, options.like)
        for name in options.peers:
            contest.run(name, PEERS[name])
            if options.times:
                contest.time(name)


class Contest:
    """Peers of the tickets of one search.

    Args:
        experiment: parts of the search's job.
        like: name of the structure whose tickets say how many FLOPs a peer has.
    """

    def __init__(self, experiment: Experiment, like: str) -> None:
        self._experiment = experiment
        experiment.use_threads()
        self._search = experiment.search_folder
        self._restart = replace(Restart.load(self._search / "restart.pt"), mode="learning_rate")
        options = experiment.options.retraining
        if (options.length, options.copies, options.distil) != (1, 1, 0):
            raise ValueError(
                f"{self._search}: peers are trained as rounds are: retraining.length, copies and distil must be 1, 1, 0"
            )
        own = [result for result in find_results(experiment.root) if result.search == self._search.name]
        self._dense = next(result for result in own if result.structure == DENSE)
        tickets = [result for result in own if result.structure == like and not result.control]
        self._like = {result.round: result for result in tickets}
        if not tickets or len(tickets) > len(self._like):
            found = "several tickets" if tickets else "no ticket"
            raise ValueError(f"--like {like}: {self._search} has {found} of that name in a round")
        self._layers = find_layers(self._trained_dense(), experiment.example)

    def run(self, name: str, peer: Peer) -> None:
        """Train one peer at the FLOPs of every round, as far as it is not done."""
        for number, network in self._networks(name, peer):
            folder = self._folder(name, number)
            if Result.load(folder) is None:
                finish(self._experiment.root, [self._result(name, number, network, folder)])

    def time(self, name: str) -> None:
        """Time the finished networks of a peer against the dense one, where they have no times."""
        experiment = self._experiment
        for number in self._like:
            folder = self._folder(name, number)
            result = Result.load(folder)
            if result is None or not math.isnan(result.time_ratio_inference):
                continue
            network = torch.load(folder / f"trained_{number}.pt", weights_only=False)
            avoid_defect(network)
            inference, training = (
                time_ratio(
                    self._trained_dense(),
                    network,
                    experiment.example,
                    Setting(experiment.data.batch_size, mode, experiment.computes_in_bfloat16),
                    experiment.device,
                    wide=WIDE,
                )
                for mode in (False, True)
            )
            with_times(result, inference, training).save(folder)
        write_summary(experiment.root)

    def _folder(self, name: str, number: int) -> Path:
        return round_folder(self._search, number) / f"torch_pruning_{name}-{Path(self._like[number].place).name}"

    def _networks(self, name: str, peer: Peer) -> Iterator[tuple[int, nn.Module]]:
        network = self._trained_dense()
        for number, like in sorted(self._like.items()):
            if peer.sparse and number == 1:
                continue  # there is no training before the cut that could be a sparse one
            folder = self._folder(name, number)
            if peer.iterative:
                network = self._trained(self._cut(network, peer, like.flops_ratio), folder, number)
            else:
                network = self._cut_once(peer, like, folder)
            yield number, network

    def _cut_once(self, peer: Peer, like: Result, folder: Path) -> nn.Module:
        """Return the dense network, cut once and trained for as many rounds as the ticket and its ancestors."""
        network = self._trained_dense()
        before = range(1, like.round) if peer.sparse else ()
        for number in before:
            network = self._trained(network, folder, number, sparse=True)
        network = self._cut(network, peer, like.flops_ratio)
        for number in range(len(before) + 1, like.round + 1):
            network = self._trained(network, folder, number)
        return network

    def _trained_dense(self) -> nn.Module:
        ticket = Ticket.load(round_folder(self._search, 0) / DENSE / TICKET)
        return ticket.apply(copy.deepcopy(self._experiment.spare_classifier().network), "trained")

    def _trained(self, network: nn.Module, folder: Path, number: int, sparse: bool = False) -> nn.Module:
        """Train a network for one more round; what is on disk is read."""
        path = folder / f"trained_{number}.pt"
        if not path.is_file():
            trained = self._fit(network, number, sparse)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as partial:
                torch.save(trained, partial)
        made: nn.Module = torch.load(path, weights_only=False)  # which this command has written
        return made

    def _fit(self, network: nn.Module, number: int, sparse: bool) -> nn.Module:
        experiment, options = self._experiment, self._experiment.pruning_options
        trained = copied(network)
        classifier = instantiate(experiment.config.classifier, network=trained)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        training = TicketTraining(
            Ticket({}, state), self._restart, "masked", monitor=options.monitor, monitor_mode=options.monitor_mode
        )
        callbacks: list[pl.Callback] = [training]
        if sparse:
            callbacks.append(_TowardsZero(_pruner(trained, Peer("GroupMagnitudeImportance"), experiment.example, 0.5)))
        trained.train()  # Torch-Pruning looks at networks in evaluation
        avoid_defect(trained)  # the network itself is kept as Torch-Pruning made it
        pl.seed_everything(experiment.options.seed, verbose=False)
        experiment.data.first_epoch = self._dense.total_epochs + (number - 1) * self._restart.epochs
        experiment.trainer(callbacks, []).fit(classifier, experiment.data)
        assert training.trained is not None
        assert training.trained.trained is not None
        network.load_state_dict(dict(training.trained.trained))
        return network

    def _cut(self, network: nn.Module, peer: Peer, flops: float) -> nn.Module:
        """Return a network with at most that share of the dense network's FLOPs, the largest that bisection finds."""
        if peer.importance == "GroupTaylorImportance":
            self._sum_gradients(network)
        low, high = 0.0, 1.0
        best: nn.Module | None = None
        for _ in range(HALVINGS):
            ratio = (low + high) / 2
            small = copy.deepcopy(network)
            for ours, theirs in zip(small.parameters(), network.parameters(), strict=True):
                ours.grad = None if theirs.grad is None else theirs.grad.clone()
            _pruner(small, peer, self._experiment.example, ratio).step()
            if self._flops(small) > flops:
                low = ratio
            else:
                high, best = ratio, small
        if best is None:
            raise ValueError(f"Torch-Pruning makes no network of {flops:.3f} of the FLOPs")
        for parameter in best.parameters():
            parameter.grad = None
        return best

    def _sum_gradients(self, network: nn.Module) -> None:
        network.eval()
        network.zero_grad()
        self._experiment.data.setup("fit")
        for inputs, targets in self._experiment.data.plain_batches(BATCHES):
            torch.autograd.backward(F.cross_entropy(network(inputs), targets))

    def _flops(self, network: nn.Module) -> float:
        return _operations(find_layers(network, self._experiment.example)) / _operations(self._layers)

    def _result(self, name: str, number: int, network: nn.Module, folder: Path) -> Result:
        experiment, dense = self._experiment, self._trained_dense()
        layers = find_layers(network, experiment.example)
        prunable = Ticket.load(round_folder(self._search, 0) / DENSE / TICKET).card["prunable"]
        density = sum(layers[each].size for each in prunable) / sum(self._layers[each].size for each in prunable)
        tested = copied(network)
        avoid_defect(tested)
        classifier = instantiate(experiment.config.classifier, network=tested)
        (metrics,) = experiment.trainer([], []).test(classifier, experiment.data, verbose=False)
        return replace(
            self._like[number],
            structure=f"torch_pruning_{name}",
            density=density,
            executed=density,
            filters_density=0.0,
            params_ratio=_parameters(network) / _parameters(dense),
            flops_ratio=self._flops(network),
            accuracy=float(metrics["test/accuracy"]),
            dense_accuracy=self._dense.accuracy,
            val_accuracy=float("nan"),
            retained_magnitude=float("nan"),
            train_seconds=float("nan"),
            time_ratio_inference=float("nan"),
            time_ratio_training=float("nan"),
            time_spread_inference=0.0,
            time_spread_training=0.0,
            time_samples=0,
            place=str(folder.relative_to(experiment.root)),
        )


class _TowardsZero(pl.Callback):
    """Adds the gradient of Torch-Pruning's group norm to that of the loss."""

    def __init__(self, pruner: Any) -> None:
        self._pruner = pruner

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self._pruner.regularize(pl_module.network)


def _pruner(network: nn.Module, peer: Peer, example: Tensor, ratio: float) -> Any:
    pruning: Any = importlib.import_module("torch_pruning")
    last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1:]
    return pruning.pruner.GroupNormPruner(
        network.eval(), example, importance=getattr(pruning.importance, peer.importance)(), global_pruning=True,
        pruning_ratio=ratio, ignored_layers=last,
    )  # fmt: skip


def _operations(layers: dict[str, Layer]) -> int:
    return sum(layer.size * layer.positions for layer in layers.values())


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
