"""ImageClassifier against a training written by hand, scikit-learn's accuracy, and its promises."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, log_loss
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.training.classifier import ImageClassifier
from lt_lightning.training.schedules import Constant, Cosine, Milestones, Schedule
from tests.cases import slow_but

CONF = Path(__file__).parents[2] / "conf"
CLASSES = 4
Loader = DataLoader[tuple[Tensor, ...]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return cifar_resnet(8, CLASSES, channels=3, width=4)


def batches(count: int = 22, size: int = 8, seed: int = 1) -> Loader:
    """In a fixed order, the last batch smaller."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=size)


def trainer(tmp_path: Path, epochs: int = 2, callbacks: list[Callback] | None = None, **options: Any) -> pl.Trainer:
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **options}
    return pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=callbacks,
        **options,
    )


class Record(Callback):
    """Loss and learning rate of every step, metrics of every epoch."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []
        self.epochs: list[dict[str, float]] = []

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})


@pytest.mark.parametrize("nesterov", [False, True])
def test_trains_as_a_loop_written_by_hand(tmp_path: Path, nesterov: bool) -> None:
    loader, epochs = batches(), 4
    record = Record()
    model = ImageClassifier(
        network(),
        CLASSES,
        learning_rate=0.1,
        nesterov=nesterov,
        weight_decay=1e-3,
        schedule=Milestones(epochs=(2, 3)),
        label_smoothing=0.1,
    )
    trainer(tmp_path, epochs, [record]).fit(model, loader)

    by_hand = network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # absent from its types
    sgd = torch.optim.SGD(by_hand.parameters(), 0.1, 0.9, weight_decay=1e-3, nesterov=nesterov, fused=True)
    losses, rates, epoch_losses, epoch_accuracies = [], [], [], []
    for epoch in range(epochs):
        sgd.param_groups[0]["lr"] = 0.1 * 0.1 ** sum(epoch >= milestone for milestone in (2, 3))
        total, right, count = 0.0, 0, 0
        for images, labels in loader:
            logits = by_hand(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits, labels, label_smoothing=0.1)
            sgd.zero_grad()
            torch.autograd.backward(loss)
            sgd.step()
            losses.append(loss.item())
            rates.append(sgd.param_groups[0]["lr"])
            total += loss.item() * len(labels)
            right += int((logits.argmax(1) == labels).sum())
            count += len(labels)
        epoch_losses.append(total / count)
        epoch_accuracies.append(right / count)

    assert record.losses == losses
    assert record.rates == pytest.approx(rates)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(model.network.parameters(), by_hand.parameters(), strict=True)
    )
    assert [epoch["train/loss"] for epoch in record.epochs] == pytest.approx(epoch_losses)
    assert [epoch["train/accuracy"] for epoch in record.epochs] == pytest.approx(epoch_accuracies)
    assert [epoch["lr"] for epoch in record.epochs] == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_a_step_is_sgd_with_momentum_and_weight_decay(tmp_path: Path) -> None:
    # The optimizer's arithmetic spelt out, on a linear network whose gradient is known in closed form.
    torch.manual_seed(0)
    linear = nn.Linear(12, CLASSES, dtype=torch.float64)
    weight, bias = linear.weight.detach().clone(), linear.bias.detach().clone()
    images, labels = torch.randn(6, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    loader = DataLoader(TensorDataset(images, labels), batch_size=6)
    model = ImageClassifier(
        nn.Sequential(nn.Flatten(), linear), CLASSES, 0.5, weight_decay=0.01, decay="weights", schedule=Constant()
    )
    trainer(tmp_path, 3).fit(model, loader)

    flat = images.flatten(1)
    velocity_weight, velocity_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for _ in range(3):
        error = (flat @ weight.T + bias).softmax(1) - F.one_hot(labels, CLASSES)
        velocity_weight = 0.9 * velocity_weight + error.T @ flat / 6 + 0.01 * weight
        velocity_bias = 0.9 * velocity_bias + error.mean(0)
        weight = weight - 0.5 * velocity_weight
        bias = bias - 0.5 * velocity_bias
    assert torch.allclose(linear.weight, weight, atol=1e-12)
    assert torch.allclose(linear.bias, bias, atol=1e-12)


def optimizer_of(model: ImageClassifier, tmp_path: Path) -> torch.optim.Optimizer:
    fitted = trainer(tmp_path, 1)
    fitted.fit(model, batches())
    return fitted.optimizers[0]


def test_token_ids_reach_the_network_as_they_are_and_adamw_steps_as_by_hand(tmp_path: Path) -> None:
    """Loshchilov and Hutter's algorithm 2 spelt out, on a bag of tokens whose gradient is known in closed form."""
    torch.manual_seed(0)
    embedding = nn.Embedding(5, CLASSES, dtype=torch.float64)
    table = embedding.weight.detach().clone()
    ids, labels = torch.randint(5, (6, 7)), torch.tensor([0, 1, 2, 3, 0, 1])
    bags = F.one_hot(ids, 5).double().mean(1)  # how often each token stands in a sample

    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = embedding

        def forward(self, ids: Tensor) -> Tensor:
            assert ids.dtype == torch.int64
            logits: Tensor = self.embedding(ids).mean(1)
            return logits

    model = ImageClassifier(
        Bag(), CLASSES, 0.01, "adamw", weight_decay=0.1, decay="weights", schedule=Cosine(warmup_epochs=2)
    )
    trainer(tmp_path, 4).fit(model, DataLoader(TensorDataset(ids, labels), batch_size=6))

    first, second = torch.zeros_like(table), torch.zeros_like(table)
    for step, factor in enumerate((0.5, 1.0, 1.0, 0.5), 1):  # half a cosine over the last two of four steps
        gradient = bags.T @ ((bags @ table).softmax(1) - F.one_hot(labels, CLASSES)) / 6
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        average, spread = first / (1 - 0.9**step), second / (1 - 0.999**step)
        table = table - 0.01 * factor * (average / (spread.sqrt() + 1e-8) + 0.1 * table)
    assert torch.allclose(model.network.get_parameter("embedding.weight").detach(), table, atol=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_groups_of_decay(tmp_path: Path, weight_decay: float) -> None:
    everything = optimizer_of(ImageClassifier(network(), CLASSES, weight_decay=weight_decay), tmp_path)
    assert [group["weight_decay"] for group in everything.param_groups] == [weight_decay]

    net = network()
    weights = optimizer_of(ImageClassifier(net, CLASSES, weight_decay=weight_decay, decay="weights"), tmp_path)
    decays = {id(p): group["weight_decay"] for group in weights.param_groups for p in group["params"]}
    assert len(decays) == len(list(net.parameters()))
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            spared = isinstance(module, nn.BatchNorm2d) or name == "bias"
            assert decays[id(parameter)] == (0 if spared else weight_decay)


# Precisions


@functools.cache
def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and validation images of scikit-learn's digits."""
    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target)
    return TensorDataset(images[:1200], labels[:1200]), TensorDataset(images[1200:], labels[1200:])


