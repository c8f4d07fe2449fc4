"""The groups of `conf/` for Hydra's search path, as `lt_lightning/GROUP`.

`lt_lightning` beside this file is a link to `conf/` at the top of the repository; a wheel holds the files themselves.
`hydra_plugins/lt_lightning_groups.py` puts this package on the search path of every Hydra application.
"""

from pathlib import Path
from typing import Final

CONF: Final = (Path(__file__).parent / "lt_lightning").resolve()
