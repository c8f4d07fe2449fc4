"""What processes do that the tests start: they import it by name."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any


def run_script(options: Sequence[str], environment: Mapping[str, str], log: str, delay: float) -> None:
    """What `python scripts/run.py OPTIONS` does in that environment, its output in a file; ends this process.

    Args:
        options: on its command line.
        environment: of the process.
        log: gets all that it writes to its standard output and error.
        delay: seconds for which every file stays half written.
    """
    os.environ.clear()
    os.environ.update(environment)
    if delay:
        _write_slowly(delay)
    import_module("benchmarks.kill_loop").run_script(options, log)


def _write_slowly(delay: float) -> None:
    files: Any = import_module("lt_lightning.storage.files")
    to_disk = files._to_disk

    def slowly(path: Path) -> None:
        time.sleep(delay)
        to_disk(path)

    files._to_disk = slowly
