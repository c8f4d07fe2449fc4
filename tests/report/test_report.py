"""The report of made and of broken folders, its tables, and the page in a real browser."""

from __future__ import annotations

import csv
import math
import re
import runpy
import shutil
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from omegaconf import DictConfig, OmegaConf
from PIL import Image, ImageColor

from lt_lightning.experiment.config.fingerprint import operational_keys
from lt_lightning.experiment.config.tasks import search_task
from lt_lightning.experiment.run.job import Job
from lt_lightning.report.contents import collect
from lt_lightning.report.figures import LIGHT
from lt_lightning.report.layer_sections import layer_facts
from lt_lightning.report.search_sections import training_costs
from lt_lightning.report.writing import write_report
from lt_lightning.results.aggregate import aggregate
from lt_lightning.results.failures import Failure
from lt_lightning.results.job_record import JobRecord
from lt_lightning.results.records import Result
from lt_lightning.results.tables import HEADINGS, latex, markdown
from lt_lightning.storage.files import write_json

SVG = "{http://www.w3.org/2000/svg}"
VOID = ("meta", "link", "img", "input")  # tags without an end


class _Places(HTMLParser):
    """Collects parts, links and tables, and checks the nesting."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "section":
            self.parts.append(values["id"] or "")
        self.links += [value for key in ("src", "href", "action") if (value := values.get(key)) is not None]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def _places(html: str) -> _Places:
    page = _Places()
    page.feed(html)
    assert not page.open
    return page


Groups = list[tuple[tuple[str, ...], bool, list[str]]]
"""Entries of the legend that each curve belongs to, whether it is shown at first, and what is said of its points."""


def _groups(figure: ElementTree.Element) -> Groups:
    return [
        (tuple(each.attrib["data-keys"].split("\n")), "style" not in each.attrib,
         [mark.attrib["data-text"] for mark in each.iter() if "data-text" in mark.attrib])
        for each in figure.iter(f"{SVG}g")
        if "data-keys" in each.attrib
    ]  # fmt: skip


def _figures(html: str, part: str) -> list[Groups]:
    """Return what is drawn in a part; of a figure that is there for wide and for narrow pages, the narrow one."""
    found = []
    for figure in re.findall(r'<figure class="chart".*?</figure>', _part(html, part), re.S):
        text = figure[figure.rindex('<svg xmlns="') :]
        found.append(_groups(ElementTree.fromstring(text[: text.rindex("</svg>") + len("</svg>")])))
    return found


def _part(html: str, part: str) -> str:
    match = re.search(rf'<section id="{part}".*?</section>', html, re.S)
    assert match
    return match[0]


def test_one_page_holds_every_part(runs: Path) -> None:
    file = write_report(runs)
    html = file.read_text(encoding="utf-8")
    page = _places(html)
    assert page.parts == ["overview", "accuracy", "trade", "layers", "masks", "learning", "costs", "origin"]
    assert [link for link in page.links if link.startswith("#")] == [f"#{name}" for name in page.parts]
    assert "Everything that was asked for is finished." in html
    assert re.search(r'<td class="l">unstructured</td><td class="l w">by the mean 50\.0% \(round 1\), shown', html)
    assert ">network</th>" not in _part(html, "overview")  # the same in all rows
    assert "<th scope=col>params</th>" in _part(html, "overview")
    assert {path.name for path in file.parent.glob("*.svg")} == {
        f"{name}-digits_resnet8.svg" for name in ("accuracy", "saved-inference", "saved-training", "saved-flops")
    }
    assert len(list(file.parent.glob("masks/*.png"))) == 5
    assert not list(file.parent.glob("*.png"))


def test_nothing_is_loaded_from_or_sent_to_elsewhere_and_all_links_exist(everything: Path, tmp_path: Path) -> None:
    for file in (write_report(everything), write_report(everything, tmp_path / "a folder" / "else#where")):
        html = file.read_text(encoding="utf-8")
        links = [link for link in _places(html).links if not link.startswith(("#", "data:"))]
        assert len(links) > 20
        for link in links:
            assert not re.match(r"\w+:|/", link)
            assert (file.parent / unquote(link)).exists(), link
        for text in (html, *(each.read_text(encoding="utf-8") for each in file.parent.glob("*.svg"))):
            assert set(re.findall(r"https?://[^\s\"'<>)]*", text)) <= {"http://www.w3.org/2000/svg"}
            assert not re.search(r"url\(|@import|<form|<iframe|<base", text)
        script = html[html.rindex("<script>") :]
        assert not re.search(r"\bfetch\b|XMLHttpRequest|WebSocket|EventSource|sendBeacon|\bimport\b", script)


def test_the_files_are_small_and_share_their_code(everything: Path) -> None:
    file = write_report(everything)
    html = file.read_text(encoding="utf-8")
    assert (html.count("<script"), html.count("<style")) == (1, 1)
    assert len(html) < 300_000
    assert sum(each.stat().st_size for each in file.parent.rglob("*") if each.is_file()) < 400_000
    written = {each.name for each in file.parent.iterdir()}
    assert written == {"report.html", "masks", "table.csv", "table.md", "table.tex", *(
        f"{name}-digits_resnet8.svg"
        for name in ("accuracy", "saved-inference", "saved-training", "saved-flops", "published-accuracy")
    )}  # fmt: skip


def test_figures_show_means_over_seeds(runs: Path) -> None:
    file = write_report(runs)
    html = file.read_text(encoding="utf-8")
    (groups,) = _figures(html, "accuracy")
    assert groups[0][0] == ("dense network",)
    said = {keys: texts for keys, _, texts in groups if texts}
    # Regroup is as accurate as dense, but runs whole: it leaves nothing out, and is no extreme ticket.
    assert list(said) == [
        ("unstructured",), ("refill",), ("regroup",), ("sparsest by the mean", "unstructured"),
    ]  # fmt: skip
    for name, accuracy in (("unstructured", "92.00"), ("refill", "89.50"), ("regroup", "91.00")):
        (text,) = said[name,]
        assert text.startswith(f"{name}, round 1: density 50.00%, accuracy {accuracy} ± ")
        assert text.endswith("n=2")
    file_groups = _groups(ElementTree.parse(file.parent / "accuracy-digits_resnet8.svg").getroot())
    assert file_groups == groups
    # All at 50 %, but their marks stand beside each other.
    picture = ElementTree.parse(file.parent / "accuracy-digits_resnet8.svg").getroot()
    marks = [each for each in picture.iter() if "density 50.00%" in each.get("data-text", "")]
    places = [each.get("cx") or each.get("points", "").partition(",")[0] for each in marks]
    assert len(set(places[:3])) == 3


def _change_refill(configs: list[DictConfig], accuracies: tuple[float, float]) -> None:
    """Give the refilled tickets of both seeds half of the weights, and other accuracies."""
    for config, accuracy in zip(configs, accuracies, strict=True):
        (folder,) = (task.folder for task in Job.of(config).tasks if task.kind and task.kind.structure == "refill")
        result = Result.load(folder)
        assert result is not None
        replace(result, accuracy=accuracy, executed=0.5, params_ratio=0.6).save(folder)


def test_the_headline_names_the_best_structured_ticket_with_its_numbers(runs: Path, configs: list[DictConfig]) -> None:
    html = _part(write_report(runs).read_text(encoding="utf-8"), "overview")
    assert "There is no ticket yet whose structure is executed." in html  # all of them run whole
    _change_refill(configs, (0.89, 0.90))
    html = _part(write_report(runs).read_text(encoding="utf-8"), "overview")
    assert "refill, round 1, is the most accurate structured ticket; all are below dense on average" in html
    assert "-1.50 points" in html
    _change_refill(configs, (0.92, 0.94))  # of the same difference no interval is known
    html = _part(write_report(runs).read_text(encoding="utf-8"), "overview")
    assert "refill, round 1, is the sparsest structured ticket that is not below dense on average; none is" in html
    _change_refill(configs, (0.9195, 0.9405))
    html = _part(write_report(runs).read_text(encoding="utf-8"), "overview")
    assert "<h3>resnet8, digits</h3>" in html
    assert "refill, round 1, is the sparsest structured ticket that is shown to hold (2 seeds, " in html
    tiles = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>", html))
    assert tiles.pop("Accuracy").startswith("93.00 ± ")
    assert tiles == {
        "Density": "50.0 %", "Multiply-adds": "50.0 %", "Time saved": "50 %", "Against dense": "+2.00 points",
    }  # fmt: skip
    assert "dense 91.00 ± " in html
    assert "60.0 % of all parameters" in html
    assert re.search(r"Folders of the ticket: <a [^>]*>seed 0</a>, <a [^>]*>seed 1</a>\.", html)
    assert "A verdict takes several seeds" not in html


def test_a_search_whose_folder_was_renamed_is_reported_with_links_that_lead_somewhere(
    runs: Path, configs: list[DictConfig]
) -> None:
    _change_refill(configs, (0.89, 0.90))
    folder = search_task(configs[0]).folder
    renamed = folder.rename(folder.with_name("renamed"))
    report = write_report(renamed)
    html = report.read_text(encoding="utf-8")
    (link,) = re.findall(r'Folders of the ticket: <a [^>]*href="([^"]+)"[^>]*>seed 0</a>', html)
    assert (report.parent / unquote(link)).is_dir()


def test_the_headline_of_one_seed_says_how_to_get_a_verdict(everything: Path, configs: list[DictConfig]) -> None:
    _change_refill(configs, (0.89, 0.90))
    folder = search_task(configs[0]).folder
    html = _part(write_report(folder).read_text(encoding="utf-8"), "overview")
    assert "is below the dense network by the test accuracy of its one seed, which is no verdict." in html
    assert "A verdict takes several seeds." in html
    assert "<pre>lt-lightning run -m seed=0,1,2,3,4 &#x27;structure=[refill,regroup]&#x27;</pre>" in html
    _change_refill(configs, (0.91, 0.90))
    html = _part(write_report(folder).read_text(encoding="utf-8"), "overview")
    assert "is not below the dense network by the test accuracy of its one seed, which is no verdict." in html


def test_times_that_nobody_measured_are_not_said_to_be_saved_or_lost(runs: Path, configs: list[DictConfig]) -> None:
    _change_refill(configs, (0.89, 0.90))
    for file in runs.glob("*/round_01/re*/result.json"):
        result = Result.load(file.parent)
        assert result is not None
        replace(result, time_ratio_inference=math.nan, time_ratio_training=math.nan).save(file.parent)
    html = write_report(runs).read_text(encoding="utf-8")
    assert "Time of inference saved: not measured." in _part(html, "trade")
    assert "<dd>unknown<small>not measured</small></dd>" in _part(html, "overview")


def test_layers_that_fell_back_and_the_machine_are_named(runs: Path) -> None:
    html = write_report(runs).read_text(encoding="utf-8")
    assert html.count("Fell back to dense: conv.") == 1  # regroup; of seeds the first is shown
    assert "†</td>" in html
    assert "too few" in html
    assert html.count(": not recorded.") == 1  # the machine, of the second search
    assert "a processor" in html


def test_layer_rows_by_hand() -> None:
    layer = {"size": 16, "target": 8, "kept": 4, "executed": 6, "positions": 10, "form": "channels", "note": ""}
    card = {"structure": "refill", "prunable": ["a"], "left_dense": [], "layers": {"a": layer, "broken": {}}}
    (row,) = layer_facts(card, {})
    assert (row.target_density, row.density, row.fell_back) == (0.5, 0.375, False)
    assert (row.flops_before, row.flops_after) == (160, 60)
    assert row.seconds_before is row.seconds_after is None
    (row,) = layer_facts(card, {"seconds": {"a": {"dense": 0.5, "ticket": 0.25}}, "choice": {"a": "dense"}})
    assert (row.seconds_before, row.seconds_after, row.fell_back) == (0.5, 0.25, True)
    assert row.note == "computed dense in inference: faster so at this batch size"
    (row,) = layer_facts({**card, "left_dense": ["a"]}, {"choice": []})
    assert row.note == "computed dense in training: faster so at this batch size"


def test_costs_by_hand_and_as_the_paper_counts(everything: Path) -> None:
    costs = {cost.part: cost for cost in training_costs(collect(everything).searches[0])}
    assert list(costs) == [
        "dense training (round 0)", "rounds of pruning", "refill", "regroup", "refill (reinit control)",
        "refill (shuffle control)", "regroup (reinit control)", "regroup (shuffle control)", "together",
    ]  # fmt: skip
    # A dense training of 10 s, a round of 5 s, and six tickets and controls of 10 s each.
    assert (costs["rounds of pruning"].seconds, costs["rounds of pruning"].in_dense) == (5.0, 0.5)
    assert (costs["together"].trainings, costs["together"].seconds, costs["together"].in_dense) == (8, 75.0, 7.5)


def test_published_figures_stand_beside_ours(everything: Path) -> None:
    file = write_report(everything)
    html = file.read_text(encoding="utf-8")
    # Ours of regroup at 50 %: 91 on average, 1 above what was published. None of ours is near 4 % of refill.
    assert re.search(
        r"regroup</td><td>50\.0</td><td>90\.00</td><td>50\.0</td><td>91\.00</td><td>\+1\.00</td><td>2<", html
    )
    assert re.search(r"refill</td><td>50\.0</td><td>91\.00</td><td>50\.0</td><td>89\.50</td><td>-1\.50<", html)
    assert ">4.0<" not in html
    _, groups = _figures(html, "accuracy")
    assert [keys for keys, _, _ in groups] == [
        ("regroup, published",), ("regroup, ours",), ("refill, published",), ("refill, ours",),
    ]  # fmt: skip
    assert (file.parent / "published-accuracy-digits_resnet8.svg").is_file()


def test_controls_are_told_apart_in_every_part(everything: Path) -> None:
    html = write_report(everything).read_text(encoding="utf-8")
    groups = _figures(html, "accuracy")[0]
    controls = [
        "refill (reinit control)", "refill (shuffle control)", "regroup (reinit control)", "regroup (shuffle control)",
    ]  # fmt: skip
    shown = {keys[0]: shown for keys, shown, _ in groups if keys[0] in {*controls, "refill", "regroup"}}
    assert shown == {"refill": True, "regroup": True, **dict.fromkeys(controls, False)}
    masks = re.findall(r"<figcaption>(.*?): 4 filters x 4 weights</figcaption>", html)
    assert masks == [
        "search (unstructured)", "refill", "refill, reordered", "regroup", "regroup, reordered",
        "refill (shuffle control)", "refill (shuffle control), reordered", "regroup (shuffle control)",
        "regroup (shuffle control), reordered",
    ]  # fmt: skip
    assert "2 searches, 8 finished tickets, 8 controls; seeds 0, 1; " in html
    assert "<h1>refill and regroup of resnet8 on digits, 2 seeds</h1>" in html
    assert [keys for keys, _, _ in _figures(html, "stability")[0]] == [("dense, 1ep",)]
    assert "lt-lightning run seed=0 &#x27;structure=[refill,regroup]&#x27;" in html


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
    values |= {"control": "", "origin": ""}
    rows = aggregate([("", Result(**values))])
    assert r"a\_b|c\&d" in latex(rows)
    assert r"a_b\|c&d" in markdown(rows)
    assert latex(rows).count(r"\\") == 2
    assert {line.replace(r"\&", "").count("&") for line in latex(rows).splitlines() if line.endswith(r"\\")} == {
        len(HEADINGS) - 1
    }


def test_an_empty_folder_gives_a_report_that_says_so(tmp_path: Path) -> None:
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "nothing has been run here" in html
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "none")):
        write_report(tmp_path / "none")


def test_what_is_missing_damaged_or_failed_is_named(runs: Path, configs: list[DictConfig]) -> None:
    search, *retrainings = Job.of(configs[0]).tasks
    other = search_task(configs[1])
    (retrainings[0].folder / "result.json").unlink()
    Failure("disk full <b>", 0.0, "").save(retrainings[0].folder)
    (retrainings[1].folder / "result.json").write_text("{", encoding="utf-8")
    (retrainings[1].folder / "ticket.json").write_text("[", encoding="utf-8")
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


def test_a_search_that_has_just_begun_and_one_that_lacks_its_dense_result(
    runs: Path, configs: list[DictConfig], tmp_path: Path
) -> None:
    begun, other = map(search_task, configs)
    for place in begun.folder.glob("round_*"):
        shutil.rmtree(place)
    (other.parts[0] / "result.json").unlink()
    (runs / "of-no-concern").mkdir()  # what is not ours
    (runs / "of-no-concern" / "config.txt").write_text("x", encoding="utf-8")
    html = write_report(runs).read_text(encoding="utf-8")
    assert "begun: 2 of 2 trainings are there" in html
    assert "The dense network&#x27;s result is missing, so there is no band." in html
    assert "of-no-concern" not in html
    alone = write_report(begun.folder, tmp_path / "alone").read_text(encoding="utf-8")
    assert re.findall(r'<section id="(\w+)"', alone) == ["overview", "learning", "costs", "origin"]
    assert not list((tmp_path / "alone").rglob("*.svg"))
    assert not list((tmp_path / "alone").rglob("*.png"))


def test_two_networks_have_figures_of_their_own(runs: Path, configs: list[DictConfig]) -> None:
    search, *retrainings = Job.of(configs[1]).tasks
    config = OmegaConf.load(search.folder / "config.yaml")
    config.labels.model = "another"
    OmegaConf.save(config, search.folder / "config.yaml")
    for folder in (*search.parts, *(task.folder for task in retrainings)):
        result = Result.load(folder)
        assert result is not None
        replace(result, model="another").save(folder)
    file = write_report(runs)
    assert {path.name for path in file.parent.glob("accuracy-*")} == {
        "accuracy-digits_another.svg", "accuracy-digits_resnet8.svg",
    }  # fmt: skip
    html = file.read_text(encoding="utf-8")
    figures = _figures(html, "accuracy")
    assert len(figures) == 2
    for groups in figures:
        assert {keys[0] for keys, _, _ in groups} >= {"dense network", "unstructured", "refill", "regroup"}
    assert _part(html, "overview").count('<div class="headline">') == 2
    assert "time of inference saved in %, measured" in _part(html, "trade")


def test_a_damaged_measurement_of_stability_is_named(everything: Path) -> None:
    (file,) = everything.glob("stability/*/*.json")
    file.write_text('{"lines": [{}]}', encoding="utf-8")
    assert "stability-01234567.json cannot be read." in write_report(everything).read_text(encoding="utf-8")


def test_a_search_alone_and_a_sweep_alone(runs: Path, configs: list[DictConfig]) -> None:
    job = Job.of(configs[1])
    search = job.tasks[0]
    alone = collect(search.folder)
    assert [search.seed for search in alone.searches] == [1]
    assert len(alone.results) == 4
    jobs = runs / "jobs" / "now"
    record = JobRecord(0, {"seed": "1"}, job.tasks[:2], (0, 1))
    record.save(jobs / "0")
    record.note(jobs / "0")
    JobRecord(1, {"seed": "7"}, error="bad value").save(jobs / "1")
    (jobs / "0" / ".hydra").mkdir()
    OmegaConf.save(OmegaConf.create(["seed=1", "structure=[refill]"]), jobs / "0" / ".hydra" / "overrides.yaml")
    OmegaConf.save(OmegaConf.create({"hydra": {"runtime": {"choices": {}}}}), jobs / "0" / ".hydra" / "hydra.yaml")
    OmegaConf.save(configs[1], jobs / "0" / ".hydra" / "config.yaml")
    sweep = collect(jobs)
    assert [result.structure for _, result in sweep.results] == ["dense", "refill", "unstructured"]
    assert sweep.missing == ("job 1 failed: bad value",)
    assert [command.text for command in sweep.commands] == ["lt-lightning run seed=1 'structure=[refill]'"]
    assert collect(search.folder).commands == sweep.commands
    assert not collect(search_task(configs[0]).folder).commands
    typed = {"hydra": {"overrides": {"task": ["seed=0,1", "structure=[refill]"]}}}
    OmegaConf.save(OmegaConf.create(typed), jobs / "multirun.yaml")
    (command,) = collect(jobs).commands
    assert command.text == "lt-lightning run -m seed=0,1 'structure=[refill]'"


def test_a_damaged_record_of_a_job_is_named_and_keeps_nothing_else_back(runs: Path) -> None:
    (runs / "jobs" / "before" / "0" / "job.json").write_text('{"tasks": 1}', encoding="utf-8")
    everything = collect(runs)
    assert len(everything.results) == 8
    assert any("job.json" in line for line in everything.missing)
    sweep = collect(runs / "jobs" / "before")
    assert [search.seed for search in sweep.searches] == [1]
    assert any("job.json" in line for line in sweep.missing)


def test_a_ticket_that_no_job_names_is_missing_by_its_folder(runs: Path, configs: list[DictConfig]) -> None:
    (search_task(configs[0]).folder / "round_01" / "other-0123abcd").mkdir()
    assert any("other, round 1" in line for line in collect(runs).missing)


def test_settings_are_told_apart(runs: Path, configs: list[DictConfig]) -> None:
    second = search_task(configs[1])
    config = OmegaConf.load(second.folder / "config.yaml")
    config.pruning.rate, config.trainer.accelerator = 0.5, "gpu"
    OmegaConf.save(config, second.folder / "config.yaml")
    for each in configs:
        write_json(search_task(each).folder / "operational.json", operational_keys(each))
    settings = {setting for setting, _ in collect(runs).results}
    assert settings == {"pruning.rate=0.2", "pruning.rate=0.5"}


def test_the_script_writes_and_ends_in_one_line_where_it_cannot(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = runpy.run_path(str(Path(__file__).resolve().parents[2] / "scripts" / "report.py"))["report"]
    main([str(runs), "--output", str(tmp_path / "out")])
    assert (tmp_path / "out" / "report.html").is_file()
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "none")])
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "none") in line


def test_long_settings_make_no_long_file_names(runs: Path, configs: list[DictConfig]) -> None:
    for config in configs:
        folder = search_task(config).folder
        saved = OmegaConf.load(folder / "config.yaml")
        saved.classifier.note = str(config.seed) * 300
        OmegaConf.save(saved, folder / "config.yaml")
    names = [path.name for path in write_report(runs).parent.glob("accuracy-*.svg")]
    assert len(names) == 2
    assert max(map(len, names)) < 100


VISIBLE = "[...document.querySelectorAll('main > section')].filter(part => !part.hidden).map(part => part.id)"


def test_in_a_browser_every_part_and_control_works_without_errors(everything: Path, browser: Any) -> None:
    file = write_report(everything)
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    page.set_default_timeout(120_000)  # on a busy machine everything is slow
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else told.append(request.url))
    page.goto(file.as_uri())
    links = page.query_selector_all("nav a")
    assert [link.text_content() for link in links] == [
        "Overview", "Accuracy over density", "Accuracy over savings", "Layers", "Masks", "Learning curves", "Time",
        "Stability", "Origin",
    ]  # fmt: skip
    for width, scheme in ((1280, "light"), (400, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate(BRIGHT) == (scheme == "light")
        for link in links:
            link.click()
            name = link.get_attribute("href")[1:]
            page.wait_for_function(f"{VISIBLE}.join() === '{name}'")
            _check_choices(page, name)
            for details in page.query_selector_all(f"#{name} details:not([open]) > summary"):
                if details.is_visible():
                    details.click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            # One drawing of each figure is to be seen, and is neither cut off nor wider than its place.
            assert all(page.evaluate(DRAWN.replace("PART", name))), name
    _check_tables(page)
    _check_legend(page)
    _check_saved_png(page)
    _check_print(page)
    assert told == []


def _check_saved_png(page: Any) -> None:
    """The figure as it is seen, three times as large: not empty, and in the colours of the page."""
    page.emulate_media(color_scheme="light")
    page.click("nav a[href='#accuracy']")
    drawn = page.locator("#accuracy .tight > svg").first
    with page.expect_download() as told:
        page.locator("#accuracy .save button").first.click()
    assert told.value.suggested_filename == "accuracy-digits_resnet8.png"
    with Image.open(told.value.path()) as image:
        assert image.size == tuple(3 * int(drawn.get_attribute(side)) for side in ("width", "height"))
        colours = {colour for _, colour in image.convert("RGB").getcolors(image.width * image.height) or ()}
    assert {ImageColor.getrgb(colour) for colour in ("#ffffff", *LIGHT[:3])} <= colours


def _check_print(page: Any) -> None:
    """Nothing is left out of a printed page, and nothing is wider than a page of A4 with its margins."""
    page.set_viewport_size({"width": 718, "height": 1000})
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for name in ("main > section", "[data-choice]", "details table", "td", "img"):
        assert page.locator(name).count() == page.locator(f"{name}:visible").count() > 0, name
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 718


BRIGHT = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(part => part > 128)"
DRAWN = """[...document.querySelectorAll('#PART .chart')].filter(chart => chart.offsetParent).map(chart => {
  const drawn = [...chart.querySelectorAll('svg[viewBox]')].filter(each => each.clientWidth);
  return drawn.length === 1 && drawn[0].getBoundingClientRect().right <= innerWidth;
})"""


def _check_choices(page: Any, name: str) -> None:
    for choice in page.query_selector_all(f"#{name} select option"):
        page.select_option(f"#{name} select", chosen := choice.get_attribute("value"))
        seen = f"[...document.querySelectorAll('#{name} [data-choice]')].filter(each => each.offsetParent)"
        assert page.evaluate(f"{seen}.map(each => each.dataset.choice)") == [chosen]


def _check_tables(page: Any) -> None:
    """The table of all tickets is sorted by a click, filtered by words, and copied."""
    page.click("nav a[href='#overview']")
    assert page.locator("table.data").count() == page.locator(".tools button").count()
    place = page.locator("#overview table.data").last
    tools = page.locator("#overview .tools").last

    def column(heading: str) -> list[str]:
        index = [each.strip() for each in place.locator("thead th").all_text_contents()].index(heading) + 1
        return list(place.locator(f"tbody tr:not([hidden]) td:nth-child({index})").all_text_contents())

    assert "params" in place.locator("thead th").all_text_contents()
    whole = [float(each) for each in column("accuracy %")]
    for falling in (False, True):
        place.locator("thead th button", has_text="accuracy %").click()
        assert [float(each) for each in column("accuracy %")] == sorted(whole, reverse=falling)
    tools.locator("input").fill("refill shuffle")
    assert column("ticket") == ["refill (shuffle control)"]
    tools.locator("input").fill("")
    assert len(column("ticket")) == len(whole) == 8
    told, copied = tools.locator("button").evaluate(COPY)
    lines = [line.split("\t") for line in copied.split("\n")]
    assert told == "Copied"
    assert [line[lines[0].index("ticket")] for line in lines] == ["ticket", *column("ticket")]


COPY = """button => {
  let copied = "";
  document.addEventListener("copy", event => { copied = event.target.value; }, { once: true });
  button.click();
  return [button.textContent, copied];
}"""


def _check_legend(page: Any) -> None:
    """An entry of the legend shows a control that is not shown at first, by mouse and by keyboard."""
    page.click("nav a[href='#accuracy']")
    key = page.locator("#accuracy .tight .key[data-key='refill (reinit control)']").first
    curve = page.locator("#accuracy .tight [data-keys='refill (reinit control)']").first
    assert not curve.is_visible()
    key.click()
    assert (curve.is_visible(), key.get_attribute("aria-pressed")) == (True, "true")
    key.press("Enter")
    assert not curve.is_visible()
