"""What is exported computes what the masked network computes, whoever loads it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lt_lightning import load_network
from lt_lightning.structures.plan import BlockPlan
from lt_lightning.tickets.export import network_file
from lt_lightning.tickets.export.exporting import export_ticket
from lt_lightning.tickets.ticket import Ticket

if TYPE_CHECKING:
    from tests.tickets.export.conftest import Export, Exported

SLOW = pytest.mark.slow
CASES = [
    pytest.param("resnet8", "unstructured", marks=SLOW),
    ("resnet8", "stream"),
    pytest.param("resnet8", "inner", marks=SLOW),
    pytest.param("resnet8", "independent", marks=SLOW),
    ("resnet8", "kernel_position"),
    pytest.param("resnet8", "input_channel", marks=SLOW),
    pytest.param("vgg11", "independent", marks=SLOW),
    pytest.param("vgg11", "kernel_position", marks=SLOW),
    pytest.param("vgg11", "input_channel", marks=SLOW),
    pytest.param("mobilenet", "stream", marks=SLOW),
    pytest.param("mobilenet", "kernel_position", marks=SLOW),
    pytest.param("mobilenet", "input_channel", marks=SLOW),
]


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


def from_onnx(path: Path, batch: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": batch.numpy()})
    return torch.from_numpy(logits)


@pytest.mark.parametrize(("model", "structure"), CASES)
def test_every_format_gives_the_masked_networks_logits(model: str, structure: str, export: Export) -> None:
    exported = export(model, structure)
    program = torch.export.load(exported.output / "network.pt2").module()
    network = load_network(exported.output)
    for count in (1, 2, 5):
        batch = images(count)
        expected = exported.logits(batch)
        assert expected.std() > 0.01
        with torch.no_grad():
            for got in (network(batch), program(batch), from_onnx(exported.output / "network.onnx", batch)):
                torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert {*exported.card["formats"]} == {"safetensors", "pt2", "onnx"}
    for facts in exported.card["formats"].values():
        assert 0 <= facts["difference"] < 1e-5


def convolutions(exported: Exported) -> list[tuple[int, tuple[int, ...]]]:
    """Groups and weight shape of every convolution of the ONNX file."""
    graph = onnx.load(exported.output / "network.onnx").graph
    shapes = {value.name: tuple(value.dims) for value in graph.initializer}
    found = []
    for node in graph.node:
        if node.op_type == "Conv":
            groups = {attribute.name: attribute.i for attribute in node.attribute}["group"]
            found.append((groups, shapes[node.input[1]]))
    return found


@SLOW
@pytest.mark.parametrize("model", ["resnet8", "vgg11", "mobilenet"])
def test_whole_channels_become_grouped_convolutions_in_onnx(model: str, export: Export) -> None:
    exported = export(model, "input_channel")
    ticket = Ticket.load(exported.source / "ticket")
    assert ticket.rewind is not None
    expected = Counter[tuple[int, tuple[int, ...]]]()
    for name, blocks in ticket.plan.blocks.items():  # type: ignore[union-attr]
        filters, _, *kernel = ticket.rewind[f"{name}.weight"].shape
        expected[len(blocks), (filters, max(len(block.columns) for block in blocks), *kernel)] += 1
    assert expected
    assert not expected - Counter(convolutions(exported))
    assert exported.card["formats"]["onnx"]["run_dense"] == []


def test_single_kernel_positions_run_dense_in_onnx_and_the_card_says_so(export: Export) -> None:
    exported = export("resnet8", "kernel_position")
    plan = Ticket.load(exported.source / "ticket").plan
    assert isinstance(plan, BlockPlan)
    names = sorted(plan.blocks)
    formats = exported.card["formats"]
    assert formats["onnx"]["run_dense"] == names
    assert formats["pt2"]["needs_import"] == ["lt_lightning.execution.blocks.operators"]
    program = torch.export.load(exported.output / "network.pt2")
    targets = Counter(str(node.target) for node in program.graph.nodes)
    assert targets["lt_lightning.block_conv2d.default"] == len(names)
    assert export("resnet8", "stream").card["formats"]["pt2"]["needs_import"] == []


def test_a_refilled_network_is_as_small_everywhere(export: Export) -> None:
    """Its parameters are those that the ticket's card counts."""
    exported = export("resnet8", "stream")
    parameters = exported.card["network"]["parameters"]
    assert parameters == pytest.approx(exported.card["ticket"]["params_ratio"] * 78042 / 4, rel=0.1)
    weights = load_file(exported.output / "network.safetensors")
    learned = [v for n, v in weights.items() if not n.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert sum(value.numel() for value in learned) == parameters
    assert sum(shape[0] * shape[1] * shape[2] * shape[3] for _, shape in convolutions(exported)) < parameters


def test_the_card_beside_it(export: Export) -> None:
    exported = export("resnet8", "kernel_position")
    card = json.loads((exported.output / "card.json").read_text())
    assert card == exported.card
    ticket = Ticket.load(exported.source / "ticket")
    assert card["ticket"] == ticket.card
    assert card["place"] == "search/round_01/kernel_position-0000"
    assert card["layers"].keys() == ticket.layers.keys()
    assert card["versions"]["onnxruntime"] == onnxruntime.__version__
    sizes = {file: size for facts in card["formats"].values() for file, size in facts["bytes"].items()}
    files = {path.name: path.stat().st_size for path in exported.output.iterdir()}
    assert files.pop("card.json") > 0
    assert sizes == files


def test_no_layer_left_dense_unless_measured_so(export: Export, tmp_path: Path) -> None:
    exported = export("resnet8", "kernel_position")
    assert exported.card["network"]["left_dense"] == []
    card = export_ticket(exported.source, tmp_path / "measured", ["safetensors"], batch_size=2)
    computed = card["network"]["computed_by"]
    assert card["network"]["left_dense"] == [name for name, form in computed.items() if form == "dense"]
    torch.testing.assert_close(
        load_network(tmp_path / "measured")(images(3)), exported.logits(images(3)), rtol=1e-4, atol=1e-5
    )


def test_weights_of_n_in_m_are_exported_dense_with_their_zeros(export: Export) -> None:
    exported = export("mobilenet", "n:m", ("safetensors",))
    plan = Ticket.load(exported.source / "ticket").plan
    assert exported.card["network"]["left_dense"] == list(plan.layers)  # type: ignore[union-attr]
    assert exported.card["network"]["left_dense"]
    network, masked = load_network(exported.output).state_dict(), exported.masked.state_dict()
    assert network.keys() == masked.keys()
    assert all(torch.equal(value, masked[name]) for name, value in network.items())


FRESH = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime

def same(got):
    np.testing.assert_allclose(got, np.load(folder / "expected.npy"), rtol=1e-4, atol=1e-5)

folders = [Path(name) for name in ("stream", "kernel_position")]
batch = np.load("batch.npy")
for folder in folders:
    session = onnxruntime.InferenceSession(str(folder / "network.onnx"), providers=["CPUExecutionProvider"])
    same(session.run(None, {"images": batch})[0])
assert "torch" not in sys.modules and "lt_lightning" not in sys.modules

import torch
import lt_lightning.execution.blocks.operators
for folder in folders:
    same(torch.export.load(folder / "network.pt2").module()(torch.from_numpy(batch)).detach())
assert "pytorch_lightning" not in sys.modules and "lt_lightning.tickets.export" not in sys.modules

from lt_lightning import load_network
for folder in folders:
    network = load_network(folder)
    same(network(torch.from_numpy(batch)).detach())
    network.train()(torch.from_numpy(batch)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
"""


def test_a_fresh_process_needs_the_exported_folder_alone(export: Export, tmp_path: Path) -> None:
    batch = images(3)
    np.save(tmp_path / "batch.npy", batch.numpy())
    for structure in ("stream", "kernel_position"):
        exported = export("resnet8", structure)
        shutil.copytree(exported.output, tmp_path / structure)
        np.save(tmp_path / structure / "expected.npy", exported.logits(batch).numpy())
    subprocess.run([sys.executable, "-c", FRESH], check=True, cwd=tmp_path, timeout=300)


# Refusals


def test_an_output_folder_with_something_in_it_is_left_alone(export: Export, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=f"^{tmp_path} "):
        export_ticket(export("resnet8", "stream").source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_other_logits_are_refused_and_nothing_stays(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = export("resnet8", "stream").source
    monkeypatch.setattr(network_file, "relative_difference", lambda got, expected: 2e-4)
    with pytest.raises((RuntimeError, ValueError), match=r"\b2\.0e-04\b"):
        export_ticket(source, tmp_path / "out" / "here")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_no_finished_ticket_is_refused(export: Export, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "ticket")):
        export_ticket(tmp_path, tmp_path / "out")
    source = export("resnet8", "stream").source
    alone = tmp_path / "a" / "round_01" / "stream"
    shutil.copytree(source, alone)
    with pytest.raises(FileNotFoundError, match=r"config\.yaml: .*SEARCH/round_NN/STRUCTURE"):
        export_ticket(alone, tmp_path / "out")
    (tmp_path / "a" / "config.yaml").write_text("model: [")
    with pytest.raises(ValueError, match=r"config\.yaml "):
        export_ticket(alone, tmp_path / "out")
    (tmp_path / "a" / "config.yaml").write_text("{model: {}, data: {}, dataset: {vocabulary: 17, length: 64}}")
    with pytest.raises(ValueError, match=r"dataset\.vocabulary=17: "):
        export_ticket(alone, tmp_path / "out")
    ticket = Ticket.load(source / "ticket")
    Ticket(ticket.masks, ticket.rewind, None, ticket.plan, ticket.layers, ticket.card).save(alone / "ticket")
    with pytest.raises(ValueError, match=str(alone)):
        export_ticket(alone, tmp_path / "out")
    with pytest.raises(ValueError, match=r"^formats='tflite': .*safetensors, pt2, onnx"):
        export_ticket(source, tmp_path / "out", ["tflite"])
    assert not (tmp_path / "out").exists()


def test_a_ticket_beside_the_configuration_of_another_network(export: Export, tmp_path: Path) -> None:
    search = tmp_path / "search"
    shutil.copytree(export("resnet8", "stream").source.parents[1], search)
    shutil.copy(export("vgg11", "stream", ("safetensors",)).source.parents[1] / "config.yaml", search)
    with pytest.raises(ValueError, match=r"\bVGG\b"):
        export_ticket(search / "round_01" / "stream-0000", tmp_path / "out")


def test_without_the_extra_all_but_onnx_works(export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)  # any import of it fails
    source = export("resnet8", "stream").source
    with pytest.raises(ImportError, match=r"onnx, onnxscript, onnxruntime: .*'lt-lightning\[export\]'"):
        export_ticket(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    card = export_ticket(source, tmp_path / "out", ["safetensors", "pt2"])
    assert list(card["formats"]) == ["safetensors", "pt2"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "card.json", "network.json", "network.pt2", "network.safetensors",
    ]  # fmt: skip
