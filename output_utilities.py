"""The output folder: PNGs, metadata.jsonl, failures.jsonl, and what a later run needs to go on."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import math
import os
import re
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dataset_utilities import PhotoFile, alternative_name, copy_name
from errors import OutputError, PhotoError
from lock_utilities import hold_lock
from mask_utilities import Region
from photo_utilities import open_regular
from pipeline_utilities import stage
from png_utilities import encode_png
from prompt_utilities import Label
from sam_utilities import Segmentation

_LOGGER = logging.getLogger("sam2vit")

METADATA, FAILURES, CARD, RUN = "metadata.jsonl", "failures.jsonl", "README.md", ".run.json"
_LOCK = ".lock"  # only while a run is writing
# What a resumed run reads of a row; a row without it, or with something else there, is not ours.
_RECORD_TYPES = {"file_name": str, "label": str, "source": str, "item_probability": (int, float)}
_FAILURE_TYPES = {"source": str, "reason": str, "stage": str}
MOVED = "moved by hand"  # the flag of a record whose cut-out a user has put into another item's folder
_TEMPORARY = re.compile(r"\.tmp-\d+-\d+")
_SERIAL = itertools.count()

# What the whole run shares, unlike a name that this one file system can't store. EFBIG: of `ulimit -f`.
_FATAL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def sibling(output: Path, kind: str) -> Path:
    """Returns the folder of side products that stands beside the output, such as `output-debug`."""
    absolute = Path(os.path.abspath(output))  # `.` has no name of its own  # noqa: PTH100 (links stay links)
    return absolute.parent / f"{absolute.name}-{kind}"


def check_output(output: Path, dataset_dir: Path, *, side_folders: Sequence[Path] = ()) -> None:
    """Refuses an output that would mix with the photos or with somebody's files.

    Args:
        output: Where cut-outs will go.
        dataset_dir: Where the photos are.
        side_folders: Where else files will be written.

    Raises:
        OutputError: One of them is the dataset or contains it, or the output is no folder, can't be read or holds
            files of another origin.
    """
    photos = dataset_dir.resolve()
    for folder in (output, *side_folders):
        if folder.resolve() == photos or folder.resolve() in photos.parents:
            relation = "is" if folder.resolve() == photos else "contains"
            what = f"--output {output}" if folder == output else f"--output {output}: its side folder {folder}"
            raise OutputError(f"{what}: {relation} the dataset {dataset_dir}; name another --output")
    try:
        strangers = sorted(
            path.name for path in output.iterdir() if path.name != _LOCK and not _TEMPORARY.fullmatch(path.name)
        )
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"--output {output}: {error.strerror}; name a folder of your own") from None
    if strangers and RUN not in strangers:
        raise OutputError(
            f"--output {output}: holds files that are not of a sam2vit run, such as {strangers[0]!r}; "
            "name a new or empty folder"
        )


@contextlib.contextmanager
def lock_output(output: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, which is made where it is missing, as long as the block takes.

    Raises:
        OutputError: Another run has it, or the folder can't be written.
    """
    path = output / _LOCK

    def refuse() -> None:
        raise OutputError(
            f"--output {output}: {_holder(path)} is writing to it; wait for its end, or name another --output"
        )

    with contextlib.ExitStack() as stack:
        try:
            if not output.exists():
                output.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_if_empty, output)
            stack.enter_context(hold_lock(path, on_held=refuse))
        except OSError as error:
            raise _unwritable(output, error) from None
        with contextlib.suppress(OSError):  # a full disk is told of by what needs it
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not
        folder.rmdir()


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:200] or "another run"
    except (OSError, ValueError):
        return "another run"


def _unwritable(output: Path, error: OSError) -> OutputError:
    reason = error.strerror or error
    return OutputError(
        f"--output {output}: can't be written: {reason}; make room, mend its permissions, or name another"
    )


def clear_temporaries(folder: Path) -> None:
    """Deletes the temporary files that killed runs have left in a folder; nobody else may be writing there."""
    for each, _, files in os.walk(folder):
        for file in filter(_TEMPORARY.fullmatch, files):
            with contextlib.suppress(OSError):  # they are in nobody's way
                Path(each, file).unlink()


