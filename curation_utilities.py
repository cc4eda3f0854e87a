"""What people do with an output that is there: correct it, measure it, promise a precision, label it anew."""

from __future__ import annotations

import json
import logging
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import csv_utilities
from config_utilities import PROMPT_KEYS, Settings
from dataset_utilities import PhotoFile, alternative_name
from errors import ConfigError, OutputError
from feature_utilities import read_features
from folder_utilities import sibling
from prompt_utilities import Label
from record_utilities import (
    BAD_MASK,
    COLOUR,
    MOVED,
    RUN,
    VIEW,
    WRONG,
    Places,
    Thresholds,
    label_record,
    read_records,
    review_flags,
)
from revision_utilities import earlier_names, finish_revision, revise, to_undo

if TYPE_CHECKING:
    from clip_utilities import ClipModel

_LOGGER = logging.getLogger("sam2vit")

VERDICTS = ("right", "wrong", "bad mask")
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
        records: By source.
    """

    places: Places
    settings: dict[str, Any]
    records: dict[str, Row]
    _by_name: dict[str, Row] = field(default_factory=dict)
    _shared: set[str] = field(default_factory=set)

    @property
    def items(self) -> tuple[str, ...]:
        """The items that its photos could be given."""
        return tuple(self.settings["items"])

    @property
    def thresholds(self) -> Thresholds:
        """What was too doubtful for its item's folder."""
        return thresholds_of(self.settings)

    def find(self, name: str) -> Row | None:
        """Returns the record that a name means; None where it means none, or several.

        That is: its file name, now or before a revision; the photo's path in the dataset; the file name without its
        item; each of them without its ending, too.
        """
        if not self._by_name:
            self._by_name = _index(self.records.values(), earlier_names(self.places))
        for key in (name, _without_ending(name)):
            row = self._by_name.get(key)
            if row is not None:
                return row or None
        return None

    def revise(self, after: Iterable[Row], *, by: str, settings: Mapping[str, Any] | None = None) -> int:
        """Changes records, moves their cut-outs, and returns how many of them were not like that before.

        Args:
            after: The records as they are to be.
            by: What asks for it.
            settings: What `.run.json` is to say; what it says now where None.
        """
        changes = [(self.records[row["source"]], row) for row in after]
        changes = [(before, row) for before, row in changes if before != row]
        new = self.settings if settings is None else dict(settings)
        if not changes and new == self.settings:
            return 0
        revise(self.places, changes, by=by, settings=None if new == self.settings else (self.settings, new))
        self.settings = new
        self.records.update((row["source"], row) for _, row in changes)
        self._by_name = {}
        return len(changes)

    def placed(self, row: Row, item: str, thresholds: Thresholds) -> Row:
        """Returns a record with another label, its flags set anew, under a file name that is nobody else's."""
        name = _name_of(row)
        if not self._shared:
            count = Counter(_name_of(each) for each in self.records.values())
            self._shared = {each for each, times in count.items() if times > 1} or {""}
        if item != row["label"] and name in self._shared:  # with a photo of an earlier run, since renamed or deleted
            name = alternative_name(PhotoFile(Path(), row["source"], name))
        return {**row, "file_name": f"{item}/{name}", "label": item, "flags": review_flags(row, thresholds)}


