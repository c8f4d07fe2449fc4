"""Loading a ticket that is anything but whole: one line, nothing executed, no memory taken, never a wrong ticket."""

from __future__ import annotations

import copy
import json
import resource
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor, nn

from lt_lightning.pruning.masks import digest
from lt_lightning.structures.base import LayerReport
from lt_lightning.structures.plan import Block, BlockPlan, ChannelPlan, Plan
from lt_lightning.tickets.card_file import digest_of_content
from lt_lightning.tickets.ticket import Ticket, make_card

Json = Any
EXECUTES = {
    "compile", "exec", "import", "pickle.find_class", "marshal.loads", "os.system", "os.exec", "os.posix_spawn",
    "subprocess.Popen", "ctypes.dlopen", "socket.connect", "os.remove", "os.rename", "os.mkdir",
}  # fmt: skip
SPARE = 1 << 30  # bytes of address space beyond what the tests already have
fuzzing = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

watching = False
seen: list[str] = []


def audit(event: str, args: tuple[Any, ...]) -> None:
    """Notes what Python itself reports as executing something, or writing a file."""
    writes = event == "open" and isinstance(args[1], str) and any(letter in args[1] for letter in "wax+")
    if watching and (event in EXECUTES or writes):
        seen.append(f"{event} {args}")


sys.addaudithook(audit)


@contextmanager
def watched() -> Iterator[None]:
    """Nothing is executed, and little memory taken, within."""
    global watching
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, limits[1]))
    watching = True
    seen.clear()
    try:
        yield
    finally:
        watching = False
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert seen == []


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))


PLANS: dict[str, Plan] = {
    "channels": ChannelPlan({"0": torch.tensor([0, 2]), "1": torch.tensor([0, 2])}, {"2": torch.tensor([0, 2])}),
    "blocks": BlockPlan("kernel_position", {"2": [Block(torch.tensor([0, 3]), torch.tensor([1, 2, 26]))]}),
}


def ticket(kind: str) -> Ticket:
    state = {name: value.clone() for name, value in network().state_dict().items()}
    masks = {"0.weight": torch.rand(3, 1, 3, 3) > 0.5, "2.weight": torch.rand(4, 3, 3, 3) > 0.5}
    layers = {"0": LayerReport(27, 13, 13, 18, 16, "channels", 0.75), "2": LayerReport(108, 54, 54, 54, 4, "dense")}
    trained = {name: value + 1 for name, value in state.items()} if kind == "channels" else None
    card = {"round": 1, "metrics": {"val/accuracy": 0.5}, "mask_digest": digest(masks)}
    return Ticket(masks, state, trained, PLANS[kind], layers, make_card(card))


def essence(found: Ticket) -> tuple[Any, ...]:
    """Everything in a ticket, comparable."""

    def bits(tensors: Any) -> Any:
        return tensors and {n: (v.dtype, tuple(v.shape), v.numpy().tobytes()) for n, v in tensors.items()}

    plan: Any = found.plan
    if isinstance(plan, ChannelPlan):
        plan = (bits(plan.outputs), bits(plan.inputs))
    elif isinstance(plan, BlockPlan):
        blocks = {n: [(b.rows.tolist(), b.columns.tolist()) for b in found] for n, found in plan.blocks.items()}
        plan = (plan.granularity, blocks)
    layers = json.dumps({name: vars(report) for name, report in found.layers.items()}, sort_keys=True)
    card = json.dumps(found.card, sort_keys=True)  # as text: what is not a number does not equal itself
    return bits(found.masks), bits(found.rewind), bits(found.trained), plan, layers, card


@pytest.fixture(scope="module", params=PLANS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, Ticket, Path]:
    """A good file's content, its ticket, and a place for a bad one."""
    folder = tmp_path_factory.mktemp("fuzz")
    torch.manual_seed(0)
    made = ticket(request.param)
    made.save(folder / "good")
    assert essence(Ticket.load(folder / "good")) == essence(made)  # and everything is imported by now
    return (folder / "good.safetensors").read_bytes(), made, folder / "bad.safetensors"


def loaded(path: Path, content: bytes) -> Ticket | None:
    """The ticket, or None if it was refused as it should be."""
    path.write_bytes(content)
    found, told = None, ""
    with watched():
        try:
            found = Ticket.load(path)
        except ValueError as error:
            told = str(error)
    if found is None:
        assert told.startswith(f"{path} ")
        assert told.isprintable()  # so it is one line, and no terminal obeys it
        assert len(told) < len(str(path)) + 400
        assert "alloc" not in told
    return found


