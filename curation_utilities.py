"""What people do with an output that is there: correct it, measure it, promise a precision, label it anew."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import logging
import posixpath
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config_utilities import CAPTION_KEYS, PROMPT_KEYS, Settings, folder_problem
from dataset_utilities import PhotoFile, alternative_name
from errors import ConfigError, OutputError
from feature_utilities import read_features
from folder_utilities import sibling
from move_utilities import find_moves, moved_record, put_into_subfolders, refuse_links
from prompt_utilities import Label
from record_utilities import (
    BAD_MASK,
    COLOUR,
    MOVED,
    REVIEW,
    RUN,
    VIEW,
    WRONG,
    Places,
    StoredRecords,
    Thresholds,
    label_record,
    review_flags,
)
from revision_utilities import Revision, earlier_names, finish_revision, revise, to_undo
from verdict_utilities import Verdict, match_photos, read_verdicts

if TYPE_CHECKING:
    from clip_utilities import ClipModel

_LOGGER = logging.getLogger("sam2vit")

_AT_ONCE = 4096  # photos whose features are scored together: 12 MB of them, and 16 MB of 972 prompts' probabilities

# What `.run.json` calls the thresholds.
_THRESHOLDS = {"item_probability": "min_probability", "margin": "min_margin", "mask_score": "min_mask_score"}

Row = dict[str, Any]


@dataclass
class Finished:
    """An output that is there: its folders, the settings it was made with, and its records.

    Attributes:
        places: Its folders, which nobody else may be writing to.
        settings: What its `.run.json` says.
        records: Those that have a cut-out.
        missing: The sources of the others.
    """

    places: Places
    settings: dict[str, Any]
    records: StoredRecords
    missing: frozenset[str] = frozenset()

    @property
    def items(self) -> tuple[str, ...]:
        """The items that its photos could be given."""
        return tuple(self.settings["items"])

    @property
    def thresholds(self) -> Thresholds:
        """What was too doubtful for its item's folder."""
        return thresholds_of(self.settings)

    def find(self, names: Iterable[str]) -> dict[str, str]:
        """Returns the source of the photo that each name means, without the names that mean none, or several.

        That is: its file name, now or before a revision; the photo's path in the dataset; the file name without its
        item; each of them without its ending, too.
        """
        names = set(names)
        wanted = names | set(map(_without_ending, names))
        exact: dict[str, str] = {}
        loose: dict[str, str | None] = {}
        for row in self.records.rows():
            source, file_name, name = row["source"], row["file_name"], _name_of(row)
            if file_name in wanted:
                exact[file_name] = source
            for key in wanted.intersection({name, *map(_without_ending, (name, source, file_name))}):
                loose[key] = None if loose.get(key, source) != source else source
        earlier = earlier_names(self.places, wanted)
        exact = {key: source for key, source in earlier.items() if source in self.records} | exact
        by_source = {key: key for key in wanted if key in self.records}
        sources = {**loose, **by_source, **exact}
        meant = {name: sources.get(name, sources.get(_without_ending(name))) for name in names}
        return {name: source for name, source in meant.items() if source is not None}

    def revise(
        self,
        changes: Iterable[tuple[Row, Row]],
        *,
        by: str,
        settings: Mapping[str, Any] | None = None,
        undoes: int | None = None,
    ) -> int:
        """Changes records, moves their cut-outs, and returns how many of them were not like that before.

        Args:
            changes: (record, record as it is to be) of some.
            by: What asks for it.
            settings: What `.run.json` is to say; what it says now where None.
            undoes: The number of the revision that is taken back.
        """
        new = self.settings if settings is None else dict(settings)
        count = revise(
            self.places,
            ((before, after) for before, after in changes if before != after),
            by=by,
            settings=None if new == self.settings else (self.settings, new),
            undoes=undoes,
        )
        self.settings = new
        if count:
            self.records = StoredRecords(self.places, lambda row: row["source"] not in self.missing)
        return count

    def placed(self, row: Row, item: str, thresholds: Thresholds) -> Row:
        """Returns a record with another label, its flags set anew, under a file name that is nobody else's."""
        name = _name_of(row)
        if item != row["label"] and name in self._shared:  # with a photo of an earlier run, since renamed or deleted
            name = alternative_name(PhotoFile(Path(), row["source"], name))
        return {**row, "file_name": f"{item}/{name}", "label": item, "flags": review_flags(row, thresholds)}

    def restored(self, before: Row, after: Row) -> Row:
        """Returns an earlier record, under another file name where that has become another photo's."""
        name, source = before["file_name"], before["source"]
        if name == after["file_name"] or self._owners.get(name, source) == source:
            return before
        other = alternative_name(PhotoFile(Path(), source, _name_of(before)))
        return {**before, "file_name": f"{before['label']}/{other}"}

    @functools.cached_property
    def _owners(self) -> dict[str, str]:
        """By file name, the source of each record whose name without its item is shared."""
        rows = self.records.rows() if self._shared else ()
        return {row["file_name"]: row["source"] for row in rows if _name_of(row) in self._shared}

    @functools.cached_property
    def _shared(self) -> frozenset[str]:
        """The file names without an item that several records have."""
        digests = np.fromiter((_digest(_name_of(row)) for row in self.records.rows()), np.uint64)
        digests.sort()
        suspects = set(digests[1:][digests[1:] == digests[:-1]].tolist())
        if not suspects:
            return frozenset()
        count = Counter(name for name in map(_name_of, self.records.rows()) if _digest(name) in suspects)
        return frozenset(name for name, times in count.items() if times > 1)


