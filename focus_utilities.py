"""Where SAM 2 is pointed: at the centre of a photo, at given points, at a grid of them, or at what a detector finds."""

from __future__ import annotations

import csv
import difflib
import itertools
import math
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Literal, TextIO, cast, get_args

import numpy as np

from errors import ConfigError, PhotoError
from storage_utilities import Place, is_file

if TYPE_CHECKING:
    from torch import Tensor

FocusWord = Literal["center", "grid", "detector"]
Box = tuple[float, float, float, float]

# Of the grid: its step as a fraction of each side, and what `mask_scores` thinks of a candidate.
_GRID_SPACING = 0.2
_STABILITY_OFFSET = 1.0  # of the logits, as in SAM's automatic mask generator
_LEAST_AREA, _MOST_AREA = 0.02, 0.8  # fractions of the frame between which a mask's area says nothing against it


@dataclass(frozen=True)
class Focus:
    """Where SAM 2 is pointed in one photo.

    Attributes:
        by: What chose the place.
        point: (x, y) in pixels, inside the photo.
        box: (x0, y0, x1, y1) in pixels around the subject; None where none is known.
        label: The detector's word for the subject.
        confidence: The detector's, 0 to 1.
    """

    by: Literal["center", "point", "grid", "detector"]
    point: tuple[int, int]
    box: Box | None = None
    label: str | None = None
    confidence: float | None = None

    @property
    def rounded_box(self) -> list[float] | None:
        """The box as records have it, to a tenth of a pixel."""
        return None if self.box is None else [round(each, 1) for each in self.box]


