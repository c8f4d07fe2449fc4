from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.evidence import accuracy_table, comparison_table, evidence, extremes_table, main, results_in
from lt_lightning.results.aggregate import DIFFERENT_RULES
from lt_lightning.results.records import Result
from lt_lightning.results.verdict import STANDARD, is_shown

ROOT = Path(__file__).resolve().parents[2]
DENSE_ACCURACY = 0.9


def result(
    structure: str, seed: int, number: int, difference: float, control: str = "", density: float = 0.26
) -> Result:
    folder = f"{structure}-{control}" if control else structure
    return Result(
        data="d", model="m", seed=seed, round=number, structure=structure, target_density=0.26, density=density,
        accuracy=DENSE_ACCURACY + difference, dense_accuracy=DENSE_ACCURACY, params_ratio=0.3, flops_ratio=0.4,
        train_seconds=3.0, val_accuracy=0.9, best_epoch=3, retained_magnitude=0.5, time_ratio_inference=0.5,
        time_ratio_training=math.nan, search=f"s{seed}", place=f"s{seed}/round_{number:02d}/{folder}",
        executed=density, control=control,
    )  # fmt: skip


def some() -> list[Result]:
    return [
        *(result("unstructured", seed, 3, 0.01) for seed in (0, 1, 2)),
        *(result("unstructured", seed, 1, 0.02) for seed in (0, 1, 2)),  # a round with nothing structured
        *(result("refill", seed, 3, each) for seed, each in enumerate((0.001, 0.0, 0.002))),
        *(result("refill", seed, 3, each, "reinit") for seed, each in enumerate((-0.01, -0.012, -0.008))),
        *(result("regroup", seed, 3, each, density=0.3) for seed, each in enumerate((-0.02, 0.01, 0.04))),
    ]


T = 4.302653  # Student's 97.5 % quantile with two degrees of freedom, of a printed table


def test_accuracy_in_points_with_interval_verdict_and_costs() -> None:
    # refill: mean 0.1, deviation 0.1: half of the interval is T * 0.1 / sqrt(3) = 0.25. The lower end of the one-sided
    # interval is 0.1 - 2.92 * 0.1 / sqrt(3) = -0.07: above -0.5, so bold.
    assert T * 0.1 / math.sqrt(3) == pytest.approx(0.248, abs=0.001)
    assert accuracy_table(some(), STANDARD).splitlines() == [
        "| ticket | 26 % | FLOPs | time of inference |",
        "|-|-|-|-|",
        "| unstructured | +1.00 ± 0.00 | 0.40 | 0.50 |",  # seeds that differ by the same tell nothing: no verdict
        "| refill | **+0.10 ± 0.25** | 0.40 | 0.50 |",
        "| refill reinit | -1.00 ± 0.50 | 0.40 | 0.50 |",
        "| regroup | +1.00 ± 7.45 (at 30.0 %) | 0.40 | 0.50 |",
        "",
        "Not measured: time of training.",
    ]


def test_epochs_stand_beside_costs_where_they_are_known() -> None:
    rows = [replace(each, total_epochs=40 if each.control else 34) for each in some()]
    head, _, *lines = accuracy_table(rows, STANDARD).splitlines()
    assert head.endswith("| time of inference | epochs |")
    assert [line.split("|")[-2].strip() for line in lines[:4]] == ["34", "34", "40", "34"]


def test_costs_stand_beside_every_round() -> None:
    rows = [*some(), *(result("refill", seed, 4, -0.01) for seed in (0, 1, 2))]
    head, _, *lines = accuracy_table(rows, STANDARD).splitlines()
    assert head == "| ticket | 26 % | FLOPs | time of inference | 26 % | FLOPs | time of inference |"
    assert {line.count("|") for line in [head, *lines] if line.startswith("|")} == {8}


def test_comparisons_are_paired_over_seeds() -> None:
    # refill minus its control: 1.1, 1.2, 1.0 by seed: 1.1 +- T * 0.1 / sqrt(3). Refill minus regroup: 2.1, -1.0, -3.8.
    assert comparison_table(some(), [["refill", "regroup"], ["refill reinit", "refill"]]).splitlines() == [
        "| first, minus second | 26 % |",
        "|-|-|",
        "| refill, minus regroup | -0.90 ± 7.33 |",
        "| refill reinit, minus refill | -1.10 ± 0.25 < |",
        "| refill, minus refill reinit | +1.10 ± 0.25 > |",
        "",
        "2 of 3 cells are marked; if nothing differed, about 0.15 would be.",
    ]


