"""What the rounds of a search have reached, as it is printed."""

from __future__ import annotations

from lt_lightning.storage.layout import RoundFacts


class History(list[RoundFacts]):
    """The finished rounds of a search, the dense one first; it prints as a table.

    >>> facts = {"density": 0.8, "best_epoch": 3, "metrics": {"val_acc": 0.9}, "train_seconds": 12.3}
    >>> History([RoundFacts(round=1, **facts)])
    round  density  best epoch  seconds  val_acc
        1    80.0%           3     12.3      0.9
    """

    def last_line(self, rounds: int) -> str:
        """Return one line on the last of the finished rounds, of which there are to be so many after the dense one."""
        facts = self[-1]
        metrics = "".join(f", {name} {value:.4g}" for name, value in facts["metrics"].items())
        return (
            f"round {facts['round']} of {rounds}: density {facts['density']:.1%}, best epoch {facts['best_epoch']}"
            f"{metrics}, {facts['train_seconds']:.1f} s"
        )

    def __repr__(self) -> str:
        names = list(dict.fromkeys(name for facts in self for name in facts["metrics"]))
        rows = [["round", "density", "best epoch", "seconds", *names]]
        for facts in self:
            metrics = [f"{facts['metrics'][name]:.4g}" if name in facts["metrics"] else "" for name in names]
            numbers = [str(facts["round"]), f"{facts['density']:.1%}", str(facts["best_epoch"])]
            rows.append([*numbers, f"{facts['train_seconds']:.1f}", *metrics])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(lines)
