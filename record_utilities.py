"""Records of photos and the files they stand in: JSON lines, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errors import OutputError
from parts_utilities import PartsFile, drop_parts, join, parts_of, read_whole
from storage_utilities import Place, RemotePath

if TYPE_CHECKING:
    from mask_utilities import Region
    from prompt_utilities import Label
    from sam_utilities import Segmentation

METADATA, FAILURES, CARD, RUN = "metadata.jsonl", "failures.jsonl", "README.md", ".run.json"
# A row without these, or with something else there, is not ours; see `is_sound`, too.
RECORD_TYPES = {"file_name": str, "label": str, "source": str, "prompt": str, "width": int, "height": int}
FAILURE_TYPES = {"source": str, "reason": str, "stage": str}
_MOST = 1e9  # what a number in a record can be

REVIEW = "review"  # the flag of what is too doubtful for its item's folder
MOVED = "moved by hand"  # of a cut-out that a user has put into another item's folder
WRONG, BAD_MASK = "wrong", "bad mask"  # what people said of it
_LOW = {
    "item_probability": "low probability",
    "margin": "low margin",
    "mask_score": "low mask score",
}
VIEW, COLOUR = "view", "colour"  # of a second opinion that differs

TEMPORARY = re.compile(r"\.tmp-\d+-(?:[0-9a-f]{8}-)?\d+")  # earlier versions had no token
_TOKEN = secrets.token_hex(4)  # containers that share a folder have the same process numbers
_SERIAL = itertools.count()


def photo_record(
    label: Label,
    segmentation: Segmentation | None,
    region: Region | None,
    shape_hwc: tuple[int, ...],
    *,
    seconds: float,
    flags: Sequence[str] = (),
    crop: tuple[int, int, int, int] | None = None,
) -> dict[str, Any]:
    """Returns what metadata.jsonl says of a photo, but for its names.

    Args:
        label: What CLIP says.
        segmentation: What SAM 2 says; None where the photo was not cut.
        region: What can be said of its mask; None where the photo was not cut.
        shape_hwc: Of the photo.
        seconds: The models' time for its batch, divided by the photos in it.
        flags: What is doubtful about it.
        crop: The part (x0, y0, x1, y1) of the photo that its cut-out shows; None where that is all of it.
    """
    focus = None if segmentation is None else segmentation.focus
    confidence = None if focus is None else focus.confidence
    return {
        **label_record(label),
        "mask_score": None if segmentation is None else round(segmentation.score, 6),
        "mask_area": None if region is None else round(region.area, 6),
        "box": None if region is None else region.box,
        "points": None if segmentation is None else segmentation.points.tolist(),
        "focus": None if focus is None else focus.by,
        "focus_label": None if focus is None else focus.label,
        "focus_confidence": None if confidence is None else round(confidence, 6),
        "focus_box": None if focus is None else focus.rounded_box,
        "crop": crop,
        "width": shape_hwc[1],
        "height": shape_hwc[0],
        "flags": list(flags),
        "seconds": round(seconds, 4),
    }


def label_record(label: Label) -> dict[str, Any]:
    """Returns the part of a record that CLIP and the prompts decide."""
    return {
        "label": label.item,
        "label_source": "model",
        "model_label": label.item,
        "prompt": label.prompt,
        "probability": round(label.probability, 6),
        "item_probability": round(label.item_probability, 6),
        "runner_up": label.runner_up,
        "margin": round(label.margin, 6),
        # Objects, not pairs: a column of readers has one type.
        "top_items": [{"item": item, "probability": round(each, 6)} for item, each in label.top_items],
    }


@dataclass(frozen=True)
class Thresholds:
    """Below which a photo is set apart for review.

    Attributes:
        item_probability: In [0, 1]; 0 lets all pass.
        margin: In [-1, 1]; -1 lets all pass.
        mask_score: As item_probability; photos that were not cut pass.
        strict: A second opinion that differs is a reason, too.
    """

    item_probability: float = 0.0
    margin: float = -1.0
    mask_score: float = 0.0
    strict: bool = False


def review_flags(row: Mapping[str, Any], thresholds: Thresholds) -> list[str]:
    """Returns the flags of a record anew: what is doubtful about it, and `review` where that is too much.

    A label that a human has set is not doubted; what a human called wrong is.
    """
    low = [
        flag
        for key, flag in _LOW.items()
        if row.get(key) is not None and row[key] < getattr(thresholds, key) and row.get("label_source") != "human"
    ]
    kept = [flag for flag in row.get("flags", []) if flag != REVIEW and flag not in _LOW.values()]
    reasons = [*low, *(flag for flag in kept if flag in (WRONG, BAD_MASK))]
    if MOVED in kept and REVIEW in row.get("flags", []):  # a user has moved it there
        reasons.append(MOVED)
    if thresholds.strict and row.get("label_source") != "human":
        reasons += [flag for flag in kept if flag in (VIEW, COLOUR)]
    return [*kept, *low, *([REVIEW] if reasons else [])]


@dataclass(frozen=True)
class Places:
    """The folders of an output that cut-outs and their records stand in: labelled ones, and those to be reviewed."""

    output: Place
    review: Place

    def __iter__(self) -> Iterator[Place]:
        return iter((self.output, self.review))

    def of(self, row: Mapping[str, Any]) -> Place:
        """Returns the folder of a record."""
        return self.review if REVIEW in row["flags"] else self.output

    def png(self, row: Mapping[str, Any]) -> Place:
        """Returns where the cut-out of a record is."""
        return self.of(row) / row["file_name"]


def iterate_records(folders: Iterable[Place]) -> Iterator[dict[str, Any]]:
    """Yields the records of folders, such as those of `Places`, however many there are, without holding them.

    Records of earlier versions get the keys that they lack: readers expect the same of all. Lines that are none are
    left out.
    """
    for folder in folders:
        for row in iterate_lines(folder / METADATA, RECORD_TYPES):
            if row is not None and is_sound(row):
                yield row


def is_record(value: Any) -> bool:
    """Whether a value is a sound record."""
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(key), kind) for key, kind in RECORD_TYPES.items())
        and is_sound(value)
    )


def is_sound(row: dict[str, Any]) -> bool:
    """Whether a row of `RECORD_TYPES` has in it what readers take for granted, whatever a hand has written there.

    It gets the keys that records of earlier versions lack.
    """
    try:
        _complete(row)
        top_items, crop = row["top_items"], row.get("crop")
        numbers = [row["item_probability"], row["margin"], *(each["probability"] for each in top_items)]
        numbers += [row[key] for key in ("mask_score", "mask_area") if row[key] is not None]
        texts = [row["model_label"], row["label_source"], *row["flags"], *(each["item"] for each in top_items)]
        return (
            _is_inside(row["label"], row["file_name"], row["source"])
            and isinstance(row["flags"], list)
            and all(isinstance(text, str) for text in texts)
            and all(abs(number) < _MOST for number in numbers)  # NaN is not
            and 0 < row["width"] < _MOST
            and 0 < row["height"] < _MOST
            and (crop is None or (len(crop) == 4 and all(isinstance(side, int) and abs(side) < _MOST for side in crop)))
        )
    except (KeyError, TypeError):
        return False


def _is_inside(label: str, file_name: str, source: str) -> bool:
    """Whether a record names a cut-out in its item's folder, and a photo in the dataset, and nothing elsewhere."""
    if os.name == "nt":
        source = source.replace("\\", "/")
    parts = {*file_name.replace("\\", "/").split("/"), *source.split("/")}
    return (
        not parts & {".", ".."}
        and "\0" not in file_name + source
        and not (os.name == "nt" and source[1:2] == ":")
        and label not in ("", ".", "..")
        and not set(label) & {"/", "\\", ":"}
        and file_name.startswith(f"{label}/")
        and not source.startswith("/")
    )


