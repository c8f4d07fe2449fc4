"""docs/running.md: the groups in another Hydra application compose and make the callback as it says."""

from __future__ import annotations

import re
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from lt_lightning import LotteryTicketPruning

PAGE = Path(__file__).resolve().parents[2] / "docs" / "running.md"


def test_another_application_has_the_groups(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n# configs/train.yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "train.yaml").write_text(text)
    (tmp_path / "whole.yaml").write_text("defaults: [lt_lightning/run@_global_, _self_]\nseed: 7\n")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        callback = instantiate(compose("train", ["callbacks.pruning.rate=0.5"]).callbacks.pruning, _convert_="all")
        whole = compose("whole", ["lt_lightning/model@model=vgg16_bn"])
    assert isinstance(callback, LotteryTicketPruning)
    assert (callback.options.rate, callback.options.rounds) == (0.5, 5)
    assert list(callback.options.structures) == ["refill", "regroup"]
    assert (whole.seed, whole.pruning.rounds, whole.model._target_) == (7, 6, "lt_lightning.models.vgg.VGG")
