"""The output folder: PNGs, metadata.jsonl, failures.jsonl, and what a later run needs to go on."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from card_utilities import write_cards
from config_utilities import CAPTION_KEYS, PROMPT_KEYS
from csv_utilities import format_csv
from dataset_utilities import PhotoFile, alternative_name, copy_name, name_cut_out
from errors import OutputError
from feature_utilities import FEATURES, FeatureFile
from folder_utilities import sibling, unwritable
from move_utilities import find_moves, find_pngs, moved_record, possible_moves, put_into_subfolders, refuse_links
from record_utilities import (
    BAD_MASK,
    CARD,
    FAILURE_TYPES,
    FAILURES,
    METADATA,
    RECORD_TYPES,
    REVIEW,
    RUN,
    AppendedFile,
    Places,
    Thresholds,
    append_records,
    delete_file,
    is_sound,
    iterate_lines,
    iterate_records,
    open_to_append,
    remove_empty,
    replace_file,
    stopped,
    to_line,
    write_atomically,
    write_records,
)
from revision_utilities import REVISIONS, finish_revision
from storage_utilities import Place, RemotePath
from verdict_utilities import CORRECTIONS, to_correction
from writer_utilities import CutOutWriter, copy_aside

_LOGGER = logging.getLogger("sam2vit")

_DOUBTS = {"min_probability", "min_margin", "min_mask_score"}
INFORMATIVE = ("clip_model", *CAPTION_KEYS)  # what `.run.json` keeps for later, and lets a run go on with another of


class OutputFolder:
    """A run's output folder: what is done, and the writing of what is not.

    PNGs are encoded by threads. A photo's record goes into metadata.jsonl once its PNG is in place, in the order
    of `write` calls. Every file appears under its final name only when it is whole. What is too doubtful goes to the
    review folder beside it, which has a metadata.jsonl of its own: readers of the output do not meet it.

    Args:
        output: The folder; created when missing. See `check_output`.
        run_settings: The settings that decide results. An output made with others is refused.
        items: The items that photos can be given.
        overwrite: Delete what an earlier run has written, and start over.
        threads: How many PNGs are encoded at once.
        most_pixels: So many pixels may wait to be written; a larger photo is alone.
        unknown: Where photos are copied to that are set aside; nowhere where None.
        thresholds: What is too doubtful for its item's folder; nothing where None.
        settled: Settings in which alone an output may differ; see `refuse_other_points`.

    Attributes:
        path: The output folder.
        places: It, and the review folder.
        counts: Photos per item, those of earlier runs included, and those in review not.
        in_review: As `counts`, those in review.
        skipped: Files of this run that hold no image.

    Raises:
        OutputError: The folder can't be written, or was made with other settings.
    """

    def __init__(
        self,
        output: Place,
        run_settings: Mapping[str, Any],
        *,
        items: Sequence[str],
        overwrite: bool = False,
        threads: int = 2,
        most_pixels: float = math.inf,
        unknown: Place | None = None,
        thresholds: Thresholds | None = None,
        settled: Collection[str] = (),
    ) -> None:
        self.path = output
        self.places = Places(output, sibling(output, "review"))
        self.counts: Counter[str] = Counter()
        self.in_review: Counter[str] = Counter()
        self.skipped = 0
        self._items = tuple(items)
        self._unknown = unknown
        self._failed_now: set[str] = set()
        self._copies: dict[str, Place] = {}  # of photos that are set aside, or were; by source
        self._probabilities: Counter[str] = Counter()  # sums of item_probability per item
        self._sure: Counter[str] = Counter()  # how many they are sums of
        try:
            output.mkdir(parents=True, exist_ok=True)
            refuse_links(self.places)
            with contextlib.suppress(*([OutputError] if overwrite else [])):  # of a log that is damaged
                finish_revision(self.places)  # first: it may change what the settings are, and what people have said
            if overwrite:
                self._delete_earlier_run()
            else:
                refuse_other_settings(output, run_settings, settled=settled)
            write_atomically(output / RUN, json.dumps(run_settings, indent=1).encode())
            self._orphans = self._take_stock()
            self._write_cards()
            self._features = FeatureFile(output)
            self._metadata = {output: self._open_metadata(output)}
            self._failures_file = open_to_append(output / FAILURES)
        except OSError as error:
            raise unwritable(output, error) from None
        self._writer = CutOutWriter(
            self.places, self, thresholds=thresholds or Thresholds(), threads=threads, most_pixels=most_pixels
        )

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The failures that stand: this run's, and an earlier one's that this run has not come to."""
        return list(self._failures.values())

    @property
    def done(self) -> int:
        """How many photos earlier runs have finished."""
        return len(self._done)

    @property
    def total(self) -> int:
        """How many photos are written, those in review and those of earlier runs included."""
        return self.counts.total() + self.in_review.total()

    def mean_probability(self, *items: str) -> float:
        """Returns the mean item_probability of photos with these items, where the model chose them; NaN without any.

        Photos in review are left out.
        """
        count = sum(self._sure[item] for item in items)
        return sum(self._probabilities[item] for item in items) / count if count else math.nan

    def is_done(self, photo: PhotoFile) -> bool:
        """Whether the photo's cut-out and record are in place; to be asked of every photo of the dataset."""
        done = photo.source in self._done
        if done:
            self._done[photo.source] = True
        return done

    def write(self, photo: PhotoFile, draw: Callable[[], np.ndarray], record: Mapping[str, Any], **kept: Any) -> None:
        """Begins to write a cut-out to `<item>/<name>.png`; waits where the writers are far behind.

        Args:
            photo: The photo.
            draw: Makes the cut-out; see `CutOutWriter.write`.
            record: What metadata.jsonl will say, but for file_name and source; `label` is the item.
            **kept: `mask` and `features`; see there.

        Raises:
            OutputError: An earlier PNG or record could not be written, for a reason that all share.
        """
        file_name = name_cut_out(photo, record["label"], taken=self.prepare(photo))
        self._writer.write(photo, file_name, draw, record, **kept)

    def prepare(self, photo: PhotoFile) -> tuple[str, ...]:
        """Makes ready for a photo to be done, and returns the items under which its name is taken.

        By a photo of an earlier run, since renamed or deleted; see `dataset_utilities.name_cut_out`.
        """
        if self._orphans:
            self._clear_orphans(photo)
        if self._unknown is not None and photo.source in self._failures:
            self._copies[photo.source] = self._unknown / copy_name(photo)
        if not self._recorded:
            return ()
        if hash(photo.name) not in self._taken:
            return ()
        names = {item: f"{item}/{photo.name}" for item in self._items}
        return tuple(
            item for item, name in names.items() if any((folder, name) in self._recorded for folder in self.places)
        )

    @functools.cached_property
    def _taken(self) -> frozenset[int]:
        """Hashes of the names of earlier cut-outs, without their items: most photos need not be compared with each."""
        return frozenset(hash(name.partition("/")[2]) for _, name in self._recorded)

    def record(self, row: Mapping[str, Any], features: np.ndarray | None) -> None:
        """Records a photo whose PNG is in place.

        Args:
            row: What metadata.jsonl says of it.
            features: (D,) the image features, which the output keeps; see `feature_utilities`.

        Raises:
            OutputError: The record can't be written.
        """
        if features is not None:  # before the record, see `_open_metadata`
            self._features.append(row["source"], features)
        self._metadata_of(row).append(to_line(row))
        self._count(row)
        self._failures.pop(row["source"], None)
        copy = self._copies.pop(row["source"], None)
        if copy is not None:
            try:
                copy.unlink(missing_ok=True)  # it has a subject after all
            except OSError as error:
                _LOGGER.warning("%s: stays, though its photo is done: %s", copy, error.strerror)

    def fail(self, source: str, reason: str, *, stage: str) -> None:
        """Records a photo that can't be done; the next run tries it again."""
        failure = {"source": source, "reason": reason, "stage": stage}
        self._failures[source] = failure
        self._failed_now.add(source)
        self._failures_file.append(to_line(failure))

    def skip(self) -> None:
        """Counts a file that holds no image."""
        self.skipped += 1

    def set_aside(self, photo: PhotoFile) -> None:
        """Copies a photo to the folder of those without a subject, where there is to be one; see `fail`, too."""
        if self._unknown is not None:
            copy_aside(photo, self._unknown)

    def clear_after_deaths(self) -> None:
        """Deletes what processes have left of their work that were writing here for this run, and died."""
        for file in self._metadata.values():
            file.sync()  # or, in an object store, the latest records are not yet where they are read
        recorded = {(folder, row["file_name"]) for folder in self.places for row in iterate_records([folder])}
        kept = recorded | self._orphans
        for folder in self.places:
            for file in find_pngs(folder):
                if (folder, file) not in kept:
                    (folder / file).unlink(missing_ok=True)

    def finish(self) -> None:
        """Says that every photo has been tried: earlier failures stand no longer, and what else is there is named."""
        self._failures = {source: row for source, row in self._failures.items() if source in self._failed_now}
        if self._orphans:
            _LOGGER.warning(
                "PNGs in no record: %d, such as %s; delete them, or readers of the folder count them in",
                len(self._orphans),
                min(folder / file for folder, file in self._orphans),
            )
        gone = [source for source, is_there in self._done.items() if not is_there]
        if gone:
            _LOGGER.warning(
                "records of photos that are no longer found: %d, such as %s; they stay until their PNGs are deleted",
                len(gone),
                gone[0],
            )

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        """Waits for the PNGs, records them, and brings the records in order.

        After an error or an interrupt, PNGs whose encoding has not begun are dropped: a later run does them again.
        """
        try:
            if error_type is not None:
                self._writer.drop_waiting()
            self._finish_writing()
        except OutputError:
            if error_type is None or issubclass(error_type, KeyboardInterrupt):
                raise
            _LOGGER.debug("closing the output failed, too", exc_info=True)
        finally:
            self._writer.close()
            for file in (*self._metadata.values(), self._failures_file, self._features):
                file.close()

    def _finish_writing(self) -> None:
        self._writer.finish()
        for file in (self._features, *self._metadata.values()):
            file.sync()
        self._failures_file.close()  # before it is replaced: Windows does not rename onto an open file
        try:
            self._write_failures()
            self._write_cards()
        except OSError as error:
            raise stopped(self.path, error) from None

    def _clear_orphans(self, photo: PhotoFile) -> None:
        names = (photo.name, alternative_name(photo))
        files = [f"{item}/{name}" for item in self._items for name in names]
        for folder, file in self._orphans.intersection((folder, file) for folder in self.places for file in files):
            _LOGGER.info("%s: had no record, its photo is done again", file)
            try:
                (folder / file).unlink(missing_ok=True)
            except OSError as error:
                raise stopped(folder / file, error) from None
            self._orphans.discard((folder, file))

    def _metadata_of(self, row: Mapping[str, Any]) -> AppendedFile:
        """Returns the file that a record belongs into; that of the review folder is made when it is needed."""
        folder = self.places.of(row)
        if folder not in self._metadata:
            try:
                self._metadata[folder] = self._open_metadata(folder)
            except OSError as error:
                raise stopped(folder / METADATA, error) from None
        return self._metadata[folder]

    def _open_metadata(self, folder: Place) -> AppendedFile:
        return open_to_append(folder / METADATA, before=self._features.flush)  # what is recorded has its features

    def _count(self, row: Mapping[str, Any]) -> None:
        if REVIEW in row["flags"]:
            self.in_review[row["label"]] += 1
            return
        self.counts[row["label"]] += 1
        if row["label"] == row["model_label"]:  # else it is another item's
            self._sure[row["label"]] += 1
            self._probabilities[row["label"]] += row["item_probability"]

    def _take_stock(self) -> set[tuple[Place, str]]:
        """Reads what earlier runs have done, mends what an interruption left, and returns PNGs without a record.

        These, as (folder, path in it).
        """
        found = self._find_all()
        if not self._count_records(found):
            left: set[Place] = set()  # folders that a user has taken cut-outs out of
            if put_into_subfolders(self._find_lost(found, left), self.places, self._items):
                found = self._find_all()
            lost = self._find_lost(found, left)
            moves = find_moves(lost, self.places, self._items, lambda place, file: (place, file) in found)
            self._mend_records(found, moves)
            for folder in left:
                remove_empty(folder, self.places)
        failures = filter(None, iterate_lines(self.path / FAILURES, FAILURE_TYPES))
        self._failures = {row["source"]: row for row in failures if row["source"] not in self._done}
        self._write_failures()
        return found - self._recorded

    def _find_all(self) -> set[tuple[Place, str]]:
        return {(folder, file) for folder in self.places for file in find_pngs(folder)}

    def _is_at(self, row: Mapping[str, Any], folder: Place, found: set[tuple[Place, str]]) -> bool:
        """Whether a record of a folder says where its cut-out is."""
        return self.places.of(row) == folder and (folder, row["file_name"]) in found

    def _find_lost(self, found: set[tuple[Place, str]], left: set[Place]) -> Iterator[dict[str, Any]]:
        """Yields the records whose cut-out is not in its place, and notes the folders where these are."""
        for folder in self.places:
            for row in iterate_records([folder]):
                if not self._is_at(row, folder, found):
                    left.add((folder / row["file_name"]).parent)
                    yield row

    def _count_records(self, found: set[tuple[Place, str]]) -> bool:
        """Notes the records of an output without holding them; returns whether they are as a run leaves them.

        Else some want mending, and nothing is noted.
        """
        self._done, self._recorded = {}, set()
        for folder in self.places:
            for row in iterate_lines(folder / METADATA, {**RECORD_TYPES, "model_label": str, "flags": list}):
                if (
                    row is None
                    or not is_sound(row)
                    or row["source"] in self._done
                    or not self._is_at(row, folder, found)
                ):
                    self._done, self._recorded = {}, set()
                    self.counts.clear()
                    self.in_review.clear()
                    self._probabilities.clear()
                    self._sure.clear()
                    return False
                self._note(row)
        return True

    def _note(self, row: Mapping[str, Any]) -> None:
        self._done[row["source"]] = False
        self._recorded.add((self.places.of(row), row["file_name"]))
        self._count(row)

    def _mend_records(self, found: set[tuple[Place, str]], moves: Mapping[str, tuple[Place, str]]) -> None:
        """Lets the files hold just the records whose PNG is there, each in the folder where that is, and notes them."""
        last: dict[str, int] = {}  # where the record of a source stands that counts, where it has several
        arrived: dict[Place, dict[int, dict[str, Any]]] = {folder: {} for folder in self.places}
        moved = 0
        for folder in self.places:
            for position, row, settled in self._settled_records(folder, found, moves):
                moved += settled is not row
                last[settled["source"]] = position
                if self.places.of(settled) != folder:
                    arrived[self.places.of(settled)][position] = settled
        if moved:
            _LOGGER.warning("%s: cut-outs moved to another item by hand: %d; that stands", self.path, moved)

        def records_of(folder: Place) -> Iterator[dict[str, Any]]:
            own = ((position, settled) for position, _, settled in self._settled_records(folder, found, moves))
            for position, row in itertools.chain(own, arrived[folder].items()):
                if self.places.of(row) == folder and last[row["source"]] == position:
                    self._note(row)
                    yield row

        for folder, others in arrived.items():  # first, so that a kill never leaves them in neither file
            append_records(folder, others.values())
        for folder in self.places:
            write_records(folder, records_of(folder))

    def _settled_records(
        self, folder: Place, found: set[tuple[Place, str]], moves: Mapping[str, tuple[Place, str]]
    ) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
        """Yields the records of a folder whose PNG is somewhere: a number for each, the record, and it settled."""
        folders = tuple(self.places)
        for number, row in enumerate(iterate_records([folder])):
            position = number * len(folders) + folders.index(folder)
            if self._is_at(row, folder, found):
                yield position, row, row
            elif row["source"] in moves:
                yield position, row, moved_record(row, *moves[row["source"]], self.places)

    def _write_failures(self) -> None:
        rows = sorted(self._failures.values(), key=lambda row: row["source"])  # in whatever order they came
        replace_file(self.path / FAILURES, b"".join(map(to_line, rows)))

    def _write_cards(self) -> None:
        write_cards(self.places, self.counts, self.in_review)

    def _keep_corrections(self) -> None:
        """Writes what people have said of an earlier run's photos beside it, for `--apply` after this one."""
        lines = list(filter(None, map(to_correction, iterate_records(self.places))))
        if not lines:
            return
        path = keep_corrections(self.path, lines)
        _LOGGER.warning(
            "%s: what people have said of its photos is kept in %s (lines: %d); after this run, --apply brings it back",
            *(self.path, path, len(lines)),
        )
        bad = sum(verdict == BAD_MASK for _, _, verdict, _ in lines)
        if bad:
            _LOGGER.warning("%s: lines about the masks of before: %d; take out those that are better now", path, bad)

    def _delete_earlier_run(self) -> None:
        """Deletes the PNGs that an earlier run recorded, its records, and the folders that are empty then.

        Its settings stay, by which the folder is known as one of this program, until those of this run replace them.
        """
        self._keep_corrections()
        for folder in self.places:
            for row in iterate_records([folder]):
                path = folder / row["file_name"]
                if path.resolve().is_relative_to(folder.resolve()):  # whatever a hand has written there
                    path.unlink(missing_ok=True)
            for name in (METADATA, FAILURES, CARD, REVISIONS, FEATURES):
                delete_file(folder / name)
            if isinstance(folder, RemotePath):
                continue  # it has no folders that could be empty
            for each, _, _ in os.walk(folder, topdown=False):
                if Path(each) != self.path and not any(Path(each).iterdir()):
                    Path(each).rmdir()