def read_finished(output: Path) -> Finished:
    """Returns an output that is there, after what was interrupted in it has been finished.

    Raises:
        OutputError: There is none, or it is damaged.
    """
    places = Places(output, sibling(output, "review"))
    finish_revision(places)
    refuse_links(places)
    try:
        settings = json.loads((output / RUN).read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or not all(isinstance(settings.get(key), list) for key in PROMPT_KEYS):
            raise ValueError
        if not all(isinstance(item, str) and folder_problem(item) is None for item in settings["items"]):
            raise ValueError
        settings.setdefault("decision", Settings.decision)
    except FileNotFoundError:
        raise OutputError(f"--output {output}: no run has written to it yet; name the output of one") from None
    except (ValueError, RecursionError):
        raise OutputError(f"{output / RUN}: is damaged; run over the photos again with --overwrite") from None
    missing: dict[str, str] = {}  # by source, the file name

    def has_cut_out(row: Row) -> bool:
        if places.png(row).exists():
            missing.pop(row["source"], None)
            return True
        missing[row["source"]] = row["file_name"]
        return False

    # A record stands in both files where a kill has come between them; the later one is as good as the other.
    records = StoredRecords(places, has_cut_out)
    if missing and _settle_moves(places, settings["items"], missing):
        missing.clear()
        records = StoredRecords(places, has_cut_out)
    if missing:
        _LOGGER.warning(
            "%s: cut-outs gone: %d, such as %s; a run over the photos brings them back",
            output,
            len(missing),
            next(iter(missing.values())),
        )
    return Finished(places, settings, records, frozenset(missing))


def _settle_moves(places: Places, items: Sequence[str], missing: Collection[str]) -> int:
    """Lets records say where a user has moved their cut-outs to, as a run does; returns how many are found again.

    Args:
        places: Of the output.
        items: That cut-outs can have been moved to.
        missing: The sources whose cut-out is not where their record says.
    """
    lost = StoredRecords(places, lambda row: row["source"] in missing)
    put_back = put_into_subfolders(lost.rows(), places, items)
    moves = find_moves(lost.rows(), places, items, lambda folder, name: (folder / name).exists())
    moved = revise(
        places,
        (
            (row, moved_record(row, *moves[row["source"]], places))
            for row in StoredRecords(places, lambda row: row["source"] in moves).rows()
        ),
        by="cut-outs moved by hand",
        undoes=0,  # no other revision, and none that --undo means
    )
    if moved:
        _LOGGER.warning("%s: cut-outs moved to another item by hand: %d; that stands", places.output, moved)
    return moved + put_back


def thresholds_of(settings: Mapping[str, Any]) -> Thresholds:
    """Returns the thresholds that a `.run.json` speaks of; what it leaves out is the default."""
    given = {name: settings[key] for name, key in _THRESHOLDS.items() if key in settings}
    return Thresholds(**given, strict=bool(settings.get("strict")))


def _without_ending(name: str) -> str:
    return posixpath.splitext(name)[0]


def _name_of(row: Row) -> str:
    """Returns the file name of a cut-out without its item."""
    return row["file_name"].partition("/")[2]


def _digest(name: str) -> int:
    """Returns 8 bytes of a name's digest: of 5 million names, two share one in one of a million outputs."""
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "big")


