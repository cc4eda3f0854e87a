"""How good the labels of a run are, by a labelled sample; and the threshold from which they are as good as promised."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import csv_utilities
from errors import ConfigError

if TYPE_CHECKING:
    pass

OTHER = "(other)"  # the truth of photos that are known to be wrong, and of items that the run doesn't have
BINS = 10

_Z = 1.959963984540054  # of the normal distribution, for 95%
_GRID = 50  # thresholds that are looked at: quantiles of all photos' probabilities
_STARTS = 3  # of the sequences of tests; among 1, 2, 3 and 4, three kept the most photos in simulations
_START_FACTOR = 1.5  # a sequence begins where that many times the labels are that a sample without a mistake needs
_NAMED = 10  # confusions that are printed


@dataclass(frozen=True)
class Labels:
    """What people say of photos.

    Attributes:
        truth: By source, the right item; None where the model's is known to be wrong and no more.
        unknown: How many names mean no photo of the run, and `example`, one of them.
        bad_masks: How many photos have a verdict on their mask only.
    """

    truth: dict[str, str | None]
    unknown: int
    example: str
    bad_masks: int


@dataclass
class _Reading:
    """Labels while they are read."""

    find: Callable[[str], Mapping[str, Any] | None]
    path: Path
    flag: str
    truth: dict[str, str | None] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    bad_masks: int = 0

    def add(self, names: Sequence[str], item: str | None) -> None:
        """Takes in what is said of the photo that one of several names means."""
        row = next(filter(None, map(self.find, names)), None)
        if row is None:
            self.unknown.append(names[0])
            return
        source = row["source"]
        if self.truth.get(source, item) != item:
            raise ConfigError(
                f"{self.flag} {self.path}: {source!r}: is called {self.truth[source]!r} and {item!r}; keep one of them"
            )
        self.truth[source] = item


def read_labels(path: Path, find: Callable[[str], Mapping[str, Any] | None], *, flag: str = "--evaluate") -> Labels:
    """Returns what people say of the photos of a run.

    Args:
        path: A .csv with `file_name` and `item`, and perhaps `verdict` as the report's page saves it; or a folder of
            class folders with photos or cut-outs.
        find: Returns the record that a name means; None where it means none.
        flag: That names the path, for messages.

    Raises:
        ConfigError: It can't be read, contradicts itself, or says nothing of any photo of the run.
    """
    reading = _Reading(find, path, flag)
    if path.is_dir():
        _read_folder(reading)
    else:
        _read_csv(reading)
    if not reading.truth:
        hint = f", such as {reading.unknown[0]!r}, which is none" if reading.unknown else ""
        raise ConfigError(f"{flag} {path}: labels no photo of this output{hint}; name them as metadata.jsonl does")
    example = reading.unknown[0] if reading.unknown else ""
    return Labels(reading.truth, len(reading.unknown), example, reading.bad_masks)


def _read_folder(reading: _Reading) -> None:
    for file in sorted(reading.path.rglob("*")):
        parts = file.relative_to(reading.path).parts
        if len(parts) > 1 and file.is_file() and not any(part.startswith(".") for part in parts):
            reading.add(["/".join(parts[1:]), "/".join(parts)], parts[0])


def _read_csv(reading: _Reading) -> None:
    path, flag = reading.path, reading.flag
    rows = csv_utilities.read_csv(path, flag=flag)
    name = csv_utilities.find_column(rows, ("file_name", "file", "source"), path, flag=flag)
    item = csv_utilities.find_column(rows, ("item", "label"), path, flag=flag)
    for row in rows:
        verdict = row.get("verdict", "right").strip().lower()
        if verdict == "bad mask":
            reading.bad_masks += 1
        elif verdict not in ("right", "wrong"):
            raise ConfigError(f"{flag} {path}: {row[name]!r}: {verdict!r} is no verdict; write right, wrong, bad mask")
        elif row[item] or verdict == "wrong":
            reading.add([row[name]], row[item] or None)


@dataclass(frozen=True)
class Share:
    """A share of a count with its 95% Wilson interval; NaN where the count is 0."""

    value: float
    count: int
    low: float
    high: float

    @classmethod
    def of(cls, hits: int, count: int) -> Share:
        """Returns the share of so many hits."""
        low, high = wilson_interval(hits, count)
        return cls(hits / count if count else math.nan, count, low, high)


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """Returns the 95% interval of a share (Wilson 1927); from 0 to 1 where nothing was counted."""
    if not count:
        return 0.0, 1.0
    share, per = hits / count, _Z * _Z / count
    centre = (share + per / 2) / (1 + per)
    half = _Z * math.sqrt(share * (1 - share) / count + per / count / 4) / (1 + per)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class ItemQuality:
    """How good one item's labels are: `support` photos are truly of it."""

    item: str
    precision: Share
    recall: Share
    f1: float
    support: int


