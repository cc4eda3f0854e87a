"""The report: one page to see every class at a glance, find the doubtful photos first, and correct them.

The page and its script stand in `report_page/`; here they get their data. A page that is opened from a file may not
fetch other files, but it may load scripts: so the data are scripts that hand over an object. `data/index.js` has a few
numbers of each photo, by which the page sorts and filters; `data/rows-0000.js` and so on have the rest, 500 photos
each, and are loaded when they are scrolled to. Both name their build, a digest of the photos, their order and labels:
a page that finds another's rows has been overtaken, and says so.
"""

from __future__ import annotations

import datetime
import hashlib
import heapq
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from config_utilities import PROGRAM_DIR
from errors import OutputError
from pipeline_utilities import map_ahead
from png_utilities import read_mask
from record_utilities import REVIEW, Places, write_atomically
from storage_utilities import Place, RemotePath
from thumbnail_utilities import THUMBNAILS, source_digest

PAGE, EVALUATION, CONFUSION, _FACTS = "index.html", "evaluation.json", "confusion.csv", "facts.json"
LOOKS = "looks"  # a key of EVALUATION
PICTURES = {"confusion.svg": "What the model took for what", "reliability.svg": "How right it is when how sure"}
_SOURCES = ("report.css", "report.js")
_INDEX = b"sam2vit.index("  # how data/index.js begins

_MOST_PHOTOS = 100_000  # in the page, the most doubtful ones: its index takes some 60 bytes of each
_SAMPLE = 2_000  # photos that are in it in any case, a random sample of all: the doubtful alone would tell no precision
_CHUNK = 500  # photos
_BINS = 20
_NAMED = 100  # photos of each reason of failure
_CONTOUR_SIDE, _CONTOUR_POINTS = 256, 120


