"""`lt-lightning COMMAND ...`, or `python -m lt_lightning COMMAND ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from textwrap import fill
from typing import Final

from lt_lightning import __version__, cli
from lt_lightning.arguments import WIDTH, refuse
from lt_lightning.storage.near_names import did_you_mean

COMMANDS: Final[Mapping[str, Callable[[], None]]] = {
    command.__name__: command
    for command in (
        cli.run,
        cli.status,
        cli.report,
        cli.export,
        cli.verdict,
        cli.stability,
        cli.options,
        cli.doctor,
        cli.dashboard,
    )
}
COMPLETION: Final = ("-sc", "--shell-completion")


def main() -> None:
    """Do what the command line asks for."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print(f"lt-lightning {__version__}")
    elif name in COMPLETION:
        _complete()
    elif name in COMMANDS:
        sys.argv[1:] = arguments
        COMMANDS[name]()
    else:
        near = did_you_mean(name, COMMANDS)
        refuse(f"{name}: there is no command of this name; `lt-lightning --help` lists them{near}")


def overview() -> str:
    """Return the help of `lt-lightning`."""
    lines = [
        "usage: lt-lightning COMMAND ...\n",
        "Find structurally sparse lottery tickets, and make smaller networks of them.\n",
        "Commands (`lt-lightning COMMAND --help` explains each):",
    ]
    for name, command in COMMANDS.items():
        about = (command.__doc__ or "").partition("\n")[0]
        lines.append(fill(f"  {name:<10} {about}", WIDTH, subsequent_indent=" " * 13))
    lines += [
        "\nExample:",
        "  lt-lightning run            # a search on small images, in about two minutes",
        "  lt-lightning report runs    # one HTML page of all that is in runs/",
        '\n`eval "$(lt-lightning -sc install=bash)"` completes commands and options.',
    ]
    return "\n".join(lines)


def _complete() -> None:
    """Let Hydra answer its shell completion: the names of commands, then the options of the one that is named."""
    words = os.environ.get("COMP_LINE", "").split(" ")
    if len(words) < 3 and "query" in sys.argv[-1]:
        print(" ".join(name for name in COMMANDS if name.startswith(words[-1])))
        return
    os.environ["COMP_LINE"] = " ".join([words[0], *words[2:]])
    if words[1:2] == ["stability"]:
        cli.stability()
    elif words[1:2] in ([], ["run"]):
        cli.run()


if __name__ == "__main__":
    main()