def test_one_cell_in_twenty_is_marked_where_nothing_differs() -> None:
    draw = random.Random(0)
    marked = sum(is_shown([draw.gauss(0, 1) for _ in range(3)]) for _ in range(4000))
    assert marked / 4000 == pytest.approx(0.05, abs=0.01)  # three standard deviations


def test_extreme_sparsities_by_both_rules() -> None:
    # refill: 0.1 on average, shown. regroup: 1.0 on average, by an interval down to -4. unstructured: no spread.
    assert extremes_table(some(), STANDARD).splitlines() == [
        "| tickets | densities | by the mean | shown |",
        "|-|-|-|-|",
        "| unstructured | 26, 26 % | 74 % | none |",
        "| refill | 26 % | 74 % | 74 % |",
        "| regroup | 26 % | 70 % | none |",
        "",
        DIFFERENT_RULES,
    ]


def test_a_seed_that_only_one_of_a_pair_has_does_not_count() -> None:
    rows = [*some(), result("refill", 3, 3, 0.5)]
    assert "| refill, minus refill reinit | +1.10 ± 0.25 > |" in comparison_table(rows, [])


@pytest.mark.parametrize("times", [True, False])
def test_results_come_back(tmp_path: Path, times: bool) -> None:
    for each in some():
        each.save(tmp_path / each.place)
    (tmp_path / "s0" / "environment.json").write_text(json.dumps({"cpu": "c", "threads": 1, "pid": 7}))
    (tmp_path / "s1" / "environment.json").write_text(json.dumps({"cpu": "c", "threads": 1, "pid": 8}))
    written = json.loads(json.dumps(evidence(tmp_path, {"what": "w"}, times), allow_nan=False))
    assert written["what"] == "w"
    assert written["environments"] == [{"cpu": "c", "threads": 1}]
    read = results_in(written)
    assert comparison_table(read, []) == comparison_table(some(), [])
    assert (accuracy_table(read, STANDARD) == accuracy_table(some(), STANDARD)) is times
    assert {each.place for each in read} == {each.place for each in some()}
    assert all((each.train_seconds == 3.0) is times for each in read)
    assert all(math.isnan(each.time_ratio_training) for each in read)


def test_results_that_differ_by_their_settings_alone_are_refused(tmp_path: Path) -> None:
    for each in some():
        each.save(tmp_path / each.place)
    other = replace(some()[-1], place="s2/round_03/regroup-other")
    other.save(tmp_path / other.place)
    with pytest.raises(ValueError, match=r"s2/round_03/regroup\b.*keep one setting"):
        evidence(tmp_path, {})


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path} "):
        evidence(tmp_path, {})


def run(*arguments: object) -> None:
    main([str(argument) for argument in arguments])


def test_the_readmes_tables_are_those_of_the_files(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "results").symlink_to(ROOT / "results")
    run("tables", copy)
    assert copy.read_text(encoding="utf-8") == (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_written_between_their_marks(tmp_path: Path) -> None:
    for each in some():
        each.save(tmp_path / "runs" / each.place)
    about, page = tmp_path / "about.yaml", tmp_path / "page.md"
    about.write_text("what: w\npairs:\n- [refill, regroup]\n")
    page.write_text(
        "a\n<!-- accuracy e.json -->\nold\n<!-- end -->\nb\n<!-- comparisons e.json -->\n<!-- end -->\n"
        "<!-- extremes e.json -->\n<!-- end -->\nc\n"
    )
    run("record", tmp_path / "runs", tmp_path / "e.json", "--about", about)
    run("tables", page)
    first, second = accuracy_table(some(), STANDARD), comparison_table(some(), [["refill", "regroup"]])
    marks = (
        "a\n<!-- accuracy e.json -->\n{}<!-- end -->\nb\n<!-- comparisons e.json -->\n{}<!-- end -->\n"
        "<!-- extremes e.json -->\n{}<!-- end -->\nc\n"
    )
    assert page.read_text() == marks.format(first, second, extremes_table(some(), STANDARD))


def test_a_control_that_prunes_nothing_gives_no_round_its_density() -> None:
    dense = [replace(each, target_density=1.0, density=1.0, control="dense_cycles") for each in some()
             if each.structure == "refill" and not each.control]  # fmt: skip
    head, _, *lines = accuracy_table([*some(), *dense], STANDARD).splitlines()
    assert head.startswith("| ticket | 26 % |")
    assert [line for line in lines if "(at 100.0 %)" in line and "dense_cycles" in line]
    assert comparison_table([*some(), *dense], []).startswith("| first, minus second | 26 % |")
