"""Tells what is here, what is missing, and what that turns off: `python scripts/doctor.py [--data PATH] [--root PATH]`.

Ends with exit code 1 if nothing can be run as things are, else with 0.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lt_lightning.experiment.run.doctor import examine, print_checks

CONF = Path(__file__).resolve().parent.parent / "conf"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="paths.data (data)")
    parser.add_argument("--root", type=Path, default=Path("runs"), help="paths.root (runs)")
    options = parser.parse_args(arguments)
    checks = print_checks(examine(CONF, options.data, options.root), Console())
    if wrong := [check for check in checks if check.state == "wrong"]:
        sys.exit(f"error: {wrong[0].topic}: {wrong[0].effect}")
    off = sum(check.state == "off" for check in checks)
    print(f"Ready to run; {off} of {len(checks)} are off or slow." if off else "Ready to run.")


if __name__ == "__main__":
    main()
