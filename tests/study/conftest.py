"""A reader of W&B's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def wandb_records() -> Callable[[Path], list[Any]]:
    """Reads a W&B record: LevelDB's log format, blocks of 32 KiB with parts of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

    def read(path: Path) -> list[Any]:
        content, parts, position = path.read_bytes(), [b""], 7
        while position + 7 <= len(content):
            if 32768 - position % 32768 < 7:
                position += 32768 - position % 32768
            size, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
            parts[-1] += content[position + 7 : position + 7 + size]
            if kind in (1, 4):
                parts.append(b"")
            position += 7 + size
        records = []
        for data in parts:
            records.append(Record())
            records[-1].ParseFromString(data)
        return records

    return read
