"""CSV files that people open in a spreadsheet: no cell of theirs is a formula, and all come back as they were."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from errors import ConfigError

# What spreadsheets take for the beginning of a formula (OWASP, "CSV Injection"); and the mark itself, so that what
# begins with it comes back, too.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def to_cell(text: str) -> str:
    """Returns a text so that a spreadsheet shows it: one that could be a formula gets an apostrophe before it."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def from_cell(cell: str) -> str:
    """Returns the text of which `to_cell` made a cell."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_FORMULA) else cell


def format_csv(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> bytes:
    """Returns a CSV file (RFC 4180) in UTF-8, with a byte order mark, without which Excel takes it for something else.

    Args:
        columns: The names of the columns, which make the first line.
        rows: The texts of the cells.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([to_cell(each) for each in row] for row in (columns, *rows))
    return text.getvalue().encode("utf-8-sig", errors="replace")


def read_csv(path: Path, *, flag: str) -> list[dict[str, str]]:
    """Returns the rows of a CSV file by the names of its columns, which are stripped and in lower case.

    Args:
        path: The file: UTF-8; the delimiter is a comma, or a semicolon as Excel writes it in much of Europe.
        flag: The flag that names it, for messages.

    Raises:
        ConfigError: It can't be read, is no CSV, or a line has more or fewer cells than the first.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}; name a .csv file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {path}: byte {error.start} is no UTF-8; save the file as UTF-8") from None
    head = text.partition("\n")[0]
    delimiter = ";" if head.count(";") > head.count(",") else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        rows = []
        for cells in reader:
            if cells and len(cells) != len(columns):
                raise ConfigError(
                    f"{flag} {path}: line {reader.line_num}: has {len(cells)} cells, the first line has "
                    f"{len(columns)}; put quotes around commas"
                )
            if cells:
                rows.append(dict(zip(columns, map(from_cell, cells), strict=True)))
    except csv.Error as error:
        raise ConfigError(f"{flag} {path}: line {reader.line_num}: no CSV: {error}; save it as CSV again") from None
    return rows


def find_column(rows: Sequence[Mapping[str, str]], names: Sequence[str], path: Path, *, flag: str) -> str:
    """Returns which of several names a column of `read_csv` has.

    Raises:
        ConfigError: There are no rows, or none of the names is a column.
    """
    if not rows:
        raise ConfigError(f"{flag} {path}: has no lines below its first; nothing could come of it")
    found = next((name for name in names if name in rows[0]), None)
    if found is None:
        raise ConfigError(f"{flag} {path}: has no column {' or '.join(map(repr, names))}; name it in the first line")
    return found
