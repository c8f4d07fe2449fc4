"""Callbacks of the user's own in a job, and what stops a training before its end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytorch_lightning as pl
from omegaconf import DictConfig

from lt_lightning.results.records import find_results
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.masked_training import StoppedEarlyError
from tests.cases import slow_but
from tests.runs import REFILL, SMALL, run_of

Compose = Callable[..., DictConfig]
SEEN: list[str] = []


class Watch(pl.Callback):
    """Notes when it is called, and stops a fit after a number of steps."""

    def __init__(self, word: str, stop_after: int | None = None) -> None:
        self.word = word
        self.stop_after = stop_after

    def on_fit_start(self, *_: Any) -> None:
        SEEN.append(self.word)

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        trainer.should_stop |= trainer.global_step == self.stop_after


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    module = ModuleType("their_callbacks")
    module.Watch = Watch  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_callbacks", module)


def test_callbacks_that_log_are_there_in_copies_too_which_have_no_loggers(composed: Compose) -> None:
    options = ("callbacks=[learning_rates]", "retraining.copies=2", "data.limit=0.1")
    assert [each.structure for each in run_of(composed(*SMALL, *REFILL, *options))][-1] == "refill"


def test_own_callbacks_are_there_in_every_training(composed: Compose) -> None:
    run_of(composed(*SMALL, *REFILL, "+callbacks.mine={_target_:their_callbacks.Watch,word:hello}"))
    assert SEEN == ["hello", "hello"]  # the search, and the refilled ticket


@pytest.mark.parametrize("step", slow_but([20], [3, 20]))
def test_a_stopped_search_goes_on_by_the_same_command(step: int, composed: Compose, tmp_path: Path) -> None:
    """In the dense training, and in the round after it: it ends as the search that nothing stopped."""
    job = (*SMALL, "structure=[]", "trainer.deterministic=true", "data.batch_size=32")
    stopped = composed(*job, f"+callbacks.mine={{_target_:their_callbacks.Watch,word:x,stop_after:{step}}}")
    with pytest.raises(StoppedEarlyError, match=r"of \d"):
        run_of(stopped)
    (search,) = (tmp_path / "runs").glob("digits-*")
    assert list((search / "checkpoints").iterdir())
    results = run_of(stopped)
    assert [result.round for result in results] == [0, 1]
    assert not (search / "checkpoints").exists()
    whole = run_of(composed(*job))
    for one, other in zip(results, whole, strict=True):
        first, second = (Ticket.load(tmp_path / "runs" / each.place / "ticket").trained for each in (one, other))
        assert first is not None
        assert second is not None
        assert all(first[name].equal(value) for name, value in second.items())
    assert len(find_results(tmp_path / "runs")) == 4