def keep_corrections(output: Place, lines: Iterable[tuple[str, str, str, str]]) -> Place:
    """Writes lines of `to_correction` into a new file beside an output, for `--apply`, and returns its path."""
    begins = f"corrections-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([f"{begins}.csv"], (f"{begins}-{number}.csv" for number in itertools.count(2)))
    path = next(path for path in (sibling(output, name) for name in names) if not path.exists())
    write_atomically(path, format_csv(CORRECTIONS, lines))
    return path


def refuse_other_settings(
    output: Place, run_settings: Mapping[str, Any], *, unknown: Collection[str] = (), settled: Collection[str] = ()
) -> None:
    """Refuses an output that was made otherwise, and says what would help.

    Args:
        output: The folder.
        run_settings: By what this run would be known.
        unknown: What is not yet known of it.
        settled: In what alone it may differ.

    Raises:
        OutputError: It was, or its `.run.json` is damaged.
    """
    earlier = _earlier_settings(output)
    if earlier is None:
        return
    wanted = json.loads(json.dumps(run_settings))
    keys = [key for key in {**earlier, **wanted} if key not in INFORMATIVE and key not in unknown]
    differing = [key for key in keys if earlier.get(key) != wanted.get(key)]
    if set(differing) <= set(settled):
        return
    changes = ", ".join(f"{key} was {_brief(earlier.get(key))}, is {_brief(wanted.get(key))}" for key in differing)
    remedies = []
    if set(differing) <= {*PROMPT_KEYS, *_DOUBTS, "decision"}:
        if set(differing) <= _DOUBTS & earlier.keys():
            flags = " ".join(f"--{key.replace('_', '-')} {earlier[key]}" for key in differing)
            remedies.append(f"add {flags} to go on as before")
        remedies.append("add --relabel and --config (or --preset) to sort what is there anew, in seconds")
    remedies += ["name another --output", "add --overwrite to start over"]
    raise OutputError(f"--output {output}: was made with other settings: {changes}; {', or '.join(remedies)}")