def digits_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "optimizer", "clip"),
    slow_but(
        [("32-true", "sgd", 0.5), ("bf16-mixed", "adamw", 0.5), ("bf16-true", "sgd", 0.5), ("16-true", "adamw", None)],
        [("32-true", "sgd", 0.5), ("64-true", "sgd", None), ("16-mixed", "sgd", 0.5), ("bf16-mixed", "adamw", 0.5),
         ("bf16-mixed", "sgd", 0.5), ("16-true", "sgd", None), ("bf16-true", "sgd", 0.5), ("bf16-true", "adamw", None),
         ("16-true", "adamw", None)],
    ),
)  # fmt: skip
def test_every_precision_learns_digits_or_is_refused(
    tmp_path: Path, precision: Any, optimizer: Any, clip: float | None
) -> None:
    train, val = digits()
    module = ImageClassifier(digits_net(), 10, 0.1 if optimizer == "sgd" else 0.01, optimizer)
    fit = trainer(tmp_path, 2, precision=precision, gradient_clip_val=clip)
    loaders = DataLoader(train, 40), DataLoader(val, 200)
    if (precision, optimizer) == ("16-true", "adamw"):
        with pytest.raises(ValueError, match=r"^optimizer='adamw': .*precision='16-true'"):
            fit.fit(module, *loaders)
        return
    fit.fit(module, *loaders)
    assert float(fit.callback_metrics["val/accuracy"]) > 0.75


@pytest.mark.parametrize(
    ("precision", "clip", "fused"),
    [("32-true", None, True), ("32-true", 0.1, True), ("bf16-mixed", None, True), ("bf16-mixed", 0.1, False),
     ("bf16-true", None, False)],
)  # fmt: skip
def test_steps_are_fused_where_lightning_and_pytorch_can(
    tmp_path: Path, precision: Any, clip: float | None, fused: bool
) -> None:
    module = ImageClassifier(network(), CLASSES)
    trainer(tmp_path, 1, precision=precision, gradient_clip_val=clip).fit(module, batches(8))
    assert bool(cast(Any, module.optimizers()).param_groups[0]["fused"]) == fused


