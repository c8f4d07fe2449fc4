"""The groups of LT-Lightning on the search path of every Hydra application: `defaults: [lt_lightning/pruning: imp]`."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class LTLightningGroups(SearchPathPlugin):
    """Hydra finds this class by itself, since the module is part of `hydra_plugins`."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the groups, and register the options of a job that `lt_lightning/run` begins with."""
        from lt_lightning.experiment.config import options  # for the start-up of what only imports the plugins

        search_path.append("lt_lightning", "pkg://lt_lightning.storage.config_groups")
        options.register("lt_lightning")
