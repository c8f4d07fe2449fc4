"""What all data modules share, on the digits, and the configuration of each."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lt_lightning.data.digits import Digits, DigitTokens
from lt_lightning.data.module import Batch, ImageData, LabelledData
from lt_lightning.data.tensors import Augment, Pairs, TensorData, TokenData, normalise

CONF = Path(__file__).parents[2] / "conf" / "data"


def digits(**options: Any) -> Digits:
    data = Digits("unused", 64, **{"validation": 180, **options})
    data.setup()
    return data


def rows(loader: Any) -> set[tuple[float, ...]]:
    """Each image as its pixels, to be compared."""
    return {tuple(image.flatten().tolist()) for images, _ in loader for image in images}


def test_digits_have_fixed_parts() -> None:
    data = digits()
    train, held_out, test = data.parts.values()
    assert (len(train.inputs), len(held_out.inputs), len(test.inputs)) == (1257, 180, 360)
    assert test.labels.bincount().tolist() == [36] * 10
    everything = torch.cat([train.inputs, held_out.inputs, test.inputs])
    assert everything.dtype == torch.uint8
    published = (torch.from_numpy(load_digits().images) * (255 / 16)).round().to(torch.uint8)
    assert sorted(everything.flatten(1).tolist()) == sorted(published.flatten(1).tolist())


def test_tokens_are_the_grey_levels_of_the_same_digits() -> None:
    """scikit-learn's whole numbers from 0 to 16, row by row, in the parts that the images have."""
    tokens, images = DigitTokens("unused", 64, validation=180, seed=1), digits(seed=1)
    tokens.setup()
    published = {tuple(map(int, row)) for row in load_digits().data}
    for part, (ids, labels) in tokens.parts.items():
        assert {tuple(row) for row in ids.tolist()} <= published
        assert torch.equal(labels, images.parts[part].labels)
        assert torch.equal((ids * (255 / 16)).round(), images.parts[part].inputs.flatten(1).float())
    assert {int(ids.max()) + 1 for ids, _ in tokens.parts.values()} == {tokens.vocabulary}
    for given, labels in (*tokens.train_dataloader(), *tokens.val_dataloader(), *tokens.plain_batches(1)):
        assert (given.dtype, labels.dtype, given.shape[1]) == (torch.int64, torch.int64, 64)
    assert rows(tokens.test_dataloader()) == {tuple(row) for row in tokens.parts["test"].inputs.tolist()}


def test_the_digest_of_tokens_follows_every_id() -> None:
    tokens = DigitTokens("unused", 64, validation=180)
    tokens.setup()
    before = tokens.digest()
    assert before == tokens.digest() == DigitTokens("unused", 8, validation=180).digest()
    tokens.parts["train"].inputs[3, 5] += 1
    assert tokens.digest() != before


def test_an_id_outside_of_the_vocabulary_is_refused() -> None:
    tokens = DigitTokens("unused", 64, validation=180)
    tokens.vocabulary = 16
    with pytest.raises(ValueError, match=r"^vocabulary=16: .* 16$"):
        tokens.setup()


def test_labels_stay_with_their_images() -> None:
    data = digits()
    published = load_digits()
    label = {
        tuple((image * 255 / 16).round().astype(int).flatten()): target
        for image, target in zip(published.images, published.target, strict=True)
    }
    for part in data.parts.values():
        assert [label[tuple(image)] for image in part.inputs.flatten(1).tolist()] == part.labels.tolist()


def test_the_seed_changes_the_division_but_not_the_test_set() -> None:
    first, again, other = digits(seed=1), digits(seed=1), digits(seed=2)
    assert torch.equal(first.parts["validation"].inputs, again.parts["validation"].inputs)
    assert not torch.equal(first.parts["validation"].inputs, other.parts["validation"].inputs)
    assert torch.equal(first.parts["test"].inputs, other.parts["test"].inputs)


def test_the_seed_changes_the_order_and_the_augmentation() -> None:
    def first_batch(seed: int) -> Tensor:
        images, _ = next(iter(digits(seed=seed, augment=Augment(pad=1)).train_dataloader()))
        return images

    assert torch.equal(first_batch(1), first_batch(1))
    assert not torch.equal(first_batch(1), first_batch(2))


def test_the_order_seed_changes_order_and_augmentation_of_the_same_division() -> None:
    plain, other = digits(seed=1), digits(seed=1)
    other.order_seed = 2
    assert rows(plain.train_dataloader()) & rows(other.train_dataloader())
    assert torch.equal(plain.parts["train"].inputs, other.parts["train"].inputs)
    batches = [next(iter(data.train_dataloader()))[0] for data in (plain, other)]
    assert not torch.equal(*batches)
    seeded = digits(seed=2)
    seeded.parts = plain.parts
    assert torch.equal(next(iter(seeded.train_dataloader()))[0], batches[1])  # the order is the seed's


def test_only_training_images_are_augmented_and_all_are_normalised() -> None:
    plain, shifted = digits(), digits(augment=Augment(pad=1))
    assert rows(plain.val_dataloader()) == rows(shifted.val_dataloader())
    assert rows(plain.test_dataloader()) == rows(shifted.test_dataloader())
    assert len(rows(shifted.train_dataloader()) - rows(plain.train_dataloader())) > 900
    pixels = torch.cat([images for images, _ in plain.train_dataloader()])
    assert abs(float(pixels.mean())) < 0.02
    assert abs(float(pixels.std()) - 1) < 0.02