def _complete(row: dict[str, Any]) -> None:
    row.setdefault("flags", [])
    if "model_label" not in row:
        row.update(label_source="human" if MOVED in row["flags"] else "model", model_label=row["label"])
        row.setdefault("top_items", [{"item": row["label"], "probability": row["item_probability"]}])


class StoredRecords(Mapping[str, dict[str, Any]]):
    """Records by source, read from their files whenever they are asked for: memory holds where each of them stands.

    Where several have one source, the last counts. Good until the files change.

    Args:
        folders: On a disk, whose metadata.jsonl hold them, in this order.
        counts: Whether a record counts.
    """

    def __init__(self, folders: Iterable[Path], counts: Callable[[dict[str, Any]], bool] = lambda _: True) -> None:
        self._paths = [folder / METADATA for folder in folders]
        self._positions: dict[str, int] = {}
        for position, row in self._read():
            self._positions.pop(row["source"], None)  # or its place among the keys would be that of the first
            if counts(row):
                self._positions[row["source"]] = position

    def _read(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields all records, each with a number for its position in its file and the file's among the files."""
        for index, path in enumerate(self._paths):
            position = 0
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                for line in file:
                    row = _parse(line, RECORD_TYPES)
                    if row is not None and is_sound(row):
                        yield position * len(self._paths) + index, row
                    position += len(line)

    def __getitem__(self, source: str) -> dict[str, Any]:
        """Returns the record of a photo."""
        position, index = divmod(self._positions[source], len(self._paths))
        with self._paths[index].open("rb") as file:
            file.seek(position)
            row = json.loads(file.readline())
        _complete(row)
        return row

    def __iter__(self) -> Iterator[str]:
        """Yields the sources in the order of the files."""
        return iter(self._positions)

    def __len__(self) -> int:
        """Returns how many records there are."""
        return len(self._positions)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields the records in the order of the files, each of which is read once."""
        for position, row in self._read():
            if self._positions.get(row["source"]) == position:
                yield row


def write_records(folder: Place, rows: Iterable[Mapping[str, Any]]) -> None:
    """Lets a folder's metadata.jsonl hold just these records; without any, none is made."""
    lines = map(to_line, rows)
    first = next(lines, b"")
    if first or (folder / METADATA).exists():
        replace_file(folder / METADATA, itertools.chain([first], lines))


def append_records(folder: Place, rows: Collection[Mapping[str, Any]]) -> None:
    """Appends records, where there are any, to a folder's metadata.jsonl."""
    if rows:
        with contextlib.closing(open_to_append(folder / METADATA)) as file:
            file.append(b"\n" + b"".join(map(to_line, rows)))  # what comes before may be torn
            file.sync()


def replace_file(path: Place, data: bytes | Iterable[bytes]) -> None:
    """Lets a file that pieces are appended to hold just these bytes, or pieces; it is not open meanwhile."""
    if isinstance(path, RemotePath):
        join(path)  # parts that a kill left beside the new contents would be taken for more of them
    write_atomically(path, data)


def remove_empty(folder: Place, places: Places) -> None:
    """Removes a folder of an output and those around it as far as they are empty: readers take each for a class."""
    while not isinstance(folder, RemotePath) and any(place in folder.parents for place in places):
        try:
            folder.rmdir()
        except OSError:  # it isn't empty, or it is gone
            if folder.exists():
                return
        folder = folder.parent


def delete_file(path: Place) -> None:
    """Deletes a file that pieces are appended to, where there is one."""
    if isinstance(path, RemotePath):
        drop_parts(parts_of(path))
    path.unlink(missing_ok=True)


def clear_temporaries(folder: Place) -> None:
    """Deletes the temporary files that killed runs have left in a folder; nobody else may be writing there.

    An object store has none: nothing is renamed there.
    """
    if isinstance(folder, RemotePath):
        return
    for each, _, files in os.walk(folder):
        for file in filter(TEMPORARY.fullmatch, files):
            with contextlib.suppress(OSError):  # they are in nobody's way
                Path(each, file).unlink()


def temporary_name(path: Path) -> Path:
    """Returns a name beside a file, under which it is written before it gets its own; no other process has it."""
    return path.with_name(f".tmp-{os.getpid()}-{_TOKEN}-{next(_SERIAL)}")


def write_atomically(path: Place, data: bytes | Iterable[bytes]) -> None:
    """Writes bytes, or pieces one after the other, to a file: whole or not at all, even where the power fails."""
    pieces = (data,) if isinstance(data, bytes) else data
    if isinstance(path, RemotePath):
        path.write_bytes(b"".join(pieces))
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())  # or the name may reach the disk before the contents
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