def apply_corrections(finished: Finished, path: Path) -> Counter[str]:
    """Takes over corrections, as the report's page saves them, and returns how many there are of each kind.

    `right`: the label is a human's from now on, and no longer doubted. `wrong` with another item: the photo moves
    there. `wrong` without one, or `bad mask`: it goes to review, and stays until it is corrected. A second time the
    same corrections change nothing.

    Args:
        finished: The output.
        path: A .csv with file_name, item, verdict.

    Returns:
        The lines per verdict, `unknown` for names that no photo has, `outdated` where the label that is wrong is no
        longer the photo's, or the one that is right no longer an item, and `changed`, the records that are other now.

    Raises:
        ConfigError: It can't be read, contradicts itself, or has a verdict or an item that there is not.
    """
    flag = "--apply"
    verdicts = read_verdicts(path, flag=flag, required=True)
    counts: Counter[str] = Counter()
    changes: dict[str, tuple[Row, Row]] = {}
    for verdict, source in match_photos(verdicts, finished.find, finished.records):
        name, item = verdict.names[0], verdict.item
        if item and item not in finished.items:
            raise ConfigError(f"{flag} {path}: {name!r}: {item!r} is no item of this run; {_nearest(item, finished)}")
        if source is None:
            counts["unknown"] += 1
            _LOGGER.warning("%s: %s: no photo of this output; left out", path, name)
            continue
        row = finished.records[source]
        truth = verdict.truth(row["label"])
        is_none = truth not in (None, row["label"], *finished.items)  # right, of a label that is no item any more
        if is_none or (verdict.verdict == WRONG and not item and verdict.seen(row["label"]) != row["label"]):
            counts["outdated"] += 1
            continue
        counts[verdict.verdict] += 1
        after = _corrected(finished, row, verdict)
        if changes.setdefault(source, (row, after))[1] != after:
            raise ConfigError(f"{flag} {path}: {name!r}: has two lines that contradict each other; keep one of them")
    if set(counts) == {"unknown"}:
        raise ConfigError(f"{flag} {path}: is about none of the photos of {finished.places.output}; name its --output")
    counts["changed"] = finished.revise(changes.values(), by=f"{flag} {path}")
    return counts


def _corrected(finished: Finished, row: Row, verdict: Verdict) -> Row:
    flags = [flag for flag in row["flags"] if flag not in (WRONG, BAD_MASK, REVIEW)]
    item = verdict.truth(row["label"])
    if item is None or verdict.verdict == BAD_MASK:
        flags.append(verdict.verdict)  # the verdicts that doubt have the names of their flags
    by = {} if item is None else {"label_source": "human"}
    return finished.placed({**row, "flags": flags, **by}, item or row["label"], finished.thresholds)


def _nearest(item: str, finished: Finished) -> str:
    import difflib

    near = difflib.get_close_matches(item, finished.items, n=1)
    return f"did you mean {near[0]!r}?" if near else f"write one of {', '.join(finished.items)}"


def undo(finished: Finished) -> Revision:
    """Takes back the last revision that stands, and returns it.

    Records that have changed since are left as they are; where thresholds are taken back, photos that came since are
    sorted by the earlier ones, too.

    Raises:
        OutputError: There is none.
    """
    last = to_undo(finished.places)
    if last is None:
        raise OutputError(f"--undo: {finished.places.output} has nothing to take back")
    settings = last.settings and last.settings[0]
    taken_back = others = 0

    def take_back(find: Callable[[str], Row | None]) -> Iterator[tuple[Row, Row]]:
        nonlocal taken_back, others
        for before, after in last.changes:
            if finished.records.get(after["source"]) == after:
                taken_back += 1
                yield after, finished.restored(before, after)
        if settings is None:
            return
        thresholds = thresholds_of(settings)
        for row in finished.records.rows():
            after = find(row["source"])
            others += after is None
            if row != after:
                yield row, {**row, "flags": review_flags(row, thresholds)}

    with last.changes.records_after() as find:
        finished.revise(take_back(find), by=f"--undo of {last.by}", settings=settings, undoes=last.number)
    if taken_back < len(last.changes):
        left = len(last.changes) - taken_back
        _LOGGER.warning("changed since, and left so: %d of %d records", left, len(last.changes))
    if others and last.relabels:
        _LOGGER.warning(
            "photos that --relabel had not changed: %d; the prompts of those that came since are the ones taken back: "
            "--relabel with the earlier config labels them, too",
            others,
        )
    return last