@dataclass(frozen=True)
class Bin:
    """The photos of one range of item_probability: what it promises on average, and how many are right."""

    low: float
    high: float
    mean_probability: float
    accuracy: Share


@dataclass(frozen=True)
class Evaluation:
    """How good the labels of a sample are.

    Attributes:
        accuracy: The share of right labels.
        items: Those that the sample or the model's labels of it name.
        truths: The rows of `confusion`: `items`, and `OTHER` where it occurs.
        confusion: (len(truths), len(items)) photos by what they are and what the model took them for.
        bins: Of item_probability, ten of equal width.
        expected_calibration_error: The mean difference of promise and accuracy over the photos (Guo et al. 2017, arXiv
            1706.04599).
    """

    accuracy: Share
    items: list[ItemQuality]
    truths: list[str]
    confusion: list[list[int]]
    bins: list[Bin]
    expected_calibration_error: float


def evaluate(rows: Sequence[Mapping[str, Any]], labels: Labels, items: Sequence[str]) -> Evaluation:
    """Compares what the model has chosen with what people say, whatever corrections have made of it since.

    Args:
        rows: The records of the run.
        labels: What people say of some of them.
        items: All items of the run, in the order that results are shown in.
    """
    sample = [(row, labels.truth[row["source"]]) for row in rows if row["source"] in labels.truth]
    chosen = [row["model_label"] for row, _ in sample]
    truth = [item if item in items else OTHER for _, item in sample]
    pairs = Counter(zip(truth, chosen, strict=True))
    shown = [item for item in items if item in chosen or item in truth]
    shown += sorted(set(chosen).difference(shown))  # of a run that was labelled anew
    truths = [*shown, *([OTHER] if OTHER in truth else [])]
    right = [one == other for one, other in zip(truth, chosen, strict=True)]
    probabilities = np.array([row["item_probability"] for row, _ in sample])
    bins = _bins(probabilities, np.array(right))
    error = sum(abs(each.mean_probability - each.accuracy.value) * each.accuracy.count for each in bins) / len(sample)
    return Evaluation(
        Share.of(sum(right), len(right)),
        [_item_quality(item, pairs, Counter(truth), Counter(chosen)) for item in shown],
        truths,
        [[pairs[one, other] for other in shown] for one in truths],
        bins,
        error,
    )


def _item_quality(
    item: str, pairs: Mapping[Any, int], truth: Mapping[str, int], chosen: Mapping[str, int]
) -> ItemQuality:
    hits = pairs[item, item]
    both = truth[item] + chosen[item]
    return ItemQuality(
        item,
        Share.of(hits, chosen[item]),
        Share.of(hits, truth[item]),
        2 * hits / both if both else math.nan,
        truth[item],
    )


def _bins(probabilities: np.ndarray, right: np.ndarray) -> list[Bin]:
    """Returns the bins that hold a photo."""
    place = np.minimum(BINS - 1, (probabilities * BINS).astype(int))
    return [
        Bin(
            index / BINS,
            (index + 1) / BINS,
            float(probabilities[place == index].mean()),
            Share.of(int(right[place == index].sum()), int((place == index).sum())),
        )
        for index in np.unique(place).tolist()
    ]


def to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """Returns an evaluation for JSON, which knows no NaN: null stands for what nothing was counted of."""
    text = json.dumps(asdict(evaluation))
    return json.loads(text, parse_constant=lambda _: None)