def test_frozen_parameters_stay_out(tmp_path: Path) -> None:
    net = network()
    stem = net.get_parameter("stem.conv.weight").requires_grad_(False)
    before = stem.clone()
    optimizer = optimizer_of(ImageClassifier(net, CLASSES), tmp_path)
    assert all(parameter is not stem for group in optimizer.param_groups for parameter in group["params"])
    assert torch.equal(stem, before)


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_is_used(channels_last: bool) -> None:
    torch.manual_seed(0)
    net = cifar_resnet(8, CLASSES, width=4)
    model = ImageClassifier(net, CLASSES, channels_last=channels_last).eval()
    seen: list[bool] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight = cast(nn.Conv2d, module).weight
        if weight.shape[2] == 3:  # of a 1x1 kernel both formats have the same strides
            tensors = (inputs[0], output, weight)
            seen.extend(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in tensors)

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    model(torch.randn(2, 3, 8, 8))
    assert len(seen) == 3 * 7
    assert set(seen) == {channels_last}


def test_memory_format_does_not_change_the_result() -> None:
    images = torch.randn(5, 3, 8, 8)
    last, first = (ImageClassifier(network(), CLASSES, channels_last=flag).eval() for flag in (True, False))
    assert torch.allclose(last(images), first(images), atol=1e-5)


@pytest.mark.slow
def test_compiled_trains_alike(tmp_path: Path) -> None:
    records = [Record(), Record()]
    models = [ImageClassifier(network(), CLASSES, compile=flag, schedule=Cosine()) for flag in (False, True)]
    for model, record in zip(models, records, strict=True):
        trainer(tmp_path, 2, [record]).fit(model, batches(24))
    assert records[1].losses == pytest.approx(records[0].losses, rel=1e-3)
    assert models[0].state_dict().keys() == models[1].state_dict().keys()


def test_compiles_the_network_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled.append(self))
    ImageClassifier(network(), CLASSES)
    assert compiled == []
    model = ImageClassifier(network(), CLASSES, compile=True)
    assert compiled == [model.network]


def test_graphs_that_would_overwrite_gradients_are_refused() -> None:
    model = ImageClassifier(network(), CLASSES, compile="graphs")
    on_cuda: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cuda")), accumulate_grad_batches=1
    )
    model.check_device(on_cuda)
    on_cuda.accumulate_grad_batches = 2
    with pytest.raises(ValueError, match=r"^compile='graphs': .*accumulate_grad_batches=2"):
        model.check_device(on_cuda)


@pytest.mark.parametrize("stage", ["val", "test"])
def test_metrics_are_scikit_learns(tmp_path: Path, stage: str) -> None:
    loader = batches(53, 10)
    net = network()
    for _ in range(20):  # settles the running statistics, so that not all fall into one class
        net(torch.randn(32, 3, 8, 8))
    model = ImageClassifier(net, CLASSES, label_smoothing=0.2)
    run = trainer(tmp_path)
    (metrics,) = (run.validate if stage == "val" else run.test)(model, loader, verbose=False)

    images, labels = cast(TensorDataset, loader.dataset).tensors
    with torch.no_grad():
        logits = net.eval()(images)
    predicted = logits.argmax(1).numpy()
    assert len(set(predicted.tolist())) > 1
    assert metrics[f"{stage}/accuracy"] == pytest.approx(accuracy_score(labels.numpy(), predicted))
    probabilities = logits.double().softmax(1).numpy()
    assert metrics[f"{stage}/loss"] == pytest.approx(
        log_loss(labels.numpy(), probabilities, labels=np.arange(CLASSES)), rel=1e-5
    )


@pytest.mark.parametrize("decay", ["all", "weights"])
def test_a_checkpoint_loads_weights_only_and_resumes_exactly(tmp_path: Path, decay: Any) -> None:
    def model(seed: int) -> ImageClassifier:
        return ImageClassifier(network(seed), CLASSES, decay=decay, schedule=Cosine(warmup_epochs=1))

    whole = model(0)
    trainer(tmp_path, 4).fit(whole, batches())
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer(tmp_path, 4, [saver], enable_checkpointing=True).fit(model(0), batches())
    path = tmp_path / "epoch=1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert all(name.startswith("network.") for name in checkpoint["state_dict"])
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 2 * 3
    assert not any(checkpoint["lr_schedulers"][0]["lr_lambdas"])  # nothing of the schedule is in the file

    resumed, record = model(5), Record()
    trainer(tmp_path, 4, [record]).fit(resumed, batches(), ckpt_path=path, weights_only=True)
    assert len(record.losses) == 2 * 3
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in resumed.state_dict().items())