def read_finished(output: Path) -> Finished:
    """Returns an output that is there, after what was interrupted in it has been finished.

    Raises:
        OutputError: There is none, or it is damaged.
    """
    places = Places(output, sibling(output, "review"))
    finish_revision(places)
    try:
        settings = json.loads((output / RUN).read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or not isinstance(settings.get("items"), list):
            raise ValueError
    except FileNotFoundError:
        raise OutputError(f"--output {output}: no run has written to it yet; name the output of one") from None
    except (ValueError, RecursionError):
        raise OutputError(f"{output / RUN}: is damaged; run over the photos again with --overwrite") from None
    # A record stands in both files where a kill has come between them; the later one is as good as the other.
    records = {row["source"]: row for folder in places for row in read_records(folder)[0]}
    missing = {source: row for source, row in records.items() if not places.png(row).exists()}
    if missing:
        _LOGGER.warning(
            "%s: %d records have no cut-out any more, such as %s; a run over the photos brings them back",
            output,
            len(missing),
            next(iter(missing.values()))["file_name"],
        )
    return Finished(places, settings, {source: row for source, row in records.items() if source not in missing})


def thresholds_of(settings: Mapping[str, Any]) -> Thresholds:
    """Returns the thresholds that a `.run.json` speaks of; what it leaves out is the default."""
    given = {name: settings[key] for name, key in _THRESHOLDS.items() if key in settings}
    return Thresholds(**given, strict=bool(settings.get("strict")))


def _index(rows: Iterable[Row], earlier: Mapping[str, str]) -> dict[str, Row]:
    """Returns the records by all names that mean them; an empty one where a name means several."""
    rows = list(rows)
    by_source = {row["source"]: row for row in rows}
    exact = {row["file_name"]: row for row in rows}
    exact |= {name: by_source[source] for name, source in earlier.items() if source in by_source and name not in exact}
    loose: dict[str, Row] = {}
    for row in rows:
        name = _name_of(row)
        for key in {name, *map(_without_ending, (name, row["source"], row["file_name"]))}:
            loose[key] = {} if key in loose and loose[key] is not row else row
    return {**loose, **by_source, **exact}


def _without_ending(name: str) -> str:
    return posixpath.splitext(name)[0]


def _name_of(row: Row) -> str:
    """Returns the file name of a cut-out without its item."""
    return row["file_name"].partition("/")[2]


def apply_corrections(finished: Finished, path: Path) -> Counter[str]:
    """Takes over corrections, as the report's page saves them, and returns how many there are of each kind.

    `right`: the label is a human's from now on, and no longer doubted. `wrong` with another item: the photo moves
    there. `wrong` without one, or `bad mask`: it goes to review, and stays until it is corrected. A second time the
    same corrections change nothing.

    Args:
        finished: The output.
        path: A .csv with file_name, item, verdict.

    Returns:
        The lines per verdict, `unknown` for names that no photo has, and `changed`, the records that are other now.

    Raises:
        ConfigError: It can't be read, or has a verdict or an item that there is not.
    """
    flag = "--apply"
    rows = csv_utilities.read_csv(path, flag=flag)
    columns = [csv_utilities.find_column(rows, (name,), path, flag=flag) for name in ("file_name", "item", "verdict")]
    counts: Counter[str] = Counter()
    after: dict[str, Row] = {}
    for line in rows:
        name, item, verdict = (line[column] for column in columns)
        verdict = verdict.strip().lower()
        if verdict not in VERDICTS:
            raise ConfigError(f"{flag} {path}: {name!r}: {verdict!r} is no verdict; write {', '.join(VERDICTS)}")
        if item and item not in finished.items:
            raise ConfigError(f"{flag} {path}: {name!r}: {item!r} is no item of this run; {_nearest(item, finished)}")
        row = finished.find(name)
        if row is None:
            counts["unknown"] += 1
            _LOGGER.warning("%s: %s: no photo of this output; left out", path, name)
            continue
        counts[verdict] += 1
        after[row["source"]] = _corrected(finished, row, item, verdict)
    counts["changed"] = finished.revise(after.values(), by=f"{flag} {path}")
    return counts


def _corrected(finished: Finished, row: Row, item: str, verdict: str) -> Row:
    flags = [flag for flag in row["flags"] if flag not in (WRONG, BAD_MASK)]
    if verdict == "right" or item:
        item = item or row["label"]
        return finished.placed({**row, "flags": flags, "label_source": "human"}, item, finished.thresholds)
    flags.append(WRONG if verdict == "wrong" else BAD_MASK)
    return finished.placed({**row, "flags": flags}, row["label"], finished.thresholds)


def _nearest(item: str, finished: Finished) -> str:
    import difflib

    near = difflib.get_close_matches(item, finished.items, n=1)
    return f"did you mean {near[0]!r}?" if near else f"write one of {', '.join(finished.items)}"


def undo(finished: Finished) -> str:
    """Takes back the last revision that stands, and returns what had asked for it.

    Records that have changed since are left as they are.

    Raises:
        OutputError: There is none.
    """
    last = to_undo(finished.places)
    if last is None:
        raise OutputError(f"--undo: {finished.places.output} has nothing to take back")
    changes = [(after, before) for before, after in last.changes if finished.records.get(after["source"]) == after]
    if len(changes) < len(last.changes):
        _LOGGER.warning(
            "%d of %d records have changed since; they stay", len(last.changes) - len(changes), len(last.changes)
        )
    settings = last.settings and (last.settings[1], last.settings[0])
    revise(finished.places, changes, by=f"--undo of {last.by}", settings=settings, undoes=last.number)
    return last.by


def set_thresholds(finished: Finished, thresholds: Thresholds, *, by: str) -> int:
    """Sorts the photos anew into the output and its review folder, and returns how many have moved."""
    after = [{**row, "flags": review_flags(row, thresholds)} for row in finished.records.values()]
    moved = sum(finished.places.of(row) != finished.places.of(finished.records[row["source"]]) for row in after)
    finished.revise(after, by=by, settings=with_thresholds(finished.settings, thresholds))
    return moved


def relabelled_settings(before: Mapping[str, Any], settings: Settings, thresholds: Thresholds) -> dict[str, Any]:
    """Returns what `.run.json` is to say after other prompts: as a run with them would have said."""
    prompts = {name: list(getattr(settings, name)) for name in PROMPT_KEYS}
    return with_thresholds({**before, **prompts, "decision": settings.decision}, thresholds)


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
        photos: In all.
        moved_to_review: Photos that are in review and were not.
    """

    changed: Counter[tuple[str, str]]
    kept: int
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
    after: list[Row] = []
    kept = 0
    for begin in range(0, len(sources), _AT_ONCE):
        some = slice(begin, begin + _AT_ONCE)
        labels = clip_model.decide_stored(features[indices[some]])
        for source, label in zip(sources[some], labels, strict=True):
            row = finished.records[source]
            by_human = row["label_source"] == "human" and row["label"] in clip_model.items
            kept += by_human
            after.append(_relabelled(finished, row, label, thresholds, by_human=by_human))
    before = dict(finished.records)
    changed = Counter(
        (before[row["source"]]["label"], row["label"])
        for row in after
        if before[row["source"]]["label"] != row["label"]
    )
    to_review = sum(
        finished.places.of(row) == finished.places.review != finished.places.of(before[row["source"]]) for row in after
    )
    finished.revise(after, by=by, settings=settings)
    return Relabelling(changed, kept, len(after), to_review)


def _relabelled(finished: Finished, row: Row, label: Label, thresholds: Thresholds, *, by_human: bool) -> Row:
    new = {**row, **label_record(label)}
    if by_human:
        new |= {"label": row["label"], "label_source": "human"}
    elif label.item != row["model_label"] or row["label_source"] == "human":
        new["flags"] = [flag for flag in row["flags"] if flag not in (VIEW, COLOUR, WRONG, MOVED)]
    return finished.placed(new, new["label"], thresholds)
