"""Masks that come to be within a training: the schedule by hand, and whole searches against plain loops."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lt_lightning.pruning.criteria import Magnitude
from lt_lightning.pruning.masks import Masks, kept, nested
from lt_lightning.pruning.selection import Scope
from lt_lightning.pruning.sparsifiers import ADMM, Aim, Gradual, Movement, Sparsification, Sparsifier, cubic, moments
from lt_lightning.structures.refill import Refill
from lt_lightning.tickets.ticket import Ticket
from lt_lightning.training.callback import LotteryTicketPruning
from tests import toys
from tests.toys import batches

STEPS, EPOCHS = 5, 3  # of an epoch, of one training
REWIND = 1  # epochs
LONG = (EPOCHS - REWIND) * STEPS  # steps of the training that masks come to be in
RATE, MOMENTUM, DECAY = 0.1, 0.9, 0.01
PRUNABLE = ("3.weight", "6.weight")
State = dict[str, Tensor]


# The schedule


def test_the_cubic_has_the_papers_values() -> None:
    """s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3 with s_i = 0.1, s_f = 0.9, n = 4."""
    sparsities = [1 - cubic(t / 4, 0.9, 0.1) for t in range(5)]
    assert sparsities == pytest.approx([0.1, 0.5625, 0.8, 0.8875, 0.9], abs=1e-12)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((10, 2), {5: 0.5, 10: 1.0}),
        ((10, 5, 0.5, 1.0), {6: 0.2, 7: 0.4, 8: 0.6, 9: 0.8, 10: 1.0}),
        ((12, 3, 0.25, 0.5), {4: 1 / 3, 5: 2 / 3, 6: 1.0, 7: 1.0, 8: 1.0, 9: 1.0, 10: 1.0, 11: 1.0, 12: 1.0}),
        ((2, 8), {1: 0.5, 2: 1.0}),
    ],
)
def test_moments_by_hand(options: tuple[Any, ...], expected: dict[int, float]) -> None:
    found = moments(*options)
    assert list(found) == list(expected)
    assert list(found.values())[-1] == 1.0
    if options[0] >= options[1]:
        assert list(found.values()) == pytest.approx(list(expected.values()))


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 300), st.floats(0, 0.9), st.floats(0.01, 1.0))
def test_moments_lie_within_the_training_and_reach_the_end(
    steps: int, updates: int, begin: float, share: float
) -> None:
    end = begin + share * (1 - begin)
    found = moments(steps, updates, begin, end)
    assert all(1 <= step <= steps for step in found)
    assert list(found) == sorted(found)
    assert list(found.values()) == sorted(found.values())
    assert max(found.values()) == 1.0


# Against plain loops


def make_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    ).double()  # fmt: skip


def rate_at(step: int) -> float:
    """Of a training; as `MultiStepLR` has it below."""
    return RATE * 0.5 ** sum(step >= each for each in (4, 9))


class Toy(toys.Toy):
    def __init__(self) -> None:
        super().__init__(
            make_network(),
            lambda p: torch.optim.SGD(p, lr=RATE, momentum=MOMENTUM, weight_decay=DECAY),
            lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 9], 0.5),
            steps=STEPS,
        )


class Plain:
    """The same search written out: one loop, no masks held by anybody, SGD by its formula, scores sorted."""

    def __init__(self, sparsifier: Sparsifier, scores_from: str) -> None:
        self.sparsifier = sparsifier
        self.scores_from = scores_from
        self.network = make_network()
        self.names = [name for name, _ in self.network.named_parameters()]
        self.velocity = {name: torch.zeros_like(p) for name, p in self.network.named_parameters()}
        self.masks = {name: torch.ones_like(p) for name, p in self.network.named_parameters()}
        self.epoch = 0

    def search(self, densities: list[float]) -> list[Masks]:
        found = []
        for step in range(EPOCHS * STEPS):
            if step == REWIND * STEPS:
                point, velocity = copy.deepcopy(self.network.state_dict()), copy.deepcopy(self.velocity)
            self.step(step)
        dense = copy.deepcopy(self.network.state_dict())
        for density in densities:
            if self.scores_from != "trained":
                self.masks = {name: torch.ones_like(mask) for name, mask in self.masks.items()}
                self.network.load_state_dict(dense if self.scores_from == "dense" else point)
            for name in self.names:
                self.velocity[name] = velocity[name].clone() * (self.scores_from == "rewound") * self.masks[name]
            self.masks |= self.sparsify(density)
            found.append({name: self.masks[name].bool() for name in PRUNABLE})
            self.network.load_state_dict(point)
            for name in self.names:
                self.network.get_parameter(name).data *= self.masks[name]
                self.velocity[name] = velocity[name] * self.masks[name]
            for step in range(REWIND * STEPS, EPOCHS * STEPS):
                self.step(step)
        return found

    def sparsify(self, density: float) -> State:
        sparsifier = self.sparsifier
        if isinstance(sparsifier, Movement):
            return self.movement(sparsifier, density)
        if isinstance(sparsifier, Gradual):
            return self.gradual(sparsifier, density)
        assert isinstance(sparsifier, ADMM)
        return self.admm(sparsifier, density)

    def gradual(self, sparsifier: Gradual, density: float) -> State:
        start, final = self.sparsity(), 1 - density
        for step in range(1, LONG + 1):
            self.step(step - 1 + REWIND * STEPS)
            t0, spacing = sparsifier.begin * LONG, (sparsifier.end - sparsifier.begin) * LONG / sparsifier.updates
            times = [i for i in range(1, sparsifier.updates + 1) if round(t0 + i * spacing) == step]
            for i in times:
                sparsity = final + (start - final) * (1 - i / sparsifier.updates) ** 3
                scores = {name: self.network.get_parameter(name).data.abs() for name in PRUNABLE}
                self.masks |= self.top(scores, 1 - sparsity, {name: self.masks[name] for name in PRUNABLE})
                for name in PRUNABLE:
                    self.network.get_parameter(name).data *= self.masks[name]
                    self.velocity[name] *= self.masks[name]
        return {name: self.masks[name] for name in PRUNABLE}

    def movement(self, sparsifier: Movement, density: float) -> State:
        """Weights and scores as two sets of parameters of which autograd has the derivatives."""
        allowed = {name: self.masks[name].clone() for name in PRUNABLE}
        values = {name: self.network.get_parameter(name).detach().clone().requires_grad_() for name in PRUNABLE}
        scores = {name: torch.zeros_like(value, requires_grad=True) for name, value in values.items()}
        start, final = self.sparsity(), 1 - density
        spacing = (sparsifier.end - sparsifier.begin) * LONG / sparsifier.updates
        for step in range(1, LONG + 1):
            for name in PRUNABLE:
                values[name].grad = scores[name].grad = None
            kept_now = {name: self.masks[name] for name in PRUNABLE}
            masked = {name: Straight.apply(values[name], scores[name], kept_now[name]) for name in PRUNABLE}  # type: ignore[no-untyped-call]
            self.step(step - 1 + REWIND * STEPS, masked)
            for name in PRUNABLE:
                gradient, score = values[name].grad, scores[name].grad
                assert gradient is not None
                assert score is not None
                scores[name].data -= score
                decayed = (gradient + DECAY * values[name].data) * kept_now[name]
                self.velocity[name] = MOMENTUM * self.velocity[name] + decayed
                values[name].data -= rate_at(step - 1 + REWIND * STEPS) * self.velocity[name]
            for i in range(1, LONG * 100):
                if round(sparsifier.begin * LONG + i * spacing) == step:
                    sparsity = final + (start - final) * (1 - min(1, i / sparsifier.updates)) ** 3
                    self.masks |= self.top({n: s.data for n, s in scores.items()}, 1 - sparsity, allowed)
                    for name in PRUNABLE:
                        self.velocity[name] *= self.masks[name]
        return self.top({name: score.data for name, score in scores.items()}, density, allowed)

    def admm(self, sparsifier: ADMM, density: float) -> State:
        """The augmented Lagrangian in the loss, and its derivative by autograd."""
        allowed = {name: self.masks[name].clone() for name in PRUNABLE}
        weights = {name: self.network.get_parameter(name) for name in PRUNABLE}

        def nearest(values: State) -> State:
            best = self.top({name: value.abs() for name, value in values.items()}, density, allowed)
            return {name: value * best[name] for name, value in values.items()}

        z = nearest({name: weight.data for name, weight in weights.items()})
        u = {name: torch.zeros_like(value) for name, value in z.items()}
        for step in range(1, LONG + 1):
            pull = sum((sparsifier.rho / 2 * (w - z[n] + u[n]).square() * allowed[n]).sum() for n, w in weights.items())
            self.step(step - 1 + REWIND * STEPS, more=pull)
            if step % (LONG // sparsifier.updates) == 0:
                z = nearest({name: weight.data + u[name] for name, weight in weights.items()})
                u = {name: u[name] + weight.data - z[name] for name, weight in weights.items()}
        return self.top({name: weight.data.abs() for name, weight in weights.items()}, density, allowed)

    def step(self, step: int, masked: State | None = None, more: Any = 0.0) -> None:
        """One of SGD; of the weights in `masked` only the gradient is computed."""
        if not hasattr(self, "batches") or step % STEPS == 0:
            self.batches = list(batches(STEPS, first=self.epoch, dtype=torch.float64))
            self.epoch += 1
        images, labels = self.batches[step % STEPS]
        self.network.zero_grad()
        (F.cross_entropy(functional_call(self.network, masked or {}, (images,)), labels) + more).backward()
        for name, parameter in self.network.named_parameters():
            if masked is None or name not in masked:
                assert parameter.grad is not None
                gradient = (parameter.grad + DECAY * parameter.data) * self.masks[name]
                self.velocity[name] = MOMENTUM * self.velocity[name] + gradient
                parameter.data -= rate_at(step) * self.velocity[name]

    def sparsity(self) -> float:
        return 1 - sum(float(self.masks[n].sum()) for n in PRUNABLE) / sum(self.masks[n].numel() for n in PRUNABLE)

    @staticmethod
    def top(scores: State, density: float, allowed: State) -> State:
        flat = torch.cat([scores[name].masked_fill(allowed[name] == 0, -torch.inf).flatten() for name in PRUNABLE])
        best = torch.zeros_like(flat)
        best[flat.argsort(descending=True)[: round(density * len(flat))]] = 1
        parts = torch.split(best, [scores[name].numel() for name in PRUNABLE])
        return {name: part.view_as(scores[name]) for name, part in zip(PRUNABLE, parts, strict=True)}


class Straight(torch.autograd.Function):
    """Masked weights whose score gets the derivative as if the mask were the score itself."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, score: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        weight, mask = ctx.saved_tensors
        return gradient * mask, gradient * weight, None


