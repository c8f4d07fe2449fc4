"""Lightning's two packages, `pytorch_lightning` and `lightning.pytorch`: equal classes that are not the same ones.

One of them is enough, and where both are installed a user may mean either. What is handed to a Trainer is therefore a
class of both, and what is looked for among the user's objects is known by name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from lightning_utilities.core import rank_zero

NAMES = ("pytorch_lightning", "lightning.pytorch")


def installed_packages() -> list[ModuleType]:
    """Import and return those of the two packages that are installed, first the one that is imported already.

    They share one logger, which each takes for itself when it is imported; it stays the first one's.

    Raises:
        ImportError: if there is none.
    """
    packages: list[ModuleType] = []
    logger = None
    for name in sorted(NAMES, key=lambda name: name not in sys.modules):
        try:
            packages.append(import_module(name))
        except ModuleNotFoundError as error:
            if error.name not in (name, name.partition(".")[0]):
                raise
        else:
            logger = logger or rank_zero.log
    if logger is None:
        raise ImportError(f"training needs Lightning, and there is neither {' nor '.join(NAMES)}: install one of them")
    rank_zero.log = logger
    return packages


if TYPE_CHECKING:
    import pytorch_lightning as pl
    from pytorch_lightning import Callback
    from pytorch_lightning.plugins import LayerSync
    from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
    from pytorch_lightning.utilities.seed import isolate_rng
else:
    _packages = installed_packages()
    pl = _packages[0]
    Callback = type("Callback", tuple(each.Callback for each in _packages), {"__doc__": "A callback of each package."})
    LayerSync = pl.plugins.LayerSync
    rank_zero_info, rank_zero_warn = pl.utilities.rank_zero_info, pl.utilities.rank_zero_warn
    isolate_rng = pl.utilities.seed.isolate_rng


def is_lightning(thing: object, *names: str) -> bool:
    """Whether an object's class, or one that it inherits from, is one of these of Lightning, in either package.

    >>> from pytorch_lightning.callbacks import EarlyStopping
    >>> is_lightning(EarlyStopping("loss"), "EarlyStopping", "Timer"), is_lightning(EarlyStopping("loss"), "Timer")
    (True, False)
    """
    return any(
        each.__name__ in names and each.__module__.startswith(tuple(f"{name}." for name in NAMES))
        for each in type(thing).__mro__
    )


__all__ = ["Callback", "LayerSync", "is_lightning", "isolate_rng", "pl", "rank_zero_info", "rank_zero_warn"]
