"""Keeps the results of a study in one JSON file, and the README's tables in step with such files.

    python scripts/evidence.py record RUNS results/NAME.json --about about.yaml
    python scripts/evidence.py tables [README.md]

`record` takes every result under RUNS. In `about.yaml` stands what was done (`what`, `commands`, `caveats`, `pairs`:
kinds of tickets to compare with each other). `tables` writes anew what stands in a Markdown file between
`<!-- KIND results/NAME.json -->` and `<!-- end -->`, where KIND is accuracy, comparisons or extremes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import OmegaConf

from benchmarks.evidence import accuracy_table, comparison_table, evidence, extremes_table, results_in
from lt_lightning.files import read_json, replacing, write_json
from lt_lightning.results.verdict import STANDARD

PLACE = re.compile(r"(<!-- (accuracy|comparisons|extremes) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str, folder: Path) -> str:
    """The Markdown text with its tables made anew; files are named relative to the folder."""

    def table(match: re.Match[str]) -> str:
        read = read_json(folder / match[3])
        results = results_in(read)
        tables = {
            "accuracy": lambda: accuracy_table(results, STANDARD),
            "comparisons": lambda: comparison_table(results, read.get("pairs", []), STANDARD),
            "extremes": lambda: extremes_table(results, STANDARD),
        }
        return f"{match[1]}{tables[match[2]]()}{match[4]}"

    return PLACE.sub(table, text)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record", help="write the results under a root to a file")
    record.add_argument("root", type=Path, help="the searches' `paths.root`")
    record.add_argument("file", type=Path, help="results/NAME.json")
    record.add_argument("--about", type=Path, required=True, help="YAML: what, commands, caveats, pairs")
    record.add_argument("--without-times", action="store_true", help="leave times out: the machine was shared")
    tables = commands.add_parser("tables", help="write a Markdown file's tables anew")
    tables.add_argument("file", type=Path, nargs="?", default=Path(__file__).resolve().parent.parent / "README.md")
    options = parser.parse_args(arguments)
    try:
        if options.command == "record":
            about = OmegaConf.to_container(OmegaConf.load(options.about))
            if not isinstance(about, dict):
                raise ValueError(f"{options.about}: must be keys and values: what, commands, caveats, pairs")
            told = {str(key): value for key, value in about.items()}
            write_json(options.file, evidence(options.root, told, times=not options.without_times))
        else:
            text = with_tables(options.file.read_text(encoding="utf-8"), options.file.parent)
            with replacing(options.file) as partial:
                partial.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