class Spy(pl.Callback):
    """Sees the masks after every step, and what they should hold at zero; stands behind the pruning."""

    def __init__(self, pruning: LotteryTicketPruning) -> None:
        self.pruning = pruning
        self.masks: list[Masks] = []
        self.leaks = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.masks.append({name: mask.clone() for name, mask in self.pruning.masks.items()})
        for name, mask in self.pruning.enforced_masks.items():
            parameter = self.pruning.network_of(pl_module).get_parameter(name)
            momentum = trainer.optimizers[0].state[parameter]["momentum_buffer"]
            self.leaks += int(parameter[~mask].count_nonzero()) + int(momentum[~mask].count_nonzero())


def search(folder: Path, rounds: int = 1, **options: Any) -> tuple[Toy, LotteryTicketPruning, Spy]:
    options = {"monitor": None, "rewind": f"{REWIND}ep", **options}
    pruning = LotteryTicketPruning(rounds, folder / "tickets", **options)
    spy, module = Spy(pruning), Toy()
    pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, callbacks=[pruning, spy], max_epochs=EPOCHS,
    ).fit(module)  # fmt: skip
    return module, pruning, spy


def ticket(pruning: LotteryTicketPruning, number: int, name: str = "unstructured") -> Ticket:
    return Ticket.load(pruning.directory / f"round_{number:02d}" / name / "ticket")


