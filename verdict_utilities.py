"""What people say of photos: a verdict on the label that each has, or the item that it is."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import csv_utilities
from errors import ConfigError
from record_utilities import BAD_MASK, WRONG

RIGHT = "right"
CORRECTIONS = ("file_name", "item", "verdict", "source")  # columns
VERDICTS = (RIGHT, WRONG, BAD_MASK)  # the latter two are flags of records, too


@dataclass(frozen=True)
class Verdict:
    """What is said of one photo.

    Attributes:
        names: Of the photo; the first that means one counts.
        verdict: One of `VERDICTS`.
        item: What it is; empty where that is not said.
        label: What it was called when it was looked at; None where that is not known.
        source: Its path in the dataset; None where that is not known for certain.
    """

    names: Sequence[str]
    verdict: str
    item: str
    label: str | None = None
    source: str | None = None

    def seen(self, label: str) -> str:
        """Returns the label that it is about, of a photo that has this one now."""
        return label if self.label is None else self.label

    def truth(self, label: str) -> str | None:
        """Returns what a photo with this label is, by what is said; None where that leaves it open."""
        return self.item or (self.seen(label) if self.verdict == RIGHT else None)


def read_verdicts(path: Path, *, flag: str, required: bool = False) -> list[Verdict]:
    """Returns the verdicts of a table.

    Args:
        path: A .csv with `file_name` (or `file`, `source`) and `item` (or `label`), and perhaps `verdict`, as the
            report's page saves it; a line without an item and a verdict says nothing.
        flag: That names it, for messages.
        required: Whether there has to be a column of verdicts; else lines are of the right item.

    Raises:
        ConfigError: It can't be read, lacks a column, or has a verdict that there is not.
    """
    rows = csv_utilities.read_csv(path, flag=flag)
    name = csv_utilities.find_column(rows, ("file_name", "file", "source"), path, flag=flag)
    item = csv_utilities.find_column(rows, ("item", "label"), path, flag=flag)
    judged = "verdict" in rows[0]
    if required:
        csv_utilities.find_column(rows, ("verdict",), path, flag=flag)
    said: list[Verdict] = []
    for row in rows:
        if not any(map(str.strip, row.values())):  # spreadsheets leave such lines behind
            continue
        verdict, truth = row.get("verdict", RIGHT).strip().lower(), to_item(row[item])
        if verdict not in VERDICTS:
            raise ConfigError(f"{flag} {path}: {row[name]!r}: {verdict!r} is no verdict; write {', '.join(VERDICTS)}")
        if not judged and not truth:
            continue
        source = row.get("source", "")
        if judged and name == "file_name" and source:  # of the page: it knows both
            said.append(Verdict((row[name],), verdict, truth, row[name].partition("/")[0], source))
        else:
            said.append(Verdict((row[name], row[name].strip()), verdict, truth))
    return said


def match_photos(
    verdicts: Sequence[Verdict], find: Callable[[Iterable[str]], Mapping[str, str]], sources: Container[str]
) -> Iterator[tuple[Verdict, str | None]]:
    """Yields each verdict with the source of its photo; None where there is no such photo.

    Args:
        verdicts: What is said.
        find: Returns the sources of the photos that names mean, without those that mean none.
        sources: Those of all photos.
    """
    found = find(itertools.chain.from_iterable(each.names for each in verdicts if each.source not in sources))
    for each in verdicts:
        named = each.source if each.source in sources else None
        yield each, named or next((found[name] for name in each.names if name in found), None)


def read_class_folders(path: Path) -> list[Verdict]:
    """Returns what a folder of class folders says, with photos or cut-outs under their own names."""
    said: list[Verdict] = []
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        if len(parts) > 1 and file.is_file() and not any(part.startswith(".") for part in parts):
            # The whole first: where the dataset itself has class folders, that is the photo's own name.
            whole = PurePosixPath(*parts)
            said.append(Verdict((str(whole), str(PurePosixPath(*parts[1:]))), RIGHT, to_item(parts[0])))
    return said


def to_correction(row: Mapping[str, Any]) -> tuple[str, str, str, str] | None:
    """Returns the line, under `CORRECTIONS`, that says what people have said of a record; None where nobody has."""
    item = row["label"] if row["label_source"] == "human" else ""
    doubt = next((flag for flag in (BAD_MASK, WRONG) if flag in row["flags"]), None)
    return (row["file_name"], item, doubt or RIGHT, row["source"]) if item or doubt else None


def to_item(text: str) -> str:
    """Returns an item as config_utilities writes it: file systems and spreadsheets may have taken its accents apart."""
    return unicodedata.normalize("NFC", " ".join(text.split()))
