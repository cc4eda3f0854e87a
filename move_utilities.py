"""Cut-outs that users move by hand: each file manager is a tool of correction."""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from errors import OutputError
from record_utilities import BAD_MASK, MOVED, REVIEW, TEMPORARY, WRONG, Places, iterate_records
from storage_utilities import Place, RemotePath

_OF_SYSTEMS = {"lost+found", "System Volume Information"}  # folders that may not be entered; no item is called so


def find_moves(
    lost: Iterable[Mapping[str, Any]], places: Places, items: Sequence[str], is_there: Callable[[Place, str], bool]
) -> dict[str, tuple[Place, str]]:
    """Returns where users have moved cut-outs to, as (folder, path in it), by source.

    That is under another item, or to or from the review folder, where just one place has a file that no record has, and
    one photo wants it: of all others nobody knows where they are.

    Args:
        lost: Records whose cut-out is not in its place.
        places: Of the output.
        items: That cut-outs can have been moved to.
        is_there: Whether a folder of `places` has a file.
    """
    candidates = {
        row["source"]: {each for each in possible_moves(row, places, items) if is_there(*each)} for row in lost
    }
    free = set(itertools.chain.from_iterable(candidates.values()))
    for folder in places if free else ():
        for row in iterate_records([folder]):
            if places.of(row) == folder:
                free.discard((folder, row["file_name"]))
    moves = {source: there & free for source, there in candidates.items()}
    moves = {source: next(iter(there)) for source, there in moves.items() if len(there) == 1}
    claims = Counter(moves.values())
    return {source: move for source, move in moves.items() if claims[move] == 1}


def possible_moves(row: Mapping[str, Any], places: Places, items: Sequence[str]) -> list[tuple[Place, str]]:
    """Returns where a user can have moved the cut-out of a record to, each as (folder, path in it)."""
    name = row["file_name"].partition("/")[2]
    return [(place, f"{item}/{name}") for place in places for item in items]


def put_into_subfolders(lost: Iterable[Mapping[str, Any]], places: Places, items: Sequence[str]) -> int:
    """Puts cut-outs that lie right in an item's folder back into subfolders there, and returns how many.

    Whoever drags red/berlin/a.png onto the folder blue means blue/berlin/a.png, where `possible_moves` expects it.

    Args:
        lost: Records whose cut-out is not in its place.
        places: Of the output.
        items: That cut-outs can have been moved to.
    """
    wanted: dict[str, set[str]] = {}  # by its last part, the names without the item
    for row in lost:
        name = row["file_name"].partition("/")[2]
        if posixpath.basename(name) != name:
            wanted.setdefault(posixpath.basename(name), set()).add(name)
    if not wanted or isinstance(places.output, RemotePath):
        return 0
    there: dict[str, list[tuple[Place, str]]] = {}
    for place, item in itertools.product(places, items):
        with contextlib.suppress(OSError):  # there is no such folder
            for name in wanted.keys() & {path.name for path in Path(place / item).iterdir()}:
                there.setdefault(name, []).append((place, item))
    sure = {(found[0][0], f"{found[0][1]}/{name}") for name, found in there.items() if len(found) == 1}
    for row in iterate_records(places):
        sure.discard((places.of(row), row["file_name"]))  # it is another photo's
    moved = 0
    for place, file in sure:
        item, _, base = file.partition("/")
        whole = [place / item / name for name in wanted[base]]
        if len(whole) == 1 and not whole[0].exists():
            whole[0].parent.mkdir(parents=True, exist_ok=True)
            (place / file).rename(whole[0])
            moved += 1
    return moved


def moved_record(row: Mapping[str, Any], place: Place, file_name: str, places: Places) -> dict[str, Any]:
    """Returns the record of a cut-out that a user has moved: its item is a human's word.

    But to put it into review under the item that it had is to doubt that. And what is put into the output is neither
    wrong nor badly cut any more.
    """
    label = file_name.partition("/")[0]
    doubted = place == places.review and label == row["label"]
    lapsed = {MOVED, REVIEW, *([] if doubted else [WRONG]), *([BAD_MASK] if place == places.output else [])}
    flags = [flag for flag in row["flags"] if flag not in lapsed]
    return {
        **row,
        "file_name": file_name,
        "label": label,
        "label_source": row["label_source"] if doubted else "human",
        "flags": [*flags, MOVED, *([REVIEW] if place == places.review else [])],
    }


def find_pngs(folder: Place) -> set[str]:
    """Returns the PNGs of a folder, relative to it, and deletes temporary files of runs that were killed."""
    found: set[str] = set()
    for file in list_files(folder):
        if file.endswith(".png"):
            found.add(file)
        elif isinstance(folder, Path) and TEMPORARY.fullmatch(posixpath.basename(file)):
            (folder / file).unlink(missing_ok=True)
    return found


def list_files(folder: Place) -> Iterator[str]:
    """Yields the files of an output's folder, relative to it, but for those in folders that no item has.

    Raises:
        OutputError: A folder can't be read: what is in it would seem to be gone.
    """
    if isinstance(folder, RemotePath):
        yield from (str(path.relative_to(folder)) for path in folder.walk())
        return
    for top, folders, files in os.walk(folder, onerror=_refuse) if folder.exists() else ():
        if Path(top) == folder:
            folders[:] = [name for name in folders if not name.startswith((".", "$")) and name not in _OF_SYSTEMS]
        yield from (Path(top, file).relative_to(folder).as_posix() for file in files)


def refuse_links(places: Places) -> None:
    """Refuses folders of items that are links: what lies behind them would be moved and deleted.

    Raises:
        OutputError: There is one.
    """
    for folder in places:
        for path in folder.iterdir() if isinstance(folder, Path) and folder.is_dir() else ():
            if path.is_symlink() and path.is_dir():
                raise OutputError(
                    f"{path}: is a link to a folder, and what is in it would be done again, or count twice; "
                    "put the folder itself there, or take the link away"
                )


def _refuse(error: OSError) -> None:
    raise OutputError(
        f"{error.filename}: can't be read: {error.strerror}; mend that, as the photos in it would be done again"
    ) from None
