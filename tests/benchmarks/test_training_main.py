"""`python -m benchmarks.training` as a user starts it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.training.__main__ import main, shares_of
from benchmarks.training.contenders import CONTENDERS
from benchmarks.training.tables import verdicts
from benchmarks.training.task import Setting
from lt_lightning.storage.files import write_json

TINY = ["--network", "resnet8", "--size", "8", "--batch", "4", "--samples", "1", "--threads", "1"]


def tickets_file(folder: Path) -> Path:
    setting = {"batch_size": 4, "training": True, "bfloat16": False, "engine": "eager", "channels_last": True}
    rows = [
        {"network": "resnet8", "variant": name, "density": density, "setting": setting, "speedup": speedup}
        for name in ("dense", "refill", "regroup")
        for density, speedup in ((0.5, 2.0), (0.25, 4.0))
    ]
    path = folder / "tickets.json"
    write_json(path, {"jobs": [{"job": {"kind": "networks", "training": True, "batch_size": 4}, "rows": rows}]})
    return path


@pytest.mark.slow
def test_what_is_written_is_shown_and_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "training.json"
    arguments = [*TINY, "--kind", "steps", "limit", "search", "--contender", "pruned", "pictures"]
    arguments += ["--tickets", str(tickets_file(tmp_path)), "--output", str(output)]
    main(arguments)
    printed = capsys.readouterr().out
    written = json.loads(output.read_text())
    assert {"cpu", "threads", "versions", "commit"} <= written["environment"].keys()
    steps, limit, search = written["jobs"]
    assert steps["job"]["kind"] == "steps"
    assert [row["contender"] for row in steps["rows"]] == ["pruned", "pictures"]
    assert {
        "network",
        "batch_size",
        "device",
        "engine",
        "milliseconds",
        "p5",
        "p95",
        "to_dense",
        "losses",
        "waits",
    } <= (steps["rows"][0].keys())
    assert 0 < limit["rows"][0]["reached"] < 1.5
    ways = [row["way"] for row in search["rows"]]
    assert ways == ["the paper's", "masked", "shrunk", "shrunk, bisection", "grown", "grown, 3 rounds"]
    pictures, pruned = (steps["rows"][index]["milliseconds"] for index in (1, 0))
    assert search["rows"][0]["hours"] == pytest.approx(31 * pictures * 160 * (45_000 // 4) / 3.6e6)
    assert search["rows"][1]["hours_to_paper"] == pytest.approx(search["rows"][1]["to_paper"] * pruned / pictures)
    for word in ("pictures", "roofline", "waits for the device in a step: 0", "bisection"):
        assert word in printed
    main(arguments)
    assert json.loads(output.read_text()) == written
    capsys.readouterr()
    main(["--show", str(output)])
    assert printed.startswith(capsys.readouterr().out)


def test_tickets_of_another_setting_are_refused(tmp_path: Path) -> None:
    jobs = json.loads(tickets_file(tmp_path).read_text())["jobs"]
    assert shares_of(jobs, "resnet8", Setting(4))["refill"] == {0.5: 0.5, 0.25: 0.25}
    with pytest.raises(ValueError, match=r"^--tickets .*resnet8 .*refill .*\b8\b"):
        shares_of(jobs, "resnet8", Setting(8))


def test_limits_are_printed_kept_or_missed() -> None:
    row = {"network": "n", "device": "cpu", "batch_size": 1, "bfloat16": False, "engine": "eager"}
    pruned = {**row, "contender": "pruned", "to_dense": 1.02, "to_bare": 1.11, "waits": 0}
    loading = {**row, "contender": "loading", "to_dense": 0.06}
    part = {"network": "n", "milliseconds": 900.0}
    printed = verdicts(
        {
            "steps": [pruned, loading],
            "round": [{**part, "part": name} for name in ("prune", "rewind", "ticket to disk", "refill", "regroup")],
            "overhead": [{**row, "share": 0.01}],
        }
    )
    assert [line.rpartition(" ")[2] for line in printed] == [
        "kept",
        "MISSED",
        "kept",
        "MISSED",
        "MISSED",
        "MISSED",
        "kept",
    ]
    assert "n, with refill: seconds between two rounds: 3.6, limit 2" in printed[4]


def test_every_contender_says_who_it_is() -> None:
    assert all(train.__doc__ for train in CONTENDERS.values())
