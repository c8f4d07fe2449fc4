"""Tables of accuracies: what they may look like, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from lt_lightning.results.accuracy_table import ColumnNames, Measurement, read_table

METHOD = ColumnNames(("method", "width"), "run", "top1", sparsity="pruned")


def table(folder: Path, text: str) -> Path:
    path = folder / "results.csv"
    path.write_text(text)
    return path


def test_columns_are_named_and_read(tmp_path: Path) -> None:
    """Settings of two columns, names with spaces, an empty sparsity, lines that are blank."""
    path = table(tmp_path, "run; top1 ;method;width;pruned;more\n3.0;91.5 %;imp;2;80;x\n\nb;90;dense;1;;y\n")
    assert read_table(path, METHOD) == [
        Measurement("imp 2", "3", 0.915, 0.8, 2),
        Measurement("dense 1", "b", 0.9, None, 4),
    ]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_percent_is_share(separator: str, tmp_path: Path) -> None:
    lines = ["setting,seed,accuracy,density", "a,0,{},{}", "a,1,{},{}"]
    columns = ColumnNames(density="density")
    read = [
        read_table(table(tmp_path, "\n".join(lines).format(*values).replace(",", separator)), columns)
        for values in ((0.5, 0.2, 1, 1), (50, 20, 100, 100))
    ]
    assert read[0] == read[1]
    assert [each.sparsity for each in read[0]] == pytest.approx([0.8, 0.0])


def test_a_sign_says_that_all_is_in_percent(tmp_path: Path) -> None:
    lines = ["setting,seed,accuracy,density", "a,0,0.5%,1%", "a,1,90 %,0.5%"]
    read = read_table(table(tmp_path, "\n".join(lines)), ColumnNames(density="density"))
    assert [each.accuracy for each in read] == pytest.approx([0.005, 0.9])
    assert [each.sparsity for each in read] == pytest.approx([0.99, 0.995])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["no column 'setting'"]),
        ("setting,seed,accuracy\n", ["no lines"]),
        ("setting,sed,accuracy\na,0,1\n", ["'seed'", "--seed NAME", "did you mean sed?"]),
        ("setting,seed,accuracy,seed\na,0,1,2\n", ["two columns 'seed'"]),
        ("setting,seed,accuracy\na,0,0.5\na,1,nan\n", ["line 3", "accuracy='nan'"]),
        ("setting,seed,accuracy\na,0,0.5\na,1,\n", ["line 3", "accuracy=''"]),
        ("setting,seed,accuracy\na,0\n", ["line 2", "accuracy=None"]),
        ("setting,seed,accuracy\na,0,-0.5\n", ["line 2", "accuracy='-0.5'"]),
        ("setting,seed,accuracy\na,0,101\n", ["line 2", "accuracy='101'"]),
        ("setting,seed,accuracy\na,0,0.91\na,1,91.2\n", ["line 3 (91.2)", "0.91 in line 2"]),
        ("setting,seed,accuracy\na,,0.91\n", ["line 2", "seed is empty"]),
        ("setting,seed,accuracy\n,0,0.91\n", ["line 2", "setting is empty"]),
        ("setting,seed,accuracy\na,0,0.5\na,1,0.9%\n", ["line 3 (0.9)", "0.5 in line 2"]),
        ("setting,seed,accuracy\na,0,93,5\n", ["line 2", "more cells", "(3)"]),
        ("setting,seed,accuracy\na,1,0.5\na,1.0,0.6\n", ["line 3", "seed=1 of a", "line 2"]),
    ],
)
def test_bad_tables_end_in_one_line(text: str, parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"results\.csv") as refused:
        read_table(table(tmp_path, text))
    assert "\n" not in str(refused.value)
    assert [part for part in parts if part not in str(refused.value)] == []


def test_what_is_no_text_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    path.write_bytes(b"\x80\xff\xfe")
    with pytest.raises(ValueError, match="no table"):
        read_table(path)
