"""Everyone trains the same: a loop by hand, our trainer, peers; nothing in a step waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training import contest as module
from benchmarks.training.contenders import CONTENDERS, Pause, Run, as_tensor, cropped, dense
from benchmarks.training.contest import Step, Stepwise, contest, steps_for
from benchmarks.training.task import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Setting, Task, real, synthetic
from lt_lightning.data.cifar import Cifar10
from lt_lightning.data.tensors import crop, flip, normalise
from lt_lightning.pruning.enforcement import EnforcedMasks

SAMPLES = 3


class Net(nn.Sequential):
    """With a `forward` of its own: PyTorch leaves its own containers' uncompiled."""

    def forward(self, images: Tensor) -> Tensor:
        for layer in self:
            images = layer(images)
        return images


def network() -> nn.Module:
    torch.manual_seed(0)
    return Net(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip


def task(samples: int = SAMPLES, **options: Any) -> Task:
    setting = Setting(4, **options)
    steps = steps_for(samples)
    return Task(network(), 0.25, *synthetic(4 * steps + 1, (3, 8, 8)), setting, steps)


@pytest.fixture(scope="module")
def steps() -> Mapping[str, Step]:
    return {step.contender: step for step in contest(task(), CONTENDERS, SAMPLES)}


def test_everyone_has_the_same_losses(steps: Mapping[str, Step]) -> None:
    assert list(steps) == list(CONTENDERS)
    for ours, theirs in (("dense", "bare"), ("model_pruning", "pruned"), ("prune_hooks", "pruned")):
        assert steps[ours].compared == theirs
        assert steps[ours].difference is not None
        assert steps[ours].difference == pytest.approx(0, abs=1e-5)
        count = min(len(steps[ours].losses), len(steps[theirs].losses))
        assert count > SAMPLES
        assert steps[ours].losses[:count] == pytest.approx(steps[theirs].losses[:count], rel=1e-5)
    assert steps["bare"].losses[1] != pytest.approx(steps["pruned"].losses[1], rel=1e-4)
    assert steps["pictures"].difference is None
    assert steps["loading"].losses == []


def test_losses_are_those_of_a_loop_with_masks(steps: Mapping[str, Step]) -> None:
    """Written anew here: from the initial values, masked, on the batches of epoch 1."""
    whole = task()
    trained = whole.copy()
    held = EnforcedMasks(trained, whole.masks)
    held.zero_weights()
    optimizer = torch.optim.SGD(trained.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY)
    losses = []
    for images, labels in whole.data().loader(1):
        optimizer.zero_grad()
        loss = F.cross_entropy(trained(images.contiguous(memory_format=torch.channels_last)), labels)
        torch.autograd.backward(loss)
        held.zero_gradients()
        optimizer.step()
        losses.append(float(loss.detach()))
    told = steps["pruned"].losses
    assert told == pytest.approx(losses[: len(told)], rel=1e-5)
    assert {float(mask.float().mean()) for mask in whole.masks.values()} == {0.25}


def test_nothing_in_a_step_waits_for_the_device(steps: Mapping[str, Step]) -> None:
    assert steps["bare"].waits == steps["dense"].waits == steps["pruned"].waits == 0
    assert steps["loading"].waits is None


def test_a_wait_is_seen() -> None:
    def waiting(run: Run, pause: Pause) -> None:
        while True:
            pause()
            torch.ones(3).sum().item()

    waits = Stepwise(lambda pause: waiting(Run(task(), waiting), pause))
    waits.advance()
    assert module._waits(waits) == 1
    waits.close()


def test_times_are_told_in_milliseconds_and_compared(steps: Mapping[str, Step]) -> None:
    for step in steps.values():
        assert 0 < step.p5 <= step.milliseconds <= step.p95 < 60_000
        assert step.samples == SAMPLES
        assert step.to_bare == pytest.approx(step.milliseconds / steps["bare"].milliseconds)
        assert step.to_dense == pytest.approx(step.milliseconds / steps["dense"].milliseconds)


def test_whoever_trains_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(run: Run, pause: Pause) -> None:
        with torch.no_grad():
            run.task.network.get_parameter("8.weight").mul_(2)
        dense(run, pause)

    monkeypatch.setattr(module, "CONTENDERS", {**CONTENDERS, "dense": changed})
    with pytest.raises(RuntimeError, match=r"\bdense\b.*\bbare\b"):
        contest(task(), ["bare", "dense"], 2)
    with pytest.raises(ValueError, match=r"^contender='fast' .*bare, dense"):
        contest(task(), ["fast"], 2)


def test_bfloat16_by_autocast() -> None:
    told = {step.contender: step for step in contest(task(2, bfloat16=True), ["bare", "dense"], 2)}
    exact = {step.contender: step for step in contest(task(2), ["bare"], 2)}
    assert told["dense"].difference == pytest.approx(0, abs=0.02)
    assert told["bare"].losses != exact["bare"].losses
    assert told["bare"].losses == pytest.approx(exact["bare"].losses, rel=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["eager", "compile", "graphs"])
def test_on_a_gpu(engine: Any) -> None:
    names = ["bare", "dense", "pruned", "pictures", "loading"]
    given = task(device="cuda", bfloat16=True, engine=engine)
    told = {step.contender: step for step in contest(given, names, SAMPLES)}
    assert told["pruned"].waits == told["dense"].waits == 0


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"^engine='graphs' .*'cpu'"):
        Setting(4, engine="graphs")
    with pytest.raises(ValueError, match=r"^engine='fast' .*eager, compile, graphs"):
        Setting(4, engine="fast")  # type: ignore[arg-type]


def test_pictures_are_what_our_augmentation_makes() -> None:
    images, _ = synthetic(2, (3, 8, 8))
    top, left, mirrored = torch.tensor([0, 7]), torch.tensor([8, 3]), torch.tensor([True, False])
    ours = normalise(flip(crop(images, top, left, 4), mirrored), torch.tensor(Cifar10.mean), torch.tensor(Cifar10.std))
    for index in range(2):
        picture = Image.fromarray(images[index].permute(1, 2, 0).contiguous().numpy())
        theirs = as_tensor(cropped(picture, int(top[index]), int(left[index]), bool(mirrored[index])))
        assert torch.allclose(ours[index], theirs, atol=1e-5)


def test_real_images_are_asked_for_by_their_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        real(4, tmp_path)


# Going on step by step


def test_functions_take_turns_and_see_their_own_errors() -> None:
    told: list[str] = []

    def count(name: str) -> Callable[[Pause], None]:
        def run(pause: Pause) -> None:
            try:
                for number in range(3):
                    pause()
                    told.append(f"{name}{number}")
            finally:
                told.append(f"{name} ends")

        return run

    first, second = Stepwise(count("a")), Stepwise(count("b"))
    for each in (first, second, first, second, second):
        each.advance()
    assert told == ["a0", "b0", "b1"]
    first.close()
    assert told[3:] == ["a ends"]
    with pytest.raises(RuntimeError, match="no more steps"):
        second.advance()
    assert told[4:] == ["b2", "b ends"]

    def broken(pause: Pause) -> None:
        pause()
        raise OSError("broken")

    third = Stepwise(broken)
    third.advance()
    with pytest.raises(OSError, match="broken"):
        third.advance()
    third.close()  # of what has ended, or never began, nothing is left to end
    second.close()
    Stepwise(broken).close()