def refused_or_equal(content: bytes, made: Ticket, path: Path) -> None:
    found = loaded(path, content)
    assert found is None or essence(found) == essence(made)


# The file


def header_of(content: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return content[8 : 8 + length], content[8 + length :]


def with_header(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@fuzzing
@given(st.binary(max_size=300), st.booleans())
def test_random_bytes(whole: tuple[bytes, Ticket, Path], content: bytes, framed: bool) -> None:
    path = whole[2]
    assert loaded(path, with_header(content, b"") if framed else content) is None


@fuzzing
@given(st.data())
def test_flipped_bits_of_every_region(whole: tuple[bytes, Ticket, Path], data: st.DataObject) -> None:
    content, made, path = whole
    header, values = header_of(content)
    begin, end = data.draw(st.sampled_from([(0, 8), (8, 8 + len(header)), (len(content) - len(values), len(content))]))
    changed = bytearray(content)
    for position in data.draw(st.lists(st.integers(begin, end - 1), min_size=1, max_size=4)):
        changed[position] ^= 1 << data.draw(st.integers(0, 7))
    refused_or_equal(bytes(changed), made, path)


@fuzzing
@given(st.data())
def test_cut_repeated_and_moved_pieces(whole: tuple[bytes, Ticket, Path], data: st.DataObject) -> None:
    content, made, path = whole
    begin, end = sorted((data.draw(st.integers(0, len(content))), data.draw(st.integers(0, len(content)))))
    piece = content[begin:end]
    changes = [content[:begin], content[end:], content[:begin] + content[end:], content[:end] + piece + content[end:]]
    changes += [content + piece, content[:begin] + bytes(len(piece)) + content[end:]]
    refused_or_equal(data.draw(st.sampled_from(changes)), made, path)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 1 << 20, 100_000_001, (1 << 31) - 1, 1 << 40, 1 << 63, (1 << 64) - 1])
def test_impossible_header_lengths(whole: tuple[bytes, Ticket, Path], length: int) -> None:
    header, values = header_of(whole[0])
    assert loaded(whole[2], with_header(header, values, length)) is None


def test_a_large_file_that_is_no_ticket_is_refused_unread(tmp_path: Path) -> None:
    """A sparse file of 4 GB, more than the memory that is allowed."""
    path = tmp_path / "model.safetensors"
    header = json.dumps({"w": {"dtype": "U8", "shape": [1 << 32], "data_offsets": [0, 1 << 32]}}).encode()
    path.write_bytes(with_header(header, b""))
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + (1 << 32))
    with watched(), pytest.raises(ValueError, match=f"^{path} .*card"):
        Ticket.load(path)


# Its header

