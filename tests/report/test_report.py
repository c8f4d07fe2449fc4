"""The report of made and of broken folders, its tables, and the page in a real browser."""

from __future__ import annotations

import csv
import json
import re
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from lt_lightning.report.collect import collect
from lt_lightning.report.layers import layer_rows
from lt_lightning.report.tables import HEADINGS, latex, markdown
from lt_lightning.report.write import write_report
from lt_lightning.study.aggregate import aggregate
from lt_lightning.study.failures import Failure
from lt_lightning.study.places import tasks_of
from lt_lightning.study.results import Result
from lt_lightning.study.sweep import Job

pytest.importorskip("plotly", reason="plotly (extra `report`) is not installed")


class _Places(HTMLParser):
    """Counts figures and collects ids, nesting checked."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: list[int] = []
        self.parts: list[str] = []
        self.open: list[str] = []
        self.remote: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in ("meta", "link"):
            self.open.append(tag)
        if values.get("class") == "figure":
            self.figures.append(int(values["data-figure"] or ""))
        if tag == "section":
            self.parts.append(values["id"] or "")
        self.remote += [
            value for key in ("src", "href") if (value := values.get(key)) and not value.startswith("data:")
        ]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _figures(html: str) -> list[dict[str, Any]]:
    match = re.search(r'id="figures">(.*?)</script>', html, re.S)
    assert match
    found: list[dict[str, Any]] = json.loads(match[1])
    return found


def test_one_file_holds_every_part_and_loads_nothing(runs: Path) -> None:
    file = write_report(runs)
    html = file.read_text(encoding="utf-8")
    page = _Places()
    page.feed(html)
    assert page.parts == ["overview", "accuracy", "trade", "layers", "masks", "learning", "costs", "origin"]
    assert page.figures == list(range(len(_figures(html))))
    assert not page.remote
    assert not page.open
    assert "Everything that was asked for is finished." in html
    assert {path.name for path in file.parent.glob("*.png")} == {
        f"{name}-digits_resnet8.png" for name in ("accuracy", "saved-inference", "saved-training", "saved-flops")
    }


def test_figures_show_means_over_seeds(runs: Path) -> None:
    traces = {trace["name"]: trace for trace in _figures(write_report(runs).read_text(encoding="utf-8"))[0]["data"]}
    assert traces["dense network"]["y"] == pytest.approx([91, 91])
    assert traces["unstructured"]["y"] == pytest.approx([92])
    assert traces["refill"]["y"] == pytest.approx([89.5])
    assert traces["regroup"]["x"] == pytest.approx([50])
    # Regroup is as accurate as dense, but runs whole: it leaves nothing out, and is no extreme ticket.
    assert traces["extreme ticket by the mean"]["y"] == pytest.approx([92])


def test_layers_that_fell_back_and_the_cost_are_named(runs: Path) -> None:
    html = write_report(runs).read_text(encoding="utf-8")
    assert html.count("Fell back to dense: conv.") == 2  # regroup, of each seed
    assert "too few" in html
    assert html.count(": not recorded.") == 1  # the machine, of the second search
    assert "a processor" in html
    # 10 s + 5 s of search, and twice 10 s of retraining: 1.5 and 3.5 dense trainings
    assert re.search(r">15\.0</td><td>1\.50</td><td>20\.0</td><td>3\.50<", html)


def test_layer_rows_by_hand() -> None:
    layer = {"size": 16, "asked": 8, "kept": 4, "executed": 6, "positions": 10, "form": "channels", "note": ""}
    card = {"structure": "refill", "prunable": ["a"], "left_dense": [], "layers": {"a": layer, "broken": {}}}
    (row,) = layer_rows(card)
    assert (row.asked, row.achieved, row.flops_before, row.flops_after, row.fell_back) == (0.5, 0.375, 160, 60, False)


def test_tables_agree(runs: Path) -> None:
    folder = write_report(runs).parent
    with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == HEADINGS
    assert len(rows) == 5
    refill = dict(zip(rows[0], next(row for row in rows if "refill" in row), strict=True))
    assert (refill["accuracy %"], refill["vs dense"], refill["FLOPs"], refill["seeds"]) == (
        "89.50",
        "-1.50",
        "0.500",
        "2",
    )
    lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in [lines[0], *lines[2:]]] == rows


def test_latex_and_markdown_escape() -> None:
    values: dict[str, Any] = {
        field.name: {"str": "a_b|c&d", "int": 1, "float": 0.5}[str(field.type)] for field in fields(Result)
    }
    values["twin"] = ""
    rows = aggregate([("", Result(**values))])
    assert r"a\_b|c\&d" in latex(rows)
    assert r"a_b\|c&d" in markdown(rows)
    assert latex(rows).count(r"\\") == 2
    assert {line.replace(r"\&", "").count("&") for line in latex(rows).splitlines() if line.endswith(r"\\")} == {13}


def test_an_empty_folder_gives_a_report_that_says_so(tmp_path: Path) -> None:
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "nothing has been run here" in html
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write_report(tmp_path / "none")


def test_what_is_missing_damaged_or_failed_is_named(runs: Path, configs: list[DictConfig]) -> None:
    search, *cells = tasks_of(configs[0])
    other, *_ = tasks_of(configs[1])
    (cells[0].folder / "result.json").unlink()
    Failure("disk full <b>", 0.0, "").save(cells[0].folder)
    (cells[1].folder / "result.json").write_text("{", encoding="utf-8")
    (cells[1].folder / "ticket.json").write_text("[", encoding="utf-8")
    (search.folder / "rounds.json").write_text("{}", encoding="utf-8")
    (search.folder / "metrics.csv").write_text("step\nx\n", encoding="utf-8")
    (other.folder / "config.yaml").write_text("- 1", encoding="utf-8")
    (search.parts[1] / "ticket.safetensors").write_bytes(b"cut")
    missing = "\n".join(collect(runs).missing)
    assert "failed (disk full <b>)" in missing
    assert "counts as missing" in missing
    assert f"{other.folder.name}/config.yaml cannot be used: it holds no options by name" in missing
    html = write_report(runs).read_text(encoding="utf-8")
    assert "disk full &lt;b&gt;" in html
    assert "disk full <b>" not in html


def test_a_search_alone_and_a_sweep_alone(runs: Path, configs: list[DictConfig]) -> None:
    tasks = tasks_of(configs[1])
    alone = collect(tasks[0].folder)
    assert [search.seed for search in alone.searches] == [1]
    assert len(alone.results) == 4
    jobs = runs / "jobs" / "now"
    Job(0, {"seed": "1"}, tuple(tasks[:2])).save(jobs / "0")
    Job(1, {"seed": "7"}, (), "bad value").save(jobs / "1")
    (jobs / "0" / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create(["seed=1", "structure=[refill]"]), jobs / "0" / ".hydra" / "overrides.yaml")
    sweep = collect(jobs)
    assert [result.structure for _, result in sweep.results] == ["dense", "refill", "unstructured"]
    assert sweep.missing == ("job 1 failed: bad value",)
    assert sweep.commands == ("python scripts/run.py seed=1 'structure=[refill]'",)
    assert collect(tasks[0].folder).commands == sweep.commands


def test_settings_and_twins_are_told_apart(runs: Path, configs: list[DictConfig]) -> None:
    first, second = tasks_of(configs[0])[0], tasks_of(configs[1])[0]
    config = OmegaConf.load(second.folder / "config.yaml")
    config.pruning.rate = 0.5
    OmegaConf.save(config, second.folder / "config.yaml")
    result = Result.load(first.parts[1])
    assert result is not None
    replace(result, twin="reinit").save(first.parts[1])
    settings = {setting for setting, _ in collect(runs).results}
    assert settings == {"pruning.rate=0.2", "pruning.rate=0.5"}
    assert "unstructured (reinit twin)" in {result.structure for _, result in collect(runs).results}


def test_the_script_writes_and_ends_in_one_line_where_it_cannot(runs: Path, tmp_path: Path) -> None:
    main = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "report.py"))["main"]
    main([str(runs), "--output", str(tmp_path / "out")])
    assert (tmp_path / "out" / "report.html").is_file()
    with pytest.raises(SystemExit, match=r"^error: there is no folder .*$"):
        main([str(tmp_path / "none")])


def test_long_settings_make_no_long_file_names(runs: Path, configs: list[DictConfig]) -> None:
    for config in configs:
        folder = tasks_of(config)[0].folder
        saved = OmegaConf.load(folder / "config.yaml")
        saved.classifier.note = str(config.seed) * 300
        OmegaConf.save(saved, folder / "config.yaml")
    names = [path.name for path in write_report(runs).parent.glob("accuracy-*.png")]
    assert len(names) == 2
    assert max(map(len, names)) < 100


@pytest.fixture
def browser() -> Iterator[Any]:
    """Chromium without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(
        (path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))), None
    )
    if program is None:
        pytest.skip("there is no Chromium to open the page with")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [1400, 420])
def test_in_a_browser_every_part_is_drawn_without_errors(runs: Path, browser: Any, width: int) -> None:
    file = write_report(runs)
    page = browser.new_page(viewport={"width": width, "height": 900})
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: told.append(request.url) if request.url.startswith("http") else None)
    page.goto(file.as_uri())
    for button in page.query_selector_all("nav button"):
        button.click()
        name = button.get_attribute("data-part")
        assert page.evaluate(
            "[...document.querySelectorAll('main > section')].filter(s => !s.hidden).map(s => s.id)"
        ) == [name]
        places = f"[...document.querySelectorAll('#{name} .figure')].filter(f => f.offsetParent)"
        page.wait_for_function(f"{places}.every(f => f.querySelector('.main-svg'))", timeout=20000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.evaluate("document.querySelector('[data-part=layers]').click()")
    page.select_option("#layers select", "2")
    shown = "[...document.querySelectorAll('.layer-choice')].filter(f => f.offsetParent).map(f => f.dataset.choice)"
    assert page.evaluate(shown) == ["2"]
    assert told == []