def parse_focus(text: str) -> FocusWord | tuple[float, float] | Path:
    """Returns what the value of --focus means: a word, a point, or the path of a CSV file, whether or not it exists.

    A point is two fractions of width and height, each 0 to 1: `0.4,0.6`.

    Raises:
        ConfigError: It is none of them.
    """
    if text in get_args(FocusWord):
        return cast(FocusWord, text)
    if is_points_file(text):
        return Path(text)
    if "," in text:
        numbers = [_read_number(part) for part in text.split(",")]
        fractions = [number for number in numbers if number is not None and 0 <= number <= 1]
        if len(numbers) == len(fractions) == 2:
            return fractions[0], fractions[1]
        raise ConfigError(
            f"--focus {_quote(text)}: no point in the photo; write two fractions of width and height "
            "between 0 and 1, such as 0.4,0.6"
        )
    near = difflib.get_close_matches(text.lower(), get_args(FocusWord), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "use center, grid, detector, a point such as 0.4,0.6, or a .csv"
    raise ConfigError(f"--focus {_quote(text)}: unknown focus; {hint}")


def is_points_file(text: str) -> bool:
    """Whether the value of --focus is the path of a CSV file."""
    return text.lower().endswith(".csv")


def _read_number(text: str) -> float | None:
    """Returns a finite number, or None where the text is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


_MOST_FRACTION = 1.001


@dataclass(frozen=True, slots=True)
class PointRow:
    """One photo's row of a points file: fractions of width and height where no number is above 1, else pixels.

    What is a little above 1 was rounded: the box of no photo ends within its second pixel.

    Attributes:
        point: (x, y).
        box: (x0, y0, x1, y1), or None.
    """

    point: tuple[float, float]
    box: Box | None = None

    @property
    def is_fractions(self) -> bool:
        """Whether the numbers are fractions, not pixels."""
        return max(*self.point, *(self.box or ())) <= _MOST_FRACTION


_POINT_COLUMNS, _BOX_COLUMNS = ("x", "y"), ("x0", "y0", "x1", "y1")
_HEADER_REMEDY = "the first line must be file_name,x,y or file_name,x,y,x0,y0,x1,y1, separated by commas"

_LONGEST_LINE = 1_000_000  # characters
_MOST_ROWS = 10_000_000  # 300 bytes each, 500 where they have boxes

ROWS_LOOKED_UP = 1000  # photos: a million would take a minute on a disk, and much longer on a network


def read_points(path: Path) -> dict[str, PointRow]:
    """Returns the rows of a points file by the photo's path relative to the dataset, with forward slashes.

    The file is a CSV in UTF-8 whose first line names its columns, in any order: `file_name`, `x`, `y`, and optionally
    all of `x0`, `y0`, `x1`, `y1`, a box that a row may leave empty. Other columns are not read.

    Raises:
        ConfigError: The file can't be read or used; names the line, the value, the problem and the remedy.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel's "CSV UTF-8" begins with a byte order mark
            rows = _read_rows(path, file)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; name your points file with --focus") from None
    if not rows:
        raise ConfigError(f"{path}: holds no points; {_HEADER_REMEDY}, with a line for each photo below it")
    return rows


def _read_rows(path: Path, file: TextIO) -> dict[str, PointRow]:
    # Fields have csv's own bound of 131,072 characters, so that a forgotten quote ends soon; strict: and is noticed.
    reader = csv.reader(_lines(file), strict=True)
    try:
        return _to_rows(reader)
    except csv.Error as error:
        raise ConfigError(f"{path}: line {reader.line_num}: no CSV: {error}; look for a missing double quote") from None
    except UnicodeDecodeError as error:  # in what was read ahead, after the last whole line
        value = error.object[error.start : error.start + 1]
        line = reader.line_num + len((error.object[: error.start] + value).splitlines())
        raise ConfigError(f"{path}: line {line}: {value!r}: no UTF-8; save the file as UTF-8") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: line {reader.line_num}: {error}") from None


def _lines(file: TextIO) -> Iterator[str]:
    while line := file.readline(_LONGEST_LINE):
        yield line
        if len(line) == _LONGEST_LINE:
            raise ConfigError(f"{_quote(line)}: a line of {_LONGEST_LINE:,} characters or more; {_HEADER_REMEDY}")


def _to_rows(reader: Any) -> dict[str, PointRow]:
    """Returns what a `csv.reader` has left; errors speak of its current line."""
    rows: dict[str, PointRow] = {}
    lines = array("Q")  # of each row, where it ends
    header = next(filter(None, reader), [])  # empty lines say nothing
    columns = _read_header(header) if header else {}
    for fields in filter(None, reader):
        if len(fields) != len(header):
            raise ConfigError(
                f"{_quote(','.join(fields))}: {len(fields)} values under {len(header)} columns; "
                "put a file name that holds a comma between double quotes"
            )
        name = _to_source(fields[columns["file_name"]])
        if name in rows:
            earlier = lines[list(rows).index(name)]
            raise ConfigError(f"{_quote(name)}: stands in line {earlier}, too; keep one of them")
        if len(rows) == _MOST_ROWS:
            raise ConfigError(f"{_quote(name)}: row {_MOST_ROWS + 1:,}; divide the dataset")
        rows[name] = _read_row(name, fields, columns)
        lines.append(reader.line_num)
    return rows


def _read_header(fields: Sequence[str]) -> dict[str, int]:
    """Returns where the columns stand."""
    names = [field.strip() for field in fields]
    wanted = ["file_name", *_POINT_COLUMNS]
    if set(names) & set(_BOX_COLUMNS):
        wanted += _BOX_COLUMNS
    for column in wanted:
        if names.count(column) != 1:
            problem = "stands twice" if column in names else "is missing"
            raise ConfigError(f"{_quote(','.join(names))}: the column {column} {problem}; {_HEADER_REMEDY}")
    return {column: names.index(column) for column in wanted}


def _read_row(name: str, fields: Sequence[str], columns: dict[str, int]) -> PointRow:
    if not name:
        raise ConfigError("'': no file_name; write the photo's path relative to the dataset, such as berlin/car.jpg")
    point = tuple(_read_coordinate(column, fields[columns[column]]) for column in _POINT_COLUMNS)
    texts = [fields[columns[column]] for column in _BOX_COLUMNS if column in columns]
    if not any(text.strip() for text in texts):
        return PointRow(cast(tuple[float, float], point))
    if not all(text.strip() for text in texts):
        raise ConfigError(f"{_quote(','.join(texts))}: part of a box; give all of {', '.join(_BOX_COLUMNS)}, or none")
    box = cast(Box, tuple(map(_read_coordinate, _BOX_COLUMNS, texts)))
    for first, last in ((0, 2), (1, 3)):
        if box[first] >= box[last]:
            raise ConfigError(
                f"{_quote(','.join(texts))}: an empty box; {_BOX_COLUMNS[first]} must be less than {_BOX_COLUMNS[last]}"
            )
    return PointRow(cast(tuple[float, float], point), box)


def _read_coordinate(column: str, text: str) -> float:
    number = _read_number(text)
    if number is None:
        raise ConfigError(f"{_quote(text)}: {column} is no finite number; write pixels, or fractions such as 0.5")
    if number < 0:
        raise ConfigError(
            f"{_quote(text)}: {column} is negative; pixels and fractions count from the photo's upper left"
        )
    return number


def _to_source(name: str) -> str:
    """Returns a file name as records have it: `find` writes ./ before it, and Windows backslashes within."""
    return PurePath(name).as_posix() if name else name


def find_row(rows: Mapping[str, PointRow], source: str) -> PointRow | None:
    """Returns the row of a photo, also where one of both names has its accents apart; None where it has none."""
    forms = () if source.isascii() else (unicodedata.normalize(form, source) for form in ("NFC", "NFD"))
    return next((rows[name] for name in (source, *forms) if name in rows), None)


def stray_names(rows: Iterable[str], dataset_dir: Place) -> list[str]:
    """Returns those of the first 1,000 names of a points file that name no file of the dataset.

    A name is looked up, never opened; one that leads out of the dataset is not even looked up.
    """
    return [name for name in itertools.islice(rows, ROWS_LOOKED_UP) if not _names_a_file(dataset_dir, name)]


def _names_a_file(dataset_dir: Place, name: str) -> bool:
    path = PurePath(name)
    return not path.is_absolute() and ".." not in path.parts and is_file(dataset_dir / name)


def _quote(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else f"{text[: limit - 3]}...")


def centre_focus(width: int, height: int) -> Focus:
    """Returns the centre of a photo of some size in pixels."""
    return Focus("center", (width // 2, height // 2))


def fixed_focus(width: int, height: int, fraction_xy: tuple[float, float]) -> Focus:
    """Returns the same place in every photo: a point (x, y) in fractions, 0 to 1, of its width and height."""
    x, y = fraction_xy
    return Focus("point", pixel_at(x * width, y * height, width, height))


def row_focus(row: PointRow, width: int, height: int) -> Focus:
    """Returns the place that a points file gives for a photo of some size in pixels.

    Raises:
        PhotoError: The point or the box lies outside the photo.
    """
    (x, y), box = row.point, row.box
    if row.is_fractions:
        x, y = min(x, 1) * width, min(y, 1) * height
        box = box and (box[0] * width, box[1] * height, min(box[2], 1) * width, min(box[3], 1) * height)
    elif int(x) >= width or int(y) >= height:
        raise PhotoError(f"its point {x:g},{y:g} lies outside its {width} x {height} pixels", stage="focus")
    if box and (box[2] > width or box[3] > height):
        corners = ",".join(f"{number:g}" for number in box)
        raise PhotoError(f"its box {corners} reaches outside its {width} x {height} pixels", stage="focus")
    return Focus("point", pixel_at(x, y, width, height), box)


def is_pointed_alike(record: Mapping[str, Any], rows: Mapping[str, PointRow]) -> bool:
    """Whether a photo, by its record, was pointed at where these rows of a points file would point now."""
    row, width, height = find_row(rows, record["source"]), record["width"], record["height"]
    try:
        focus = centre_focus(width, height) if row is None else row_focus(row, width, height)
    except PhotoError:
        return False
    points = record.get("points")
    if not isinstance(points, list) or points[:1] != [list(focus.point)]:
        return False
    return (record.get("focus"), record.get("focus_box")) == (focus.by, focus.rounded_box)


def pixel_at(x: float, y: float, width: int, height: int) -> tuple[int, int]:
    """Returns the pixel that a position of at least 0 falls on; the right and lower edges fall on the last ones."""
    return min(int(x), width - 1), min(int(y), height - 1)


def grid_points(width: int, height: int) -> np.ndarray:
    """Returns nine points around the centre as (9, 2) int64 (x, y) in pixels: the centre, then the others row by row.

    They lie inside the photo, whose sides are given in pixels.
    """
    centre = np.array([width // 2, height // 2])
    step = np.array([int(width * _GRID_SPACING), int(height * _GRID_SPACING)])
    around = [(x, y) for y in (-1, 0, 1) for x in (-1, 0, 1) if (x, y) != (0, 0)]
    return centre + step * np.array([(0, 0), *around])


def mask_scores(mask_logits: Tensor, iou_predictions: Tensor) -> Tensor:
    """Returns how well each of N masks would do as the subject, (N,) float32 from 0 to 1: a product of four factors.

    - SAM 2's predicted IoU, between 0 and 1.
    - Stability, as in SAM's automatic mask generator: the area at logits above +1 by that at logits above -1.
    - Centrality: the square root of 1 less the distance of the mask's centroid from the frame's centre in units of half
      the diagonal. The root was chosen on scenes: without it, a subject far off the centre lost to what lies there.
    - Area: 1 between 2% and 80% of the frame, falling linearly to 0 at nothing and at all of it.

    Args:
        mask_logits: (N, h, w) float, positive on the mask.
        iou_predictions: (N,) float.
    """
    import torch

    height, width = mask_logits.shape[1:]
    masks = mask_logits > 0
    area = masks.sum(dim=(1, 2))
    inner = (mask_logits > _STABILITY_OFFSET).sum(dim=(1, 2))
    outer = (mask_logits > -_STABILITY_OFFSET).sum(dim=(1, 2))
    # The centres of pixels, seen from the frame's centre; exact in fp32.
    x = torch.arange(width, device=masks.device) - (width - 1) / 2
    y = torch.arange(height, device=masks.device) - (height - 1) / 2
    some = area.clamp(min=1)  # an empty mask scores 0 by its area
    centroid_x, centroid_y = (masks.sum(dim=1) * x).sum(dim=1) / some, (masks.sum(dim=2) * y).sum(dim=1) / some
    centrality = 1 - torch.hypot(centroid_x, centroid_y) / (math.hypot(width, height) / 2)
    fraction = area / (height * width)
    sanity = torch.minimum(fraction / _LEAST_AREA, (1 - fraction) / (1 - _MOST_AREA)).clamp(max=1)
    return iou_predictions.float().clamp(0, 1) * (inner / outer.clamp(min=1)) * centrality.sqrt() * sanity
