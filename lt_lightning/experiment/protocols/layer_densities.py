"""Layer densities of another search (`pruning.scope=imp`): a search by magnitude is run first, and its counts taken."""

from __future__ import annotations

from omegaconf import DictConfig, open_dict

from lt_lightning.experiment.config.tasks import rounds_of, search_folder
from lt_lightning.experiment.protocols.protocol import Protocol
from lt_lightning.storage.layout import UNSTRUCTURED

MAGNITUDE = {"_target_": "lt_lightning.pruning.criteria.Magnitude"}


class LayerDensities(Protocol):
    """The search whose layer densities a job takes, where the configuration names none by `pruning.imp`."""

    name = "layer_densities"

    def wanted(self, config: DictConfig) -> bool:
        """Whether layers are to have another search's densities; masks that form within trainings have their own."""
        pruning = config.pruning
        return (
            pruning.get("scope") == "imp"
            and pruning.get("imp") is None
            and pruning.get("sparsifier") is None
            and rounds_of(config) > 0
        )

    def prepared(self, config: DictConfig) -> DictConfig:
        """Name the folder of the search in the configuration."""
        (search,) = self.needed(config)
        config = config.copy()
        with open_dict(config):
            config.pruning.imp = str(search_folder(search))
        return config

    def needed(self, config: DictConfig) -> list[DictConfig]:
        """Return the job with iterative magnitude pruning in place of the job's own criterion, without retrainings.

        Its folder is that of `pruning=imp` with otherwise the same settings, so that the two are one search.
        """
        search = config.copy()
        with open_dict(search):
            search.pruning.scope, search.pruning.scores_from = "global", "trained"
            search.pruning.criterion, search.pruning.next_round_from = MAGNITUDE, UNSTRUCTURED
            search.structure, search.controls, search.published, search.retrain_rounds = {}, [], {}, []
            search.grown, search.growing = [], {**search.growing, "alone": False, "densities": None}
            search.search = "all"
            search.transfer = {"from": None}
        return [search]