def write_report(
    folder: Place,
    places: Places,
    rows: Iterable[Mapping[str, Any]],
    *,
    dataset_dir: Place,
    failures: Sequence[Mapping[str, Any]],
    facts: Mapping[str, str],
    items: Sequence[str],
    threads: int = 1,
) -> Place:
    """Writes the report's page and data, and returns the page.

    Args:
        folder: Where to; the thumbnails stand there already.
        places: Of the cut-outs.
        rows: The records, however many; of each a few numbers are kept, and of the most doubtful 100,000 all.
        dataset_dir: The folder of the photos.
        failures: The rows of failures.jsonl.
        facts: What the page says of the run, by name.
        items: All items, whether they have photos or not.
        threads: How many read masks.

    Raises:
        OutputError: It can't be written.
    """
    summary = _Summary(items)
    shown, sample_ends = choose_rows(map(summary.add, rows))
    counted, columns = summary.to_dict(), summary.columns(shown)
    # What verdicts rest on: a page that was opened before must not take the photos of this one for its own.
    names = [row["file_name"] for row in shown]
    build = _digest(json.dumps([counted["items"], counted["flags"], columns, names]).encode())
    index = {
        "key": _digest(os.fsencode("\0".join(map(_absolute, (places.output, dataset_dir))))),
        "build": build,
        "title": places.output.name,
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "facts": list(facts.items()),
        **counted,
        "failures": _group(failures),
        "columns": columns,
        "sample_ends": sample_ends,
        "chunk": _CHUNK,
        "folders": {
            "output": _url(places.output, folder),
            "review": _url(places.review, folder),
            "dataset": _url(dataset_dir, folder),
        },
        "evaluation": _read_json(folder / EVALUATION),
        "pictures": [{"src": name, "alt": alt} for name, alt in PICTURES.items() if (folder / name).exists()],
    }
    index["counts"] |= {"failed": len(failures), "shown": len(shown)}
    data = folder / "data"
    try:
        write_atomically(folder / _FACTS, json.dumps(facts, indent=1).encode())
        # First what is read last, so that a page never asks for what is not there yet.
        for number, begin in enumerate(range(0, len(shown), _CHUNK)):
            some = shown[begin : begin + _CHUNK]
            described = map_ahead(lambda row: _describe(row, places), some, threads=threads, ahead=4 * threads)
            script = f'sam2vit.rows("{build}", {number}, {_to_script(list(described))});\n'
            _write(data / f"rows-{number:04}.js", script.encode())
        write_atomically(data / "index.js", _INDEX + f"{_to_script(index)});\n".encode())
        for name in (*_SOURCES, PAGE):
            write_atomically(folder / name, (PROGRAM_DIR / "report_page" / name).read_bytes())
        _delete_from(data, -(-len(shown) // _CHUNK))
    except OSError as error:
        raise OutputError(f"{folder}: can't be written: {error.strerror}; make room, or add --no-report") from None
    return folder / PAGE


def is_report(folder: Place) -> bool:
    """Whether a folder is the report of a run, or the beginning of one, as far as its files tell."""
    path = folder / "data" / "index.js"
    try:
        if {each.name for each in folder.iterdir()} == {THUMBNAILS}:
            return True
        if isinstance(path, RemotePath):
            return path.read_head(len(_INDEX)) == _INDEX
        with path.open("rb") as file:
            return file.read(len(_INDEX)) == _INDEX
    except OSError:  # most likely it is missing
        return False


def choose_rows(rows: Iterable[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """Returns the rows of the page, the most doubtful first, and the last digest of a random sample of all photos.

    The sample is of the smallest digests of sources, which chance has drawn: it stays the same when photos are added,
    but for those that come into it.
    """
    doubtful: list[tuple[tuple[float, str], int, Mapping[str, Any]]] = []  # heaps, the one to give way first
    sample: list[tuple[int, int, Mapping[str, Any]]] = []
    for count, row in enumerate(rows):
        # The number keeps two records of one key from being compared.
        _keep(doubtful, (_Reversed((row["margin"], row["source"])), count, row), _MOST_PHOTOS)
        _keep(sample, (-int(source_digest(row["source"]), 16), count, row), _SAMPLE)
    chosen = {row["source"]: row for _, _, row in (*doubtful, *sample)}
    everything = len(doubtful) < _MOST_PHOTOS
    ends = "f" * 16 if everything or not sample else source_digest(sample[0][2]["source"])
    return sorted(chosen.values(), key=lambda row: (row["margin"], row["source"])), ends


class _Reversed(tuple):
    """A tuple that compares the other way round: the largest is the first of a heap."""

    def __lt__(self, other: tuple[Any, ...]) -> bool:
        return tuple.__gt__(self, other)


def _keep(heap: list[Any], entry: Any, most: int) -> None:
    if len(heap) < most:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


class _Summary:
    """Counts of all records, which pass through it one by one."""

    def __init__(self, items: Sequence[str]) -> None:
        self._items = dict.fromkeys(items)  # in their order
        self._flags = [REVIEW]
        self._counts = Counter()
        self._per_item: Counter[tuple[str, bool]] = Counter()
        self._histograms = {"probability": [0] * _BINS, "margin": [0] * _BINS}

    def add(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Counts a record, and returns it."""
        in_review = REVIEW in row["flags"]
        self._counts["review" if in_review else "output"] += 1
        self._per_item[row["label"], in_review] += 1
        self._items.setdefault(row["label"])  # a human's may be none of them
        self._flags += [flag for flag in row["flags"] if flag not in self._flags]
        self._histograms["probability"][_bin(row["item_probability"], 0.0)] += 1
        self._histograms["margin"][_bin(row["margin"], -1.0)] += 1
        return row

    def to_dict(self) -> dict[str, Any]:
        """Returns what the page shows of all photos."""
        counts = {"output": self._counts["output"], "review": self._counts["review"], "all": self._counts.total()}
        return {
            "items": list(self._items),
            "flags": self._flags,
            "counts": counts,
            "histograms": self._histograms,
            "per_item": [[self._per_item[item, False], self._per_item[item, True]] for item in self._items],
        }

    def columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Returns what the page sorts and filters by."""
        places = {item: index for index, item in enumerate(self._items)}
        bits = {flag: 1 << index for index, flag in enumerate(self._flags)}
        return {
            "id": [source_digest(row["source"]) for row in rows],
            "item": [places[row["label"]] for row in rows],
            "probability": [round(row["item_probability"], 4) for row in rows],
            "margin": [round(row["margin"], 4) for row in rows],
            "mask_score": [_rounded(row.get("mask_score")) for row in rows],
            "mask_area": [_rounded(row.get("mask_area")) for row in rows],
            "flags": [sum(bits[flag] for flag in set(row["flags"])) for row in rows],
            "human": [_by_human(row) for row in rows],
        }


def _by_human(row: Mapping[str, Any]) -> int:
    """Returns whose the label is: 0 the model's, 1 a human's, 2 a human's against the model."""
    return 0 if row["label_source"] != "human" else 1 if row["label"] == row["model_label"] else 2


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _bin(value: float, low: float) -> int:
    """Returns which of 20 bins from `low` to 1 holds a value."""
    return min(_BINS - 1, max(0, int((value - low) / (1 - low) * _BINS)))


def _group(failures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the failures by stage and reason, the most frequent first, with some of their photos."""
    groups: dict[tuple[str, str], list[str]] = {}
    for row in failures:
        groups.setdefault((row["stage"], row["reason"]), []).append(row["source"])
    return [
        {"stage": stage, "reason": reason, "count": len(sources), "sources": sources[:_NAMED]}
        for (stage, reason), sources in sorted(groups.items(), key=lambda each: (-len(each[1]), each[0]))
    ]


def _describe(row: Mapping[str, Any], places: Places) -> dict[str, Any]:
    """Returns what the page says of one photo, beyond the columns."""
    try:
        mask = read_mask(places.png(row))
    except (OSError, ValueError):  # the page does without its outline
        mask = None
    return {
        "name": row["file_name"],
        "source": row["source"],
        "prompt": row["prompt"],
        "model": row["model_label"],
        "top": [[each["item"], each["probability"]] for each in row["top_items"]],
        "width": row["width"],
        "height": row["height"],
        "contour": None if mask is None else contour_path(mask),
    }


def contour_path(mask: np.ndarray) -> str:
    """Returns the outlines of an (H, W) bool mask as the path of an SVG, in thousandths of width and height."""
    step = max(1, max(mask.shape) // _CONTOUR_SIDE)
    small = mask[step // 2 :: step, step // 2 :: step] if min(mask.shape) > step else mask
    height, width = small.shape
    # Between the pixels, not through their middles: twice as large.
    doubled = cv2.resize(small.astype(np.uint8), (2 * width, 2 * height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    # Of a mask like noise there are thousands; more than these could not all be drawn.
    contours = sorted(contours, key=cv2.contourArea, reverse=True)[: _CONTOUR_POINTS // 3]
    tolerance, points = 1.0, _simplified(contours, 1.0)
    while sum(map(len, points)) > _CONTOUR_POINTS and tolerance < _CONTOUR_SIDE:
        tolerance *= 1.5
        points = [each for each in _simplified(contours, tolerance) if len(each) > 2]
    scale = 1000 / np.array([2 * width, 2 * height])
    lines = (np.rint((each[:, 0] + 0.5) * scale).astype(int).tolist() for each in points)
    return "".join("M" + "L".join(f"{x} {y}" for x, y in line) + "Z" for line in lines)


def _simplified(contours: Sequence[np.ndarray], tolerance: float) -> list[np.ndarray]:
    return [cv2.approxPolyDP(contour, tolerance, closed=True) for contour in contours]


def _to_script(value: Any) -> str:
    """Returns a value as JSON that stands safely in a script, whatever names it holds."""
    # ASCII: neither line separators nor halves of surrogate pairs; and nothing that HTML knows.
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c").replace(">", "\\u003e")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _absolute(folder: Place) -> str:
    return str(folder) if isinstance(folder, RemotePath) else os.path.abspath(folder)  # noqa: PTH100


def _url(folder: Place, base: Place) -> str:
    """Returns the URL of a folder from a page in another, with a slash at its end."""
    if isinstance(folder, RemotePath) and isinstance(base, RemotePath) and folder.root == base.root:
        folder, base = folder.key, base.key
    elif isinstance(folder, RemotePath) or isinstance(base, RemotePath):
        return (
            f"{quote(folder.resolve().as_uri(), safe='/:')}/"
            if isinstance(folder, RemotePath)
            else (f"{folder.resolve().as_uri()}/")
        )
    try:
        relative = os.path.relpath(folder, base).replace(os.sep, "/")
    except ValueError:  # on another drive of Windows
        return f"{folder.resolve().as_uri()}/"
    return f"{quote(os.fsencode(relative))}/"


def _write(path: Place, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _delete_from(data: Place, count: int) -> None:
    """Deletes the chunks of an earlier report that this one has no longer."""
    while (path := data / f"rows-{count:04}.js").exists():
        path.unlink()
        count += 1


def forget_evaluation(folder: Place) -> None:
    """Deletes what an evaluation has left: it is of other labels than those that are there now."""
    try:
        for name in (EVALUATION, CONFUSION, *PICTURES):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: can't be written: {error.strerror}; mend that") from None


def read_looks(folder: Place) -> list[str]:
    """Returns which searches for a threshold there were since the labels are what they are; see `to_look`."""
    evaluation = _read_json(folder / EVALUATION)
    return list(evaluation.get(LOOKS, ())) if isinstance(evaluation, dict) else []


def read_facts(folder: Place) -> dict[str, str]:
    """Returns what the page said of the run that it was last built after; nothing where it was not built."""
    facts = _read_json(folder / _FACTS)
    return {str(name): str(value) for name, value in facts.items()} if isinstance(facts, dict) else {}


def _read_json(path: Place) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # it is missing, or was cut off; then the page does without
        return None