def same(a: Any, b: Any) -> bool:
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("sparsifier", "scores_from"),
    [
        (Gradual(updates=4, end=0.8), "rewound"),
        pytest.param(Gradual(updates=3, begin=0.2, end=1.0), "trained", marks=pytest.mark.slow),
        pytest.param(Movement(updates=5, end=0.5), "dense", marks=pytest.mark.slow),
        (Movement(updates=4, begin=0.3, end=1.0), "trained"),
        (ADMM(rho=0.3, updates=5), "dense"),
        pytest.param(ADMM(rho=0.3, updates=2), "trained", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_masks_and_trained_tickets_are_those_of_a_plain_loop(
    tmp_path: Path, sparsifier: Sparsifier, scores_from: str
) -> None:
    """Two rounds; the second masks come after a whole ticket's training, so nothing may be carried over wrongly."""
    module, pruning, spy = search(tmp_path, 2, rate=0.5, sparsifier=sparsifier, scores_from=scores_from)
    plain = Plain(sparsifier, scores_from)
    expected = plain.search([0.5, 0.25])
    size = sum(mask.numel() for mask in expected[0].values())
    for number, masks in enumerate(expected, 1):
        assert same(ticket(pruning, number).masks, masks)
        assert kept(masks) == round(0.5**number * size)
    for name, value in module.network.state_dict().items():
        torch.testing.assert_close(value, plain.network.state_dict()[name], rtol=1e-9, atol=1e-12)
    assert spy.leaks == 0
    if scores_from == "trained":
        assert nested(expected[1], expected[0])


def test_gradual_pruning_follows_its_cubic_over_the_steps(tmp_path: Path) -> None:
    _, pruning, spy = search(
        tmp_path, density=0.2, scores_from="dense", sparsifier=Gradual(updates=4, begin=0.2, end=1.0)
    )
    assert pruning.timeline.round_lengths == [EPOCHS, 2 * (EPOCHS - REWIND)]
    size = sum(mask.numel() for mask in spy.masks[0].values())
    made = spy.masks[EPOCHS * STEPS : EPOCHS * STEPS + LONG]
    shares = [1.0] * 3 + [0.5375] * 2 + [0.3] * 2 + [0.2125] * 2 + [0.2]  # 0.2 + 0.8 (1 - i/4)^3
    assert [kept(masks) for masks in made] == [round(share * size) for share in shares]
    assert all(nested(after, before) for before, after in pairwise(made))
    assert all(same(masks, made[-1]) for masks in spy.masks[EPOCHS * STEPS + LONG :])


@pytest.mark.parametrize("mode", ["none", "learning_rate"])
def test_a_ticket_that_is_not_rewound_goes_on_from_what_was_made(tmp_path: Path, mode: str) -> None:
    """Gradual pruning and fine-tuning, as its authors have it; every round anew."""
    made: list[State] = []

    class Watch(Gradual):
        def finish(self, weights: Any, *others: Any) -> Masks:
            made.append({name: weight.detach().clone() for name, weight in weights.items()})
            return super().finish(weights, *others)

    _, pruning, _ = search(tmp_path, 2, rate=0.5, sparsifier=Watch(3), scores_from="dense", mode=mode)
    for number in (1, 2):
        found = ticket(pruning, number)
        for name in PRUNABLE:
            assert torch.equal(found.rewind[name][found.masks[name]], made[number - 1][name][found.masks[name]])
            assert found.rewind[name].all()  # pruned weights, too: what they were when they were last alive
        assert found.masks["3.weight"].logical_not().sum() > 0


def test_structures_and_the_group_aware_variant_go_with_it(tmp_path: Path) -> None:
    structures = {"refill": Refill(score="saliency", round_to=1)}
    for source in ("unstructured", "refill"):
        _, pruning, spy = search(
            tmp_path / source, 2, rate=0.4, sparsifier=ADMM(), structures=structures, gradient_batches=2,
            next_round_from=source,
        )  # fmt: skip
        assert ticket(pruning, 2, "refill").plan is not None
        assert spy.leaks == 0


# Without Lightning


def fake(scope: Scope) -> tuple[nn.Module, Aim]:
    network = make_network()
    masks = {name: torch.ones_like(network.get_parameter(name), dtype=torch.bool) for name in PRUNABLE}
    return network, Aim(masks, 0.3, scope, 12)


def train(work: Sparsification, network: nn.Module, steps: range) -> list[Masks]:
    """Steps with gradients that are a function of the step."""
    seen = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for name in PRUNABLE:
            parameter = network.get_parameter(name)
            parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        work.before_step()
        for name in PRUNABLE:
            parameter = network.get_parameter(name)
            assert parameter.grad is not None
            parameter.data -= 0.05 * parameter.grad * work.masks[name]
        work.after_step()
        assert not work.after_step()  # a batch that was no step
        seen.append(work.masks)
    return seen


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
@pytest.mark.parametrize("sparsifier", [Gradual(4), Movement(4), ADMM(0.1, 4)], ids=str)
def test_the_density_is_exact_whatever_the_scope(sparsifier: Sparsifier, scope: Scope) -> None:
    network, aim = fake(scope)
    work = Sparsification(sparsifier, network, aim)
    train(work, network, range(12))
    masks = work.finish()
    assert kept(masks) == round(0.3 * sum(mask.numel() for mask in masks.values()))
    if scope == "layer":
        assert [int(mask.sum()) for mask in masks.values()] == [round(0.3 * mask.numel()) for mask in masks.values()]


@pytest.mark.parametrize("sparsifier", [Gradual(4), Movement(4), ADMM(0.1, 4)], ids=str)
def test_it_goes_on_from_its_state_bit_for_bit(sparsifier: Sparsifier, tmp_path: Path) -> None:
    network, aim = fake("global")
    work = Sparsification(sparsifier, network, aim)
    train(work, network, range(12))
    for stop in range(13):
        again, _ = fake("global")
        first = Sparsification(sparsifier, again, aim)
        train(first, again, range(stop))
        torch.save(first.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        second = Sparsification.resumed(sparsifier, again, state)
        train(second, again, range(stop, 12))
        assert same(second.finish(), work.finish())
        assert same(again.state_dict(), network.state_dict())


def test_what_moves_back_comes_back_with_its_value() -> None:
    """Two weights; the gradient of the first shrinks it until it is pruned, and then asks for it again."""
    network = nn.Linear(2, 1, bias=False)
    network.weight.data = torch.tensor([[1.0, 1.0]])
    aim = Aim({"weight": torch.ones(1, 2, dtype=torch.bool)}, 0.5, "global", 4)
    work = Sparsification(Movement(updates=1, end=0.25), network, aim)
    told = []
    for gradient in ([3.0, 1.0], [-1.0, 0.0], [-2.0, 0.0], [0.0, 0.0]):
        network.weight.grad = torch.tensor([gradient])
        work.before_step()
        work.after_step()
        told.append((work.masks["weight"].tolist()[0], network.weight.tolist()[0]))
    # Scores: (-3, -1), (-2, -1), (0, -1), (0, -1).
    gone, back = ([False, True], [0.0, 1.0]), ([True, False], [1.0, 0.0])
    assert told == [gone, gone, back, back]


# Refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gradual(updates=0), "updates=0:"),
        (lambda: Movement(begin=0.5, end=0.5), "begin=0.5, end=0.5:"),
        (lambda: Gradual(end=1.5), "begin=0.0, end=1.5:"),
        (lambda: ADMM(rho=0.0), "rho=0.0:"),
        (lambda: ADMM(rho=float("nan")), "rho=nan:"),
        (lambda: ADMM(updates=0), "updates=0:"),
        (
            lambda: LotteryTicketPruning(1, "x", criterion=Magnitude(), sparsifier=ADMM()),
            "sparsifier=ADMM: ",
        ),
    ],
)  # fmt: skip
def test_bad_options_are_refused_by_name(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


def test_gradients_that_are_scaled_are_refused(tmp_path: Path) -> None:
    """A fused optimizer divides them itself, after all that may read them."""
    pruning = LotteryTicketPruning(1, tmp_path / "tickets", monitor=None, sparsifier=ADMM())
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False, plugins=[plugin], callbacks=[pruning]
    )
    with pytest.raises(ValueError, match=r"^sparsifier=ADMM: .* Trainer\(precision='16-mixed'\)"):
        trainer.fit(Toy())
