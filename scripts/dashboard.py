"""Makes the W&B dashboard of a project's runs: `python scripts/dashboard.py ENTITY [--project lt-lightning]`.

Panels: accuracy over density, over measured time and over operations, by structure; learning curves; times; mask
pictures; tables of rounds and timings. With --json the description is written to a file, and nothing is sent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lt_lightning.files import write_json


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entity", help="user or team that the project belongs to")
    parser.add_argument("--project", default="lt-lightning", help="logger.wandb.project of the runs (lt-lightning)")
    parser.add_argument("--group", help="show one sweep alone: the name that its runs have in common")
    parser.add_argument("--json", type=Path, help="write the description to this file, and send nothing")
    options = parser.parse_args(arguments)
    try:
        from lt_lightning.experiment.logging.dashboard import dashboard, described
    except ImportError as error:
        sys.exit(f"error: {error.name} is missing: pip install -e '.[dashboard]'")
    workspace = dashboard(options.entity, options.project, options.group)
    if options.json is not None:
        write_json(options.json, described(workspace))
        print(f"Description: {options.json}")
        return
    try:
        workspace.save()  # type: ignore[no-untyped-call]
    except Exception as error:  # W&B's client raises whatever its server or the network brings about
        sys.exit(f"error: W&B did not take the dashboard: {next(iter(str(error).splitlines()), type(error).__name__)}")
    print(f"Dashboard: {workspace.url}")


if __name__ == "__main__":
    main()
