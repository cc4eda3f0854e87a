"""How good the labels of a run are, by a labelled sample; and the threshold from which they are as good as promised."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import csv_utilities
from errors import ConfigError
from record_utilities import BAD_MASK
from thumbnail_utilities import source_digest
from verdict_utilities import RIGHT, Verdict, match_photos, read_class_folders, read_verdicts

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

OTHER = "(other)"  # the truth of photos that are known to be wrong, and of items that the run doesn't have
BINS = 10

_Z = 1.959963984540054  # of the normal distribution, for 95%
_COLUMNS = 8  # of a confusion matrix that fits a terminal; of a larger one
_NAMED = 10  # confusions are printed


@dataclass(frozen=True)
class Labels:
    """What people say of photos.

    Attributes:
        said: By source, the verdict on its label.
        unknown: How many names mean no photo of the run, and `example`, one of them.
        bad_masks: The sources of those with a verdict on their mask only.
        judged: Whether they look at the labels of a run, as on its page, and do not name items of their own.
    """

    said: dict[str, Verdict]
    unknown: int = 0
    example: str = ""
    bad_masks: frozenset[str] = frozenset()
    judged: bool = False


def read_labels(
    path: Path,
    find: Callable[[Iterable[str]], Mapping[str, str]],
    sources: Container[str],
) -> Labels:
    """Returns what people say of the photos of a run.

    Args:
        path: A table, see `read_verdicts`; or a folder of class folders with photos or cut-outs.
        find: Returns the sources of the photos that names mean, without those that mean none.
        sources: Those of all photos.

    Raises:
        ConfigError: It can't be read, contradicts itself, or says nothing of any photo of the run.
    """
    verdicts = read_class_folders(path) if path.is_dir() else read_verdicts(path, flag="--evaluate")
    said: dict[str, Verdict] = {}
    bad_masks: set[str] = set()
    unknown: list[str] = []
    for verdict, source in match_photos(verdicts, find, sources):
        if source is None:
            unknown.append(verdict.names[0])
        elif verdict.verdict == BAD_MASK and not verdict.item:
            bad_masks.add(source)
        elif _claim(said.setdefault(source, verdict)) != _claim(verdict):
            one, other = _claim(said[source]), _claim(verdict)
            raise ConfigError(f"--evaluate {path}: {source!r}: is called {one} and {other}; keep one of them")
    if not said:
        hint = f", such as {unknown[0]!r}, which is none" if unknown else ""
        raise ConfigError(f"--evaluate {path}: labels no photo of this output{hint}; name them as metadata.jsonl does")
    judged = any(each.source is not None for each in verdicts)
    return Labels(said, len(unknown), "".join(unknown[:1]), frozenset(bad_masks.difference(said)), judged)


def _claim(verdict: Verdict) -> str:
    item = verdict.item or (verdict.label if verdict.verdict == RIGHT else None)
    return verdict.verdict if item is None else repr(item)


def spell_items(labels: Labels, items: Sequence[str]) -> tuple[Labels, Counter[str]]:
    """Returns labels with the items' own capitals, and of the words that are no item how many labels have them."""
    spelled = {item.casefold(): item for item in items}
    said = {
        source: replace(verdict, item=spelled.get(verdict.item.casefold(), verdict.item))
        for source, verdict in labels.said.items()
    }
    strange = Counter(verdict.item for verdict in said.values() if verdict.item not in {"", *items})
    return replace(labels, said=said), strange


def to_look(labels: Labels, target: float) -> str:
    """Returns what tells a search for a threshold from one with other labels or another target."""
    said = sorted((source, _claim(verdict)) for source, verdict in labels.said.items())
    return f"{target:g} {hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]}"


