"""The stages that a photo passes, and how photos flow through them.

Models take one batch at a time, on a CPU in the calling thread; everything else runs in threads ahead of them. A stage
takes photos from the one before it only when it is asked for its own, so that few are in memory at once; and while
the models are busy with one batch, the threads have the next one decoded, and the last one cut.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from check_utilities import colour_disagrees, is_disputed, other_views
from clip_utilities import ClipModel
from config_utilities import Settings
from dataset_utilities import PhotoFile
from detector_utilities import Detection, Detector, choose_detection, detection_focus
from errors import ConfigError, NoSubjectError, NotAPhotoError, PhotoError
from focus_utilities import (
    ROWS_LOOKED_UP,
    Focus,
    FocusWord,
    PointRow,
    centre_focus,
    find_row,
    fixed_focus,
    parse_focus,
    read_points,
    row_focus,
    stray_names,
)
from mask_utilities import (
    Region,
    clean_mask,
    crop_box,
    describe_mask,
    feather_alpha,
    mask_flags,
    paint_background,
    soft_alpha,
    square_view,
    subject_mask,
)
from photo_limit_utilities import MAX_PIXELS
from photo_utilities import OpenedPhoto
from pipeline_utilities import call_in_parts, in_batches, map_ahead, stage
from prompt_utilities import Label
from record_utilities import COLOUR, VIEW
from sam_utilities import Sam2, Segmentation, predict_sam2, to_pixels
from storage_utilities import to_place

if TYPE_CHECKING:
    from torch import Tensor

_LOGGER = logging.getLogger("sam2vit")

_EXPLAINED = {"small": "below --min-area", "large": "above --max-area", "borders": "cut off at all four borders"}


@dataclass
class Photo:
    """A photo on its way through the program; each stage adds what it finds.

    Attributes:
        file: Where it lies.
        image: (H, W, 3) uint8 RGB.
        sam_pixels: The photo in SAM 2's frame, until SAM 2 has seen it.
        focus: Where SAM 2 is to be pointed; None where that is the centre, or for SAM 2 to find out.
        segmentation: What SAM 2 says; None where the photo stays uncut.
        mask: (H, W) bool, the subject; None where the photo stays uncut.
        alpha: (H, W) uint8, how much of each pixel is the subject's; None where the mask's edges are hard.
        region: What can be said of the mask.
        flags: What is doubtful about it.
        crop: The part of it that is written, (x0, y0, x1, y1) in pixels; None where that is all of it.
        clip_pixels: The subject on white in CLIP's frame, until CLIP has seen it.
        other_pixels: Other views of it in that frame, for a second opinion, until CLIP has seen them.
        features: (D,) float16, what CLIP's image tower makes of it.
        label: What CLIP says.
        seconds: The models' time for its batches, divided by the photos in them.
    """

    file: PhotoFile
    image: np.ndarray
    sam_pixels: Tensor | None = None
    focus: Focus | None = None
    segmentation: Segmentation | None = None
    mask: np.ndarray | None = None
    alpha: np.ndarray | None = None
    region: Region | None = None
    flags: tuple[str, ...] = ()
    crop: tuple[int, int, int, int] | None = None
    clip_pixels: Tensor | None = None
    other_pixels: Sequence[Tensor] = ()
    features: np.ndarray | None = None
    label: Label | None = None
    seconds: float = 0.0

    @property
    def begun(self) -> bool:
        """Whether a model has seen it."""
        return self.seconds > 0


# Of each model on a GPU: one that it computes, and two, so that it does not wait while this thread waits for the other.
_BATCHES_AHEAD = 3

_Outcome = Photo | PhotoError

# What opening and reading a file come to; None where its photo is done already.
_Opened = OpenedPhoto | PhotoError | NotAPhotoError | None
_Read = _Outcome | NotAPhotoError | None


class ModelFunction(Protocol):
    """What a model does with a batch: it returns the photos, with what it has found in them.

    `fill` says how many photos the batch lacks; the model computes as many more, so that a photo's results have the
    same last digits in any batch.
    """

    def __call__(self, photos: Sequence[Photo], *, fill: int) -> Sequence[Photo | PhotoError]:
        """Returns the photos, or why one can't be done."""
        ...


class Progress(Protocol):
    """What counts the files that are dealt with."""

    def skip(self) -> None:
        """Counts a photo that an earlier run has done."""
        ...

    def advance(self) -> None:
        """Counts any other."""
        ...


