"""Command lines in 80 columns: help from docstrings, and errors of one line that name what is near."""

from __future__ import annotations

import argparse
import inspect
import shutil
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from textwrap import fill
from typing import Final, NoReturn

WIDTH: Final = min(80, shutil.get_terminal_size().columns)


def refuse(message: str, word: str = "", known: Sequence[str] = ()) -> NoReturn:
    """End the process with one line and exit code 2: what was asked for does not exist.

    Args:
        message: what is wrong.
        word: what was written.
        known: what could have been written; what is near is named.
    """
    near = get_close_matches(word, known, 1)
    print(f"error: {message}" + (f"; did you mean {near[0]}?" if near else ""), file=sys.stderr)
    raise SystemExit(2)


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line, and name what is near."""

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        word = message.removeprefix("unrecognized arguments: ").partition(" ")[0].partition("=")[0]
        refuse(f"{self.prog}: {message}", word, known)


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
