"""Changes to a finished output: each is written down before it is made, is finished after a crash, and can be undone.

The output's `.revisions.jsonl` is a write-ahead log: the head of a revision, a line per changed record with the record
before and after, and a line that says that files and records are as it wants them. What was cut off before its last
change was written has not begun; what lacks only the last line is done again, which changes nothing twice.

A revision may change millions of records: they are read from the log and from metadata.jsonl one at a time, and memory
holds where they stand.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from card_utilities import write_cards
from config_utilities import PROMPT_KEYS
from errors import OutputError
from record_utilities import (
    RUN,
    AppendedFile,
    Places,
    StoredRecords,
    is_record,
    remove_empty,
    stopped,
    to_line,
    write_atomically,
    write_records,
)
from storage_utilities import RemotePath

REVISIONS = ".revisions.jsonl"
_TAIL = 4096  # bytes at the end of the log that hold its last line, where a revision is done
_IN_MEMORY = 1 << 24  # bytes of changes; more of them wait on the disk until all are known


@dataclass(frozen=True)
class Revision:
    """One change of an output.

    Attributes:
        number: From 1.
        by: What asked for it, in words.
        undoes: The number of the revision that it takes back; None where it takes none back.
        settings: What `.run.json` said before and says after it; None where that stays.
        changes: Of records.
        done: Whether files and records are as it wants them.
    """

    number: int
    by: str
    undoes: int | None
    settings: tuple[dict[str, Any], dict[str, Any]] | None
    changes: Changes
    done: bool

    @property
    def relabels(self) -> bool:
        """Whether it has let the model choose among other prompts, or by another rule."""
        before, after = self.settings or ({}, {})
        return any(before.get(key) != after.get(key) for key in (*PROMPT_KEYS, "decision"))


@dataclass(frozen=True)
class Changes:
    """The changes of a revision, each (record before, record after) of one source; they are read when asked for.

    Attributes:
        path: The log.
        begin: Where they begin in it, in bytes.
        count: How many they are.
    """

    path: Path
    begin: int
    count: int

    def __len__(self) -> int:
        """Returns how many there are."""
        return self.count

    def __iter__(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yields them in the order in which they were asked for."""
        return ((change["before"], change["after"]) for _, change in self._read())

    def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self.path.open("rb") as file:
            position = file.seek(self.begin)
            for line in itertools.islice(file, self.count):
                yield position, json.loads(line)
                position += len(line)

    @contextlib.contextmanager
    def records_after(self) -> Iterator[Callable[[str], dict[str, Any] | None]]:
        """Lends a function that returns the record of a source after them; None where they do not change it."""
        positions = {change["after"]["source"]: position for position, change in self._read()}
        with self.path.open("rb") as file:

            def find(source: str) -> dict[str, Any] | None:
                if source not in positions:
                    return None
                file.seek(positions[source])
                return json.loads(file.readline())["after"]

            yield find


