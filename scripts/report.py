"""Writes a report of what has been run: `python scripts/report.py outputs`.

Reads a search's folder, the folder of a sweep's jobs, or a root with any number of both, and writes one HTML file that
opens offline, PNGs of the main figures, and the table of all tickets as Markdown, CSV and LaTeX.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lt_lightning.report.writing import write_report


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="folder of a search, of a sweep's jobs (jobs/...), or root of both")
    parser.add_argument("--output", type=Path, help="folder to write to (report, under PATH)")
    options = parser.parse_args(arguments)
    try:
        print(f"Report: {write_report(options.path, options.output)}")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