HUGE = [
    -1,
    1 << 31,
    1 << 32,
    1 << 62,
    (1 << 63) - 1,
    1 << 63,
    1 << 64,
    10**400,
    1e308,
    -0.0,
    float("nan"),
    float("inf"),
]
DEEP = "deep"  # stands for 200,000 brackets, which no value in Python could hold
DEEPLY = "[" * 200_000 + "]" * 200_000
json_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_values = st.recursive(
    json_leaves | st.sampled_from([*HUGE, DEEP, "\ud800\n\x1b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Json, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways into a JSON value, to everything in it."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [before, *(place for key, part in inside for place in places(part, (*before, key)))]


def edited(value: Json, data: st.DataObject) -> Json:
    """The value with something in it removed, replaced or added."""
    value = copy.deepcopy(value)
    for _ in range(data.draw(st.integers(1, 2))):
        *way, last = data.draw(st.sampled_from(places(value)[1:] or [("new",)]))
        inner = value
        for key in way:
            inner = inner[key]
        match data.draw(st.sampled_from(["remove", "replace", "add"])):
            case "remove" if not (isinstance(inner, dict) and last not in inner):
                del inner[last]
            case "add" if isinstance(inner, dict):
                inner[data.draw(st.sampled_from(["", "mask/0.weight", "trained/0.weight", "plan", "other"]))] = (
                    data.draw(st.sampled_from([inner.get(last), 1]) | json_values)
                )
            case _:
                inner[last] = data.draw(json_values)
    return value


def dumped(value: Json) -> str:
    return json.dumps(value).replace(f'"{DEEP}"', DEEPLY)


@fuzzing
@given(st.data())
def test_edited_headers(whole: tuple[bytes, Ticket, Path], data: st.DataObject) -> None:
    content, made, path = whole
    header, values = header_of(content)
    refused_or_equal(with_header(dumped(edited(json.loads(header), data)).encode(), values), made, path)


@fuzzing
@given(st.data())
def test_edited_cards(whole: tuple[bytes, Ticket, Path], data: st.DataObject) -> None:
    content, made, path = whole
    raw, values = header_of(content)
    header = json.loads(raw)
    header["__metadata__"]["card"] = dumped(edited(json.loads(header["__metadata__"]["card"]), data))
    refused_or_equal(with_header(json.dumps(header).encode(), values), made, path)


@fuzzing
@given(st.data())
def test_keys_given_twice(whole: tuple[bytes, Ticket, Path], data: st.DataObject) -> None:
    """What stands where is up to the parser: it may take the first, the last, or refuse."""
    content, made, path = whole
    raw, values = header_of(content)
    header = json.loads(raw)
    where = data.draw(st.sampled_from(["header", "metadata", "card"]))
    text = {
        "header": raw.decode(),
        "metadata": json.dumps(header["__metadata__"]),
        "card": header["__metadata__"]["card"],
    }[where]
    whole_value = json.loads(text)
    key = data.draw(st.sampled_from(sorted(whole_value)))
    other = data.draw(st.sampled_from(sorted(whole_value)))
    given_value = data.draw(st.just(whole_value[other]) | json_values.filter(lambda value: value != DEEP))
    pair = f"{json.dumps(key)}: {json.dumps(given_value)}"
    twice = f"{{{pair}, {text[1:]}" if data.draw(st.booleans()) else f"{text[:-1]}, {pair}}}"
    if where == "card":
        header["__metadata__"]["card"] = twice
    new = {"header": twice, "card": json.dumps(header)}.get(where)
    if new is None:
        new = json.dumps({k: v for k, v in header.items() if k != "__metadata__"})[:-1] + f', "__metadata__": {twice}}}'
    refused_or_equal(with_header(new.encode(), values), made, path)


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E4M3", "F8_E8M0", "C64", "U64", "BOOL", "I8", "X", "", "é"])
def test_other_types_of_the_same_bytes(whole: tuple[bytes, Ticket, Path], dtype: str) -> None:
    content, _, path = whole
    raw, values = header_of(content)
    header = json.loads(raw)
    for entry in header.values():
        if entry.get("dtype") == "F32":
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            entry.update(dtype=dtype, shape=[size])
    assert loaded(path, with_header(json.dumps(header).encode(), values)) is None


@pytest.mark.parametrize("shape", [[0, 1 << 62], [1 << 62, 0, 1 << 62], [0, (1 << 64) - 1], [0] * 70, [1] * 300])
def test_impossible_shapes_of_few_bytes(whole: tuple[bytes, Ticket, Path], shape: list[int]) -> None:
    content, _, path = whole
    raw, values = header_of(content)
    header = json.loads(raw)
    header["none"] = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    assert loaded(path, with_header(json.dumps(header).encode(), values)) is None


# A card and tensors with a digest that fits: someone meant to


def forged(content: bytes, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> bytes:
    card = json.loads(json.loads(header_of(content)[0])["__metadata__"]["card"])
    tensors = load(content)
    change(card, tensors)
    if isinstance(card, dict):
        card.pop("digest", None)
        card["digest"] = digest_of_content(tensors, card)
    return save(tensors, metadata={"card": json.dumps(card)})


@fuzzing
@given(st.data())
def test_forged_cards_are_refused_or_consistent(whole: tuple[bytes, Ticket, Path], data: st.DataObject) -> None:
    content, _, path = whole

    def change(card: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        new = edited({key: value for key, value in card.items() if key != "digest"}, data)
        card.clear()
        card.update(new)
        if data.draw(st.integers(0, 1)) and tensors:
            name = data.draw(st.sampled_from(sorted(tensors)))
            was = tensors[name]
            others = [was.flatten()[:0], was.flatten().double(), -was]
            tensors[name] = others[data.draw(st.integers(0, 2))]

    found = loaded(path, forged(content, change))
    if found is not None:
        found.save(path)
        assert essence(Ticket.load(path)) == essence(found)
        with_network(found)


def with_network(found: Ticket) -> None:
    """It fits the network, or says in one line why not."""
    told = ""
    try:
        found.apply(network())
    except ValueError as error:
        told = str(error)
    assert not told or told.isprintable()


def set_in(card: dict[str, Any], key: str, value: Any) -> None:
    card[key] = value


def mapped(value: Json, change: Callable[[int], Any]) -> Json:
    """The JSON value with every whole number in it changed."""
    if isinstance(value, dict):
        return {key: mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [mapped(inner, change) for inner in value]
    return change(value) if isinstance(value, int) else value


BLOCKS = {"kind": "blocks", "granularity": "kernel_position"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c, t: set_in(c, "shapes", {**c["shapes"], "0.weight": [3, 1, 9]}), "0.weight"),
        (lambda c, t: set_in(c, "shapes", {**c["shapes"], "0.weight": [1 << 40, 1 << 40]}), "a mask of shape"),
        (lambda c, t: set_in(c, "shapes", {"0.weight": [3, 1, 3, 3]}), "2.weight"),
        (lambda c, t: set_in(c, "mask_digest", "0" * 64), "masks"),
        (lambda c, t: t["mask/0.weight"].bitwise_not_(), "masks"),
        (lambda c, t: t.pop("rewind/2.weight"), "2.weight"),
        (lambda c, t: t.update({"extra": torch.ones(1)}), "extra"),
        (lambda c, t: c["layers"]["0"].update(form="nothing"), "form='nothing'"),
        (lambda c, t: c["layers"]["0"].update(size=-1), "size=-1"),
        (lambda c, t: c["layers"]["0"].update(size=0), "size=0"),
        (lambda c, t: c["plan"].update(kind="weights"), "'weights'"),
        (lambda c, t: set_in(c, "plan", mapped(c["plan"], lambda index: index + 99)), "plan of "),
        (lambda c, t: set_in(c, "plan", {"kind": "channels", "outputs": {"9": [0]}, "inputs": {}}), "'9'"),
        (lambda c, t: set_in(c, "plan", {"kind": "n_m", "n": 2, "m": 4, "layers": ["9"]}), "'9'"),
        (lambda c, t: set_in(c, "plan", {**BLOCKS, "blocks": {"9": [[[0], [0]]]}}), "'9'"),
        (lambda c, t: set_in(c, "plan", {**BLOCKS, "blocks": {"2": []}}), "'2'"),
        (lambda c, t: set_in(c, "plan", BLOCKS), "blocks"),
        (lambda c, t: set_in(c, "plan", mapped(c["plan"], lambda index: -index - 1)), "plan of "),
        (lambda c, t: set_in(c, "plan", mapped(c["plan"], lambda index: index + 0.5)), "indices"),
        (lambda c, t: set_in(c, "plan", mapped(c["plan"], lambda index: index > 0)), "indices"),
        (lambda c, t: set_in(c, "plan", mapped(c["plan"], lambda index: [index])), "indices"),
        (lambda c, t: set_in(c, "plan", mapped(c["plan"], lambda index: index + (1 << 64))), "verflow"),
    ],
)
def test_forged_parts_that_do_not_fit(
    whole: tuple[bytes, Ticket, Path],
    change: Callable[[dict[str, Any], dict[str, Tensor]], None],
    told: str,
) -> None:
    content, _, path = whole
    path.write_bytes(forged(content, change))
    with watched(), pytest.raises(ValueError, match=f"^{path} ") as caught:
        Ticket.load(path)
    assert told in str(caught.value)
    assert str(caught.value).isprintable()


def test_card_and_tensors_of_different_tickets(tmp_path: Path) -> None:
    """Each is good; the two together are not."""
    for kind in PLANS:
        ticket(kind).save(tmp_path / kind)
    one, other = ((tmp_path / f"{kind}.safetensors").read_bytes() for kind in PLANS)
    card = json.loads(header_of(other)[0])["__metadata__"]
    path = tmp_path / "mixed.safetensors"
    assert loaded(path, save(load(one), metadata=card)) is None
    with pytest.raises(ValueError, match="digest"):
        Ticket.load(path)


def test_a_ticket_in_memory_does_not_change_with_its_file(whole: tuple[bytes, Ticket, Path]) -> None:
    """A file mapped into memory would, or end the process when it gets shorter."""
    content, made, path = whole
    path.write_bytes(content)
    found = Ticket.load(path)
    with path.open("r+b") as file:
        file.write(bytes(len(content)))
        file.truncate(10)
    assert essence(found) == essence(made)
