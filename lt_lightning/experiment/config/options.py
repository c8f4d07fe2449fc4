"""The options of a job: type, default, meaning, what is allowed, and whether they determine a result.

`conf/run.yaml` composes a job from the defaults below and the groups; `options_of` reads what was composed. Options of
the groups, whose nodes name a class as `_target_`, are those of that class; see `checks.check_options`. A protocol
checks by itself which names its options may have.
"""

# ruff: noqa: RUF009  (`option` makes a field, and no default)
from __future__ import annotations

import inspect
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from lt_lightning.experiment.config.checks import describe, fits, nodes_of, shown
from lt_lightning.pruning.densities import MOST_ROUNDS
from lt_lightning.results.failures import with_key
from lt_lightning.results.verdict import Rule
from lt_lightning.storage.layout import DENSE, UNSTRUCTURED
from lt_lightning.storage.near_names import did_you_mean

Determines = Literal["search", "retraining", "nothing"]
Options = TypeVar("Options")

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Allowed:
    """What an option may be, besides its type.

    Attributes:
        holds: whether a value is allowed; it is never asked about None.
        text: what stands behind "must be".
    """

    holds: Callable[[Any], bool]
    text: str


def from_to(least: int, most: int = 1_000_000) -> Allowed:
    """Return what allows whole numbers in a range, its ends included; `most` keeps out what no machine could hold."""
    return Allowed(lambda value: least <= value <= most, f"a whole number from {least} to {most}")


def one_of(*names: str) -> Allowed:
    """Return what allows these names."""
    return Allowed(lambda value: value in names, f"one of {', '.join(names)}")


SEED = from_to(0, LARGEST_SEED)
SHARE = Allowed(lambda value: 0 < value < 1, "a share in (0, 1)")
SHARES = Allowed(
    lambda value: bool(_listed(value)) and all(_is_number(each) and 0 < each < 1 for each in _listed(value)),
    "a share in (0, 1), or a list of them, or null",
)
NAME = Allowed(
    lambda value: not set(value) & {"/", "\\"} and bool(value), "a text without slashes, which names folders"
)
POSITIVE = Allowed(lambda value: 0 < value < math.inf, "a positive number")


