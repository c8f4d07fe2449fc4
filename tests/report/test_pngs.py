"""Figures as SVG, within the page and as files: XML whose marks lie where the data say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from lt_lightning.report.figures import (
    COLOURS,
    INTERVALS,
    NARROW,
    SYMBOLS,
    WIDE,
    Axis,
    Curve,
    Figure,
    Level,
    custom_properties,
    nice_ticks,
    svg,
    write_svg,
)

# The place of the curves is 810 x 340 in a wide figure; the outermost points stand 16 within it.
AXIS = Axis("density in %", ticks=(100.0, 50.0, 25.0))
OURS = Curve("ours", ((100.0, 80.0), (50.0, 90.0), (25.0, 100.0)), COLOURS[1], "none", "circle")
FIGURE = Figure("a title", AXIS, "accuracy", (OURS,))
XML = "{http://www.w3.org/2000/svg}"


def parsed(figure: Figure, size: tuple[int, int] = WIDE) -> Element:
    return ElementTree.fromstring(svg(figure, size))


def found(root: Element, tag: str) -> Iterator[Element]:
    return root.iter(XML + tag)


def circles(root: Element) -> list[tuple[float, float]]:
    """Places of the circles outside the legend."""
    return [
        (float(each.attrib["cx"]), float(each.attrib["cy"]))
        for group in groups(root)
        for each in found(group, "circle")
    ]


def groups(root: Element) -> list[Element]:
    return [each for each in found(root, "g") if "data-keys" in each.attrib]


def texts(root: Element) -> dict[str, Element]:
    return {each.text or "": each for each in found(root, "text")}


def entries(root: Element) -> dict[str, str]:
    """Whether each entry of the legend is pressed."""
    keys = [each for each in found(root, "g") if each.get("class") == "key"]
    return {each.attrib["data-key"]: each.attrib["aria-pressed"] for each in keys}


def test_marks_lie_where_the_data_say_on_an_axis_that_falls_by_equal_factors() -> None:
    root = parsed(FIGURE)
    assert circles(root) == [(16, 324), (405, 170), (794, 16)]
    assert {float(texts(root)[tick].attrib["x"]) for tick in ("100", "50", "25")} == {16, 405, 794}
    assert float(texts(root)["90"].attrib["y"]) == 170 + 4
    (line,) = (each for each in found(root, "path") if each.get("stroke") == COLOURS[1] and each.get("fill") == "none")
    assert line.attrib["d"] == "M16.0 324.0L405.0 170.0L794.0 16.0"


def test_marks_lie_where_the_data_say_on_a_linear_axis_and_beside_it_if_shifted() -> None:
    curve = replace(OURS, points=((0.0, 0.0), (25.0, 1.0), (100.0, 4.0)), steps=True, shift=5.0)
    root = parsed(replace(FIGURE, x=Axis("saved"), curves=(curve,)))
    # A quarter of 778 is 194.5, a quarter of 308 is 77.
    assert circles(root) == [(21, 324), (215.5, 247), (799, 16)]
    assert any(each.attrib["d"] == "M21.0 324.0V247.0H215.5V16.0H799.0" for each in found(root, "path"))


@pytest.mark.parametrize("points", [(), ((50.0, 90.0),), ((50.0, 0.3), (25.0, 0.1 + 0.2))])
def test_values_that_do_not_differ_stand_in_the_middle(points: tuple[tuple[float, float], ...]) -> None:
    root = parsed(replace(FIGURE, curves=(replace(OURS, points=points),)))
    assert [y for _, y in circles(root)] == [170] * len(points)


@pytest.mark.parametrize("symbol", SYMBOLS)
def test_symbols_are_round_their_points(symbol: str) -> None:
    root = parsed(replace(FIGURE, curves=(replace(OURS, points=((50.0, 90.0),), symbol=symbol),)))
    (mark,) = (each for group in groups(root) for each in found(group, "polygon"))
    corners = [tuple(map(float, corner.split(","))) for corner in mark.attrib["points"].split()]
    assert sum(x for x, _ in corners) / len(corners) == pytest.approx(405, abs=0.1)
    assert sum(y for _, y in corners) / len(corners) == pytest.approx(170, abs=0.1)
    assert 3 < max(max(abs(x - 405), abs(y - 170)) for x, y in corners) < 4.9


def test_bands_and_the_level_lie_between_their_ends() -> None:
    curve = replace(OURS, interval=((80.0, 80.0), (85.0, 95.0), (100.0, 100.0)))
    root = parsed(replace(FIGURE, curves=(curve,), level=Level("dense", 85.0, 80.0, 90.0)))
    level, band, _ = groups(root)
    (rect,), (line,) = found(level, "rect"), found(level, "path")
    assert [float(rect.attrib[key]) for key in ("y", "height")] == [170, 154]
    assert line.attrib["d"] == "M0 247.0H810"
    (area,) = found(band, "path")
    assert area.attrib["d"] == "M16.0 324.0L405.0 93.0L794.0 16.0L794.0 16.0L405.0 247.0L16.0 324.0Z"
    assert band.attrib["data-keys"].split("\n") == ["ours", INTERVALS]


def test_a_level_s_wide_band_does_not_squeeze_the_curves() -> None:
    assert circles(parsed(replace(FIGURE, level=Level("dense", 90.0, 0.0, 100.0)))) == circles(parsed(FIGURE))
    # Up to twice as wide as the curves, it is shown whole: 40 points in 308 pixels.
    root = parsed(replace(FIGURE, level=Level("dense", 90.0, 70.0, 110.0)))
    assert [y for _, y in circles(root)] == [247, 170, 93]


def test_what_is_off_is_drawn_and_hidden_and_left_out_of_the_file(tmp_path: Path) -> None:
    other = replace(OURS, name="regroup|regroup_paper", points=((75.0, 85.0),), also=("round 3",))
    for off in ("regroup|regroup_paper", "round 3"):
        figure = replace(FIGURE, curves=(OURS, other), off=frozenset({off}))
        root = parsed(figure)
        assert [each.get("style") for each in groups(root)] == [None, "display:none"]
        assert groups(root)[1].attrib["data-keys"].split("\n") == ["regroup|regroup_paper", "round 3"]
        pressed = {"ours": "true", "regroup|regroup_paper": "true", "round 3": "true", off: "false"}
        assert entries(root) == pressed
        write_svg(tmp_path / "a.svg", figure)
        written = ElementTree.parse(tmp_path / "a.svg").getroot()
        assert circles(written) == circles(parsed(FIGURE))
        assert list(entries(written)) == ["ours"]


def test_files_stand_alone_in_the_colours_of_a_light_page(tmp_path: Path) -> None:
    write_svg(tmp_path / "a.svg", FIGURE)
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    assert "var(" not in text
    assert f'stroke="{custom_properties()["c1"]}"' in text
    assert set(re.findall(r"var\(--(\w+)\)", svg(FIGURE))) <= set(custom_properties(dark=True))


def test_text_of_any_kind_is_still_xml() -> None:
    odd = """<b>"it's" & 'that'|"""
    curve = replace(OURS, name=odd, texts=(odd, odd, odd), labels=(odd, odd, odd), also=(f"{odd}!",))
    figure = Figure(odd, Axis(odd), odd, (curve,), Level(f"{odd}?", 1.0, 1.0, 1.0))
    root = parsed(figure)
    assert list(entries(root)) == [f"{odd}?", odd, f"{odd}!"]
    assert groups(root)[1].attrib["data-keys"].split("\n") == [odd, f"{odd}!"]
    assert [each.get("data-text") for each in found(groups(root)[1], "circle")] == [odd] * 3


@pytest.mark.parametrize("size", [WIDE, NARROW])
@pytest.mark.parametrize("kinds", [1, 12, 23])
def test_nothing_of_the_legend_is_cut_off_or_covers_another(kinds: int, size: tuple[int, int]) -> None:
    names = [f"regroup_channels_of_group_size_{number}" for number in range(kinds)]
    root = parsed(replace(FIGURE, curves=tuple(replace(OURS, name=name) for name in names)), size)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = []
    for each in found(root, "g"):
        if each.get("class") == "key":
            x, y = map(float, re.findall(r"[\d.]+", each.attrib["transform"]))
            boxes.append((x - 3, y - 9, x - 3 + float(next(found(each, "rect")).attrib["width"]), y + 9))
    assert len(boxes) == kinds
    assert all(left >= 0 and right <= width and size[1] + bottom <= height for left, _, right, bottom in boxes)
    for index, (left, top, right, bottom) in enumerate(boxes):
        for before in boxes[:index]:
            assert left >= before[2] or right <= before[0] or top >= before[3] or bottom <= before[1]


def test_every_property_of_a_figure_is_drawn() -> None:
    figure = replace(FIGURE, level=Level("dense", 85.0, 85.0, 85.0))
    others = [
        replace(figure, level=Level("dense", 85.0, 84.0, 86.0)),
        replace(figure, title="another"),
        replace(figure, x=Axis("density in %")),
        replace(figure, y="error"),
        replace(figure, curves=()),
        replace(figure, off=frozenset({"ours"})),
        *(
            replace(figure, curves=(replace(OURS, **change),))
            for change in (
                {"name": "theirs"}, {"dash": "6 4"}, {"dash": ""}, {"symbol": "x"}, {"hollow": True}, {"steps": True},
                {"interval": ((79.0, 85.0), (89.0, 91.0), (99.0, 100.0))}, {"labels": ("here", "there", "")},
                {"texts": ("one", "two", "three")}, {"size": 20.0}, {"width": 5.0}, {"colour": COLOURS[2]},
                {"also": ("round 3",)}, {"shift": 5.0}, {"opacity": 0.5},
            )
        ),
    ]  # fmt: skip
    drawn = [svg(each) for each in [figure, *others]]
    assert len(set(drawn)) == len(drawn)


def test_ticks_are_round_and_whole_ones_are_whole() -> None:
    assert nice_ticks(88.7, 91.2, 6) == [89, 89.5, 90, 90.5, 91]
    assert nice_ticks(-1e-3, 3e-3, 5) == [-0.001, 0, 0.001, 0.002, 0.003]
    curve = replace(OURS, points=((1.0, 80.0), (3.0, 90.0)))
    root = parsed(Figure("", Axis("epoch", whole=True), "", (curve,)))
    below = [text for text, each in texts(root).items() if each.get("y") == str(340 + 16)]
    assert below == ["1", "2", "3"]