class Output(Protocol):
    """What knows the photos that are done, and is told of those that can't be."""

    def is_done(self, photo: PhotoFile) -> bool:
        """Whether an earlier run has finished it."""
        ...

    def skip(self) -> None:
        """Counts a file that holds no image."""
        ...

    def set_aside(self, photo: PhotoFile) -> None:
        """Keeps a photo without a subject."""
        ...

    def fail(self, source: str, reason: str, *, stage: str) -> None:
        """Takes why a photo can't be done."""
        ...


class Flow:
    """The flow of a run's photos; one that a stage fails on is recorded and goes no further.

    Args:
        output: Knows what is done and records failures.
        progress: Counts what does not reach the end.
        batch_size: Photos per model call.
        threads: How many work at a stage that is no model's.
        overlap: Each model works in a thread of its own, so that a GPU has its next batch before it is done with one.
            On a CPU the models would only take the cores from each other.
        most_pixels: So many pixels may wait at a stage together, or be in one batch; a larger photo is alone.
        stopping: Whether the run is to end: no photo is begun then, those that a model has seen are finished.
        check: Called over each failure, but not where a photo is set aside: raises where what failed is not the photo,
            but the dataset or a device.
    """

    def __init__(
        self,
        output: Output,
        progress: Progress,
        *,
        batch_size: int,
        threads: int,
        overlap: bool = False,
        most_pixels: float = math.inf,
        stopping: Callable[[], bool] = lambda: False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._output, self._progress = output, progress
        self._batch_size, self._threads, self._overlap = batch_size, threads, overlap
        self._most_pixels = most_pixels
        self._stopping, self._check = stopping, check

    def read(
        self,
        files: Iterable[PhotoFile],
        sam2_model: Sam2 | None,
        *,
        limit: int | None,
        max_pixels: int = MAX_PIXELS,
        point: Callable[[Photo], Focus | None] = lambda _: None,
    ) -> Iterator[Photo]:
        """Yields the photos that are still to be done, decoded and in SAM 2's frame.

        Files that can't be read are recorded as failures, files that hold no image are counted as skipped.

        Args:
            files: The files of the dataset.
            sam2_model: Whose frame; None where photos stay uncut.
            limit: End after so many photos, whether they are done, failed or new.
            max_pixels: Photos with more are failures.
            point: Says where SAM 2 is to be pointed, as far as no model is asked.
        """

        def open_photo(file: PhotoFile) -> tuple[PhotoFile, _Opened]:
            return file, None if self._output.is_done(file) else _open_photo(file, max_pixels)

        def decode(opened: tuple[PhotoFile, _Opened]) -> tuple[PhotoFile, _Read]:
            file, photo = opened
            return file, _decode_photo(file, photo, sam2_model, point) if isinstance(photo, OpenedPhoto) else photo

        def count_pixels(opened: tuple[PhotoFile, _Opened]) -> int:
            return opened[1].pixels if isinstance(opened[1], OpenedPhoto) else 0

        ahead = functools.partial(map_ahead, threads=self._threads, ahead=self._batch_size + self._threads)
        opened = ahead(open_photo, files)  # first, to know how much memory each will need
        photos = 0
        for file, outcome in ahead(decode, opened, weigh=count_pixels, most=self._most_pixels):
            if self._stopping():
                return
            if isinstance(outcome, NotAPhotoError):
                _LOGGER.info("%s: skipped: no image", file.source)
                self._output.skip()
                self._progress.advance()
                continue
            photos += 1
            if outcome is None:
                self._progress.skip()
            elif isinstance(outcome, PhotoError):
                self._fail(file, outcome)
            else:
                yield outcome
            if photos == limit:
                return

    def in_batches(self, photos: Iterable[Photo], function: ModelFunction, size: int | None = None) -> Iterator[Photo]:
        """Yields the photos after a model's function, called with a batch at a time.

        Args:
            photos: From the stage before.
            function: See `ModelFunction`.
            size: Of a batch, where it is not that of the flow.
        """
        size = size or self._batch_size

        def attempt(batch: list[Photo]) -> list[tuple[Photo, Photo | PhotoError]]:
            if self._stopping() and not batch[0].begun:
                return []  # a later run does them
            # Kept where a batch that is too large is halved, so that the halves are smaller.
            filled = functools.partial(function, fill=size - len(batch))
            outcomes = call_in_parts(filled, batch, lambda photo, error: _model_failure(photo.file, error))
            return list(zip(batch, outcomes, strict=True))

        batches = in_batches(photos, size, weigh=_count_pixels, most=self._most_pixels)
        ahead = functools.partial(map_ahead, threads=1, ahead=_BATCHES_AHEAD)
        done = ahead(attempt, batches) if self._overlap else map(attempt, batches)
        for outcomes in done:
            yield from self._surviving(outcomes)

    def in_threads(self, photos: Iterable[Photo], function: Callable[[Photo], Photo]) -> Iterator[Photo]:
        """Yields the photos, in order, after a function that threads call on them, about one batch ahead."""

        def attempt(photo: Photo) -> tuple[Photo, Photo | PhotoError]:
            try:
                return photo, function(photo)
            except PhotoError as error:
                return photo, error
            except Exception as error:  # as in a model: whatever one photo makes it raise is that photo's reason
                return photo, _model_failure(photo.file, error)

        ahead = self._batch_size + 1
        yield from self._surviving(
            map_ahead(attempt, photos, threads=self._threads, ahead=ahead, weigh=_count_pixels, most=self._most_pixels)
        )

    def _fail(self, file: PhotoFile, error: PhotoError) -> None:
        if isinstance(error, NoSubjectError):
            _LOGGER.info("%s: set aside: %s", file.source, error.reason)
            self._output.set_aside(file)
        else:
            self._check()
            _LOGGER.warning("%s: failed in %s: %s", file.source, error.stage, error.reason)
        self._output.fail(file.source, error.reason, stage=error.stage)
        self._progress.advance()

    def _surviving(self, outcomes: Iterable[tuple[Photo, Photo | PhotoError]]) -> Iterator[Photo]:
        for photo, outcome in outcomes:
            if isinstance(outcome, PhotoError):
                self._fail(photo.file, outcome)
            else:
                yield outcome


def take_photos(
    files: Iterable[PhotoFile], *, limit: int, max_pixels: int, is_done: Callable[[PhotoFile], bool]
) -> Iterator[PhotoFile]:
    """Yields as many files as `Flow.read` takes for a limit; their headers are read for it."""
    photos = 0
    for file in files:
        yield file
        opened = None if is_done(file) else _open_photo(file, max_pixels)
        if isinstance(opened, OpenedPhoto):
            opened.close()
        photos += not isinstance(opened, NotAPhotoError)
        if photos == limit:
            return


def check_focus(settings: Settings) -> dict[str, PointRow]:
    """Returns the rows of a points file, and warns of those for photos that are not there.

    Raises:
        ConfigError: See `read_focus`.
    """
    _, rows = _read_focus_flags(settings)
    strays = stray_names(rows, to_place(settings.dataset_dir, flag="--dataset-dir"))
    if strays:
        _LOGGER.warning(
            "%s: %d of its %slines %s no photo of the dataset, such as %r",
            settings.focus,
            len(strays),
            f"first {ROWS_LOOKED_UP:,} " if len(rows) > ROWS_LOOKED_UP else "",
            "names" if len(strays) == 1 else "name",
            strays[0],
        )
    return rows


def read_focus(settings: Settings) -> Callable[[Photo], Focus | None]:
    """Returns what says where SAM 2 is pointed in a photo, as far as no model is asked; None is the centre.

    Raises:
        ConfigError: The flags ask for what `--focus` does not give, or its file can't be used.
    """
    focus, rows = _read_focus_flags(settings)

    def point(photo: Photo) -> Focus | None:
        height, width = photo.image.shape[:2]
        if isinstance(focus, tuple):
            return fixed_focus(width, height, focus)
        row = find_row(rows, photo.file.source)
        if row is not None:
            return row_focus(row, width, height)
        if settings.require_focus and isinstance(focus, Path):
            raise NoSubjectError(f"no subject: {focus.name} has no line for it", stage="focus")
        return None

    return point


def _read_focus_flags(settings: Settings) -> tuple[FocusWord | tuple[float, float] | Path, dict[str, PointRow]]:
    focus = parse_focus(settings.focus)
    if settings.no_sam and (focus != "center" or settings.verify_focus):
        flag = "--verify-focus" if focus == "center" else f"--focus {settings.focus}"
        raise ConfigError(f"{flag}: SAM 2 is off; leave out --no-sam")
    if settings.require_focus and focus != "detector" and not isinstance(focus, Path):
        raise ConfigError(
            f"--require-focus: with --focus {settings.focus} every photo has one; add --focus detector, or a .csv"
        )
    return focus, read_points(focus) if isinstance(focus, Path) else {}


def _count_pixels(photo: Photo) -> int:
    return photo.image.shape[0] * photo.image.shape[1]


def _open_photo(file: PhotoFile, max_pixels: int) -> _Opened:
    try:
        with stage("decode"):
            return OpenedPhoto(file.path, max_pixels=max_pixels)
    except (PhotoError, NotAPhotoError) as error:
        return error


def _decode_photo(
    file: PhotoFile, opened: OpenedPhoto, sam2_model: Sam2 | None, point: Callable[[Photo], Focus | None]
) -> _Outcome:
    try:
        with stage("decode"):
            photo = Photo(file, opened.decode())
        photo.focus = point(photo)
        if sam2_model is not None:
            with stage("SAM 2 pixels"):
                photo.sam_pixels = to_pixels(photo.image, sam2_model.image_size, sam2_model.device)
    except PhotoError as error:
        return error
    except Exception as error:
        return _model_failure(file, error)
    return photo


def find_subjects(detector: Detector, settings: Settings, photos: Sequence[Photo], *, fill: int = 0) -> list[_Outcome]:
    """Lets the detector say where SAM 2 is to be pointed; photos without an accepted detection keep the centre."""
    began = time.perf_counter()
    found = detector.detect([photo.image for photo in photos], fill=fill)
    _share_time(photos, began)
    outcomes: list[_Outcome] = []
    for photo, detections in zip(photos, found, strict=True):
        detection = _accepted(detections, photo, settings)
        if detection is not None:
            photo.focus = detection_focus(detection, photo.image.shape[1], photo.image.shape[0])
        missing = detection is None and settings.require_focus
        outcomes.append(_no_subject("the photo", settings) if missing else photo)
    return outcomes


def verify_subjects(
    detector: Detector, settings: Settings, photos: Sequence[Photo], *, fill: int = 0
) -> list[_Outcome]:
    """Lets the detector look at the cut-outs, on white; those in which it finds no subject go no further."""
    views = [_on_white(photo) for photo in photos]
    began = time.perf_counter()
    found = detector.detect(views, fill=fill)
    _share_time(photos, began)
    return [
        photo if _accepted(detections, photo, settings) else _no_subject("the cut-out", settings)
        for photo, detections in zip(photos, found, strict=True)
    ]


def _accepted(detections: Sequence[Detection], photo: Photo, settings: Settings) -> Detection | None:
    height, width = photo.image.shape[:2]
    labels, threshold = settings.focus_labels, settings.focus_threshold
    return choose_detection(detections, width, height, labels=labels, threshold=threshold)


def _share_time(photos: Sequence[Photo], began: float) -> None:
    """Adds what a model has taken for a batch, since a `time.perf_counter`, to each photo in equal parts."""
    seconds = (time.perf_counter() - began) / len(photos)
    for photo in photos:
        photo.seconds += seconds


def _no_subject(where: str, settings: Settings) -> NoSubjectError:
    wanted = f"none of {', '.join(settings.focus_labels)}" if settings.focus_labels else "nothing"
    least = f"{settings.focus_threshold:g}"
    return NoSubjectError(
        f"no subject: the detector finds {wanted} in {where} from a confidence of {least} on", stage="focus"
    )


def segment_photos(sam2_model: Sam2, settings: Settings, photos: Sequence[Photo], *, fill: int = 0) -> Sequence[Photo]:
    """Lets SAM 2 find the subjects of a batch of photos."""
    began = time.perf_counter()
    images, pixels = [photo.image for photo in photos], [photo.sam_pixels for photo in photos]
    foci = [photo.focus or centre_focus(photo.image.shape[1], photo.image.shape[0]) for photo in photos]
    segmentations = predict_sam2(
        images,
        sam2_model,
        settings.margin,
        focuses=foci,
        grid=settings.focus == "grid",
        pixels=pixels,
        fill=fill,
    )
    _share_time(photos, began)
    for photo, segmentation in zip(photos, segmentations, strict=True):
        photo.segmentation, photo.sam_pixels = segmentation, None
    return photos


def cut_photo(clip_model: ClipModel, settings: Settings, photo: Photo) -> Photo:
    """Cuts a photo's subject out and brings it on white, whatever the cut-out's background will be, into CLIP's frame.

    A photo in which SAM 2 finds nothing is a failure: an empty cut-out is no member of any class.
    """
    if photo.segmentation is not None:
        with stage("mask"):
            _cut(photo, photo.segmentation, settings)
    with stage("CLIP pixels"):
        view = _on_white(photo)
        if photo.mask is not None and settings.clip_view == "crop":
            view = square_view(view, photo.mask)
        photo.clip_pixels = clip_model.to_pixels(view)
    return photo


def _cut(photo: Photo, segmentation: Segmentation, settings: Settings) -> None:
    mask = subject_mask(photo.image, segmentation.mask_logits, refine=settings.refine)
    if settings.clean_mask:
        mask = clean_mask(mask, segmentation.focus.point, settings.clean_mask)
    region = describe_mask(mask)
    if region.box is None:
        raise PhotoError("no subject at the focus: SAM 2's mask is empty", stage="segment")
    photo.mask, photo.region = mask, region
    photo.flags = tuple(mask_flags(region, min_area=settings.min_area, max_area=settings.max_area))
    if photo.flags and settings.strict:
        why = f"mask of {region.area:.1%} of the photo is {' and '.join(map(_EXPLAINED.get, photo.flags))}"
        raise NoSubjectError(f"{why}, and --strict keeps none such", stage="segment")
    photo.crop = _crop_box(region.box, mask.shape, settings)
    if settings.edges == "soft" or settings.feather:
        soft = settings.edges == "soft"
        alpha = soft_alpha(mask, segmentation.mask_logits) if soft else 255 * mask.astype(np.uint8)
        photo.alpha = feather_alpha(alpha, settings.feather) if settings.feather else alpha


def _crop_box(
    box: tuple[int, int, int, int], shape_hw: tuple[int, int], settings: Settings
) -> tuple[int, int, int, int] | None:
    """Returns what of the photo is written, as (x0, y0, x1, y1) in pixels; None where that is all of it."""
    if not settings.crop:
        return None
    x0, y0, x1, y1 = crop_box(box, shape_hw, padding=settings.padding, square=settings.square)
    if (x1 - x0) * (y1 - y0) > settings.max_pixels:  # of a strip
        raise PhotoError(f"its square of {x1 - x0} x {y1 - y0} pixels is above --max-pixels", stage="segment")
    return x0, y0, x1, y1


def _on_white(photo: Photo) -> np.ndarray:
    return photo.image if photo.mask is None else paint_background(photo.image, photo.mask, alpha=photo.alpha)


def label_photos(clip_model: ClipModel, photos: Sequence[Photo], *, fill: int = 0) -> Sequence[Photo]:
    """Lets CLIP choose the item of each photo of a batch."""
    began = time.perf_counter()
    features = clip_model.encode(pixels=[photo.clip_pixels for photo in photos], fill=fill)
    labels = clip_model.decide(features)
    halves = features.half().cpu().numpy()
    _share_time(photos, began)
    for photo, label, half in zip(photos, labels, halves, strict=True):
        photo.label, photo.features, photo.clip_pixels = label, half, None
    return photos


def view_photo(clip_model: ClipModel, settings: Settings, photo: Photo) -> Photo:
    """Brings other views of a subject into CLIP's frame, and flags it where its colour contradicts its label."""
    with stage("second opinion"):
        views = other_views(photo.image, photo.mask, alpha=photo.alpha, clip_view=settings.clip_view)
        photo.other_pixels = [clip_model.to_pixels(view) for view in views]
        if colour_disagrees(photo.image, photo.mask, photo.label.item, settings.colours):
            photo.flags = (*photo.flags, COLOUR)
    return photo


def check_photos(clip_model: ClipModel, photos: Sequence[Photo], *, fill: int = 0) -> Sequence[Photo]:
    """Lets CLIP look at the other views of a batch of photos, and flags labels that do not survive them."""
    began = time.perf_counter()
    views = len(photos[0].other_pixels)
    pixels = [each for photo in photos for each in photo.other_pixels]
    labels = clip_model.process(pixels=pixels, fill=fill * views)
    _share_time(photos, began)
    for index, photo in enumerate(photos):
        if is_disputed(photo.label, labels[index * views : (index + 1) * views]):
            photo.flags = (*photo.flags, VIEW)
        photo.other_pixels = ()
    return photos


def _model_failure(file: PhotoFile, error: Exception) -> PhotoError:
    _LOGGER.debug("%s", file.source, exc_info=error)  # the traceback, for the log
    return PhotoError.of(error, stage="model")
