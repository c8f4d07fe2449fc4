"""What processes do that the tests start: they import it by name."""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any


def run_script(
    script: str, options: Sequence[str], environment: Mapping[str, str], log: str, delay: float | None
) -> None:
    """What `python SCRIPT OPTIONS` does in that environment, its output in a file; ends this process.

    Args:
        script: to be run.
        options: on its command line.
        environment: of the process.
        log: gets all that it writes to its standard output and error.
        delay: seconds for which every file stays half written. Then, too, what computes a layer follows from the
            layer's name: it is measured otherwise, so that two undisturbed runs may differ. None: all is as it is.
    """
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    import_module("torch").set_num_threads(1)
    if delay is not None:
        _settle(delay)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = [script, *options]
    code = 1
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        print(error)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _settle(delay: float) -> None:
    files: Any = import_module("lt_lightning.storage.files")
    fastest: Any = import_module("lt_lightning.execution.execute").FastestForm
    to_disk = files._to_disk

    def slowly(path: Path) -> None:
        time.sleep(delay)
        to_disk(path)

    files._to_disk = slowly
    fastest.__call__ = lambda self, name, layer, forms: next(iter(forms), "dense") if len(name) % 2 else "dense"