class TwoTrainings(Callback):
    """Doubles the fit and takes optimizer and scheduler back at half time, as a search over rounds does."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.start: tuple[dict[str, Any], dict[str, Any]] | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert trainer.fit_loop.max_epochs == self.epochs
        trainer.fit_loop.max_epochs = 2 * self.epochs

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimizer, scheduler = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
        if self.start is None:
            self.start = (optimizer.state_dict(), dict(scheduler.state_dict()))
        elif trainer.current_epoch == self.epochs:
            optimizer.load_state_dict(self.start[0])
            scheduler.load_state_dict(self.start[1])


@pytest.mark.parametrize("schedule", [Milestones(shares=(0.5, 0.75)), Cosine(), Cosine(warmup_epochs=1)])
def test_the_schedule_spans_one_training(tmp_path: Path, schedule: Schedule) -> None:
    record = Record()
    model = ImageClassifier(network(), CLASSES, learning_rate=0.2, schedule=schedule)
    trainer(tmp_path, 4, [TwoTrainings(4), record]).fit(model, batches())
    expected = [0.2 * schedule(step, 4 * 3, 3) for step in range(4 * 3)]
    assert record.rates == pytest.approx(expected * 2)


def test_accumulated_gradients_make_fewer_steps(tmp_path: Path) -> None:
    record = Record()
    model = ImageClassifier(network(), CLASSES, learning_rate=1e-3, schedule=Milestones(epochs=(1,)))
    trainer(tmp_path, 2, [record], accumulate_grad_batches=2).fit(model, batches())
    assert record.rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


class Watch(Callback):
    """Records what makes the host wait for the device, from the beginning of every step to its end."""

    WAITS = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::_unique2"})

    def __init__(self) -> None:
        self.found: list[str] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.step = ExitStack()
        self.profile = self.step.enter_context(torch.autograd.profiler.profile(use_kineto=False))

    def on_train_batch_end(self, *_: Any) -> None:
        self.step.close()
        self.found += [event.name for event in self.profile.function_events or () if event.name in self.WAITS]


def test_a_step_does_not_wait_for_the_device(tmp_path: Path) -> None:
    watch = Watch()
    trainer(tmp_path, 2, [watch]).fit(ImageClassifier(network(), CLASSES), batches(), batches())
    assert watch.found == []

    class Waiting(ImageClassifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            loss.item()
            return loss

    watch = Watch()
    trainer(tmp_path, 1, [watch]).fit(Waiting(network(), CLASSES), batches())
    assert len(watch.found) == 3  # the watch does see them


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_is_not_saved(tmp_path: Path, poison: float) -> None:
    class Poisoned(ImageClassifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            images, labels = batch
            factor = poison if self.current_epoch == 1 and batch_idx == 1 else 1.0
            return super().training_step((images * factor, labels), batch_idx)

    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    run = trainer(tmp_path, 4, [saver], enable_checkpointing=True)
    with pytest.raises(FloatingPointError, match=r"train/loss=nan .*\b1\b.*learning_rate=0\.1"):
        run.fit(Poisoned(network(), CLASSES), batches())
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["epoch=0.ckpt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 1}, "classes=1"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"momentum": 0, "nesterov": True}, "nesterov=True"),
        ({"optimizer": "adamw", "nesterov": True}, "nesterov=True: .*'adamw'"),
        ({"optimizer": "adam"}, "optimizer='adam': .* sgd, adamw"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001"),
        ({"decay": "none"}, "decay='none': .* all, weights"),
        ({"label_smoothing": 1}, "label_smoothing=1"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        ImageClassifier(network(), **{"classes": CLASSES, **arguments})


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        (
            lambda path: trainer(path).fit(ImageClassifier(network(), CLASSES + 1), batches()),
            r"^classes=5: .*\(8, 4\)",
        ),
        (
            lambda path: trainer(path, -1).fit(ImageClassifier(network(), CLASSES), batches()),
            r"Trainer\(max_epochs=-1\)",
        ),
        (
            lambda path: trainer(path, 2).fit(
                ImageClassifier(network(), CLASSES, schedule=Milestones(epochs=(1, 2))), batches()
            ),
            r"^epochs=\[1, 2\]: .*\b2\b",
        ),
    ],
)
def test_refuses_before_the_first_step(tmp_path: Path, fit: Callable[[Path], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path)


@pytest.mark.parametrize("schedule", sorted(path.stem for path in (CONF / "schedule").glob("*.yaml")))
def test_configuration(schedule: str) -> None:
    config = OmegaConf.merge(
        {"dataset": {"classes": CLASSES}, "classifier": OmegaConf.load(CONF / "classifier" / "default.yaml")},
        {"classifier": {"schedule": OmegaConf.load(CONF / "schedule" / f"{schedule}.yaml")}},
    )
    net = network()
    model = instantiate(config.classifier, network=net)
    assert isinstance(model, ImageClassifier)
    assert model.network is net
    assert model.classes == CLASSES
    default = ImageClassifier(net, CLASSES)
    for name in (
        "learning_rate",
        "optimizer",
        "momentum",
        "nesterov",
        "weight_decay",
        "decay",
        "label_smoothing",
        "memory_format",
    ):
        assert getattr(model, name) == getattr(default, name)
    assert type(model.schedule).__name__.lower() == schedule.replace("_", "")
