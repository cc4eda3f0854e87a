"""A finished run in the formats that training tools read: COCO, YOLO, captions, an image folder with splits, masks.

Photos in review, and those that a human has called wrong or badly cut, are in none of them.

Masks have the size of the upright photo, as EXIF turns it. Readers that use OpenCV (ultralytics, supervision) turn the
photo likewise. Pillow does not by itself: `torchvision.datasets.CocoDetection`, for one, needs
`PIL.ImageOps.exif_transpose`, or masks lie beside photos of phones.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import hashlib
import importlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import cv2
import numpy as np

from card_utilities import describe_pictures
from config_utilities import EXPORTS
from csv_utilities import format_csv
from dataset_utilities import same_on_disk
from errors import ConfigError, OutputError
from mask_utilities import bounding_box
from photo_utilities import open_regular
from pipeline_utilities import map_ahead
from png_utilities import read_mask
from record_utilities import BAD_MASK, CARD, METADATA, REVIEW, WRONG, write_atomically
from split_utilities import SPLIT_NAMES, Split, assign_splits, digest, read_splits, write_splits
from storage_utilities import Place, RemotePath

_LOGGER = logging.getLogger("sam2vit")

FORMATS = (*EXPORTS, "masks")

_LIBRARIES = {"coco": ("pycocotools.mask", "pycocotools"), "yolo": ("yaml", "PyYAML")}  # module, package
_OF_MASKS = ("coco", "yolo", "masks")
_OF_PHOTOS = ("coco", "yolo")
_LEFT_OUT = frozenset({REVIEW, WRONG, BAD_MASK})
_NEEDED = ("prompt", "mask_area", "width", "height")  # of a record, beyond what makes it one
_MARK, _SPLITS = ".export.json", "splits.csv"
_DIGESTS = ".export-"  # and the format: digests of the files that it has written
_CACHES = ("yolo/segment/labels", "yolo/detect/labels")  # where ultralytics keeps one of each folder of labels
_OF_SYSTEMS = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
_STAGING, _OLD = ".tmp-export", ".tmp-old-"
_MOST_PIXELS = 100_000_000  # of masks that wait or are being traced: a second copy of each is four times as large

_COCO_INFO = """\
Made by sam2vit: one object per photo, cut out with SAM 2, labelled by CLIP. Sizes and masks are of the upright photo, \
as EXIF turns it: with Pillow, as in torchvision's CocoDetection, call PIL.ImageOps.exif_transpose on it first"""

_TOLERANCE = 0.75  # pixels: steps of a slanting edge are 0.71 from it; a quarter of the points, IoU 0.999 at 2 MP
_SPECK = 0.001  # of the subject: smaller parts are not joined to a YOLO polygon
_SEAM_POINTS = 512  # of each part, among which the ends of a seam are looked for

