"""A folder of results that someone else has made names what it likes: nothing of it is imported or called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lt_lightning import load_network
from lt_lightning.experiment.run.job import Job
from lt_lightning.report.contents import collect
from lt_lightning.results.status import print_status, tasks_under
from lt_lightning.tickets.export.exporting import Source, export_ticket
from tests.cases import slow_but
from tests.tickets.export.conftest import finished

Config = dict[str, Any]
Compose = Callable[..., DictConfig]
EVIL = "from pathlib import Path\n\ndef run(*_, **__): Path({!r}).touch()\n\nrun()\n"


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is there as soon as the module `evil_module_` is imported, or the resolver `evil` called."""
    path = tmp_path / "mark"
    (tmp_path / "evil_module_.py").write_text(EVIL.format(str(path)))
    monkeypatch.syspath_prepend(tmp_path)
    OmegaConf.register_new_resolver("evil", path.touch)
    yield path
    OmegaConf.clear_resolver("evil")
    sys.modules.pop("evil_module_", None)


@pytest.fixture
def search(composed: Compose, tmp_path: Path) -> Path:
    """The folder of a search with one ticket, as a root has it that someone has sent."""
    folder = tmp_path / "runs" / "other-resnet8-s0-00000000"
    finished(folder, "resnet8", "stream")
    config: Any = OmegaConf.to_container(composed("model.width=8", "labels.data=other"), resolve=True)
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    return folder


def changed(search: Path, change: Callable[[Config], object]) -> None:
    config: Any = OmegaConf.to_container(OmegaConf.load(search / "config.yaml"))
    change(config)
    OmegaConf.save(OmegaConf.create(config), search / "config.yaml")


def exported(search: Path, allow: tuple[str, ...] = ()) -> dict[str, Any]:
    return export_ticket(search / "round_01" / "stream-0000", search.parents[1] / "out", ["safetensors"], allow=allow)


RUN = {"_target_": "evil_module_.run"}
ATTACKS: dict[str, Callable[[Config], object]] = {
    "network": lambda config: config["model"].update(RUN),
    "argument of the network": lambda config: config["model"].update(width=RUN),
    "list of the network": lambda config: config["model"].update(width=[{"a": RUN}]),
    "data": lambda config: config["data"].update(RUN),
    "criterion": lambda config: config["pruning"].update(criterion=RUN),
    "structure": lambda config: config["structure"].update(mine=RUN),
    "classifier": lambda config: config["classifier"].update(schedule=RUN),
    "trainer": lambda config: config["trainer"].update(RUN),
    "through ours": lambda config: config["model"].update(
        _target_="lt_lightning.models.bert.import_module", name="evil_module_"
    ),
    "interpolation": lambda config: config["model"].update(width="${evil:}"),
    "interpolated label": lambda config: config["labels"].update(data="${evil:}"),
    "interpolated figures": lambda config: config.update(published={"a": "${evil:}"}),
}


# One on each: the network, what is made of it, what is taken out of the package, a resolver.
QUICK = ["network", "list of the network", "criterion", "through ours", "interpolated label"]


@pytest.mark.parametrize("attack", slow_but(QUICK, ATTACKS))
def test_nothing_of_a_configuration_is_executed(attack: str, search: Path, mark: Path, composed: Compose) -> None:
    changed(search, ATTACKS[attack])
    with suppress(ValueError):
        exported(search)
    for path in (search, search.parent):
        collect(path)
        print_status(tasks_under(path), path, Console())
    for source in ("others", search):
        with suppress(ValueError):
            Job.of(composed("model.width=8", f"transfer.from={source}"))
    assert not mark.exists()
    assert "evil_module_" not in sys.modules


@pytest.mark.parametrize("attack", ["network", "data", "through ours", "interpolation"])
def test_the_refusal_names_file_and_class(attack: str, search: Path, mark: Path) -> None:
    changed(search, ATTACKS[attack])
    with pytest.raises(ValueError, match=r"config\.yaml: .*(evil|import_module)") as caught:
        exported(search)
    assert "\n" not in str(caught.value)


def test_ones_own_network_is_exported_if_it_is_allowed(
    search: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_nets_.py").write_text(
        "from lt_lightning.models.resnet import cifar_resnet\n\ndef net(**options): return cifar_resnet(**options)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    changed(search, lambda config: config["model"].update(_target_="my_nets_.net"))
    with pytest.raises(ValueError, match=r"'my_nets_\.net'"):
        exported(search)
    exported(search, allow=("my_nets_",))
    with pytest.raises(ValueError, match=r"'my_nets_\.net'"):
        load_network(tmp_path / "out")
    assert load_network(tmp_path / "out", ["my_nets_"])(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_a_network_larger_than_its_ticket_is_not_built(search: Path) -> None:
    for options in ({"depth": 6_000_002}, {"width": 1_000_000}):
        changed(search, lambda config, options=options: config["model"].update(options))  # type: ignore[misc]
        with pytest.raises(ValueError, match="larger than"):
            exported(search)


wrong: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, -1, 10**30, float("nan"), "", "x", [], [[]], {}, {"_target_": None}, RUN]
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_changed_configurations_are_refused_in_one_line(search: Path, mark: Path, data: st.DataObject) -> None:
    """Of what an export reads one value is replaced or left out; more than a refusal does not come of it."""
    path = search / "config.yaml"
    whole = path.read_text()
    key = data.draw(st.sampled_from(["model", "dataset", "data"]))
    name = data.draw(st.sampled_from([None, "_target_", "width", "depth", "channels", "size", "classes"]))
    value = data.draw(wrong)

    def change(config: Config) -> None:
        if name is None:
            config[key] = value
        elif value == {}:
            config[key].pop(name, None)
        else:
            config[key][name] = value

    changed(search, change)
    told = ""
    try:
        Source.read(search / "round_01" / "stream-0000")
    except ValueError as error:
        told = str(error)
    path.write_text(whole)
    assert len(told.splitlines()) < 2
    assert not mark.exists()
