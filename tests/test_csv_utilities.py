import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csv_utilities import find_column, format_csv, from_cell, read_csv, to_cell
from errors import ConfigError


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1", "'"])
def test_no_cell_is_a_formula(text):
    assert to_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["red", "dark red", "1.5", "a=b", "it's", ""])
def test_plain_text_stays_as_it_is(text):
    assert to_cell(text) == text


@given(st.text())
def test_every_text_comes_back(text):
    assert from_cell(to_cell(text)) == text


@given(st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))] * 2)))
def test_every_file_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    path.write_bytes(format_csv(["a", "b"], rows))
    assert [(row["a"], row["b"]) for row in read_csv(path, flag="--x")] == rows


def test_excel_is_told_that_it_is_utf_8(tmp_path):
    (tmp_path / "a.csv").write_bytes(format_csv(["a"], [["grün"]]))
    assert (tmp_path / "a.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    with (tmp_path / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file)) == [["a"], ["grün"]]


def test_what_excel_saves_in_europe_is_read(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"File_Name ;Item\r\nred/a.png;blue, light\r\n\r\n")
    assert read_csv(tmp_path / "a.csv", flag="--x") == [{"file_name": "red/a.png", "item": "blue, light"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--x no.csv: No such file or directory; name a .csv file"),
        (b"a,b\n1,2,3\n", "--x no.csv: line 2: has 3 cells, the first line has 2; put quotes around commas"),
        (b"a,b\n1\n", "--x no.csv: line 2: has 1 cells, the first line has 2; put quotes around commas"),
        (b"a\n\xff\n", "--x no.csv: byte 2 is no UTF-8; save the file as UTF-8"),
        (
            b'a\n"' + b"x" * 2_000_000,
            "--x no.csv: line 2: no CSV: field larger than field limit (131072); save it as CSV again",
        ),
    ],
    ids=["missing", "more cells", "fewer cells", "encoding", "huge"],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("no.csv").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_csv(Path("no.csv"), flag="--x")
    assert str(caught.value) == message


def test_a_column_goes_by_several_names():
    rows = [{"label": "red", "source": "a.jpg"}]
    assert find_column(rows, ("item", "label"), Path("a.csv"), flag="--x") == "label"
    with pytest.raises(ConfigError, match=r"has no column 'file_name' or 'file'; name it in the first line"):
        find_column(rows, ("file_name", "file"), Path("a.csv"), flag="--x")
    with pytest.raises(ConfigError, match="has no lines below its first"):
        find_column([], ("item",), Path("a.csv"), flag="--x")
