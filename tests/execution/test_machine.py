"""Many networks compiled in one process, and one network over all rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

from lt_lightning.execution.machine import Compile, compile_like, compile_network, isolating, keep_freed_memory
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.training.callback import LotteryTicketPruning
from lt_lightning.training.classifier import ImageClassifier
from lt_lightning.training.schedules import Constant
from tests.toys import batches


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counted:
    """A compiler that leaves graphs as they are; how many it was given."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


class Small(nn.Module):
    """Of some width, as shrunk networks are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.classifier = nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.conv(images).relu().mean((2, 3)))
        return logits


def use(network: nn.Module) -> None:
    """As a training does: steps, a smaller last batch, and validation."""
    network(torch.zeros(8, 1, 8, 8)).sum().backward()
    with torch.no_grad():
        network.eval()(torch.zeros(8, 1, 8, 8))
        network(torch.zeros(5, 1, 8, 8))


def test_every_smaller_network_of_many_is_compiled() -> None:
    """Eight variants of a class's code are the limit of PyTorch's."""
    compiler = Counted()
    for width in range(2, 11):
        before = compiler.graphs
        network = Small(width)
        compile_network(network, backend=compiler)
        use(network)
        assert compiler.graphs >= before + 2  # training and validation
    assert not counters["unimplemented"]


def test_a_search_compiles_once_for_all_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Counted()
    monkeypatch.setattr("lt_lightning.training.classifier.compile_network", partial(compile_network, backend=compiler))
    after: list[int] = []

    class Watch(pl.Callback):
        def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if not trainer.sanity_checking:
                after.append(compiler.graphs)

    network = cifar_resnet(8, 3, channels=1, width=4)
    module = ImageClassifier(network, 3, schedule=Constant(), compile=True)
    pruning = LotteryTicketPruning(rounds=3, directory=tmp_path / "tickets", rewind="1ep", gradient_batches=1)
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[pruning, Watch()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, batches(3), batches(1))
    assert len(after) == 2 + 3
    assert after[0] == after[-1] == 2  # training and validation, in the dense round


@pytest.mark.parametrize(
    ("how", "expected"),
    [(False, []), (True, [{}]), ("graphs", [{"mode": "reduce-overhead", "dynamic": False}])],
)
def test_a_network_in_place_of_another_is_compiled_as_that(
    how: Compile, expected: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[tuple[nn.Module, dict[str, Any]]] = []
    compile_module = nn.Module.compile

    def spy(network: nn.Module, **options: Any) -> None:
        compiled.append((network, options))
        compile_module(network, **options)

    monkeypatch.setattr(nn.Module, "compile", spy)
    first, second = Small(2), Small(3)
    compile_network(first, how)
    compile_like(second, first)
    options = [{**isolating(), **each} for each in expected]
    assert compiled == [(network, each) for network in (first, second) for each in options]


def test_a_network_in_place_of_one_that_its_owner_has_compiled_is_compiled() -> None:
    first, second = Small(2), Small(3)
    first.compile(backend="eager")
    compile_like(second, first)
    assert second._compiled_call_impl is not None


def fitted(compile: Compile, accelerator: str, folder: Path) -> LotteryTicketPruning:
    network = cifar_resnet(8, 3, channels=1, width=4)
    module = ImageClassifier(network, 3, learning_rate=0.01, schedule=Constant(), compile=compile)
    pruning = LotteryTicketPruning(rounds=2, directory=folder / "tickets", rewind="1ep", gradient_batches=1)
    trainer = pl.Trainer(
        max_epochs=2, accelerator=accelerator, devices=1, callbacks=[pruning], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, batches(3), batches(1))
    return pruning


def test_graphs_on_a_cpu_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^compile='graphs': needs CUDA, and the device is 'cpu'"):
        fitted("graphs", "cpu", tmp_path)
    assert not (tmp_path / "tickets").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_rounds_replayed_from_graphs_are_those_of_eager(tmp_path: Path) -> None:
    plain, graphs = (fitted(how, "gpu", tmp_path / str(how)) for how in (False, "graphs"))
    for one, other in zip(plain.history, graphs.history, strict=True):
        assert other["density"] == one["density"]
        assert other["metrics"]["val/loss"] == pytest.approx(one["metrics"]["val/loss"], rel=1e-2)


@pytest.mark.slow
def test_what_the_compiler_makes_of_a_shape_is_found_again() -> None:
    """As for tickets of equal shapes, of other seeds for instance."""
    with fresh_cache():
        found = []
        for width in (4, 4, 5):
            counters.clear()
            network = Small(width)
            compile_network(network, dynamic=False)
            use(network)
            found.append((counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"]))
        first, again, other = found
        assert first[1] > 0
        assert again == (sum(first), 0)
        assert other[1] > 0


def test_freed_memory_is_not_mapped_anew() -> None:
    resource = pytest.importorskip("resource")
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")

    def faults(calls: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(calls):
            torch.zeros(1 << 22)  # 16 MB, 4096 pages
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    faults(20)  # memory fragments at first
    assert faults(10) < 2 * 4096  # 10 x 4096 without
