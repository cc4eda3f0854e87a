"""Changes to a finished output: each is written down before it is made, is finished after a crash, and can be undone.

The output's `.revisions.jsonl` is a write-ahead log: the head of a revision, a line per changed record with the record
before and after, and a line that says that files and records are as it wants them. What was cut off before its last
change was written has not begun; what lacks only the last line is done again, which changes nothing twice.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from card_utilities import write_cards
from errors import OutputError
from record_utilities import (
    RUN,
    AppendedFile,
    Places,
    read_records,
    stopped,
    to_line,
    write_atomically,
    write_records,
)

REVISIONS = ".revisions.jsonl"
_TAIL = 4096  # bytes at the end of the log that hold its last line, where a revision is done


@dataclass(frozen=True)
class Revision:
    """One change of an output.

    Attributes:
        number: From 1.
        by: What asked for it, in words.
        undoes: The number of the revision that it takes back; None where it takes none back.
        settings: What `.run.json` said before and says after it; None where that stays.
        changes: (record before, record after), whose `source` is the same.
        done: Whether files and records are as it wants them.
    """

    number: int
    by: str
    undoes: int | None
    settings: tuple[dict[str, Any], dict[str, Any]] | None
    changes: list[tuple[dict[str, Any], dict[str, Any]]]
    done: bool


def revise(
    places: Places,
    changes: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    *,
    by: str,
    settings: tuple[dict[str, Any], dict[str, Any]] | None = None,
    undoes: int | None = None,
) -> None:
    """Changes records of an output, and moves their cut-outs to where the new ones say.

    Args:
        places: The folders of the output, which nobody else may be writing to; the last revision is finished.
        changes: (record before, record after) of each; the files that the new ones name are nobody else's.
        by: What asks for it, in words.
        settings: What `.run.json` says, and is to say.
        undoes: The number of the revision that this one takes back.

    Raises:
        OutputError: The output can't be written; the next run or revision finishes this one.
    """
    path = places.output / REVISIONS
    head = {
        "revision": 1 + max((each.number for each in read_revisions(places)), default=0),
        "by": by,
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "undoes": undoes,
        "settings": settings,
        "changes": len(changes),
    }
    try:
        log = AppendedFile(path)
    except OSError as error:
        raise stopped(path, error) from None
    with contextlib.closing(log):
        log.append(b"".join(map(to_line, [head, *({"before": one, "after": other} for one, other in changes)])))
        log.sync()
    finish_revision(places)


def finish_revision(places: Places) -> None:
    """Finishes the last revision where a kill or a full disk has interrupted it.

    Raises:
        OutputError: The output can't be written.
    """
    path = places.output / REVISIONS
    if _is_finished(path):
        return
    *_, (last, end) = _parse(path)
    try:
        os.truncate(path, end)
        if last is None:
            return
        _make(places, last)
        log = AppendedFile(path)
    except OSError as error:
        raise stopped(path, error) from None
    with contextlib.closing(log):
        log.append(to_line({"revision": last.number, "done": True}))
        log.sync()


def read_revisions(places: Places) -> list[Revision]:
    """Returns the revisions of an output, the oldest first."""
    return [revision for revision, _ in _parse(places.output / REVISIONS) if revision is not None]


def to_undo(places: Places) -> Revision | None:
    """Returns the last revision that stands; None where there is none to undo."""
    revisions = read_revisions(places)
    undone = {each.undoes for each in revisions}
    standing = [each for each in revisions if each.undoes is None and each.number not in undone]
    return standing[-1] if standing else None


def earlier_names(places: Places) -> dict[str, str]:
    """Returns the source of the photo that had a file name before a revision; the latest counts."""
    return {
        before["file_name"]: before["source"]
        for revision in read_revisions(places)
        for before, after in revision.changes
        if before["file_name"] != after["file_name"]
    }


def _is_finished(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            tail = file.read()
    except FileNotFoundError:
        return True
    return not tail or (tail.endswith(b"\n") and "done" in _load(tail.splitlines(keepends=True)[-1]))


def _parse(path: Path) -> Iterator[tuple[Revision | None, int]]:
    """Yields the revisions of a log, each with its length in bytes from the log's beginning.

    The last one is None where a kill has cut it off, which then ends where it would have begun; the mark that it is
    done is not counted in where it lacks, or is cut off itself.

    Raises:
        OutputError: The log is damaged elsewhere than at its end.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    position = index = 0
    while index < len(lines):
        head = _load(lines[index])
        count = head.get("changes", 0)
        end = index + 1 + count
        changes = [_load(line) for line in lines[index + 1 : end]]
        whole = "changes" in head and len(changes) == count and all(changes)
        done = whole and end < len(lines) and "done" in _load(lines[end])
        if not done and end + 1 < len(lines):
            raise OutputError(f"{path}: is damaged at line {index + 1}; delete it: records stay, undo ends there")
        if not whole:
            yield None, position
            return
        position += sum(map(len, lines[index : end + done]))
        yield _read_revision(head, changes, done=done), position
        index = end + 1


def _read_revision(head: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], *, done: bool) -> Revision:
    settings = head["settings"] and tuple(head["settings"])
    pairs = [(each["before"], each["after"]) for each in changes]
    return Revision(head["revision"], head["by"], head["undoes"], settings, pairs, done)


def _load(line: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(line)
        if isinstance(value, dict) and line.endswith(b"\n"):
            return value
    return {}


def _make(places: Places, revision: Revision) -> None:
    """Brings files and records to where a revision wants them, whatever part of that has been done before."""
    emptied = set()
    for before, after in revision.changes:
        old, new = places.png(before), places.png(after)
        if old != new and old.exists():
            new.parent.mkdir(parents=True, exist_ok=True)
            old.replace(new)
            emptied.add(old.parent)
    for folder in emptied:
        _remove_empty(folder, places)

    changed = {after["source"]: after for _, after in revision.changes}
    counts: dict[Path, Counter[str]] = {}
    for folder in places:
        # A record that a kill has caught between the two files is in the revision.
        there = {row["source"]: changed.get(row["source"], row) for row in read_records(folder)[0]}
        rows = [row for row in (there | changed).values() if places.of(row) == folder]
        if rows:
            folder.mkdir(parents=True, exist_ok=True)
        write_records(folder, rows)
        counts[folder] = Counter(row["label"] for row in rows)
    write_cards(places, counts[places.output], counts[places.review])
    if revision.settings is not None:
        write_atomically(places.output / RUN, json.dumps(revision.settings[1], indent=1).encode())


def _remove_empty(folder: Path, places: Places) -> None:
    """Removes a folder and those around it as far as they are empty: readers take each for a class."""
    while folder not in (places.output, places.review):
        try:
            folder.rmdir()
        except OSError:  # it isn't empty
            return
        folder = folder.parent
