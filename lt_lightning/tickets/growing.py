"""Grown tickets: each is made from the structured ticket before it, whose trained weights are pruned further.

The paper structures a copy of each round's mask, and its search goes on from the unstructured one. Here a search is a
chain of structured tickets: prune what the last one trained, structure what is left, train that, and so on. The paper
calls a search that goes on from the structure's mask group-aware.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lt_lightning.network_graph.traced import TracedNetwork
from lt_lightning.pruning.criteria import Context, Criterion
from lt_lightning.pruning.evaluation import forked_random
from lt_lightning.pruning.examples import Example, copied
from lt_lightning.pruning.masks import Masks
from lt_lightning.pruning.rewinding import Restart, when_alive
from lt_lightning.pruning.selection import Scope, prune
from lt_lightning.structures.base import Batches, Structure, StructureInput
from lt_lightning.tickets.making import make_ticket
from lt_lightning.tickets.ticket import Ticket


@dataclass(frozen=True)
class Growth:
    """How the tickets of a chain are made from each other.

    Attributes:
        name: name of the structure, for the cards.
        structure: structure of every ticket of the chain.
        criterion: criterion that scores the trained weights; those with the lowest scores are pruned.
        scope: where scores are compared; see `prune`.
        restart: what goes back before each training.
        traced: the network; its values do not matter.
        example: input batch of the true shape.
        batches: gives training batches on a device, for criteria and structures that look at them.
        device: that device.
    """

    name: str
    structure: Structure
    criterion: Criterion
    scope: Scope
    restart: Restart
    traced: TracedNetwork
    example: Example
    batches: Batches
    device: str = "cpu"

    def next_ticket(self, ticket: Ticket, density: float, facts: Mapping[str, Any]) -> Ticket:
        """Prune a trained ticket to a density, structure what is left, and return an untrained ticket.

        Args:
            ticket: ticket that was trained, of any structure or dense.
            density: share of the prunable weights that is left before the structure refills some and prunes others.
            facts: facts for the card.

        Raises:
            ValueError: if the ticket was not trained.
        """
        state = _trained_state(ticket, self.traced.network)
        # 1. Prune the weights of the lowest scores.
        before: Masks = {name: ticket.masks[name] for name in self._pruned_weights(ticket)}
        source = copied(self.traced.network).to(self.device)
        context = Context(source, state, self.example, self.batches, density, self.scope)
        with forked_random(self.device):
            torch.manual_seed(facts["round"])
            scores = self.criterion(state, before, context)
        masks = prune(before, scores, density, self.scope)
        # 2. Structure what is left. A weight that was pruned earlier is known by its value when it was last alive.
        alive = when_alive(state, ticket.masks, ticket.rewind)
        given = StructureInput(self.traced, masks, alive, None, self.batches, ticket.plan)
        # 3. Let it restart from the trained values, or from the rewind point.
        return make_ticket(self.name, self.structure, given, self.restart.values(alive, masks), facts)

    def _pruned_weights(self, ticket: Ticket) -> list[str]:
        """Return the names of the weights that criteria score; structures may have masked more than these."""
        return [self.traced.layers[name].weight for name in ticket.card["prunable"]]


def _trained_state(ticket: Ticket, network: nn.Module) -> dict[str, Tensor]:
    """Return the trained values, pruned weights at zero; a parameter with several names is one tensor under each."""
    precision = next(value.dtype for value in ticket.rewind.values() if value.is_floating_point())
    state = ticket.apply(copied(network).to(precision), "trained").state_dict()
    return {name: value.detach() for name, value in state.items()}