def set_thresholds(finished: Finished, thresholds: Thresholds, *, by: str) -> int:
    """Sorts the photos anew into the output and its review folder, and returns how many have moved."""
    moved = 0

    def sort_anew() -> Iterator[tuple[Row, Row]]:
        nonlocal moved
        for row in finished.records.rows():
            after = {**row, "flags": review_flags(row, thresholds)}
            moved += finished.places.of(row) != finished.places.of(after)
            yield row, after

    finished.revise(sort_anew(), by=by, settings=with_thresholds(finished.settings, thresholds))
    return moved


def relabelled_settings(before: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Returns what `.run.json` is to say after other prompts; the rest of it stays where nothing else was given."""
    words = (*PROMPT_KEYS, *(name for name in CAPTION_KEYS if name in settings.given))
    prompts = {name: list(getattr(settings, name)) for name in words}
    given = {name: getattr(settings, name) for name in ("decision", *_THRESHOLDS.values()) if name in settings.given}
    new = {"decision": settings.decision, **before, **prompts, **given}
    return with_thresholds(new, thresholds_of(new))


def with_thresholds(settings: Mapping[str, Any], thresholds: Thresholds) -> dict[str, Any]:
    """Returns a `.run.json` with other thresholds; one that lets all pass stands as little there as in a run's."""
    given = {key: getattr(thresholds, name) for name, key in _THRESHOLDS.items()}
    none = {key: getattr(Thresholds(), name) for name, key in _THRESHOLDS.items()}
    others = {key: value for key, value in settings.items() if key not in given}
    return others | {key: value for key, value in given.items() if value != none[key]}


@dataclass(frozen=True)
class Relabelling:
    """What other prompts have changed.

    Attributes:
        changed: Photos per (item before, item after).
        kept: Photos whose label a human has set, and which keep it.
        replaced: Photos whose label a human has set, and which is no item any more.
        photos: In all.
        moved_to_review: Photos that are in review and were not.
    """

    changed: Counter[tuple[str, str]]
    kept: int
    replaced: int
    photos: int
    moved_to_review: int


def relabel(
    finished: Finished, clip_model: ClipModel, *, thresholds: Thresholds, settings: Mapping[str, Any], by: str
) -> Relabelling:
    """Labels every photo anew from its kept features: nothing is segmented or encoded again.

    What a human has labelled stays, where the item is still one. A second opinion on another label is dropped.

    Args:
        finished: The output.
        clip_model: The model that its features are of, with the new prompts.
        thresholds: What is too doubtful for its item's folder.
        settings: What is to stand in `.run.json`: the new prompts, decision and thresholds.
        by: What asks for it.

    Raises:
        OutputError: Photos have no features.
    """
    sources = list(finished.records)
    features, indices = read_features(finished.places.output, sources, clip_model.dimension)
    if (indices < 0).any():
        raise OutputError(
            f"--relabel: {int((indices < 0).sum())} of {len(sources)} photos have no image features, such as "
            f"{sources[int((indices < 0).argmax())]!r}; run over the photos again with --overwrite"
        )
    changed: Counter[tuple[str, str]] = Counter()
    kept = replaced = to_review = 0

    def label_anew() -> Iterator[tuple[Row, Row]]:
        nonlocal kept, replaced, to_review
        rows = finished.records.rows()
        for begin in range(0, len(sources), _AT_ONCE):
            labels = clip_model.decide_stored(features[indices[begin : begin + _AT_ONCE]])
            for row, label in zip(itertools.islice(rows, len(labels)), labels, strict=True):
                by_human = row["label_source"] == "human" and row["label"] in clip_model.items
                after = _relabelled(finished, row, label, thresholds, by_human=by_human)
                kept += by_human
                replaced += row["label_source"] == "human" and not by_human
                if row["label"] != after["label"]:
                    changed[row["label"], after["label"]] += 1
                to_review += finished.places.of(after) == finished.places.review != finished.places.of(row)
                yield row, after

    finished.revise(label_anew(), by=by, settings=settings)
    return Relabelling(changed, kept, replaced, len(sources), to_review)


def _relabelled(finished: Finished, row: Row, label: Label, thresholds: Thresholds, *, by_human: bool) -> Row:
    new = {**row, **label_record(label)}
    if by_human:
        new |= {"label": row["label"], "label_source": "human"}
    elif label.item != row["model_label"] or row["label_source"] == "human":
        new["flags"] = [flag for flag in row["flags"] if flag not in (VIEW, COLOUR, WRONG, MOVED)]
    return finished.placed(new, new["label"], thresholds)
