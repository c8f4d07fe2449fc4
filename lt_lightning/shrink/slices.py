"""Which part of a network's parameters and buffers a smaller network holds, and the way there and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Cut:
    """Indices along the leading dimensions of a tensor; None for all of them in that dimension."""

    index: tuple[Tensor | None, ...] = ()

    def take(self, whole: Tensor) -> Tensor:
        """The part, a copy."""
        for dimension, chosen in enumerate(self.index):
            if chosen is not None:
                whole = whole.index_select(dimension, chosen.to(whole.device))
        return whole.clone()

    def put(self, value: Tensor, whole: Tensor) -> None:
        """Writes the part back, in place."""
        index = tuple(None if chosen is None else chosen.to(whole.device) for chosen in self.index)
        match index:
            case () | (None,) | (None, None):
                whole.copy_(value)
            case (rows,) | (rows, None) if rows is not None:
                whole[rows] = value
            case (None, columns) if columns is not None:
                whole[:, columns] = value
            case (rows, columns) if rows is not None and columns is not None:
                whole[rows[:, None], columns] = value


@dataclass(frozen=True)
class Gather:
    """Elements of a tensor by flat index, in the shape of the part; -1 where the part has a zero of its own."""

    index: Tensor

    def take(self, whole: Tensor) -> Tensor:
        """The part, a copy."""
        index = self.index.to(whole.device)
        return whole.reshape(-1)[index.clamp_min(0)] * (index >= 0).to(whole.dtype)

    def put(self, value: Tensor, whole: Tensor) -> None:
        """Writes the part back, in place."""
        index = self.index.to(whole.device)
        flat = whole.reshape(-1)  # a copy where the memory format is another
        flat[index[index >= 0]] = value.to(whole.device)[index >= 0]
        whole.copy_(flat.view(whole.shape))


@dataclass(frozen=True)
class Slices:
    """Of every parameter and buffer of the small network, where it stands in the full one.

    Attributes:
        parts: by the small network's name: the full network's name, and which part of that it is. Buffers that the
            full network does not have are not in it.
    """

    parts: Mapping[str, tuple[str, Cut | Gather]]

    def take(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The small network's part of a full state dict.

        Raises:
            KeyError: if the state misses a name.
        """
        return {name: part.take(state[source]) for name, (source, part) in self.parts.items()}

    def put(self, state: Mapping[str, Tensor], full: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A full state dict that holds the small network's values where it has any, and zeros elsewhere.

        Args:
            state: of the small network.
            full: of the full one, for names, shapes and types.
        """
        whole = {name: value.new_zeros(value.shape) for name, value in full.items()}
        for name, (source, part) in self.parts.items():
            part.put(state[name].to(whole[source].device, whole[source].dtype), whole[source])
        return whole