class AppendedFile:
    """A file that pieces are appended to, each whole or not at all.

    Args:
        path: The file.
        head: What it begins with, where it is new.

    Raises:
        OSError: The file can't be opened.
    """

    def __init__(self, path: Path, head: bytes = b"") -> None:
        self._path = path
        # Without a buffer, whose rest would be tried again when the file is closed.
        self._file = path.open("ab", buffering=0)
        if head and self._file.seek(0, os.SEEK_END) == 0:
            self.append(head)

    def append(self, data: bytes) -> None:
        """Appends a piece.

        Raises:
            OutputError: It can't be written, or the file is no longer there.
        """
        size = self._file.seek(0, os.SEEK_END)
        left = memoryview(data)
        try:
            if not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            while left:  # a disk with little room takes a part, and refuses the rest
                left = left[self._file.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise stopped(self._path, error) from None

    def flush(self) -> None:
        """Does nothing: no piece waits for others."""

    def sync(self) -> None:
        """Waits until the pieces are on the disk.

        Raises:
            OutputError: They can't be brought there.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise stopped(self._path, error) from None

    def close(self) -> None:
        """Closes the file, where it is open."""
        self._file.close()


class _AppendedObject:
    """As `AppendedFile`, in an object store: pieces are there some seconds later, and in the file after `sync`."""

    def __init__(self, path: RemotePath, head: bytes, before: Callable[[], None]) -> None:
        self._path, self._parts = path, PartsFile(path, head, before=before)

    def append(self, data: bytes) -> None:
        try:
            self._parts.append(data)
        except OSError as error:
            raise stopped(self._path, error) from None

    def flush(self) -> None:
        try:
            self._parts.flush()
        except OSError as error:
            raise stopped(self._path, error) from None

    def sync(self) -> None:
        try:
            self._parts.join()
        except OSError as error:
            raise stopped(self._path, error) from None

    def close(self) -> None:
        with contextlib.suppress(OutputError):  # after an error; else nothing is left
            self.flush()


def open_to_append(
    path: Place, head: bytes = b"", *, before: Callable[[], None] = lambda: None
) -> AppendedFile | _AppendedObject:
    """Returns a file that pieces are appended to; see `AppendedFile`.

    Args:
        path: The file.
        head: What it begins with, where it is new.
        before: In an object store, where pieces gather: called before they are written; flushes what they rely on.

    Raises:
        OSError: The file can't be opened.
    """
    return _AppendedObject(path, head, before) if isinstance(path, RemotePath) else AppendedFile(path, head)


def stopped(path: Place, error: OSError) -> OutputError:
    """Returns the error of a run that can't go on because a file of its output can't be written."""
    reasons = {
        errno.ENOENT: "it is gone since the run began",
        errno.EFBIG: "the limit of file sizes (ulimit -f)",
        errno.EMFILE: "the limit of open files (ulimit -n, or a smaller --batch-size)",
    }
    return OutputError(
        f"{path}: can't be written: {reasons.get(error.errno, error.strerror)}; "
        "mend that, and the same command goes on from there: what was finished is kept"
    )


def iterate_lines(path: Place, types: Mapping[str, Any]) -> Iterator[dict[str, Any] | None]:
    """Yields the rows of a JSONL file without holding them; None for each that is torn, or lacks a key or type.

    And at the end where that lacks a newline or, in an object store, parts are yet to be put together. A file that is
    missing has no rows.
    """
    apart = isinstance(path, RemotePath) and bool(parts_of(path))
    line = b"\n"
    try:
        with io.BytesIO(read_whole(path)) if apart else path.open("rb") as file:
            for line in file:
                yield _parse(line, types)
    except FileNotFoundError:
        return
    if apart or not line.endswith(b"\n"):
        yield None


def _parse(line: bytes, types: Mapping[str, Any]) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    typed = isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in types.items())
    return row if typed else None


def to_line(row: Mapping[str, Any]) -> bytes:
    """Returns an object as a line of a JSONL file."""
    return (json.dumps(row, ensure_ascii=False) + "\n").encode(
        errors="replace"
    )  # halves of surrogate pairs are no UTF-8


def count_pixels(row: Mapping[str, Any]) -> int:
    """Returns the pixels of a photo or of its cut-out, whichever has more: a square one reaches beyond the photo."""
    x0, y0, x1, y1 = row["crop"] or (0, 0, 0, 0)
    return max(row["width"] * row["height"], (x1 - x0) * (y1 - y0))
