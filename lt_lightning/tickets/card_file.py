"""A file of tensors with a card: safetensors, and in it JSON values with a digest over both."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from lt_lightning.storage.files import write_bytes

LONGEST_HEADER = 100_000_000  # bytes; what safetensors allows, too
Content = TypeVar("Content")


class RefusedError(ValueError):
    """A reason for not reading a file that follows its name in the message."""


def write_card_file(path: Path | str, tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> tuple[Path, Any]:
    """Write tensors and a card. The file is whole or not there.

    Args:
        path: where to write; `.safetensors` is added if it is missing.
        tensors: tensors by name, on any device; tied ones are written under each of their names.
        card: JSON values.

    Returns:
        the file's path, and the card as it was written, with the digest.
    """
    path, content = _with_suffix(path), _apart(tensors)
    written = json.loads(json.dumps(card))  # as it will be read, so that the digests agree
    written["digest"] = digest_of_content(content, written)
    write_bytes(path, safetensors.save(content, metadata={"card": json.dumps(written)}))
    return path, written


def read_card_file(path: Path | str, what: str, parse: Callable[[dict[str, Tensor], Any], Content]) -> Content:
    """Read tensors and card. Code is never executed, and no more memory taken than a few times the file's size.

    Args:
        path: where `write_card_file` wrote to.
        what: what the file is, for messages: `ticket`.
        parse: makes of tensors and card what is returned. It must check both, the digest by `check_digest`, since
            anyone can write a file.

    Raises:
        FileNotFoundError: if there is none.
        OSError: if it cannot be read.
        ValueError: if the file is truncated or altered, or the parser refuses it; the message, a line, names it.
    """
    path = _with_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {what} at {path}")
    try:
        return parse(*_read(path))
    except (OSError, MemoryError):
        raise
    except RefusedError as error:
        raise ValueError(f"{path} {str(error)[:200]}") from None  # a schema version may have any number of digits
    except Exception as error:  # whatever the parsers stumble over
        raise ValueError(f"{path} {_reason(error, what)}") from None


def check_digest(tensors: Mapping[str, Tensor], card: dict[str, Any]) -> None:
    """Take the digest off a card that was read, and refuse what does not match it.

    Raises:
        RefusedError: if the tensors and the rest of the card have another digest.
    """
    if card.pop("digest", None) != digest_of_content(tensors, card):
        raise RefusedError("is damaged or was altered: its content does not match its digest")


def digest_of_content(tensors: Mapping[str, Tensor], card: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a card, and of names, types, shapes and bits of tensors."""
    sha = hashlib.sha256(json.dumps(card, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        sha.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _with_suffix(path: Path | str) -> Path:
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous and apart: tied weights share memory, which safetensors refuses."""
    apart: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        address = value.untyped_storage().data_ptr()
        apart[name] = value.clone() if address in taken else value
        taken.add(address)
    return apart


def _read(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Read tensors and card, unchecked; not mapped into memory, since a mapped file could change later, or end."""
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size - 8
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(left, LONGEST_HEADER):
            raise ValueError("it does not begin with a header, or ends within it")
        header = json.loads(file.read(length).decode())  # the card first: another file is not read whole to be refused
        metadata = header.get("__metadata__") if isinstance(header, dict) else None
        if not isinstance(metadata, dict) or not isinstance(metadata.get("card"), str):
            raise ValueError("it has no card")
        card = json.loads(metadata["card"])
        file.seek(0)
        return safetensors.load(file.read()), card


def _reason(error: Exception, what: str) -> str:
    """Describe an error in one line, whatever strings of the file it quotes."""
    text = " ".join(str(error).split())[:200]
    return f"is damaged or no {what}: {text if text.isprintable() else ascii(text)} ({type(error).__name__})"


# Beside the network that a file is for


def check_fit(what: str, network: nn.Module, own: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    """Look whether a file is for a network.

    Args:
        what: what the file is, for the message.
        network: the network.
        own: shape of every parameter and buffer of the network, in words, by name.
        theirs: the same by the file.

    Raises:
        ValueError: if they differ; names what does.
    """
    other = [name for name in own if name in theirs and theirs[name] != own[name]]
    faults = [
        ("misses", sorted(set(own) - set(theirs))),
        ("has besides", sorted(set(theirs) - set(own))),
        (
            "has in another shape",
            [f"{name} {theirs[name]} instead of {own[name]}" for name in other],
        ),
    ]
    texts = [f"{verb} {_first(names)}" for verb, names in faults if names]
    if texts:
        raise ValueError(f"the {what} is for another network than {type(network).__name__}: it {'; it '.join(texts)}")


def _first(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
