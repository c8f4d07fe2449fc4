"""A benchmark's file keeps what is done, and only goes on where it can be compared; its tables say what is in it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import Record, rows_of
from benchmarks.tables import layer_table, network_table, paper_table, slower_than_dense, summarised
from lt_lightning.execution.machine import environment

JOB = {"kind": "networks", "batch_size": 4, "densities": (0.5, 0.25)}


def test_jobs_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    record = Record(path, {"threads": 2, "versions": {"torch": "2"}})
    assert not record.has(JOB)
    record.add(JOB, [{"milliseconds": 1.5, "share": float("nan")}], 3.0)
    again = Record(path, {"threads": 2, "versions": {"torch": "2"}})
    assert again.has(JOB)
    assert not again.has({**JOB, "batch_size": 8})
    again.add({**JOB, "kind": "layers"}, [{"form": "blocks"}], 1.0)
    written = json.loads(path.read_text())
    assert written["environment"]["threads"] == 2
    assert [job["seconds"] for job in written["jobs"]] == [3.0, 1.0]
    assert [(row["milliseconds"], row["job"]) for row in rows_of(again.jobs, "networks")] == [(1.5, 0)]
    assert rows_of(again.jobs, "layers") == [{"form": "blocks", "job": 1}]


@pytest.mark.parametrize(("key", "value"), [("threads", 4), ("versions", {"torch": "3"}), ("gpu", "new")])
def test_another_environment_is_refused(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "benchmark.json"
    before: dict[str, object] = {"threads": 2, "versions": {"torch": "2"}}
    Record(path, before).add(JOB, [], 1.0)
    with pytest.raises(ValueError, match=rf"\b{key}="):
        Record(path, {**before, key: value})


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = Record(None, {})
    record.add(JOB, [{"a": 1}], 1.0)
    assert rows_of(record.jobs, "networks") == [{"a": 1, "job": 0}]
    assert list(tmp_path.iterdir()) == []


def test_environment_is_json_and_the_same_twice() -> None:
    found = environment("cpu", freed_memory_kept=True)
    assert found == environment("cpu", freed_memory_kept=True)
    assert json.loads(json.dumps(found)) == found
    assert found["freed_memory_kept"] is True
    assert found["threads"] == 1  # of the tests
    assert "torch" in found["versions"]  # type: ignore[operator]


def measured(variant: str, density: float, engine: str, milliseconds: float, **other: Any) -> dict[str, Any]:
    setting = {"batch_size": 8, "training": False, "bfloat16": False, "engine": engine, "channels_last": True}
    return {
        "job": 0, "network": "net", "image": [3, 32, 32], "variant": variant, "density": density, "setting": setting,
        "milliseconds": milliseconds, "speedup": 1.0, "ideal": 4.0, "share": 0.5, "parameters": 10**6,
        "file_megabytes": 4.0, "peak_megabytes": float("nan"), "difference": 1e-7, "left_dense": [], **other,
    }  # fmt: skip


ROWS = [
    measured("dense", 1.0, "eager", 10.0, ideal=1.0),
    measured("dense", 1.0, "compile", 8.0, ideal=1.0),
    measured("dense", 1.0, "onnx", 6.0, ideal=1.0),
    measured("refill", 0.25, "eager", 4.0),
    measured("refill", 0.25, "compile", 6.0, difference=1e-5, peak_megabytes=7.0),
    measured("refill", 0.25, "onnx", 2.0, speedup=3.0),
    measured("regroup", 0.25, "eager", 9.0, left_dense=["a", "b"]),
]


def test_the_better_form_stands_against_the_better_form_of_dense() -> None:
    dense, refill, regroup = summarised(ROWS)
    assert (dense["best"], dense["speedup"]) == ("compile", 1.0)
    assert (refill["best"], refill["speedup"], refill["onnx"]) == ("eager", 2.0, 3.0)
    assert refill["share"] == pytest.approx((1 - 1 / 2) / (1 - 1 / 4))
    assert refill["milliseconds"] == {"eager": 4.0, "compile": 6.0, "onnx": 2.0}
    assert refill["difference"] == 1e-5
    assert refill["peak_megabytes"] == 7.0
    assert slower_than_dense(ROWS) == ["net regroup at 0.25, inference b8 fp32: 0.889 x"]
    assert regroup["speedup"] == pytest.approx(8 / 9)


def test_settings_do_not_mix() -> None:
    alone = [row["speedup"] for row in summarised(ROWS)]
    for different in ({"setting": {**ROWS[0]["setting"], "batch_size": 16}}, {"job": 1}):
        other = [{**row, **different, "milliseconds": 1.0} for row in ROWS]
        assert [row["speedup"] for row in summarised([*ROWS, *other])] == [*alone, 1.0, 1.0, 1.0]


def printed(table: Table) -> list[str]:
    console = Console(width=240, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_tables() -> None:
    lines = printed(network_table(ROWS))
    (refill,) = (line.split() for line in lines if "refill" in line)
    expected = "refill 0.25 4.0 6.0 2.0 2.00 4.00 50 % 67 % 3.00 1.00 4.0 7 1e-05"
    assert refill == expected.split()
    layer = {
        "network": "net", "layers": ["a", "b", "c"], "input_shape": [16, 8, 8], "setting": ROWS[0]["setting"],
        "variant": "regroup", "density": 0.25, "form": "blocks", "dense_milliseconds": 2.0, "milliseconds": 1.0,
        "speedup": 2.0, "ideal": 4.0, "share": 2 / 3, "difference": 0.0,
    }  # fmt: skip
    expected = "net a (+2) 16x8x8 inference b8 fp32 regroup 0.25 blocks 2.00 1.00 2.00 4.00 67 % 0e+00"
    assert printed(layer_table([layer]))[-1].split() == expected.split()
    paper = {"network": "net", "protocol": "as printed", "variant": "refill", "density": 0.5,
             "dense_milliseconds": 100.0, "milliseconds": 40.0, "saved": 0.6, "ideal_saved": 0.7}  # fmt: skip
    lines = printed(paper_table([paper]))
    assert lines[0] == "as printed"
    assert lines[-1].split() == ["net", "refill", "0.5", "100", "40", "60", "%", "70", "%"]