def refuse_other_points(
    output: Place, run_settings: Mapping[str, Any], is_alike: Callable[[Mapping[str, Any]], bool], *, name: str
) -> None:
    """Refuses an output with a photo that was pointed at elsewhere than a points file points.

    So the file may grow with the dataset. A photo whose cut-out has been deleted is done anew, and may differ.

    Args:
        output: The folder.
        run_settings: By what this run would be known; `focus` is the digest of its points file.
        is_alike: Whether a photo, by its record, was pointed at where this run would point.
        name: Of the points file.

    Raises:
        OutputError: There is one, or `.run.json` is damaged.
    """
    earlier = _earlier_settings(output)
    if earlier is None or earlier.get("focus") == run_settings["focus"]:
        return
    places = Places(output, sibling(output, "review"))
    for row in iterate_records(places):
        if not is_alike(row) and _is_there(row, places, run_settings["items"]):
            raise OutputError(
                f"--output {output}: {name} points elsewhere in photos that are done, such as {row['source']!r}; "
                f"delete their cut-outs, such as {places.png(row)}, to do them anew, name another --output, or add "
                "--overwrite to start over"
            )


def _is_there(row: Mapping[str, Any], places: Places, items: Sequence[str]) -> bool:
    """Whether the cut-out of a record is in its place, or where a user can have moved it to."""
    return any((place / file).exists() for place, file in possible_moves(row, places, items))


def _earlier_settings(output: Place) -> dict[str, Any] | None:
    """Returns the settings that an output was made with; None where none was made."""
    path = output / RUN
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{path}: can't be read: {error.strerror}; mend its permissions") from None
    except (ValueError, RecursionError):
        earlier = None
    if not isinstance(earlier, dict):
        raise OutputError(f"{path}: is damaged; add --overwrite to start over, or name another --output")
    return earlier


def _brief(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
