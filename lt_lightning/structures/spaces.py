"""Spaces of channels: what acts on channels one by one keeps their space, an addition unites those of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Segment:
    """Channels of one space in a row; each stands `repeat` times (a flattened channel: once a position)."""

    space: int
    channels: int
    repeat: int = 1


@dataclass
class Spaces:
    """Union-find over spaces."""

    parent: list[int] = field(default_factory=list)
    joined: set[int] = field(default_factory=set)
    frozen: dict[int, str] = field(default_factory=dict)

    def new(self) -> int:
        """Another space, joined with none."""
        self.parent.append(len(self.parent))
        return len(self.parent) - 1

    def root(self, space: int) -> int:
        """The space that stands for all that are joined with this one."""
        while self.parent[space] != space:
            space = self.parent[space]
        return space

    def unite(self, a: int, b: int) -> None:
        """Joins two spaces: their channels are kept or dropped together."""
        a, b = sorted((self.root(a), self.root(b)))
        self.joined.add(a)
        if a == b:
            return
        self.parent[b] = a
        if b in self.frozen:
            self.frozen.setdefault(a, self.frozen[b])

    def freeze(self, segments: Sequence[Segment], why: str) -> None:
        """Keeps all channels of the segments' spaces; the first reason counts."""
        for segment in segments:
            self.frozen.setdefault(self.root(segment.space), why)
