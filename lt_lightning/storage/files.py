"""Files that are written whole or not at all: to a temporary name beside the target, which is then renamed.

A file that cannot be written (a full disk, a folder without permission) raises an `OSError` that names it.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lt_lightning.storage.litter import partial_file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, which becomes `path` if the block ends without an error.

    The folder is made if it is missing. After an error, a kill or a loss of power, `path` is what it was before.

    Raises:
        OSError: if it cannot be written; it names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial_file(path) as partial:
        try:
            yield partial
            os.umask(mask := os.umask(0))  # which can be read in no other way
            partial.chmod(0o666 & ~mask)  # it was made private
            _to_disk(partial)  # before it gets its name; here a full disk shows at last where writing is delayed
            partial.replace(path)
        except OSError as error:
            if error.errno is None or error.filename not in (None, str(partial)):
                raise
            raise OSError(error.errno, error.strerror, str(path)) from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_tensors(path: Path, value: Any) -> None:
    """Write tensors in builtin containers, for `torch.load(..., weights_only=True)`."""
    import torch  # slow; what only looks at results does without

    buffer = io.BytesIO()  # written straight to a full disk, PyTorch's error is no OSError
    torch.save(value, buffer)
    write_bytes(path, buffer.getvalue())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: if it is not JSON; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from None


# Tables as CSV. A text that a spreadsheet would take for a formula gets an apostrophe before it.

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how formulas begin


def csv_text(lines: Iterable[Iterable[object]]) -> str:
    """Return lines of cells as CSV.

    >>> csv_text([["=1+1", "-0.5", -0.5, None]])
    "'=1+1,-0.5,-0.5,\\r\\n"
    """
    buffer = io.StringIO(newline="")
    csv.writer(buffer).writerows([map(_no_formula, line) for line in lines])
    return buffer.getvalue()


def write_csv(path: Path, heads: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table as CSV."""
    write_bytes(path, csv_text([heads, *rows]).encode())


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a table that `write_csv` has written.

    Raises:
        OSError, ValueError, csv.Error: if it cannot be read.
    """
    with path.open(newline="", encoding="utf-8") as file:
        heads, *rows = [*csv.reader(file)] or [[]]
    return [{_plain(head): _plain(cell) for head, cell in zip(heads, row, strict=True)} for row in rows]


def _no_formula(cell: object) -> object:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) and not _is_number(cell) else cell


def _plain(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def cache_folder() -> Path:
    """Return the user's folder for what can be found or built again; `LT_LIGHTNING_CACHE` names another one."""
    if named := os.environ.get("LT_LIGHTNING_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lt-lightning"


def _to_disk(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