# What ultralytics takes by its ending: IMG_FORMATS in ultralytics/data/utils.py, but for HEIC, which is new there.
_YOLO_ENDINGS = frozenset({".bmp", ".dng", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp"})
_YOLO_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_END_OF_JPEG = b"\xff\xd9"
_AT_ONCE = 1 << 30  # bytes that a system is asked to copy
_LONGEST_STEM = 200  # bytes, so that an ending and a hash fit into the 255 of common file systems


@dataclass(frozen=True)
class Captions:
    """What captions are made of.

    Attributes:
        prompt_for: Returns the prompt that says what a row's photo shows, with the item that a human has given it.
        prefixes: What may stand before it; each photo gets one of them, always the same.
        postfixes: What may stand after it.
    """

    prompt_for: Callable[[Mapping[str, Any]], str]
    prefixes: Sequence[str] = ("",)
    postfixes: Sequence[str] = ("",)


def check_exports(formats: Sequence[str], *, split: Split | None, has_masks: bool = True) -> None:
    """Refuses, before a run of hours, what could not be exported after it.

    Args:
        formats: Of `FORMATS`.
        split: As `--split` says.
        has_masks: Photos are cut out; not so with `--no-sam`.

    Raises:
        ConfigError: There is no such format, it needs a library that is missing, masks, or a split.
    """
    if not has_masks:
        _refuse_masks(formats)
    for name in formats:
        if name not in FORMATS:
            raise ConfigError(f"--export {name}: no such format; choose from {', '.join(FORMATS)}")
        if name == "imagefolder" and split is None:
            raise ConfigError(
                "--export imagefolder: the output is one already, without splits; add --split 0.8,0.1,0.1 for splits"
            )
        module, package = _LIBRARIES.get(name, ("json", "json"))
        try:
            importlib.import_module(module)
        except ImportError:
            raise ConfigError(f"{_flag_of(name)}: needs {package}; pip install -r requirements-export.txt") from None


def _refuse_masks(formats: Sequence[str]) -> None:
    for name in formats:
        if name in _OF_MASKS:
            raise ConfigError(f"{_flag_of(name)}: needs masks, and with --no-sam there are none; leave it out")


def _flag_of(name: str) -> str:
    return "--save-masks" if name == "masks" else f"--export {name}"


def check_folder(folder: Path, formats: Sequence[str]) -> None:
    """Refuses to replace what is not as exports have written it; what systems and ultralytics leave there may go.

    Args:
        folder: Of exports; see `export`.
        formats: Those that are to be replaced.

    Raises:
        OutputError: The folder is of another origin, can't be read, or holds a file that no export has written, or that
            has changed since.
    """
    try:
        if _read_mark(folder) is None:
            names = sorted(each.name for each in folder.iterdir()) if os.path.lexists(folder) else []
            stranger = next((name for name in names if name not in _OF_SYSTEMS and not name.startswith(".tmp-")), None)
        else:
            stranger = next(filter(None, (_find_stranger(folder, name) for name in formats)), None)
    except OSError as error:
        raise OutputError(f"--export: {folder}: {error.strerror}; move it out of the way") from None
    if stranger is not None:
        raise OutputError(
            f"--export: {folder / stranger}: is not of an export, or has changed since; move it out of the way"
        )


def _find_stranger(folder: Path, name: str) -> str | None:
    """Returns a file in the place of a format that is not as it was written; None where there is none."""
    written = _read_digests(folder, name)
    for path, digest_of_file in _walk(folder, _place(name)):
        position = written.searchsorted(digest_of_file)
        if position == len(written) or written[position] != digest_of_file:
            return path
    return None


def _walk(folder: Path, place: str) -> Iterator[tuple[str, np.uint64]]:
    """Yields the files in the place of a format, links among them, each with a digest of its name, size and time."""
    path = os.path.join(folder, place)  # noqa: PTH118 (of millions of files, each of these is felt)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    within, _, name = place.rpartition("/")
    if stat.S_ISDIR(status.st_mode):
        with os.scandir(path) as entries:
            for entry in entries:
                yield from _walk(folder, f"{place}/{entry.name}")
    elif name not in _OF_SYSTEMS and not (name.endswith(".cache") and within in _CACHES):
        known = b"%d %d %s" % (status.st_size, status.st_mtime_ns, os.fsencode(place))
        yield place, np.uint64(int.from_bytes(hashlib.blake2b(known, digest_size=8).digest(), "big"))


def _read_digests(folder: Path, name: str) -> np.ndarray:
    """Returns the digests, sorted, of what an export has written in a format, (N,) uint64."""
    try:
        return np.fromfile(folder / f"{_DIGESTS}{name}", "<u8")
    except FileNotFoundError:
        return np.empty(0, np.uint64)


def _write_digests(folder: Path, name: str, digests: np.ndarray) -> None:
    write_atomically(folder / f"{_DIGESTS}{name}", np.unique(digests).astype("<u8").tobytes())


def export(
    formats: Sequence[str],
    rows: Iterable[Mapping[str, Any]],
    *,
    output: Path,
    dataset_dir: Place,
    folder: Path,
    items: Sequence[str],
    split: Split | None,
    seed: int,
    captions: Captions,
    threads: int,
    on_progress: Callable[[], object] = lambda: None,
) -> dict[str, int]:
    """Writes the rows of a run in other formats, and returns how many photos each of them has.

    - `coco/annotations/instances.json`, or `instances_train.json` and so on: the original photos, each with one
      object. Its segmentation is the mask itself, run-length encoded, bit for bit.
      `instances_polygons.json` has outlines instead, for tools that read nothing else: holes in them are filled.
    - `yolo/segment/` and `yolo/detect/` with data.yaml, images and labels for ultralytics: polygons and boxes. A line
      is an object, so its parts are joined to one polygon by seams without width, as ultralytics' own converter of
      COCO does; holes are filled. Without a split all photos are for training, and validation is on the same.
    - `captions.csv`: file, the cut-out relative to the output, and caption.
    - `imagefolder/<split>/<item>/<name>.png`: the cut-outs, for `datasets.load_dataset`.
    - `masks/<item>/<name>.png`: the masks of the whole photos, 8 bits, 0 and 255.

    Photos and cut-outs are copies, so that whatever is done to them here is not done to those; they share their blocks
    on file systems that can, such as Btrfs and XFS. Both folders of YOLO have one copy. Which photo is in which split
    stands in `splits.csv`. What an earlier export has written is replaced as a whole once all is done, so whoever ends
    this one has the old or the new. Files that it has not written, or not so, are never replaced.

    Args:
        formats: Of `FORMATS`; see `check_exports`.
        rows: Of metadata.jsonl, one for each photo, those in review among them; read once.
        output: The folder that their `file_name` is relative to.
        dataset_dir: The folder that their `source` is relative to. In an object store it is not looked into, and there
            can be no YOLO.
        folder: Where to.
        items: The items of the run, which number the classes; an item that is none of them follows after the last.
        split: The shares of the splits; None where there are to be none.
        seed: Of the splits.
        captions: What captions are made of.
        threads: How many photos are prepared at once.
        on_progress: Called for each row that has been dealt with.

    Returns:
        By format, how many photos it has; as "left out", how many are in review or called wrong; as "skipped", how many
        have no PNG or no mask any more, or half a record; as "missing", how many are gone from the dataset, and so from
        COCO and YOLO.

    Raises:
        ConfigError: See `check_exports`; or splits.csv was changed to something else.
        OutputError: See `check_folder`; or the folder can't be written, or COCO or YOLO lack all photos.
    """
    check_exports(formats, split=split)
    check_folder(folder, formats)
    photos, left_out, incomplete = _select(rows, formats, captions)
    for _ in range(left_out + incomplete):
        on_progress()
    with_photos = any(name in _OF_PHOTOS for name in formats) and not isinstance(dataset_dir, RemotePath)
    gone, unnameable = _find_missing(photos, dataset_dir) if with_photos else (frozenset(), frozenset())
    mark = _read_mark(folder) or {}
    classes = [*items, *sorted({photo.item for photo in photos}.difference(items))]
    staging = folder / _STAGING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _tidy(folder)
        if split is not None:
            mark = _note_split(folder, mark, split=split, seed=seed)
        _write_mark(folder, mark)  # before anything else, or a later export would take it for somebody's
        splits = _decide_splits(photos, folder / _SPLITS, split=split, seed=seed)
        staging.mkdir()
        split_names = SPLIT_NAMES if split else ("",)
        job = _Job(photos, gone | unnameable, output, dataset_dir, staging, classes, splits, split_names)
        counts = _stage(formats, job, threads=threads, on_progress=on_progress)
        check_folder(folder, formats)  # again: somebody may have been at work there meanwhile
        for name in formats:
            written = np.fromiter((each for _, each in _walk(staging, _place(name))), np.uint64)
            # The old ones, too, until nothing can bring them back.
            _write_digests(folder, name, np.concatenate([written, _read_digests(folder, name)]))
            _replace(folder, _place(name))
            _write_digests(folder, name, written)
    except OSError as error:
        raise OutputError(
            f"--export: {error.filename or folder}: {error.strerror or error}; mend that, and export again"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return {**counts, "left out": left_out, "skipped": counts["skipped"] + incomplete, "missing": len(gone)}


@dataclass(frozen=True, slots=True)
class _Photo:
    """What exports need of a row."""

    source: str
    file_name: str
    item: str
    caption: str
    pixels: int


@dataclass(frozen=True)
class _Job:
    """What the writers share."""

    photos: Sequence[_Photo]
    missing: Collection[str]  # sources of those that COCO and YOLO leave out
    output: Path
    dataset_dir: Place
    staging: Path
    classes: Sequence[str]
    splits: Mapping[str, str]  # by source
    split_names: Sequence[str]  # an empty one where there are no splits


def _select(
    rows: Iterable[Mapping[str, Any]], formats: Sequence[str], captions: Captions
) -> tuple[list[_Photo], int, int]:
    """Returns the photos to export, how many of the rows are left out, and how many lack what exports need."""
    photos = []
    left_out = incomplete = 0
    for row in rows:
        if not _LEFT_OUT.isdisjoint(row["flags"]):
            left_out += 1
            continue
        lacking = next((key for key in _NEEDED if key not in row), None)
        if lacking is not None:
            _LOGGER.warning("%s: not exported: its record has no %s", row["source"], lacking)
            incomplete += 1
            continue
        if row["mask_area"] is None:
            _refuse_masks(formats)
        photos.append(
            _Photo(
                source=row["source"],
                file_name=row["file_name"],
                item=row["label"],
                caption=_caption(row, captions) if "captions" in formats else "",
                pixels=row["width"] * row["height"],
            )
        )
    return photos, left_out, incomplete


def _find_missing(photos: Sequence[_Photo], dataset_dir: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the sources of the photos that are gone from the dataset, and of those that readers can't name."""
    absent = [photo.source for photo in photos if not _is_file(dataset_dir, photo.source)]
    unnameable = frozenset(source for source in absent if _is_file(dataset_dir, _with_bytes(source)))
    gone = frozenset(absent) - unnameable
    if not dataset_dir.is_dir() or (gone and len(gone) == len(photos)):
        raise OutputError(f"--export: {dataset_dir}: holds none of the photos; say where they are with --dataset-dir")
    for what, sources in (
        (f"photos no longer in {dataset_dir}", gone),
        ("photos whose names are no UTF-8, so that readers could not find them", unnameable),
    ):
        if sources:
            _LOGGER.warning("--export: left out of COCO and YOLO, %s: %d, such as %s", what, len(sources), min(sources))
    return gone, unnameable


def _is_file(folder: Path, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))  # noqa: PTH113, PTH118 (of millions of photos)


def _with_bytes(source: str) -> str:
    """Returns a source as its file may be called; see `dataset_utilities.PhotoFile`."""
    escaped = source.encode(errors="replace")
    return os.fsdecode(re.sub(rb"%([89A-F][0-9A-F])", lambda match: bytes([int(match[1], 16)]), escaped))


def _caption(row: Mapping[str, Any], captions: Captions) -> str:
    prefix = _choose(captions.prefixes, "prefix", row["source"])
    postfix = _choose(captions.postfixes, "postfix", row["source"])
    return " ".join(f"{prefix} {captions.prompt_for(row)} {postfix}".split())


def _choose(templates: Sequence[str], what: str, source: str) -> str:
    return templates[int(digest(what, source), 16) % len(templates)] if templates else ""


def _place(name: str) -> str:
    return "captions.csv" if name == "captions" else name


def _read_mark(folder: Path) -> dict[str, Any] | None:
    """Returns what earlier exports have noted of themselves; None where there were none."""
    with contextlib.suppress(OSError, ValueError):
        mark = json.loads((folder / _MARK).read_bytes())
        return mark if isinstance(mark, dict) else None
    return None


def _tidy(folder: Path) -> None:
    """Clears away what a killed export has left; what it was about to replace is put back."""
    shutil.rmtree(folder / _STAGING, ignore_errors=True)
    for old in folder.glob(f"{_OLD}*"):
        place = folder / old.name.removeprefix(_OLD)
        if place.exists():
            _remove(old)
        else:
            old.rename(place)


def _replace(folder: Path, place: str) -> None:
    """Puts what was staged in its place; between the two renames there is neither, and `_tidy` knows the old one."""
    final, old = folder / place, folder / f"{_OLD}{place}"
    if final.exists():
        final.rename(old)
    (folder / _STAGING / place).rename(final)
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _note_split(folder: Path, mark: Mapping[str, Any], *, split: Split, seed: int) -> dict[str, Any]:
    """Returns the mark with the split; splits.csv goes where it was made with another."""
    path = folder / _SPLITS
    noted = {"split": ",".join(f"{share:.9g}" for share in split.shares.values()), "seed": seed}
    if path.exists() and any(mark.get(name) != value for name, value in noted.items()):
        _LOGGER.warning(
            "%s: was made with --split %s and --seed %s and is made anew; exports from before keep the old splits",
            *(path, mark.get("split"), mark.get("seed")),
        )
        path.unlink()
    return {**mark, **noted}


def _write_mark(folder: Path, mark: Mapping[str, Any]) -> None:
    write_atomically(folder / _MARK, json.dumps(mark).encode())


def _decide_splits(photos: Sequence[_Photo], path: Path, *, split: Split | None, seed: int) -> dict[str, str]:
    """Returns the split of each photo, by source, and keeps them in splits.csv; none where there are to be none."""
    if split is None:
        return dict.fromkeys((photo.source for photo in photos), "")
    previous = read_splits(path) if path.exists() else {}
    splits = assign_splits({photo.source: photo.item for photo in photos}, split, seed=seed, previous=previous)
    # Photos that are gone or in review keep their split for when they come back.
    write_splits(path, {**previous, **splits})
    return splits


def _stage(formats: Sequence[str], job: _Job, *, threads: int, on_progress: Callable[[], object]) -> Counter[str]:
    """Writes all formats into the staging folder and returns how many photos each has, and how many were skipped."""
    with contextlib.ExitStack() as stack:
        writers = {name: stack.enter_context(_WRITERS[name](job)) for name in formats}
        with_masks = any(name in _OF_MASKS for name in formats)

        def prepare(photo: _Photo) -> tuple[str | None, dict[str, Any]]:
            subject = None
            try:
                if with_masks:
                    subject = _Subject(_read_mask(job, photo))
                else:
                    _cut_out(job, photo).stat()
            except (OSError, ValueError) as error:
                return getattr(error, "strerror", None) or str(error), {}
            missing = _OF_PHOTOS if photo.source in job.missing else ()
            return None, {name: each.prepare(photo, subject) for name, each in writers.items() if name not in missing}

        counts = Counter(dict.fromkeys(formats, 0))
        ahead = map_ahead(
            prepare,
            job.photos,
            threads=threads,
            ahead=2 * threads,
            weigh=lambda photo: photo.pixels if with_masks else 0,
            most=_MOST_PIXELS,
        )
        prepared = stack.enter_context(contextlib.closing(ahead))  # no thread writes on after an interrupt
        for photo, (problem, parts) in zip(job.photos, prepared, strict=True):
            if problem is not None:
                _LOGGER.warning("%s: not exported: its PNG %s: %s", photo.source, photo.file_name, problem)
                counts["skipped"] += 1
            for name, part in parts.items():
                if part is not None:
                    writers[name].add(photo, part)
                    counts[name] += 1
            on_progress()
    return counts


def _read_mask(job: _Job, photo: _Photo) -> np.ndarray:
    """Returns the mask of a photo, (height, width) bool.

    Raises:
        OSError: Its PNG can't be read.
        ValueError: It is damaged, has no mask, or one without a subject.
    """
    mask = read_mask(_cut_out(job, photo))
    if mask is None:
        raise ValueError("holds no mask; another program has saved it anew")
    if not mask.any():
        raise ValueError("its mask is empty")
    return mask


def _cut_out(job: _Job, photo: _Photo) -> Path:
    for name in (photo.file_name, photo.source):  # whatever a hand has written into metadata.jsonl
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name!r} leads out of its folder")
    return job.output / photo.file_name


class _Subject:
    """What a photo shows, as its mask says, (H, W) bool; outlined once for all formats."""

    def __init__(self, mask: np.ndarray) -> None:
        self.mask = mask

    @functools.cached_property
    def outlines(self) -> list[np.ndarray]:
        return _outlines(self.mask)


class _Writer(abc.ABC):
    """Writes one format into the staging folder."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.numbers = {item: number for number, item in enumerate(job.classes)}

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if error_type is None:
            self.finish()

    @abc.abstractmethod
    def prepare(self, photo: _Photo, subject: _Subject | None) -> Any:
        """Does what threads can do for a photo, and returns what `add` needs; None where it is not for this format."""

    def add(self, photo: _Photo, part: Any) -> None:  # noqa: B027 (some formats are done by then)
        """Adds a photo, one after the other, in the order of the rows."""

    def finish(self) -> None:  # noqa: B027 (as above)
        """Writes what comes after the last photo."""


class _Coco(_Writer):
    """Annotations of each split with masks, and with polygons; they go to the disk as they come."""

    def __init__(self, job: _Job) -> None:
        super().__init__(job)
        folder = job.staging / "coco" / "annotations"
        folder.mkdir(parents=True)
        self._ids = itertools.count(1)  # of images and annotations, all different over all splits
        self._files: dict[str, tuple[TextIO, TextIO]] = {}
        self._images: dict[str, list[str]] = {name: [] for name in job.split_names}
        head = json.dumps(
            {
                "info": {"description": _COCO_INFO},
                "licenses": [],
                "categories": [
                    {"id": number + 1, "name": item, "supercategory": ""} for item, number in self.numbers.items()
                ],
            }
        )
        for name in job.split_names:
            ending = f"_{name}.json" if name else ".json"
            self._files[name] = tuple(
                (folder / f"{stem}{ending}").open("w", encoding="ascii") for stem in ("instances", "instances_polygons")
            )
            for file in self._files[name]:
                file.write(f'{head[:-1]}, "annotations": [')

    def __exit__(self, error_type: type[BaseException] | None, *error: object) -> None:
        try:
            super().__exit__(error_type, *error)
        finally:
            for file in itertools.chain.from_iterable(self._files.values()):
                file.close()

    def prepare(self, _photo: _Photo, subject: _Subject) -> dict[str, Any]:
        from pycocotools import mask as coco_masks

        encoded = coco_masks.encode(np.asfortranarray(subject.mask, np.uint8))
        return {
            "size": encoded["size"],
            "bbox": coco_masks.toBbox(encoded).tolist(),
            "area": int(coco_masks.area(encoded)),
            "mask": {"size": encoded["size"], "counts": encoded["counts"].decode("ascii")},
            "polygons": [polygon.ravel().tolist() for polygon in subject.outlines],
        }

    def add(self, photo: _Photo, part: dict[str, Any]) -> None:
        number = next(self._ids)
        split = self.job.splits[photo.source]
        height, width = part["size"]
        image = {"id": number, "file_name": photo.source, "width": width, "height": height}
        between = ",\n" if self._images[split] else "\n"
        self._images[split].append(json.dumps(image))
        category = self.numbers[photo.item] + 1
        common = {"id": number, "image_id": number, "category_id": category, "bbox": part["bbox"], "area": part["area"]}
        for file, segmentation in zip(self._files[split], (part["mask"], part["polygons"]), strict=True):
            file.write(between + json.dumps({**common, "iscrowd": 0, "segmentation": segmentation}))

    def finish(self) -> None:
        for name, files in self._files.items():
            images = ",\n".join(self._images[name])
            for file in files:
                file.write(f'\n], "images": [\n{images}\n]}}\n')


class _Yolo(_Writer):
    """Two datasets of the same photos: polygons to learn segmentation from, boxes to learn detection from."""

    def __init__(self, job: _Job) -> None:
        super().__init__(job)
        present = (photo.source for photo in job.photos if photo.source not in job.missing)
        endings = {source: PurePosixPath(source).suffix.lower() for source in present}
        unreadable = Counter(ending for ending in endings.values() if ending not in _YOLO_ENDINGS)
        if unreadable:
            kinds = ", ".join(sorted(ending or "no ending" for ending in unreadable))
            _LOGGER.warning("--export yolo: left out, as not every ultralytics reads %s: %d", kinds, unreadable.total())
        self._stems = _flat_stems([source for source, ending in endings.items() if ending in _YOLO_ENDINGS])
        self._used: set[str] = set()
        for task, kind, split in itertools.product(("segment", "detect"), ("images", "labels"), job.split_names):
            self._folder(task, kind, split).mkdir(parents=True)

    def _folder(self, task: str, kind: str, split: str) -> Path:
        return self.job.staging / "yolo" / task / kind / _YOLO_SPLITS[split or "train"]

    def prepare(self, photo: _Photo, subject: _Subject) -> str | None:
        if photo.source not in self._stems:
            return None
        original = self.job.dataset_dir / photo.source
        split, stem = self.job.splits[photo.source], self._stems[photo.source]
        width_height = subject.mask.shape[::-1]
        polygon = _join(subject.outlines) / width_height
        x0, y0, x1, y1 = bounding_box(subject.mask)
        box = np.array([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]) / (width_height * 2)
        copies = [self._folder(task, "images", split) / f"{stem}{original.suffix}" for task in ("segment", "detect")]
        _copy_photo(original, copies[0])
        try:
            os.link(*copies)
        except OSError:  # a file system without hard links
            _copy_photo(original, copies[1])
        for task, numbers in (("segment", polygon.ravel()), ("detect", box)):
            line = " ".join([f"{self.numbers[photo.item]}", *(f"{number:.6f}" for number in numbers)])
            (self._folder(task, "labels", split) / f"{stem}.txt").write_text(f"{line}\n", encoding="ascii")
        return split

    def add(self, _photo: _Photo, part: str) -> None:
        self._used.add(_YOLO_SPLITS[part or "train"])

    def finish(self) -> None:
        import yaml

        used = [name for name in _YOLO_SPLITS.values() if name in self._used] or ["train"]
        # ultralytics asks for both; without a path, both are looked for beside data.yaml.
        places = {"train": used[0], "val": used[-1], **{name: name for name in used}}
        notes = [f"# no photos are kept for {name}: it is {place}\n" for name, place in places.items() if name != place]
        content = {name: f"images/{place}" for name, place in places.items()} | {
            "names": dict(enumerate(self.job.classes))
        }
        text = "".join(notes) + yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
        for task in ("segment", "detect"):
            (self.job.staging / "yolo" / task / "data.yaml").write_text(text, encoding="utf-8")


class _CaptionFile(_Writer):
    """Captions of the cut-outs."""

    def __init__(self, job: _Job) -> None:
        super().__init__(job)
        self._lines: list[tuple[str, str]] = []

    def prepare(self, photo: _Photo, _subject: _Subject | None) -> tuple[str, str]:
        return photo.file_name, photo.caption

    def add(self, _photo: _Photo, part: tuple[str, str]) -> None:
        self._lines.append(part)

    def finish(self) -> None:
        write_atomically(self.job.staging / _place("captions"), format_csv(("file", "caption"), self._lines))


class _ImageFolder(_Writer):
    """The cut-outs by split and item, with a card that tells `datasets` which is which.

    Its records hold nothing that can be missing: a column that is empty in one split would have another type there,
    and `datasets` would refuse the whole.
    """

    def __init__(self, job: _Job) -> None:
        super().__init__(job)
        self._folder = job.staging / "imagefolder"
        self._folder.mkdir()
        self._lines: dict[str, list[str]] = {}

    def prepare(self, photo: _Photo, _subject: _Subject | None) -> str:
        split = self.job.splits[photo.source]
        copy = self._folder / split / photo.file_name
        copy.parent.mkdir(parents=True, exist_ok=True)
        _copy(_cut_out(self.job, photo), copy)
        return split

    def add(self, photo: _Photo, part: str) -> None:
        record = {"file_name": photo.file_name, "label": photo.item, "source": photo.source}
        self._lines.setdefault(part, []).append(f"{json.dumps(record)}\n")

    def finish(self) -> None:
        used = [name for name in SPLIT_NAMES if name in self._lines]
        for name in used:
            (self._folder / name / METADATA).write_text("".join(self._lines[name]), encoding="ascii")
        (self._folder / CARD).write_text(self._card({name: len(self._lines[name]) for name in used}), encoding="utf-8")

    def _card(self, counts: Mapping[str, int]) -> str:
        """Returns the dataset card; without explicit `configs`, items called `test` or `val` would become splits."""
        files = "".join(
            f'  - split: {name}\n    path:\n    - {name}/{METADATA}\n    - "{name}/**/*.png"\n' for name in counts
        )
        configs = f"configs:\n- config_name: default\n  data_files:\n{files}" if counts else ""
        table = "".join(f"| {name} | {count} |\n" for name, count in counts.items())
        return f"""---
{configs}task_categories:
- image-classification
---
# Pictures by split and item

{describe_pictures(self.job.output)}

| split | photos |
| --- | --- |
{table}"""


class _Masks(_Writer):
    """Masks as pictures."""

    def __init__(self, job: _Job) -> None:
        super().__init__(job)
        (job.staging / "masks").mkdir()

    def prepare(self, photo: _Photo, subject: _Subject) -> str:
        path = self.job.staging / "masks" / photo.file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", subject.mask.astype(np.uint8) * 255)[1].tobytes())
        return photo.file_name


_WRITERS = {"coco": _Coco, "yolo": _Yolo, "captions": _CaptionFile, "imagefolder": _ImageFolder, "masks": _Masks}


def _outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Returns the outer outline of each part of an (H, W) bool mask, largest first, each (N, 2) int, x and y.

    Coordinates are corners of pixels, from 0 to W and H, as COCO counts: OpenCV's are pixels' centres, and polygons of
    those are half a pixel too small all around. So the mask is traced at twice its size, where each pixel has corners
    of its own, and simplified after.
    """
    x0, y0, x1, y1 = bounding_box(mask)
    subject = mask[y0:y1, x0:x1].astype(np.uint8)
    twice = cv2.resize(subject, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(twice, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    outlines = []
    for contour in sorted(contours, key=cv2.contourArea, reverse=True):
        exact = (contour + 1) // 2
        simple = cv2.approxPolyDP(exact, _TOLERANCE, closed=True)
        outlines.append((simple if len(simple) > 2 else exact)[:, 0] + (x0, y0))
    return outlines


def _join(outlines: Sequence[np.ndarray]) -> np.ndarray:
    """Returns one polygon, (N, 2), that walks to each further part and back on the same line, which has no width."""
    whole = outlines[0]
    smallest = _SPECK * sum(map(_area, outlines))
    for part in outlines[1:]:
        if _area(part) < smallest:
            break
        steps = [math.ceil(len(each) / _SEAM_POINTS) for each in (whole, part)]
        from_whole, from_part = whole[:: steps[0]], part[:: steps[1]]
        distances = ((from_whole[:, None] - from_part[None]) ** 2).sum(axis=2)  # (points of whole, points of part)
        leave, arrive = np.unravel_index(distances.argmin(), distances.shape)
        leave, arrive = leave * steps[0], arrive * steps[1]
        tour = np.roll(part, -arrive, axis=0)
        whole = np.concatenate([whole[: leave + 1], tour, tour[:1], whole[leave:]])
    return whole


def _area(outline: np.ndarray) -> float:
    return cv2.contourArea(outline.astype(np.int32))


def _flat_stems(sources: Sequence[str]) -> dict[str, str]:
    """Returns a name without ending for each photo, all different, even where case does not count, without folders.

    ultralytics looks for the labels of `x/images/y.jpg` in `x/labels/y.txt`, whatever the folder `images` is for, and
    other readers don't look into folders at all. `a.jpg` and `a.png` would share one file of labels.
    """
    plain = {source: str(PurePosixPath(source).with_suffix("")).replace("/", "__") for source in sources}
    count = Counter(same_on_disk(stem) for stem in plain.values())
    stems: dict[str, str] = {}
    taken = set(count)
    for source, stem in plain.items():
        name = stem
        if count[same_on_disk(stem)] > 1 or len(stem.encode()) > _LONGEST_STEM:
            kept = stem.encode()[:_LONGEST_STEM].decode(errors="ignore")
            tries = (f"{kept}-{digest('stem', source)[:digits]}" for digits in (8, 64))
            name = next(each for each in tries if same_on_disk(each) not in taken)
            taken.add(same_on_disk(name))
        stems[source] = name
    return stems


def _copy(original: Path, copy: Path) -> None:
    """Copies the contents of a file; they share their blocks until one is written to, where the file system can."""
    with open_regular(original) as source, copy.open("wb") as target:
        with contextlib.suppress(AttributeError, OSError):  # not on this system, or not between these file systems
            while os.copy_file_range(source.fileno(), target.fileno(), _AT_ONCE):
                pass
        shutil.copyfileobj(source, target)  # what is left


def _copy_photo(original: Path, copy: Path) -> None:
    """Copies a photo, and lets a JPEG end as one, or ultralytics would save it anew, in its place.

    The next export would take that for somebody's work. Decoders pass over what follows the picture, such as the notes
    of some phones.
    """
    _copy(original, copy)
    with copy.open("r+b") as file:
        if file.read(2) == b"\xff\xd8":
            file.seek(-2, os.SEEK_END)
            if file.read() != _END_OF_JPEG:
                file.write(_END_OF_JPEG)
