"""Command lines in 80 columns: help from docstrings, and errors of one line that name what is near."""

from __future__ import annotations

import argparse
import inspect
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import Final, NoReturn

from lt_lightning.storage.near_names import did_you_mean

WIDTH: Final = min(80, shutil.get_terminal_size().columns)


def refuse(message: str) -> NoReturn:
    """End the process with one line and exit code 2: what was asked for is impossible."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


def existing(path: str) -> Path:
    """Return the path of a file or folder on the command line.

    Raises:
        ArgumentTypeError: if it is not there.
    """
    found = Path(path)
    if not found.exists():
        beside = [each.name for each in found.parent.iterdir()] if found.parent.is_dir() else []
        raise argparse.ArgumentTypeError(f"{path}: there is no such file or folder{did_you_mean(found.name, beside)}")
    return found


def points(text: str) -> float:
    """Return percentage points on the command line as a difference of shares.

    Raises:
        ArgumentTypeError: if they are negative, or 100 and more.

    >>> points("0.5")
    0.005
    """
    share = float(text) / 100
    if not 0 <= share < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be in [0, 100)")
    return share


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, and name what is near."""

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        word = message.removeprefix("unrecognized arguments: ").partition(" ")[0].partition("=")[0]
        refuse(f"{self.prog}: {message}{did_you_mean(word, known)}")


def parser_of(command: Callable[..., None]) -> argparse.ArgumentParser:
    """Return a parser whose help is a command's docstring."""
    text, example = about(command)
    return OneLineParser(
        prog=f"lt-lightning {command.__name__}",
        description=text,
        epilog=example,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=WIDTH),
    )


def about(command: Callable[..., None]) -> tuple[str, str]:
    """Return what a command does, and its examples, from its docstring."""
    *paragraphs, example = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(fill(paragraph, WIDTH) for paragraph in paragraphs), example
