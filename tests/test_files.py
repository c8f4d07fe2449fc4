"""Files are whole or not there."""

from __future__ import annotations

import csv
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lt_lightning.storage.files import read_csv, read_json, replacing, write_csv, write_json

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    with replacing(path) as partial:
        assert partial.parent == path.parent  # the same file system, or renaming would copy
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_the_file_is_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as partial:
            partial.write_text("ha")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with path.open() as reader:
        with replacing(path) as partial:
            partial.write_text("new")
            assert path.read_text() == "old"
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_the_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_json(tmp_path / "file.json", 1)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.json").stat().st_mode) == 0o640


@given(json_values)
def test_json_comes_back(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert read_json(path) == value


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}}', b"\xff\xfe"])
def test_damaged_json_is_told_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rounds.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_json(path)


def test_a_value_that_is_no_json_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"path": tmp_path})
    assert list(tmp_path.iterdir()) == []


def test_texts_that_spreadsheets_take_for_formulas_are_quoted_and_numbers_are_not(tmp_path: Path) -> None:
    texts = ["=1+1", "@SUM(A1)", "+cmd|' /C calc'!A0", "-x", "\tx", "'mine", "plain", "a,b", '"', ""]
    numbers = ["-0.35", "+1.20", "-1e-3", "-inf"]
    path = tmp_path / "table.csv"
    write_csv(path, ["+head", *map(str, range(len(texts + numbers)))], [["x", *texts, *numbers], [-1, *[-0.5] * 14]])
    with path.open(newline="") as file:
        heads, first, second = csv.reader(file)
    assert heads[0] == "'+head"
    assert first[1:6] == ["'=1+1", "'@SUM(A1)", "'+cmd|' /C calc'!A0", "'-x", "'\tx"]
    assert first[6:] == [*texts[5:], *numbers]
    assert second == ["-1", *["-0.5"] * 14]
    assert [*read_csv(path)[0].values()] == ["x", *texts, *numbers]
