"""Draws the README's picture of a terminal from what was captured of one, with its colours: `tmux capture-pane -e -p`.

python docs/terminal.py CAPTURED
"""

from __future__ import annotations

import io
import re
from argparse import ArgumentParser
from pathlib import Path

from rich.console import Console
from rich.text import Text

FILE = Path(__file__).parent / "terminal.svg"


def draw(captured: str, title: str = "make run") -> None:
    """Write the picture; its fonts are those of whoever looks at it."""
    console = Console(record=True, width=80, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(captured.rstrip()), soft_wrap=True)
    svg = console.export_svg(title=title)
    FILE.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL))  # they would be loaded from elsewhere


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("captured", type=Path, help="file with the terminal's text")
    draw(parser.parse_args().captured.read_text())
