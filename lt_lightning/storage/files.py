"""Files that are written whole or not at all: to a temporary name beside the target, which is then renamed.

A file that cannot be written (a full disk, a folder without permission) raises an `OSError` that names it.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, which becomes `path` if the block ends without an error.

    The folder is made if it is missing. After an error, a kill or a loss of power, `path` is what it was before.

    Raises:
        OSError: if it cannot be written; it names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        os.umask(mask := os.umask(0))  # which can be read in no other way
        partial.chmod(0o666 & ~mask)  # mkstemp makes it private
        _to_disk(partial)  # before it gets its name; here a full disk shows at last where writing is delayed
        partial.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(partial)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        partial.unlink(missing_ok=True)


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


def cache_folder() -> Path:
    """Return the user's folder for what can be found or built again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lt-lightning"


def _to_disk(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
