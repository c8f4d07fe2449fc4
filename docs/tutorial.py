# %% [markdown]
# # Tutorial
#
# From a network and a data set to a smaller network that can be used elsewhere, in Python alone: first the pruning
# callback in a search of your own, then what a search leaves on disk, and what can be done with it. It takes less than
# half a minute on one core. `python docs/tutorial.py` runs it; [tutorial.ipynb](tutorial.ipynb) is the same as a
# notebook.
#
# Everything is small here (1,257 training images of 8x8 pixels, three epochs a training), so that it is quick.
# Accuracies of one seed and so short a training say little, and networks this small gain little time.

# %%
from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lt_lightning import (
    ImageClassifier,
    LotteryTicketPruning,
    Refill,
    Regroup,
    Restart,
    Ticket,
    TicketTraining,
    load_network,
)
from lt_lightning.data.digits import Digits
from lt_lightning.execution.cost import Setting, flops, parameters, time_ratio
from lt_lightning.execution.execute import execute
from lt_lightning.models.resnet import cifar_resnet
from lt_lightning.pruning.criteria import Context, Criterion
from lt_lightning.pruning.evaluation import largest_difference
from lt_lightning.pruning.masks import Masks
from lt_lightning.structures.base import (
    LayerReport,
    Structure,
    StructureInput,
    StructureResult,
    retained_magnitude,
)
from lt_lightning.tickets.export.network_file import save_network

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch")
FOLDER = Path("runs/tutorial")
EPOCHS = 3  # of one training
IMAGE = torch.zeros(1, 1, 8, 8)  # what a network is given; only its shape counts


def new_classifier() -> ImageClassifier:
    network = cifar_resnet(depth=8, width=32, classes=10, channels=1)
    classifier = ImageClassifier(network, classes=10)
    classifier.example_input_array = IMAGE
    return classifier


def new_trainer(*callbacks: pl.Callback, epochs: int = EPOCHS) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=epochs,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


# %% [markdown]
# ## A search
#
# `LotteryTicketPruning` is an ordinary callback. `max_epochs` is the length of *one* training; the callback makes the
# fit as long as all rounds need. Round 0 trains the dense network. Every further round prunes the smallest 40 % of the
# weights that are left, takes what remains back to where it stood after the first epoch, and trains it again.
#
# At the end of a round each *structure* is given a copy of its mask, and makes a ticket of it that hardware can use:
# `Refill` keeps whole channels, `Regroup` dense blocks of weights. The rounds go on from the unstructured mask.

# %%
pl.seed_everything(0, verbose=False)
data = Digits("data", batch_size=64, validation=180)
pruning = LotteryTicketPruning(
    rounds=2,
    rate=0.4,
    rewind="1ep",
    directory=FOLDER / "search",
    structures={"refill": Refill(), "regroup": Regroup(granularity="input_channel")},
    monitor="val/accuracy",  # by which the best epoch of a round is chosen; without it the last one counts
)
classifier = new_classifier()
new_trainer(pruning).fit(classifier, data)

for done in pruning.history:
    print(f"round {done['round']}: density {done['density']:.2f}, validation {done['metrics']['val/accuracy']:.3f}")

# %% [markdown]
# ## Reading a ticket
#
# A ticket is one safetensors file: reading it never executes code. It holds the masks, the values that training
# restarts from, the trained weights if there are any, and a card. `ticket.json` beside it is the card for people to
# read.

# %%
for path in sorted((FOLDER / "search").rglob("ticket.safetensors")):
    print(path.parent.relative_to(FOLDER))

winner = Ticket.load(FOLDER / "search/round_02/unstructured/ticket")
mask = winner.masks["stages.1.0.conv1.weight"]
print("one layer keeps", int(mask.sum()), "of", mask.numel(), "weights")
print("facts on the card:", ", ".join(list(winner.card)[:6]), "...")

network = new_classifier().network
winner.apply(network)  # in place: the values that training restarts from; pruned weights are zero
winner.apply(network, "trained")  # those at the end of the round

# %% [markdown]
# ## Structures
#
# The three tickets of a round say for every layer its *target* (what the round's mask keeps) and what is
# *executed*: the weights that take part in the computation when the ticket's plan is followed. A dropped channel also
# drops its readers' inputs, so `Refill` chooses as many channels as make the executed numbers agree. `retained` is the
# share of the magnitude of the mask's weights that the ticket keeps.

# %%
tickets = {
    name: Ticket.load(FOLDER / f"search/round_02/{name}/ticket") for name in ("unstructured", "refill", "regroup")
}
for name, ticket in tickets.items():
    layers = [layer for key, layer in ticket.layers.items() if f"{key}.weight" in winner.masks]
    target, executed, size = (sum(getattr(layer, what) for layer in layers) for what in ("target", "executed", "size"))
    print(f"{name}: target {target / size:.2f}, executed {executed / size:.2f}, plan {type(ticket.plan).__name__}")

for name, report in tickets["refill"].layers.items():
    retained = report.retained_magnitude
    print(f"  {name}: {report.form}, {report.density:.2f} executed, {retained:.2f} of the magnitude retained")

# %% [markdown]
# An unstructured ticket has no plan: dense hardware can skip nothing of it, so it executes every weight.
#
# ## A smaller network
#
# `TicketTraining` trains a ticket alone, from the values and the momentum that it is rewound to (`restart.pt`). Where
# a plan allows it, it puts the smaller network in the place of the full one *before* the training, so that training is
# cheaper, too.