def revise(
    places: Places,
    changes: Iterable[tuple[dict[str, Any], dict[str, Any]]],
    *,
    by: str,
    settings: tuple[dict[str, Any], dict[str, Any]] | None = None,
    undoes: int | None = None,
) -> int:
    """Changes records of an output, moves their cut-outs to where the new ones say, and returns how many they are.

    Without a change, and without another thing to be said, nothing is written.

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
    }
    with tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=places.output) as spool:  # the head says how many follow
        count = 0
        try:
            for before, after in changes:
                spool.write(to_line({"before": before, "after": after}))
                count += 1
            spool.seek(0)
            if not count and settings is None and undoes is None:
                return 0
            log = AppendedFile(path)
        except OSError as error:
            raise stopped(path, error) from None
        with contextlib.closing(log):
            log.append(to_line(head | {"changes": count}))
            while piece := spool.read(_IN_MEMORY):
                log.append(piece)
            log.sync()
    finish_revision(places)
    return count


def finish_revision(places: Places) -> Revision | None:
    """Finishes the last revision where a kill or a full disk has interrupted it, and returns it.

    Raises:
        OutputError: The output can't be written.
    """
    path = places.output / REVISIONS
    try:
        if _is_finished(path):
            return None
    except OSError as error:
        raise OutputError(f"{path}: can't be read: {error.strerror}; mend that") from None
    if isinstance(path, RemotePath):
        raise OutputError(f"{path}: tells of a change that was cut off; copy the output to a disk to have it finished")
    *_, (last, end) = _parse(path)
    try:
        os.truncate(path, end)
        if last is None:
            return None
        _make(places, last)
        log = AppendedFile(path)
    except OSError as error:
        raise stopped(path, error) from None
    with contextlib.closing(log):
        log.append(to_line({"revision": last.number, "done": True}))
        log.sync()
    return last


def read_revisions(places: Places) -> list[Revision]:
    """Returns the revisions of an output, the oldest first."""
    return [revision for revision, _ in _parse(places.output / REVISIONS) if revision is not None]


def find_revision(places: Places, number: int) -> Revision | None:
    """Returns the revision with a number; None where there is none."""
    return next((each for each in read_revisions(places) if each.number == number), None)


def to_undo(places: Places) -> Revision | None:
    """Returns the last revision that stands; None where there is none to undo."""
    revisions = read_revisions(places)
    undone = {each.undoes for each in revisions}
    standing = [each for each in revisions if each.undoes is None and each.number not in undone]
    return standing[-1] if standing else None


def earlier_names(places: Places, names: Collection[str]) -> dict[str, str]:
    """Returns the source of the photo that had one of these file names before a revision; the latest counts."""
    return {
        before["file_name"]: before["source"]
        for revision in read_revisions(places)
        for before, after in revision.changes
        if before["file_name"] in names and before["file_name"] != after["file_name"]
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
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        begin, number = 0, 1  # of a revision: in bytes, and its first line
        while line := file.readline():
            head = _load(line)
            changes_begin = end = begin + len(line)
            count, whole = 0, _is_head(head)
            for line in itertools.islice(file, head["changes"] if whole else 0):
                count += 1
                end += len(line)
                whole = whole and _is_change(_load(line))
            whole = whole and count == head["changes"]
            mark = file.readline()
            done = whole and "done" in _load(mark)
            if not done and file.readline():
                raise OutputError(f"{path}: is damaged at line {number}; delete it: records stay, undo ends there")
            if not whole:
                yield None, begin
                return
            begin = end + (len(mark) if done else 0)
            yield _read_revision(head, Changes(path, changes_begin, count), done=done), begin
            number += 2 + count


def _read_revision(head: Mapping[str, Any], changes: Changes, *, done: bool) -> Revision:
    settings = head["settings"] and tuple(head["settings"])
    return Revision(head["revision"], head["by"], head["undoes"], settings, changes, done)


def _is_head(head: Mapping[str, Any]) -> bool:
    """Whether a line of the log begins a revision."""
    settings = head.get("settings")
    return (
        all(type(head.get(key)) is int and head[key] >= 0 for key in ("revision", "changes"))
        and isinstance(head.get("by"), str)
        and (head.get("undoes") is None or type(head["undoes"]) is int)
        and (settings is None or (isinstance(settings, list) and [type(each) for each in settings] == [dict, dict]))
    )


def _is_change(change: Mapping[str, Any]) -> bool:
    """Whether a line of the log is a change of one photo's record, whoever may have written it there."""
    rows = change.get("before"), change.get("after")
    return all(map(is_record, rows)) and rows[0]["source"] == rows[1]["source"]


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
        emptied.add(old.parent)  # also where a user has moved it
    for folder in emptied:
        remove_empty(folder, places)

    counts: dict[Path, Counter[str]] = {folder: Counter() for folder in places}
    with revision.changes.records_after() as find:
        for folder in places:
            write_records(folder, _counted(_records_of(folder, places, revision.changes, find), counts[folder]))
    write_cards(places, counts[places.output], counts[places.review])
    if revision.settings is not None:
        write_atomically(places.output / RUN, json.dumps(revision.settings[1], indent=1).encode())


def _records_of(
    folder: Path, places: Places, changes: Changes, find: Callable[[str], dict[str, Any] | None]
) -> Iterator[dict[str, Any]]:
    """Yields the records that a folder is to have: its own as they are to be, then those that come to it."""
    there = StoredRecords([folder])
    # A record that a kill has caught between the two files is in the revision.
    own = (find(row["source"]) or row for row in there.rows())
    others = (after for _, after in changes if after["source"] not in there)
    return (row for row in itertools.chain(own, others) if places.of(row) == folder)


def _counted(rows: Iterable[dict[str, Any]], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        counts[row["label"]] += 1
        yield row