def option(
    default: Any,
    meaning: str = "",
    allowed: Allowed | None = None,
    determines: Determines = "nothing",
    composed: bool = True,
) -> Any:
    """Return the field of an option.

    Args:
        default: its default; a list, a dictionary or a node of options is copied.
        meaning: what it does, for people.
        allowed: what it may be, if its type does not say all.
        determines: which results another value changes.
        composed: whether the main job is composed with this default; else the option is there only where something
            sets it.
    """
    metadata = {"help": meaning, "allowed": allowed, "determines": determines, "composed": composed}
    if isinstance(default, (list, dict)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Measure:
    """How the networks of tickets are timed."""

    batch_size: int = option("${data.batch_size}", "images at once", from_to(1))
    samples: int = option(
        7, "turns, of which the median counts; where they disagree, as on a busy machine, all are repeated", from_to(2)
    )
    slot: float = option(0.03, "least seconds of a turn", POSITIVE)


@dataclass(frozen=True)
class Checkpoint:
    """How often a training is saved."""

    share: float = option(
        0.01,
        "share of a training's time that checkpoints may take at most: the cheaper one is, the more often",
        Allowed(lambda value: 0 < value <= 1, "a share of the time in (0, 1]"),
    )
    seconds: float = option(
        10,
        "least seconds between two checkpoints",
        Allowed(lambda value: 0 <= value < math.inf, "a number of at least 0"),
    )


@dataclass(frozen=True)
class Retraining:
    """How tickets are trained alone, after the search."""

    distil: float = option(
        0.0,
        "share of the loss that soft labels of the search's trained dense network have (arXiv 1503.02531, 2101.03255); "
        "0: none",
        Allowed(lambda value: 0 <= value <= 1, "a share in [0, 1]"),
    )
    temperature: float = option(
        4.0, "temperature of the soft labels: logits are divided by it before the softmax", POSITIVE
    )
    length: float = option(
        1.0,
        "epochs of a ticket's training over trainer.max_epochs: its schedule is stretched over them, and begins anew "
        "from the rewound values; 1: as the rounds of the search train, from the rewind point on",
        POSITIVE,
    )
    copies: int = option(
        1,
        "trainings of each ticket in other data orders, whose weights are averaged, with BatchNorm statistics "
        "estimated anew (arXiv 2305.14852, 2306.16788, 2208.10842)",
        from_to(1, 100),
    )
    barrier: float = option(
        0.02,
        "share of the validation images: where the error barrier between copies is not below it, the best by "
        "validation is kept instead",
        SHARE,
    )


@dataclass(frozen=True)
class Growing:
    """How tickets are grown from each other (`grown`)."""

    alone: bool = option(
        False,
        "true: the search trains the dense network alone, and all tickets are grown from it; no round's mask is "
        "structured and retrained",
    )
    densities: list[float] | None = option(
        None, "density of each round of `grown`; null: those of the search's rounds", SHARES
    )
    group_penalty: float = option(
        0.0,
        "strength of the group lasso on columns of blocks, or channels, in every round but the search's last: the next "
        "round drops whole ones; 0: none",
        Allowed(lambda value: 0 <= value < math.inf, "a number of at least 0"),
    )


@dataclass(frozen=True)
class Dataset:
    """What the network is made for."""

    classes: int = option(MISSING, "number of classes", from_to(1))
    channels: int | None = option(None, "channels of an image", from_to(1))
    size: int | None = option(None, "height and width of an image, in pixels", from_to(1))
    vocabulary: int | None = option(None, "number of different tokens", from_to(1))
    length: int | None = option(None, "number of tokens of a sequence", from_to(1))


@dataclass(frozen=True)
class Labels:
    """The names of data and network in tables and folders."""

    data: str = option(
        "${hydra:runtime.choices.data}", "name of the data set; the choice of the group by default", NAME
    )
    model: str = option(
        "${hydra:runtime.choices.model}", "name of the network; the choice of the group by default", NAME
    )


@dataclass(frozen=True)
class Paths:
    """Where things are."""

    root: str = option(MISSING, "folder of everything that a run writes")
    data: str = option(MISSING, "folder of the data sets: read here, downloaded to here")


@dataclass(frozen=True)
class JobOptions:
    """Everything that a job is asked for."""

    seed: int = option(
        0,
        "seed of initialisation, data order and the split into training and validation; `seeds=5` sweeps from 0 to 4",
        SEED,
        determines="search",
    )
    retrain_rounds: list[int] | None = option(
        None,
        "rounds whose tickets are structured and retrained, [2,4,6]; null: all, or those of pruning.density",
    )
    search: str = option(
        "all",
        "which of these rounds: `all`; `bisect`: about log2 of them, to find a structure's last that is not below the "
        "dense accuracy",
    )
    controls: list[str] = option(
        [],
        "Controls of every ticket that is retrained, each trained as it is: `controls=[reinit,small_dense]`."
        "<br>reinit: the same masks, other initial values, trained for the whole schedule"
        "<br>shuffle: as many channels, blocks or N:M weights, others at random; of structured tickets"
        "<br>random: as many weights of each layer, anywhere at random; runs whole"
        "<br>small_dense: a dense network of less `model.width` with the FLOPs of a structured ticket, for the whole "
        "schedule"
        "<br>small_dense_cycles: the same, trained for as many epochs as the ticket and its ancestors",
    )
    grown: list[str] = option(
        [],
        "Structures that are grown, `grown=[regroup]`: each round prunes the structured ticket that the last round "
        "trained, structures what is left, and trains that, as the smaller network that it is; no retraining follows. "
        "With `pruning.mode=learning_rate` weights keep their values from round to round. Controls, trained "
        "for as many "
        "rounds:<br>dense: prunes nothing<br>random: prunes weights at random",
    )
    growing: Growing = option(Growing(), "How the tickets of `grown` are made from each other.")
    recipe: str = option("paper", "name of what the group of that name sets; reports show it")
    structure: dict[str, Any] = option({}, "what the group of that name adds; `structure=[]` structures nothing")
    threads: int | None = option(
        None,
        "CPU threads of the job; null: one a core. Give each of several jobs on one machine its share",
        from_to(1, 1024),
    )
    transfer: dict[str, Any] = option(
        {"from": None},
        "a search's folder on other data, or a list of them: retrain their tickets, too; others: of "
        "every data set under paths.root",
    )
    execution: str = option(
        "shrunk",
        "how a channel ticket is retrained: `shrunk`, as the smaller network that it makes; `masked`, on the full one",
        one_of("shrunk", "masked"),
        determines="retraining",
    )
    retraining: Retraining = option(
        Retraining(), "How tickets are trained alone, and controls likewise.", determines="retraining"
    )
    measure: Measure | None = option(
        Measure(),
        "Time of every structured ticket's network against the dense one, interleaved; null: not measured, until the "
        "same command without it measures what is finished, on a machine that has nothing else to do",
    )
    checkpoint: Checkpoint = option(
        Checkpoint(),
        "A killed job goes on from its last checkpoint; SIGTERM and Ctrl-C save one before they end it.",
    )
    verdict: Rule = option(Rule(), "When a ticket wins, at the end of a sweep over seeds (`-m seed=0,1,2`).")
    plan: bool = option(
        False, "true: show how many trainings are still to be run and how long they take, and run nothing"
    )
    status: Any = option(
        False,
        "true: show what is done, running, failed or missing, and run nothing; all: of everything under paths.root",
        Allowed(lambda value: value is True or value is False or value == "all", "true, false or all"),
    )
    report: bool = option(
        True, "whether report/report.html is written at the end, of the search or of the sweep's jobs"
    )
    published: dict[str, Any] | None = option(
        {}, "figures of a paper that a preset (`experiment`) names, to be set beside ours: see experiment/paper.yaml"
    )
    labels: Labels = option(Labels(), "Names in tables and folders.")

    # What the groups add
    dataset: Dataset = option(Dataset(), determines="search", composed=False)
    data: dict[str, Any] = option(MISSING, determines="search")
    model: dict[str, Any] = option(MISSING, determines="search")
    classifier: dict[str, Any] = option(MISSING, determines="search")
    pruning: dict[str, Any] = option(MISSING, determines="search")
    trainer: dict[str, Any] = option(MISSING, determines="search")
    callbacks: dict[str, Any] = option(
        {},
        "callbacks of Lightning, or of your own, in every training: by a name of your choice each a `_target_`",
        determines="search",
    )
    logger: dict[str, Any] = option({}, composed=False)
    paths: Paths = option(Paths(), composed=False)

    # What the program itself notes in the configuration of a job, and presets for one another
    sweep: Any = option(None, composed=False)
    stability: Any = option(None, composed=False)
    # What presets take values of their own from.
    smoke_epochs: int | None = option(None, composed=False)
    weight_decay_of: dict[str, float] | None = option(None, composed=False)


@dataclass(frozen=True)
class Rounds:
    """The options of the group `pruning` that determine the tasks of a job; the class checks the others."""

    rounds: int = option(MISSING, allowed=from_to(0, MOST_ROUNDS))
    rate: float = option(MISSING, allowed=SHARE)
    density: Any = option(None, allowed=SHARES)
    next_round_from: str = option(MISSING)


MOST_PROCESSES = 4096


@dataclass(frozen=True)
class Training:
    """The options of the group `trainer` that Lightning does not check, or checks too late."""

    max_epochs: int = option(MISSING, allowed=from_to(1))
    accumulate_grad_batches: int = option(1, allowed=from_to(1))
    num_nodes: int = option(1, allowed=from_to(1, MOST_PROCESSES))
    devices: Any = option(
        "auto",
        allowed=Allowed(
            lambda value: not isinstance(value, int) or value <= MOST_PROCESSES,
            f"auto, a number up to {MOST_PROCESSES}, or a list of devices",
        ),
    )
    gradient_clip_val: float | None = option(None, allowed=POSITIVE)
    limit_train_batches: float | None = option(None, allowed=POSITIVE)
    limit_val_batches: float | None = option(None, allowed=POSITIVE)
    limit_test_batches: float | None = option(None, allowed=POSITIVE)


# Arguments of the trainer that a job sets itself, and what is there instead.
SET_BY_THE_JOB = {
    "callbacks": "name your own in the group callbacks: +callbacks.mine._target_=my_package.MyCallback",
    "logger": "choose by the group logger",
    "plugins": "processes and checkpoints need their own",
    "min_epochs": "every training lasts trainer.max_epochs, those of tickets what is left from pruning.rewind on",
    "max_steps": "set trainer.max_epochs",
    "min_steps": "set trainer.max_epochs",
    "fast_dev_run": "use debug=fdr",
    "use_distributed_sampler": "every process reads its own part of the data",
    "enable_progress_bar": "a terminal gets bars, a file lines",
    "enable_model_summary": "the table of layers is shown at the start",
    "enable_checkpointing": "see the options checkpoint.share and checkpoint.seconds",
}


@dataclass(frozen=True)
class Stability:
    """The options of `lt-lightning stability` beside those of the main job."""

    networks: list[str] = option(
        ["dense"],
        "dense, or the folder of a ticket: SEARCH/round_NN/STRUCTURE; both trainings enforce its masks",
        Allowed(bool, "a list of dense and folders of tickets"),
    )
    search: Any = option(
        None,
        "step of the bisection that finds the smallest stable rewind point, 1ep or 50it: among its multiples; null: "
        "only pruning.rewind is measured",
    )
    threshold: float = option(0.02, "share of the test images; a barrier below it is stable", SHARE)
    seeds: list[int] = option(
        [1, 2],
        "seeds of order and augmentation of the two trainings",
        Allowed(lambda value: len(value) == 2 and min(value) >= 0, "two whole numbers of at least 0"),
    )
    points: int = option(21, "number of points on the line, its ends included", from_to(3))
    batch_norm_batches: int = option(
        50,
        "batches of the training set that estimate the BatchNorm statistics at each point; fewer if an epoch has fewer",
        from_to(1),
    )


SEARCH_KEYS, RETRAINING_KEYS = (
    tuple(each.name for each in fields(JobOptions) if each.metadata["determines"] == kind)
    for kind in ("search", "retraining")
)


# Reading them


def options_of(config: DictConfig) -> JobOptions:
    """Return the options of a job, after their check.

    Raises:
        ValueError: naming the key, its value and what is allowed.
    """
    try:
        values = cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    except InterpolationKeyError as error:
        raise ValueError(_unresolved(error, config)) from None
    for path, node in nodes_of(values):
        if odd := [key for key in node if not isinstance(key, str)]:
            raise ValueError(f"{_below(path, str(odd[0]))}={shown(node[odd[0]])}: the key {odd[0]!r} must be a text")
    options = read(JobOptions, values)
    _check_made(options)
    for key, kind in (("pruning", Rounds), ("trainer", Training)):
        known = {each.name for each in fields(kind)}
        read(kind, {name: value for name, value in values[key].items() if name in known}, key)
    for key, instead in SET_BY_THE_JOB.items():
        if (value := options.trainer.get(key)) is not None:
            raise ValueError(f"trainer.{key}={shown(value)}: is set by the job; {instead}")
    sources = (UNSTRUCTURED, *options.structure)
    if (source := options.pruning["next_round_from"]) not in sources:
        near = did_you_mean(source, sources)
        raise ValueError(f"pruning.next_round_from={shown(source)}: must be one of {', '.join(sources)}{near}")
    if options.plan and options.status:
        raise ValueError(f"plan=true: status={shown(options.status)} is another request, ask for one")
    return options


def _check_made(options: JobOptions) -> None:
    """Look whether everything that is to be made of a node names what it is made by."""
    groups = {key: getattr(options, key) for key in ("structure", "callbacks", "logger")}
    nodes = {key: getattr(options, key) for key in ("data", "model", "classifier", "pruning", "trainer")}
    nodes |= {f"{key}.{name}": node for key, group in groups.items() for name, node in group.items()}
    for key, node in nodes.items():
        if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
            raise ValueError(f"{key}={shown(node)}: must be a node with a _target_, the name of a class")
    for name, node in options.structure.items():
        if name in (DENSE, UNSTRUCTURED) or not NAME.holds(name):
            raise ValueError(
                f"structure.{name}={shown(node)}: {DENSE} and {UNSTRUCTURED} are other tickets' names, and a slash "
                "cannot be in a folder's"
            )


def read(kind: type[Options], values: Any, key: str = "") -> Options:
    """Return the options of one kind from plain values.

    Args:
        kind: dataclass of the options.
        values: what was composed; options that are missing have their default.
        key: where the values stand in the configuration.

    Raises:
        ValueError: naming the key, its value and what is allowed.
    """
    if not isinstance(values, Mapping):
        names = ", ".join(each.name for each in fields(cast(Any, kind)))
        raise ValueError(f"{key}={shown(values)}: must have {names}")
    inner = {name: values[name] for name in nested_options(kind) if values.get(name) is not None}
    for name, value in inner.items():
        read(nested_options(kind)[name], value, _below(key, name))
    for name, hint in _hints(cast(Any, kind)).items():
        if not _is_kept(value := values.get(name), hint):
            raise ValueError(f"{_below(key, name)}={shown(value)}: must be {described(kind, name)}")
    try:
        made = cast(Options, OmegaConf.to_object(OmegaConf.merge(_schema(cast(Any, kind)), dict(values))))
    except OmegaConfBaseException as error:
        raise ValueError(_explained(kind, error, values, key)) from None
    except ValueError as error:
        raise ValueError(with_key(key, str(error))) from None
    for each in fields(cast(Any, kind)):
        allowed, value = each.metadata.get("allowed"), getattr(made, each.name)
        if allowed is not None and value is not None and not allowed.holds(value):
            raise ValueError(f"{_below(key, each.name)}={shown(value)}: must be {allowed.text}")
    return made


@cache
def _schema(kind: type[Any]) -> DictConfig:
    """Return the options of one kind with their defaults; to be merged with values, and not to be changed."""
    schema: DictConfig = OmegaConf.structured(kind)
    for node in (schema, *(schema[name] for name in nested_options(kind))):
        OmegaConf.set_readonly(node, False)  # frozen dataclasses are read-only
    return schema


@cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_kept(value: Any, hint: Any) -> bool:
    """Whether OmegaConf leaves a value as it is: it makes texts of numbers, and numbers of what is true or false."""
    if value is None or (isinstance(value, str) and value == MISSING):
        return True
    (kind,) = [each for each in (get_args(hint) if NoneType in get_args(hint) else [hint]) if each is not NoneType]
    if kind is str or get_origin(kind) in (list, dict):
        return fits(value, kind)
    return kind not in (int, float) or not isinstance(value, bool)


def nested_options(kind: type[Any]) -> dict[str, type[Any]]:
    """Return the options of one kind that are nodes of options themselves, by name."""
    parts = {name: (*get_args(hint), hint)[0] for name, hint in _hints(cast(Any, kind)).items()}
    return {name: part for name, part in parts.items() if inspect.isclass(part) and is_dataclass(part)}


def described(kind: type[Any], name: str) -> str:
    """Return in words what an option may be."""
    allowed: Allowed | None = next(each.metadata.get("allowed") for each in fields(kind) if each.name == name)
    hint = _hints(cast(Any, kind))[name]
    if name in nested_options(kind):
        text = f"a node of {', '.join(each.name for each in fields(nested_options(kind)[name]))}"
        return f"{text}, or null" if NoneType in get_args(hint) else text
    if allowed is None:
        return "" if hint is Any else describe(hint)
    return f"{allowed.text}, or null" if NoneType in get_args(hint) and "null" not in allowed.text else allowed.text


def defaults_of(kind: type[Any]) -> dict[str, Any]:
    """Return the defaults that a job is composed with, as plain values."""
    values = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(kind)))
    composed = {each.name for each in fields(kind) if each.metadata.get("composed", True)}
    return {name: value for name, value in values.items() if name in composed and value != MISSING}