class OutputFolder:
    """A run's output folder: what is done, and the writing of what is not.

    PNGs are encoded by threads. A photo's record goes into metadata.jsonl once its PNG is in place, in the order
    of `write` calls. Every file appears under its final name only when it is whole.

    Args:
        output: The folder; created when missing. See `check_output`.
        run_settings: The settings that decide results. An output made with others is refused.
        items: The items that photos can be given.
        overwrite: Delete what an earlier run has written, and start over.
        threads: How many PNGs are encoded at once.
        most_pixels: So many pixels may wait to be written; a larger photo is alone.
        unknown: Where photos are copied to that are set aside; nowhere where None.

    Raises:
        OutputError: The folder can't be written, or was made with other settings.
    """

    def __init__(
        self,
        output: Path,
        run_settings: Mapping[str, Any],
        *,
        items: Sequence[str],
        overwrite: bool = False,
        threads: int = 2,
        most_pixels: float = math.inf,
        unknown: Path | None = None,
    ) -> None:
        self.path = output
        self.counts: Counter[str] = Counter()  # photos per item, those of earlier runs included
        self.skipped = 0  # files of this run that hold no image
        self._items = tuple(items)
        self._unknown = unknown
        self._failed_now: set[str] = set()
        self._probabilities: Counter[str] = Counter()  # sums of item_probability per item
        self._pending: deque[tuple[Future[None], PhotoFile, dict[str, Any]]] = deque()
        self._most_pending = 2 * threads  # full-size photos, so no more than keeps the threads busy
        self._most_pixels = most_pixels
        try:
            output.mkdir(parents=True, exist_ok=True)
            if overwrite:
                self._delete_earlier_run()
            else:
                _refuse_other_settings(output / RUN, run_settings)
            write_atomically(output / RUN, json.dumps(run_settings, indent=1).encode())
            self._orphans = self._take_stock()
            self._write_card()
            self._metadata = _JsonLines(output / METADATA)
            self._failures_file = _JsonLines(output / FAILURES)
        except OSError as error:
            raise _unwritable(output, error) from None
        self._pool = ThreadPoolExecutor(threads)

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The failures that stand: this run's, and an earlier one's that this run has not come to."""
        return list(self._failures.values())

    @property
    def done(self) -> int:
        """How many photos earlier runs have finished."""
        return len(self._done)

    def mean_probability(self, item: str) -> float:
        """Returns the mean item_probability of the photos of an item."""
        return self._probabilities[item] / self.counts[item]

    def is_done(self, photo: PhotoFile) -> bool:
        """Whether the photo's cut-out and record are in place."""
        return photo.source in self._done

    def write(self, photo: PhotoFile, draw: Callable[[], np.ndarray], record: Mapping[str, Any]) -> None:
        """Begins to write a cut-out to `<item>/<name>.png`; waits where the writers are far behind.

        Args:
            photo: The photo.
            draw: Makes the cut-out, (H, W, 4) uint8 RGBA, in a writer's thread.
            record: What metadata.jsonl will say, but for file_name and source; `label` is the item.

        Raises:
            OutputError: An earlier PNG or record could not be written, for a reason that all share.
        """
        file_name = self._file_name(photo, record["label"])
        row = {"file_name": file_name, "label": record["label"], "source": photo.source, **record}
        self._pending.append((self._pool.submit(_draw_and_write, self.path / file_name, draw), photo, row))
        while self._pending and (self._pending[0][0].done() or self._is_behind()):
            self._record_first()

    def _is_behind(self) -> bool:
        pixels = sum(_count_pixels(row) for _, _, row in self._pending)
        return len(self._pending) > self._most_pending or (len(self._pending) > 1 and pixels > self._most_pixels)

    def fail(self, source: str, reason: str, *, stage: str) -> None:
        """Records a photo that can't be done; the next run tries it again."""
        failure = {"source": source, "reason": reason, "stage": stage}
        self._failures[source] = failure
        self._failed_now.add(source)
        self._failures_file.append(failure)

    def set_aside(self, photo: PhotoFile) -> None:
        """Copies a photo to the folder of those without a subject, where there is to be one; see `fail`, too."""
        if self._unknown is None:
            return
        path = self._unknown / copy_name(photo)
        try:
            with open_regular(photo.path) as file:
                contents = file.read()
        except OSError as error:
            _LOGGER.warning("%s: can't be copied to %s: %s", photo.source, self._unknown, error.strerror)
            return
        try:
            write_atomically(path, contents)
        except OSError as error:
            raise OutputError(
                f"{path}: can't be written: {error.strerror}; make room, or leave out --keep-unknown"
            ) from None

    def finish(self) -> None:
        """Says that every photo has been tried: earlier failures stand no longer, and strange PNGs are named."""
        self._failures = {source: row for source, row in self._failures.items() if source in self._failed_now}
        if self._orphans:
            _LOGGER.warning(
                "%s: %d PNGs are in no record, such as %s; delete them, or readers of the folder count them in",
                self.path,
                len(self._orphans),
                min(self._orphans),
            )

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Waits for the PNGs, records them, and brings the records in order.

        After an error or an interrupt, PNGs whose encoding has not begun are dropped: a later run does them again.
        """
        try:
            if error_type is not None:
                self._pending = deque(entry for entry in self._pending if not entry[0].cancel())
            self._finish_writing()
        except OutputError:
            if error_type is None or issubclass(error_type, KeyboardInterrupt):
                raise
            _LOGGER.debug("closing the output failed, too", exc_info=True)
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
            for _, _, row in self._pending:  # where records can't be written
                self._unlink(row)
            self._metadata.close()
            self._failures_file.close()

    def _finish_writing(self) -> None:
        while self._pending:
            self._record_first()
        self._metadata.sync()
        self._failures_file.close()  # before it is replaced: Windows does not rename onto an open file
        try:
            self._write_failures()
            self._write_card()
        except OSError as error:
            raise _stopped(self.path, error) from None

    def _file_name(self, photo: PhotoFile, item: str) -> str:
        """Returns the path of a cut-out in the output; clears away what an interrupted run left under its name."""
        if self._orphans:
            self._clear_orphans(photo)
        file_name = f"{item}/{photo.name}"
        if file_name in self._taken:  # by a photo of an earlier run, since renamed or deleted
            file_name = f"{item}/{alternative_name(photo)}"
        return file_name

    def _clear_orphans(self, photo: PhotoFile) -> None:
        names = (photo.name, alternative_name(photo))
        for other in self._orphans.intersection(f"{item}/{name}" for item in self._items for name in names):
            _LOGGER.info("%s: had no record, its photo is done again", other)
            try:
                (self.path / other).unlink(missing_ok=True)
            except OSError as error:
                raise _stopped(self.path / other, error) from None
            self._orphans.discard(other)

    def _record_first(self) -> None:
        future, photo, row = self._pending[0]
        error = future.exception()  # waits; an interrupt meanwhile leaves the entry for `__exit__`
        self._pending.popleft()
        if isinstance(error, OSError):
            if error.errno in _FATAL:
                raise _stopped(self.path / row["file_name"], error)
            self.fail(photo.source, f"can't be written: {error.strerror or error}", stage="write")
            return
        if isinstance(error, Exception):  # whatever drawing one photo raises is that photo's reason
            _LOGGER.debug("%s", photo.source, exc_info=error)
            self.fail(photo.source, PhotoError.of(error, stage="write").reason, stage="write")
            return
        if error is not None:
            raise error
        try:
            self._metadata.append(row)
        except OutputError:
            self._unlink(row)
            raise
        self._count(row)
        self._failures.pop(photo.source, None)

    def _unlink(self, row: Mapping[str, Any]) -> None:
        """Deletes a PNG that gets no record, where the disk lets it; else a later run does."""
        with contextlib.suppress(OSError):
            (self.path / row["file_name"]).unlink(missing_ok=True)

    def _count(self, row: Mapping[str, Any]) -> None:
        self.counts[row["label"]] += 1
        self._probabilities[row["label"]] += row["item_probability"]

    def _take_stock(self) -> set[str]:
        """Reads what earlier runs have done, mends what an interruption left, and returns PNGs without a record."""
        found = self._find_pngs()
        records = self._read_records(found)
        self._done = set(records)
        self._taken = {row["file_name"] for row in records.values()}
        for row in records.values():
            self._count(row)
        failures, _ = _read_lines(self.path / FAILURES, _FAILURE_TYPES)
        self._failures = {row["source"]: row for row in failures if row["source"] not in self._done}
        self._write_failures()
        return found - self._taken

    def _find_pngs(self) -> set[str]:
        """Returns the PNGs of the output, relative to it, and deletes temporary files of runs that were killed."""
        found: set[str] = set()
        for folder, _, files in os.walk(self.path):
            for file in files:
                path = Path(folder, file)
                if _TEMPORARY.fullmatch(file):
                    path.unlink(missing_ok=True)
                elif file.endswith(".png"):
                    found.add(path.relative_to(self.path).as_posix())
        return found

    def _read_records(self, found: set[str]) -> dict[str, dict[str, Any]]:
        """Returns the records whose PNG is there, by source, and lets metadata.jsonl hold just these."""
        rows, intact = _read_lines(self.path / METADATA, _RECORD_TYPES)
        records: dict[str, dict[str, Any]] = {}
        moved = 0
        for row in rows:
            item = row["label"] if row["file_name"] in found else self._moved_to(row, found)
            if item is None:
                continue
            if item != row["label"]:
                moved += 1
                row.update(file_name=f"{item}/{row['file_name'].partition('/')[2]}", label=item)
                row["flags"] = [*row.get("flags", []), MOVED]
            records[row["source"]] = row
        if moved:
            _LOGGER.warning("%s: %d cut-outs were moved to another item by hand; that stands", self.path, moved)
        if moved or not intact or len(records) < len(rows):
            write_atomically(self.path / METADATA, b"".join(map(_to_line, records.values())))
        return records

    def _moved_to(self, row: Mapping[str, Any], found: set[str]) -> str | None:
        """Returns the item to whose folder a user has moved a cut-out; None where it is gone."""
        name = row["file_name"].partition("/")[2]
        places = [item for item in self._items if f"{item}/{name}" in found]
        return places[0] if len(places) == 1 else None

    def _write_failures(self) -> None:
        rows = sorted(self._failures.values(), key=lambda row: row["source"])  # in whatever order they came
        write_atomically(self.path / FAILURES, b"".join(map(_to_line, rows)))

    def _write_card(self) -> None:
        write_atomically(self.path / CARD, _dataset_card(self.counts).encode())

    def _delete_earlier_run(self) -> None:
        """Deletes the PNGs that an earlier run recorded, its records, and the folders that are empty then.

        Its settings stay, by which the folder is known as one of this program, until those of this run replace them.
        """
        rows, _ = _read_lines(self.path / METADATA, _RECORD_TYPES)
        for row in rows:
            path = self.path / row["file_name"]
            if path.resolve().is_relative_to(self.path.resolve()):  # whatever a hand has written there
                path.unlink(missing_ok=True)
        for name in (METADATA, FAILURES, CARD):
            (self.path / name).unlink(missing_ok=True)
        for folder, _, _ in os.walk(self.path, topdown=False):
            if Path(folder) != self.path and not any(Path(folder).iterdir()):
                Path(folder).rmdir()


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
        "label": label.item,
        "prompt": label.prompt,
        "probability": round(label.probability, 6),
        "item_probability": round(label.item_probability, 6),
        "runner_up": label.runner_up,
        "margin": round(label.margin, 6),
        "mask_score": None if segmentation is None else round(segmentation.score, 6),
        "mask_area": None if region is None else round(region.area, 6),
        "box": None if region is None else region.box,
        "points": None if segmentation is None else segmentation.points.tolist(),
        "focus": None if focus is None else focus.by,
        "focus_label": None if focus is None else focus.label,
        "focus_confidence": None if confidence is None else round(confidence, 6),
        "focus_box": None if focus is None or focus.box is None else [round(each, 1) for each in focus.box],
        "crop": crop,
        "width": shape_hwc[1],
        "height": shape_hwc[0],
        "flags": list(flags),
        "seconds": round(seconds, 4),
    }


def _count_pixels(row: Mapping[str, Any]) -> int:
    """Returns the pixels of a photo or of its cut-out, whichever has more: a square one reaches beyond the photo."""
    x0, y0, x1, y1 = row["crop"] or (0, 0, 0, 0)
    return max(row["width"] * row["height"], (x1 - x0) * (y1 - y0))


def _draw_and_write(path: Path, draw: Callable[[], np.ndarray]) -> None:
    with stage("PNG"):
        write_atomically(path, encode_png(draw()))


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all, even where the power fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{next(_SERIAL)}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or the name may reach the disk before the contents
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


class _JsonLines:
    """A JSONL file that rows are appended to, each whole or not at all.

    Raises:
        OSError: The file can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        # Without a buffer, whose rest would be tried again when the file is closed.
        self._file = path.open("ab", buffering=0)

    def append(self, row: Mapping[str, Any]) -> None:
        """Appends a row.

        Raises:
            OutputError: It can't be written, or the file is no longer there.
        """
        size = self._file.seek(0, os.SEEK_END)
        left = memoryview(_to_line(row))
        try:
            if not os.path.samestat(self._path.stat(), os.fstat(self._file.fileno())):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            while left:  # a disk with little room takes a part, and refuses the rest
                left = left[self._file.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise _stopped(self._path, error) from None

    def sync(self) -> None:
        """Waits until the rows are on the disk.

        Raises:
            OutputError: They can't be brought there.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _stopped(self._path, error) from None

    def close(self) -> None:
        """Closes the file, where it is open."""
        self._file.close()


def _stopped(path: Path, error: OSError) -> OutputError:
    reasons = {errno.ENOENT: "it is gone since the run began", errno.EFBIG: "the limit of file sizes (ulimit -f)"}
    return OutputError(
        f"{path}: can't be written: {reasons.get(error.errno, error.strerror)}; "
        "mend that, and the same command goes on from there: what was finished is kept"
    )


def _refuse_other_settings(path: Path, run_settings: Mapping[str, Any]) -> None:
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (ValueError, RecursionError):
        earlier = None
    if not isinstance(earlier, dict):
        raise OutputError(f"{path}: is damaged; add --overwrite to start over, or name another --output")
    wanted = json.loads(json.dumps(run_settings))
    differing = [key for key in {**earlier, **wanted} if earlier.get(key) != wanted.get(key)]
    if differing:
        changes = ", ".join(f"{key} was {_brief(earlier.get(key))}, is {_brief(wanted.get(key))}" for key in differing)
        raise OutputError(
            f"--output {path.parent}: was made with other settings: {changes}; "
            "name another --output, or add --overwrite to start over"
        )


def _brief(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _read_lines(path: Path, types: Mapping[str, Any]) -> tuple[list[dict[str, Any]], bool]:
    """Returns the rows of a JSONL file that have these keys and types, and whether that is the whole file.

    A torn last line, the mark of a kill or a power cut, is left out.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], True
    rows = []
    lines = data.splitlines()
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in types.items()):
            rows.append(row)
    return rows, len(rows) == len(lines) and data.endswith(b"\n")


def _to_line(row: Mapping[str, Any]) -> bytes:
    return (json.dumps(row, ensure_ascii=False) + "\n").encode(
        errors="replace"
    )  # halves of surrogate pairs are no UTF-8


def _as_markdown(text: str) -> str:
    """Returns a text so that Markdown and the HTML made of it show it as it is."""
    return re.sub(r"([\\`*_\[\]<>&|~])", r"\\\1", text)


def _dataset_card(counts: Mapping[str, int]) -> str:
    """Returns the README.md that makes Hugging Face `datasets` load exactly the recorded photos.

    Without explicit `configs` its loader guesses splits from names: a class called `train` or a file called
    IMG_test-1.png would become the whole dataset.
    """
    rows: Iterable[str] = (f"| {_as_markdown(item)} | {count} |" for item, count in sorted(counts.items()))
    table = "\n".join(rows)
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path:
    - {METADATA}
    - "**/*.png"
task_categories:
- image-classification
---
# Cut-outs by item

Made by sam2vit: the central subject of each photo, cut out with SAM 2 and labelled by CLIP. One folder per item;
`{METADATA}` says of each picture where it comes from and how sure the models were, `{FAILURES}` lists the photos
that could not be done.

| item | photos |
| --- | --- |
{table}
"""
