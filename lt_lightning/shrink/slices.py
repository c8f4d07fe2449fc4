"""Which part of a network's parameters and buffers a smaller network holds, and the way there and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

Index = tuple[Tensor | None, ...]


@dataclass(frozen=True)
class Slices:
    """Of every parameter and buffer of the small network, where it stands in the full one.

    Attributes:
        index: by name, for each leading dimension the indices that are held, in their order; None for all of them.
            Names that the small network does not have are not in it.
    """

    index: Mapping[str, Index]

    def take(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The small network's part of a full state dict.

        Raises:
            KeyError: if the state misses a name.
        """
        return {name: part(state[name], index) for name, index in self.index.items()}

    def put(self, state: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A full state dict that holds the small network's values where it has any, and zeros elsewhere.

        Args:
            state: of the small network.
            full: of the full one, for shapes; what is not cut (counters, for instance) is taken from it too.
        """
        whole = {
            name: value.clone() if value.dim() == 0 else value.new_zeros(value.shape) for name, value in full.items()
        }
        for name, index in self.index.items():
            place(whole[name], index, state[name].to(whole[name].device))
        return whole


def part(value: Tensor, index: Index) -> Tensor:
    """The indexed part of a tensor, a copy."""
    for dimension, chosen in enumerate(index):
        if chosen is not None:
            value = value.index_select(dimension, chosen.to(value.device))
    return value.clone()


def place(whole: Tensor, index: Index, value: Tensor) -> None:
    """Writes a part back, in place: the inverse of `part`."""
    match index:
        case () | (None,) | (None, None):
            whole.copy_(value)
        case (rows,) | (rows, None) if rows is not None:
            whole[rows.to(whole.device)] = value
        case (None, columns) if columns is not None:
            whole[:, columns.to(whole.device)] = value
        case (rows, columns) if rows is not None and columns is not None:
            whole[rows.to(whole.device)[:, None], columns.to(whole.device)] = value