def _unresolved(error: InterpolationKeyError, config: DictConfig) -> str:
    """Return one line about a key that takes the value of another one, which there is not."""
    missing = str(error).split("'")[1]
    node = missing.rpartition(".")[0]
    there = OmegaConf.select(config, node) if node else config
    known = f"; {node or 'there'} has {', '.join(map(str, there))}" if isinstance(there, DictConfig) else ""
    return f"{error.full_key}=${{{missing}}}: there is no {missing}{known}"


def _explained(kind: type[Any], error: OmegaConfBaseException, values: Mapping[str, Any], key: str) -> str:
    """Return one line about what OmegaConf refused."""
    name = str(error.full_key or "").partition("[")[0].partition(".")[0]
    full = _below(key, name)
    if isinstance(error, MissingMandatoryValue):
        return f"{_below(key, str(error.full_key))} is missing"
    if isinstance(error, ConfigKeyError):
        names = ", ".join(each.name for each in fields(kind))
        near = did_you_mean(name, names.split(", "))
        return f"{full}={shown(values.get(name))}: is no option; there is {names}{near}"
    return f"{full}={shown(values.get(name))}: must be {described(kind, name)}"


def _below(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def register(group: str | None = None) -> None:
    """Make the names that `conf/run.yaml` and `conf/stability.yaml` begin with known to Hydra.

    Args:
        group: group that the names belong to, if the configurations are not at the root of the search path.
    """
    # Jobs and sweeps that begin in one second have folders of their own: the digits are drawn once for each.
    OmegaConf.register_new_resolver("digits", lambda: secrets.token_hex(4), use_cache=True, replace=True)
    store = ConfigStore.instance()
    store.store("job", defaults_of(JobOptions), group)
    store.store("stability_job", {"stability": defaults_of(Stability)}, group)
