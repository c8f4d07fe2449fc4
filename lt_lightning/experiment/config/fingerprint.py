"""What of a configuration determines a result, and what only how it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lt_lightning.pruning.densities import descending

# What says how, not what, is computed: other values give the same result, up to the rounding of float operations. Any
# other key of these groups, one added by the user too, counts as one that determines the result.
OPERATIONAL = {
    "data": ("root", "workers", "eval_batch_size"),
    "classifier": ("channels_last", "compile"),
    "pruning": ("on_collapse",),
    "trainer": (
        "accelerator", "devices", "num_nodes", "strategy", "sync_batchnorm", "num_sanity_val_steps",
        "log_every_n_steps", "default_root_dir", "enable_progress_bar", "enable_model_summary", "enable_checkpointing",
        "profiler", "detect_anomaly", "benchmark",
    ),
}  # fmt: skip


def determining(config: DictConfig, groups: Sequence[str]) -> dict[str, Any]:
    """These groups of a configuration as plain values, without what does not change a result."""
    whole: Any = OmegaConf.to_container(config, resolve=True)
    return {group: _determining(group, whole[group]) for group in groups}


def _determining(group: str, values: Any) -> Any:
    left_out = OPERATIONAL.get(group, ())
    if group == "pruning" and (density := values.get("density")) is not None:
        left_out = (*left_out, "rounds")
        first, *more = descending(density)
        values = {**values, "density": [first, *more] if more else first}
    return {key: value for key, value in values.items() if key not in left_out} if left_out else values
