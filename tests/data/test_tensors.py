"""The in-memory loader, alone and in a Trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lt_lightning.data.digits import Digits
from lt_lightning.data.order import Order
from lt_lightning.data.tensors import Augment, TensorLoader

COUNT = 50


def as_float(images: Tensor, generator: torch.Generator) -> Tensor:
    return images.float()


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    return Augment(pad=2, flip=True)(images, generator).float()


def numbered() -> tuple[Tensor, Tensor]:
    """Images whose pixels all are their number, and labels that are too."""
    number = torch.arange(COUNT)
    return number.to(torch.uint8)[:, None, None, None].expand(COUNT, 1, 4, 4).contiguous(), number


def test_images_come_with_their_labels_in_the_order_asked_for() -> None:
    order = Order(COUNT, 8, shuffle=True, drop_last=True, seed=1)
    loader = TensorLoader(*numbered(), order, as_float)
    batches = list(loader)
    assert len(batches) == len(loader) == 6
    for (images, labels), chosen in zip(batches, order.batches(), strict=True):
        assert images.dtype == torch.float32
        assert images.shape == (8, 1, 4, 4)
        assert torch.equal(labels, chosen)
        assert torch.equal(images, chosen[:, None, None, None].expand(8, 1, 4, 4).float())


def test_what_is_yielded_is_a_function_of_seed_and_epoch() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 1, 8, 8), generator=generator, dtype=torch.uint8)

    def drawn(seed: int, epoch: int) -> Tensor:
        order = Order(COUNT, 5, shuffle=False, drop_last=True, seed=seed, epoch=epoch)  # augmentation alone differs
        return torch.cat([batch for batch, _ in TensorLoader(images, torch.arange(COUNT), order, augmented)])

    reference = drawn(0, 0)
    torch.manual_seed(7)
    assert torch.equal(reference, drawn(0, 0))
    assert not torch.equal(reference, drawn(1, 0))
    assert not torch.equal(reference, drawn(0, 1))


class Recorder(pl.LightningModule):
    """Notes the labels that it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(16, 2)
        self.trained: list[tuple[int, list[int]]] = []
        self.validated: list[int] = []

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        self.trained.append((self.current_epoch, batch[1].tolist()))
        loss: Tensor = self.network(batch[0].flatten(1)).square().mean()
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.validated += batch[1].tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-9)


def test_a_trainer_sets_the_epoch_and_leaves_the_loader_alone(tmp_path: Path) -> None:
    order = Order(COUNT, 8, shuffle=True, drop_last=True, seed=1)
    train = TensorLoader(*numbered(), order, as_float)
    held_out = TensorLoader(*numbered(), Order(COUNT, 20, shuffle=False, drop_last=False, seed=1), as_float)
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    module = Recorder()
    trainer.fit(module, train, held_out)
    assert trainer.train_dataloader is train
    expected = []
    for epoch in range(3):
        order.set_epoch(epoch)
        expected += [(epoch, batch.tolist()) for batch in order.batches()]
    assert module.trained == expected
    assert module.validated == 3 * list(range(COUNT))


DDP = """
import json, sys
from pathlib import Path
import pytorch_lightning as pl
import torch
from lt_lightning.data.digits import Digits

class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 10))
        self.seen = {"train": [], "test": []}
    def training_step(self, batch, index):
        self.seen["train"].append([self.current_epoch, batch[1].tolist()])
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
    def test_step(self, batch, index):
        self.seen["test"] += batch[0].flatten(1).tolist()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

torch.set_num_threads(1)
options = dict(accelerator="cpu", strategy="ddp", devices=2, logger=False, enable_checkpointing=False,
               enable_progress_bar=False, enable_model_summary=False)
data, module = Digits("unused", 128, eval_batch_size=32, seed=3, validation=180), Recorder()
trainer = pl.Trainer(max_epochs=2, **options)
trainer.fit(module, datamodule=data)
trainer.test(module, datamodule=data, verbose=False)
Path(sys.argv[1], f"{trainer.global_rank}.json").write_text(json.dumps(module.seen))
"""


@pytest.mark.slow
def test_two_processes_share_the_data_exactly(tmp_path: Path) -> None:
    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    data = Digits("unused", 128, eval_batch_size=32, seed=3, validation=180)
    data.setup()
    labels = data.parts["train"].labels
    for rank in range(2):
        expected = []
        for epoch in range(2):
            order = Order(len(labels), 64, True, True, seed=3, rank=rank, world_size=2, epoch=epoch)
            expected += [[epoch, labels[batch].tolist()] for batch in order.batches()]
        assert seen[rank]["train"] == expected
    images = torch.cat([batch for batch, _ in data.test_dataloader()]).flatten(1)
    together = seen[0]["test"] + seen[1]["test"]
    assert len(together) == 360
    assert sorted(together) == sorted(images.tolist())


def test_another_loader_goes_on_where_the_first_one_was() -> None:
    def loader() -> TensorLoader:
        images = torch.arange(20, dtype=torch.uint8).view(20, 1, 1, 1)
        order = Order(20, 4, shuffle=True, drop_last=True, seed=1)
        return TensorLoader(
            images,
            torch.arange(20),
            order,
            lambda batch, random: batch + torch.rand(len(batch), 1, 1, 1, generator=random),
        )

    first = loader()
    first.sampler.set_epoch(3)
    whole = list(first)
    for given in range(1, 5):
        batches = iter(first)
        for _ in range(given):
            next(batches)
        state = first.state_dict()
        second = loader()
        rest = iter(second)  # Lightning asks for it before it loads the state and sets the epoch
        second.load_state_dict(state)
        second.sampler.set_epoch(3)
        found = list(rest)
        assert len(found) == 5 - given
        for (images, labels), (true_images, true_labels) in zip(found, whole[given:], strict=True):
            assert torch.equal(images, true_images)
            assert torch.equal(labels, true_labels)
        second.sampler.set_epoch(4)
        first.sampler.set_epoch(4)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(list(second), list(first), strict=True))
        first.sampler.set_epoch(3)


def test_a_state_of_another_epoch_is_of_no_use() -> None:
    """At an epoch's end the next one begins at its beginning."""
    loader = TensorLoader(
        torch.zeros(8, 1, 1, 1, dtype=torch.uint8), torch.arange(8),
        Order(8, 2, shuffle=False, drop_last=True, seed=0), lambda batch, random: batch,
    )  # fmt: skip
    list(loader)
    loader.load_state_dict(loader.state_dict())
    loader.sampler.set_epoch(1)
    assert [labels.tolist() for _, labels in loader] == [[0, 1], [2, 3], [4, 5], [6, 7]]
