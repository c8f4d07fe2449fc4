"""Layers' densities from another search (`pruning.scope=imp`): which search that is, and how many weights it kept."""

from __future__ import annotations

from omegaconf import DictConfig, open_dict

from lt_lightning.experiment.config.tasks import rounds_of
from lt_lightning.ticket_names import UNSTRUCTURED

MAGNITUDE = {"_target_": "lt_lightning.pruning.criteria.Magnitude"}


def magnitude_search_of(config: DictConfig) -> DictConfig | None:
    """The job with iterative magnitude pruning in place of a job's own criterion, without retrainings.

    Its folder is that of `pruning=imp` with otherwise the same settings, so that the two are one search.

    Returns:
        None for a job that needs none, or whose masks come to be in trainings, which take no layer densities.
    """
    if config.pruning.get("scope") != "imp" or rounds_of(config) == 0 or config.pruning.get("sparsifier") is not None:
        return None
    search = config.copy()
    with open_dict(search):
        search.pruning.scope, search.pruning.scores_from = "global", "trained"
        search.pruning.criterion, search.pruning.next_round_from = MAGNITUDE, UNSTRUCTURED
        search.structure, search.controls, search.published, search.retrain_rounds = {}, [], {}, []
        search.search = "all"
        search.transfer = {"from": None}
    return search


# How many weights of each layer another search kept: the layers' densities of a control (`pruning.scope=imp`).