def test_limit_shortens_training_only() -> None:
    data = digits(limit=0.5)
    assert len(data.parts["train"].inputs) == 628
    assert (len(data.parts["validation"].inputs), len(data.parts["test"].inputs)) == (180, 360)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: "),
        ({"eval_batch_size": -1}, "eval_batch_size=-1: "),
        ({"seed": -1}, "seed=-1: "),
        ({"validation": 0}, "validation=0: "),
        ({"validation": 1.5}, "validation=1.5: "),
        ({"limit": 0}, "limit=0: "),
        ({"limit": 1.01}, "limit=1.01: "),
    ],
)
def test_arguments_are_checked_before_anything_is_read(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}") as error:
        Unreadable("nowhere", **{"batch_size": 8, **options})
    assert "\n" not in str(error.value)


def test_a_validation_part_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^validation=1437: .*\b1436\b"):
        digits(validation=1437)


def test_a_batch_larger_than_the_training_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^batch_size=64: .*\b13\b"):
        digits(limit=0.01).train_dataloader()


def test_plain_batches_are_training_images_as_they_are_whoever_asks() -> None:
    data = digits(augment=Augment(pad=1))
    first = data.plain_batches(3)
    assert [images.shape for images, _ in first] == [(64, 1, 8, 8)] * 3
    assert [len(data.plain_batches(1000)), len(data.train_dataloader())] == [19, 19]  # as many as there are
    wanted = rows([(normalise(data.parts["train"].inputs, torch.tensor(data.mean), torch.tensor(data.std)), None)])
    assert rows(first) <= wanted
    assert not rows(data.train_dataloader()) <= wanted
    assert len(set(first[0][1].tolist())) == 10  # shuffled, also where files are not

    other = Digits("unused", 64, validation=180, augment=Augment(pad=1))  # before any setup
    here = SimpleNamespace(root_device=torch.device("cpu"))
    other.trainer = SimpleNamespace(global_rank=1, world_size=2, strategy=here)  # type: ignore[assignment]
    torch.manual_seed(7)
    for (images, labels), (again, same) in zip(first, other.plain_batches(3), strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, same)


class Unreadable(TensorData):
    files = None

    def _read(self) -> tuple[Pairs, Pairs]:
        raise AssertionError


class Counting(Digits):
    """Counts how often it is read."""

    reads = 0

    def _read(self) -> tuple[Pairs, Pairs]:
        self.reads += 1
        return super()._read()


class Classifier(pl.LightningModule):
    """Notes what it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(64, 10)
        self.first: list[Tensor] = []

    def training_step(self, batch: Batch, index: int) -> Tensor:
        if index == 0:
            self.first.append(batch[0].clone())
        return nn.functional.cross_entropy(self.network(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: Batch, index: int) -> None:
        self.log("seen", float(len(batch[0])), reduce_fx="sum", batch_size=len(batch[0]))

    def test_step(self, batch: Batch, index: int) -> None:
        self.log("tested", float(len(batch[0])), reduce_fx="sum", batch_size=len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_one_module_serves_many_trainers_and_is_read_once(tmp_path: Path) -> None:
    data = Counting("unused", 64, validation=180, augment=Augment(pad=1))
    first_batches = []
    for _ in range(2):
        trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        model = Classifier()
        trainer.fit(model, datamodule=data)
        assert trainer.callback_metrics["seen"] == 180
        trainer.test(model, datamodule=data, verbose=False)
        assert trainer.callback_metrics["tested"] == 360
        first_batches.append(model.first)
    assert data.reads == 1
    (a, b), (c, d) = first_batches
    assert not torch.equal(a, b)  # epochs differ
    assert torch.equal(a, c)  # trainers do not
    assert torch.equal(b, d)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_batches_are_made_on_the_device_without_waiting_for_it(tmp_path: Path) -> None:
    data = Digits("unused", 64, validation=180, augment=Augment(pad=1, flip=True))
    data.trainer = pl.Trainer(accelerator="gpu", devices=1, logger=False, default_root_dir=tmp_path)
    data.setup()
    batches = iter(data.train_dataloader())
    assert next(batches)[0].is_cuda
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images, labels in batches:
            assert images.is_cuda
            assert labels.is_cuda
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_configuration_describes_its_data_set(path: Path, tmp_path: Path) -> None:
    assert path.read_text().startswith("# @package _global_\n")
    config = OmegaConf.merge({"seed": 7, "paths": {"data": str(tmp_path)}}, OmegaConf.load(path))
    data: LabelledData = instantiate(config.data)
    assert data.name == path.stem
    assert (data.root, data.seed) == (tmp_path, 7)
    if isinstance(data, ImageData):
        assert config.dataset == {"classes": data.classes, "channels": data.channels, "size": data.size}
        assert len(data.mean) == len(data.std) == data.channels
        shape, dtype = [data.channels, data.size, data.size], torch.float32
    else:
        assert isinstance(data, TokenData)
        assert config.dataset == {"classes": data.classes, "vocabulary": data.vocabulary, "length": data.length}
        shape, dtype = [data.length], torch.int64
    for count, inputs in ((1, data.example), (3, data.random_inputs(3))):
        assert ([*inputs.shape], inputs.dtype) == ([count, *shape], dtype)
    assert torch.equal(data.random_inputs(3), data.random_inputs(3))


def test_there_is_a_configuration_for_each_data_set() -> None:
    names = {path.stem for path in CONF.glob("*.yaml")}
    assert names == {"digits", "digit_tokens", "fashion_mnist", "cifar10", "cifar100", "tiny_imagenet", "imagenet"}