# %%
restart = Restart.load(FOLDER / "search/restart.pt")
training = TicketTraining(tickets["refill"], restart, monitor="val/accuracy")
trainer = new_trainer(training)
trainer.fit(new_classifier(), data)
trained = training.trained  # the ticket with the weights of its best epoch, under the names of the full network
assert trained is not None
trained.save(FOLDER / "retrained")

full = new_classifier()
trained.apply(full.network, "trained")  # of full size, pruned weights zero
accuracy = trainer.test(full, data, verbose=False)[0]["test/accuracy"]
print(f"test accuracy {accuracy:.3f}")

# %% [markdown]
# `execute` makes the network that a ticket's plan describes. For channels that is an ordinary module of the same class
# with fewer of them. It computes what the masked network computes, which should be looked at before anything is timed.

# %%
masked = full.network.eval()
shrunk = execute(masked, trained.plan, trained.masks, IMAGE)
assert shrunk is not None
apart = largest_difference(masked, shrunk.network, torch.randn(64, 1, 8, 8))
print("difference of the outputs below 1e-5:", apart < 1e-5)
print("parameters:", parameters(masked), "->", parameters(shrunk.network))
print(f"operations: {flops(shrunk.network, IMAGE) / flops(masked, IMAGE):.2f} of the dense network's")
inference = Setting(batch_size=256, training=False)
times = time_ratio(masked, shrunk.network, IMAGE, inference, samples=3)
print(f"measured time: {times.ratio:.2f} of the dense network's")


# %% [markdown]
# ## Your own network
#
# The callback prunes any `LightningModule`: parameters keep their names, and nothing is wrapped. Pruned is the
# attribute `network`, or the only submodule that has layers, or else the module itself. Exempt are the first layer and
# the last, unless you say otherwise.


# %%
class Plain(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()
        )
        self.head = nn.Linear(16 * 4 * 4, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images).flatten(1))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


# %% [markdown]
# ## Your own criterion and structure
#
# A *criterion* gives every weight a score; the lowest go first. A *structure* turns the masks of a round into others.
# Both are callables that change nothing they are given, and need no registering. Here a weight is compared with the
# largest of its filter, and a structure keeps whole filters, without a plan: it changes masks, and saves no time.


# %%
class WithinFilter(Criterion):
    """The magnitude of a weight as a share of the largest in its filter."""

    def __call__(self, weights: Mapping[str, Tensor], masks: Masks, context: Context) -> dict[str, Tensor]:
        return {name: _share_of_largest(weights[name].abs()) for name in masks}


def _share_of_largest(magnitude: Tensor) -> Tensor:
    return magnitude / magnitude.flatten(1).amax(1).view(-1, *(1,) * (magnitude.ndim - 1))


class HalfOfTheFilters(Structure):
    """Keeps the half of each layer's filters of which most weights survive."""

    def __call__(self, given: StructureInput) -> StructureResult:
        masks, reports = {}, {}
        for layer in given.prunable:
            before = given.masks[layer.weight]
            surviving = before.flatten(1).sum(1)
            best = surviving.argsort(descending=True)[: len(surviving) // 2]
            after = torch.zeros_like(before)
            after[best] = True
            masks[layer.weight] = after
            kept, target = int(after.count_nonzero()), int(before.count_nonzero())
            retained = retained_magnitude(given.weights[layer.weight], before, after)
            # Without a plan the layer runs whole: all of its weights are executed.
            reports[layer.name] = LayerReport(layer.size, target, kept, layer.size, layer.positions, "dense", retained)
        return StructureResult(masks, reports)


own = LotteryTicketPruning(
    rounds=1,
    directory=FOLDER / "own",
    criterion=WithinFilter(),
    structures={"half": HalfOfTheFilters()},
)
new_trainer(own, epochs=2).fit(Plain(), data)
for name, report in Ticket.load(FOLDER / "own/round_01/half/ticket").layers.items():
    print(f"{name}: keeps {report.kept} of {report.size}")

# %% [markdown]
# From the command line the same classes are named in the configuration, for instance `lt-lightning run
# pruning.criterion._target_=my_package.WithinFilter`; see [Your own parts](extending.md).
#
# ## Export
#
# Two files hold the smaller network: its weights, and a recipe that says how the module is made that they fit. (For a
# search that `lt-lightning run` made, `lt-lightning export` does this, and torch.export and ONNX, from the ticket's
# folder.)

# %%
recipe = {"_target_": "lt_lightning.models.resnet.cifar_resnet", "depth": 8, "width": 32, "classes": 10, "channels": 1}
save_network(FOLDER / "exported", shrunk.network.eval(), recipe, tuple(IMAGE.shape[1:]), trained.plan)
for path in sorted((FOLDER / "exported").iterdir()):
    print(path.name)

# %% [markdown]
# ## Elsewhere
#
# On another machine `lt_lightning` and PyTorch suffice. Nothing of the files is executed but the constructor that the
# recipe names; for one of your own packages say `allow=["my_package"]`. The result is an ordinary module, which gives
# the logits that it gave when it was saved, and can be trained further.

# %%
loaded = load_network(FOLDER / "exported")
images, labels = next(iter(data.test_dataloader()))
with torch.no_grad():
    right = (loaded(images).argmax(1) == labels).float().mean()
print(f"{type(loaded).__name__} with {parameters(loaded)} parameters")
print("as accurate as when it was trained:", abs(float(right) - accuracy) < 1e-6)