def count_strays(labels: Labels, sources: Iterable[str]) -> int:
    """Returns how many labels are of photos after the first that has none, in the page's random order.

    Args:
        labels: What people say on the page.
        sources: Those of all photos.
    """
    seen = labels.bad_masks.union(labels.said)
    first = min((source_digest(source) for source in sources if source not in seen), default=None)
    return 0 if first is None else sum(source_digest(source) > first for source in labels.said)


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
            1706.04599); NaN where there are none.
        left_out: How many labels say nothing of the model: that another label than its own is wrong, and no more.
    """

    accuracy: Share
    items: list[ItemQuality]
    truths: list[str]
    confusion: list[list[int]]
    bins: list[Bin]
    expected_calibration_error: float
    left_out: int


def evaluate(rows: Iterable[Mapping[str, Any]], labels: Labels, items: Sequence[str]) -> Evaluation:
    """Compares what the model has chosen with what people say, whatever corrections have made of it since.

    Args:
        rows: The records of the run.
        labels: What people say of some of them.
        items: All items of the run, in the order that results are shown in.
    """
    compared, left_out = _compare(rows, labels)
    chosen = [each.chosen for each in compared]
    known = dict.fromkeys([*items, *sorted(set(chosen).difference(items))])  # the latter of a run labelled anew
    # None, not OTHER, which may be an item's name.
    truth = [each.truth if each.truth in known else None for each in compared]
    pairs, is_count, chosen_count = Counter(zip(truth, chosen, strict=True)), Counter(truth), Counter(chosen)
    shown = [item for item in known if item in is_count or item in chosen_count]
    rows_shown = [*shown, *([None] if None in is_count else [])]
    probabilities, right = _to_arrays(compared)
    bins = _bins(probabilities, right)
    gaps = [abs(each.mean_probability - each.accuracy.value) * each.accuracy.count for each in bins]
    return Evaluation(
        Share.of(int(right.sum()), len(right)),
        [_item_quality(item, pairs, is_count, chosen_count) for item in shown],
        [OTHER if one is None else one for one in rows_shown],
        [[pairs[one, other] for other in shown] for one in rows_shown],
        bins,
        sum(gaps) / len(compared) if compared else math.nan,
        left_out,
    )


def judge(rows: Iterable[Mapping[str, Any]], labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    """Returns (n,) item_probability and (n,) bool whether the model is right, as `evaluate` counts, of labelled rows.

    Args:
        rows: The records of the run.
        labels: What people say of some of them.
    """
    return _to_arrays(_compare(rows, labels)[0])


@dataclass(frozen=True)
class _Compared:
    """A labelled photo: what it is (None: not what the model chose), what the model chose, and how sure it was."""

    truth: str | None
    chosen: str
    probability: float


def _compare(rows: Iterable[Mapping[str, Any]], labels: Labels) -> tuple[list[_Compared], int]:
    """Returns the labelled photos, and how many more have a label that says nothing of the model."""
    compared: list[_Compared] = []
    left_out = 0
    for row in rows:
        verdict = labels.said.get(row["source"])
        if verdict is None:
            continue
        truth = verdict.truth(row["label"])
        # "Wrong" is said of the label that people see, which after a correction or other prompts is not the model's.
        if truth is None and verdict.seen(row["label"]) != row["model_label"]:
            left_out += 1
        else:
            compared.append(_Compared(truth, row["model_label"], row["item_probability"]))
    return compared, left_out


def _to_arrays(compared: Sequence[_Compared]) -> tuple[np.ndarray, np.ndarray]:
    probabilities = np.array([each.probability for each in compared], float)
    return probabilities, np.array([each.truth == each.chosen for each in compared], bool)


def _item_quality(
    item: str, pairs: Mapping[Any, int], truth: Mapping[str | None, int], chosen: Mapping[str, int]
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


def print_evaluation(console: Console, evaluation: Evaluation) -> None:
    """Prints an evaluation as tables."""
    from rich.table import Table
    from rich.text import Text

    from console_utilities import count_of, printable

    if evaluation.left_out:
        what = f"{count_of(evaluation.left_out, 'label')} left out: what is wrong is not what the model has chosen"
        console.print(what, highlight=False, soft_wrap=True)
    if not evaluation.accuracy.count:
        console.print("No label says whether the model is right", highlight=False)
        return
    table = Table("item", "precision", "95%", "recall", "95%", "F1", "labels", title="Labels", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for each in evaluation.items:
        shares = [text for share in (each.precision, each.recall) for text in _format_share(share)]
        f1 = "" if math.isnan(each.f1) else f"{each.f1:.3f}"
        table.add_row(Text(printable(each.item)), *shares, f1, str(each.support))
    console.print(table)
    accuracy = evaluation.accuracy
    console.print(
        f"Accuracy {accuracy.value:.3f} ({accuracy.low:.3f} to {accuracy.high:.3f}) on "
        f"{count_of(accuracy.count, 'label')}; expected calibration error {evaluation.expected_calibration_error:.3f}",
        highlight=False,
    )
    if len(evaluation.items) <= _COLUMNS:
        console.print(_confusion_table(evaluation))
        return
    wrong = [
        (count, truth, item)
        for truth, row in zip(evaluation.truths, evaluation.confusion, strict=True)
        for item, count in zip((each.item for each in evaluation.items), row, strict=True)
        if count and truth != item
    ]
    for count, truth, item in sorted(wrong, key=lambda each: (-each[0], *each[1:]))[:_NAMED]:
        console.print(Text(f"  {printable(truth)} taken for {printable(item)}: {count}"), soft_wrap=True)


def _confusion_table(evaluation: Evaluation) -> Table:
    from rich.table import Table
    from rich.text import Text

    from console_utilities import printable

    table = Table("what it is \\ was taken for", title="Confusion", title_justify="left")
    for each in evaluation.items:
        table.add_column(Text(printable(each.item)), justify="right")
    for truth, counts in zip(evaluation.truths, evaluation.confusion, strict=True):
        table.add_row(Text(printable(truth)), *(str(count) if count else "" for count in counts))
    return table


def confusion_csv(evaluation: Evaluation) -> bytes:
    """Returns the confusion matrix as CSV: a line for each truth, a column for each item that the model chose."""
    lines = ([truth, *map(str, counts)] for truth, counts in zip(evaluation.truths, evaluation.confusion, strict=True))
    return csv_utilities.format_csv(["truth", *(each.item for each in evaluation.items)], lines)


def _format_share(share: Share) -> tuple[str, str]:
    return (f"{share.value:.3f}", f"{share.low:.2f}-{share.high:.2f}") if share.count else ("", "")


_STYLE = """<style>
text{font:12px system-ui,sans-serif;fill:#1d1f22}.soft{fill:#5b6068}.line{stroke:#b9bdc4}
.ideal{stroke:#1d1f22;stroke-width:1.5}.cell{fill:#1f5fb8}.bar{fill:#6a93cf}
.range{stroke:#1d1f22;stroke-width:2}.on{fill:#ffffff}.ground{fill:#ffffff}
@media(prefers-color-scheme:dark){text{fill:#e8e9eb}.soft{fill:#a3a9b2}.line{stroke:#4a5058}.ideal{stroke:#e8e9eb}
.cell{fill:#7aa5e6}.bar{fill:#4f7fc0}.range{stroke:#e8e9eb}.on{fill:#16181b}.ground{fill:#1f2226}}
</style>"""
_NAME, _TAIL = 18, 7  # characters of an item in a picture, and of these after what is left out
_LETTER = 7.2  # pixels, at most on average; wide letters take two of them
_DIGIT = 7.7  # pixels
_SLOPE = 50  # degrees, of the names above the columns


def draw_confusion(evaluation: Evaluation) -> str:
    """Returns the confusion matrix as SVG: a row for each truth, shaded by its share of that row."""
    items = [each.item for each in evaluation.items]
    digits = len(str(max((count for row in evaluation.confusion for count in row), default=0)))
    cell = max(34 if len(items) <= 24 else 22, math.ceil(_DIGIT * digits) + 6)
    rise, run = math.sin(math.radians(_SLOPE)), math.cos(math.radians(_SLOPE))
    left = 20 + math.ceil(max(map(_width, evaluation.truths), default=0))
    left = max(left, 96)  # for "what it is"
    top = 40 + math.ceil(rise * max(map(_width, items), default=0))
    ends = [left + cell * (index + 0.5) + 16 + run * _width(item) for index, item in enumerate(items)]
    width = math.ceil(max([left + 150, left + cell * len(items) + 20, *ends]))
    height = top + cell * len(evaluation.truths) + 20
    parts = [f'<text class="soft" x="{left}" y="16">what the model says &#8594;</text>']
    for index, item in enumerate(items):
        x = left + cell * index + cell / 2 + 4
        parts.append(f'<text transform="translate({x:g} {top - 8}) rotate({-_SLOPE})">{_name(item)}</text>')
    for row, (truth, counts) in enumerate(zip(evaluation.truths, evaluation.confusion, strict=True)):
        y = top + cell * row
        parts.append(f'<text x="{left - 8}" y="{y + cell / 2 + 4:g}" text-anchor="end">{_name(truth)}</text>')
        total = max(1, sum(counts))
        for column, count in enumerate(counts):
            x, share = left + cell * column, count / total
            # Without the shades between, on which neither dark nor light numbers can be read.
            shade = 0.8 + 0.2 * share if share > 0.5 else 0.05 + 0.9 * share
            told = f"{_printable(truth)} taken for {_printable(items[column])}: {count} of {total}"
            parts.append(
                f'<rect class="cell" x="{x}" y="{y}" width="{cell - 1}" height="{cell - 1}" '
                f'fill-opacity="{shade:.3f}"><title>{escape(told)}</title></rect>'
            )
            if count:
                tone = "on" if share > 0.5 else ""
                place = f'x="{x + cell / 2:g}" y="{y + cell / 2 + 4:g}" text-anchor="middle"'
                parts.append(f'<text class="{tone}" {place}>{count}</text>')
    parts.append(f'<text class="soft" x="12" y="{top - 8}">what it is &#8595;</text>')
    accuracy = evaluation.accuracy
    description = f"Of {accuracy.count} labels, {accuracy.value:.1%} are right." if accuracy.count else "No labels."
    return _svg(width, height, "Confusion matrix", description, parts)


def draw_reliability(evaluation: Evaluation) -> str:
    """Returns the reliability diagram as SVG: how many are right against how probable they were said to be."""
    left, top, side = 50, 34, 300
    parts = [
        f'<line class="line" x1="{left}" y1="{top + side}" x2="{left + side}" y2="{top + side}"/>',
        f'<line class="line" x1="{left}" y1="{top}" x2="{left}" y2="{top + side}"/>',
        f'<text class="soft" x="{left}" y="18">share of right labels, with its 95% interval</text>',
        f'<text class="soft" x="{left + side}" y="{top + side + 34}" text-anchor="end">probability of the item</text>',
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = left + side * tick, top + side * (1 - tick)
        parts.append(f'<text class="soft" x="{x:g}" y="{top + side + 16}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text class="soft" x="{left - 6}" y="{y + 4:g}" text-anchor="end">{tick:g}</text>')
    for each in evaluation.bins:
        x, width = left + side * each.low, side * (each.high - each.low)
        high = side * each.accuracy.value
        middle = left + side * each.mean_probability
        low_y, high_y = (top + side * (1 - bound) for bound in (each.accuracy.low, each.accuracy.high))
        box = f'x="{x + 2:g}" y="{top + side - high:g}" width="{width - 4:g}" height="{high:g}"'
        told = f"{each.accuracy.count} labels, {each.accuracy.value:.1%} right"
        parts.append(f'<rect class="bar" {box}><title>{told}</title></rect>')
        parts.append(f'<line class="range" x1="{middle:g}" x2="{middle:g}" y1="{low_y:g}" y2="{high_y:g}"/>')
    ideal = f'x1="{left}" y1="{top + side}" x2="{left + side}" y2="{top}"'
    parts.append(f'<line class="ideal" stroke-dasharray="4 4" {ideal}/>')
    error = "No labels."
    if evaluation.bins:
        error = f"Expected calibration error: {evaluation.expected_calibration_error:.1%}"
    parts.append(f'<text x="{left}" y="{top + side + 52}">{error}</text>')
    return _svg(left + side + 20, top + side + 64, "Reliability diagram", error, parts)


def _svg(width: float, height: float, title: str, description: str, parts: Sequence[str]) -> str:
    ground = '<rect class="ground" width="100%" height="100%"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        f'height="{height:g}" role="img"><title>{title}</title><desc>{description}</desc>{_STYLE}{ground}'
        f"{''.join(parts)}</svg>\n"
    )


def _name(item: str) -> str:
    """Returns an item for a picture, as text whatever it holds."""
    return escape(_short(item))


def _width(item: str) -> float:
    """Returns how many pixels an item takes in a picture, at most."""
    wide = sum(c in "MWmw@%" or unicodedata.east_asian_width(c) in "WF" for c in _short(item))
    return _LETTER * (len(_short(item)) + wide)


def _short(item: str) -> str:
    """Returns an item without its middle where it is long: many differ only at their end."""
    head, tail = _NAME - _TAIL - 1, -_TAIL
    return _printable(item if len(item) <= _NAME else f"{item[:head]}…{item[tail:]}")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)  # XML knows no control characters
