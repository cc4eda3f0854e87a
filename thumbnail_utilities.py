"""Thumbnails of photos and of their cut-outs, for the report page, at a few milliseconds a photo."""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from errors import NotAPhotoError, OutputError, PhotoError
from mask_utilities import crop as crop_image
from photo_utilities import MAX_PIXELS, read_photo
from pipeline_utilities import map_ahead
from png_utilities import read_mask
from record_utilities import REVIEW, temporary_name
from storage_utilities import Place, RemotePath

SIDE = 256  # pixels, the longer one
THUMBNAILS = "thumbnails"
_DIGITS = 16  # of a digest: 64 bits, so that a million sources share one with a chance of 3 in 100 million
_JPEG_QUALITY, _WEBP_QUALITY, _ALPHA_QUALITY = 80, 75, 90
_WEBP_METHOD = 1  # of 0 to 6: 0 saves 0.1 ms of 1.6 and makes files half as large again, 4 takes three times as long
_NOTHING = (0, 0, 0, 0)  # beyond the photo, and outside the subject


def source_digest(source: str) -> str:
    """Returns 16 hexadecimal digits that stand for a photo: of its source's SHA-256."""
    return hashlib.sha256(source.encode("utf-8", errors="surrogatepass")).hexdigest()[:_DIGITS]


def thumbnail_names(source: str) -> tuple[str, str]:
    """Returns where `save_thumbnails` writes the cut-out and the photo, relative to its folder, with slashes."""
    digest = source_digest(source)
    return f"{THUMBNAILS}/{digest[:2]}/{digest}.webp", f"{THUMBNAILS}/{digest[:2]}/{digest}.jpg"


def save_thumbnails(
    folder: Place,
    source: str,
    image: np.ndarray,
    *,
    alpha: np.ndarray | None,
    crop: tuple[int, int, int, int] | None,
) -> None:
    """Writes the thumbnails of a photo and of its cut-out; see `thumbnail_names`.

    Each file is whole or not there, but for a power cut: waiting for the disk would take longer than all else.

    Args:
        folder: Of the report.
        source: The photo's, its identity in all records.
        image: (H, W, 3) uint8 RGB, the photo.
        alpha: (H, W) uint8, 255 inside the subject; None where the photo was not cut.
        crop: What of the photo the cut-out shows, (x0, y0, x1, y1) in pixels, which can reach beyond the photo; None
            where that is all of it.

    Raises:
        OSError: A file can't be written.
    """
    cut_out_name, photo_name = thumbnail_names(source)
    photo = _shrink(image)
    _write(folder / photo_name, _encode_jpeg(photo))
    if alpha is None:
        cut_out = photo if crop is None else _shrink(crop_image(image, crop, _NOTHING[:3]))
    elif crop is None:
        cut_out = _with_alpha(photo, _shrink(alpha))
    else:
        inside = _inside(crop, alpha.shape)
        cut_out = _shrink_part(image[inside], alpha[inside], crop, alpha.shape)
    _write(folder / cut_out_name, _encode_webp(cut_out))


def forget_thumbnails(folder: Place) -> None:
    """Deletes the thumbnails of a report, whose photos may be others by now.

    Raises:
        OutputError: They can't be deleted.
    """
    thumbnails = folder / THUMBNAILS
    try:
        if isinstance(thumbnails, RemotePath):
            thumbnails.delete_below()
        else:
            shutil.rmtree(thumbnails)
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutputError(f"{thumbnails}: can't be deleted: {error.strerror or error}; mend that") from None


def redraw_missing(
    folder: Path,
    rows: Iterable[Mapping[str, Any]],
    *,
    output: Path,
    review: Path,
    dataset_dir: Path,
    max_pixels: int = MAX_PIXELS,
    threads: int = 1,
    on_progress: Callable[[], object] = lambda: None,
) -> int:
    """Draws the thumbnails that a report's folder lacks from the photos and the cut-outs.

    Args:
        folder: Of the report.
        rows: Of metadata.jsonl; those with the flag `review` have their cut-outs in `review`.
        output: The folder of the cut-outs.
        review: That of the doubtful ones.
        dataset_dir: The folder of the photos.
        max_pixels: A photo with more is not read.
        threads: How many draw.
        on_progress: Called once per row.

    Returns:
        The number of rows of which a thumbnail is still missing: the photo or the cut-out is gone, or can't be read.

    Raises:
        OSError: A file can't be written.
    """

    def redraw(row: Mapping[str, Any]) -> bool:
        cut_out_path, photo_path = (folder / name for name in thumbnail_names(row["source"]))
        complete = True
        if not photo_path.exists():
            photo = _read(dataset_dir / row["source"], max_pixels)
            complete = photo is not None
            if photo is not None:
                _write(photo_path, _encode_jpeg(_shrink(photo)))
        if not cut_out_path.exists():
            folder_of = review if REVIEW in row["flags"] else output
            cut_out = _read_cut_out(folder_of / row["file_name"], row.get("crop"))
            complete = complete and cut_out is not None
            if cut_out is not None:
                _write(cut_out_path, _encode_webp(cut_out))
        return complete

    missing = 0
    for complete in map_ahead(redraw, rows, threads=threads, ahead=4 * threads):
        missing += not complete
        on_progress()
    return missing


def _shrink(image: np.ndarray) -> np.ndarray:
    """Returns an image of any number of channels with a longer side of at most 256 pixels."""
    # Halving is a special case of OpenCV's, at a third of the time that one step takes.
    while max(image.shape[:2]) >= 2 * SIDE and min(image.shape[:2]) > 1:
        height, width = image.shape[0] // 2, image.shape[1] // 2
        image = cv2.resize(image[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    size_wh = _fitted(image.shape)
    if size_wh == image.shape[1::-1]:
        return image
    return cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)


def _fitted(shape_hw: tuple[int, ...]) -> tuple[int, int]:
    """Returns the width and height of a thumbnail; nothing is enlarged."""
    height, width = shape_hw[:2]
    scale = min(1.0, SIDE / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _inside(box: tuple[int, int, int, int], shape_hw: tuple[int, ...]) -> tuple[slice, slice]:
    """Returns which rows and columns of an image a box covers."""
    x0, y0, x1, y1 = box
    return slice(max(0, y0), min(shape_hw[0], y1)), slice(max(0, x0), min(shape_hw[1], x1))


def _shrink_part(
    image: np.ndarray, alpha: np.ndarray, box: tuple[int, int, int, int], shape_hw: tuple[int, ...]
) -> np.ndarray:
    """Returns the thumbnail of a box, RGBA, of which an image and its alpha are the part inside the photo."""
    x0, y0, x1, y1 = box
    width, height = _fitted((y1 - y0, x1 - x0))
    scale = width / (x1 - x0), height / (y1 - y0)
    rows, columns = _inside(box, shape_hw)
    left, top = round((columns.start - x0) * scale[0]), round((rows.start - y0) * scale[1])
    size_wh = (
        max(1, round((columns.stop - x0) * scale[0]) - left),
        max(1, round((rows.stop - y0) * scale[1]) - top),
    )
    small = _with_alpha(_shrink(image), _shrink(alpha))
    if small.shape[1::-1] != size_wh:
        small = cv2.resize(small, size_wh, interpolation=cv2.INTER_LINEAR)
    return crop_image(small, (-left, -top, width - left, height - top), _NOTHING)


def _with_alpha(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Returns (h, w, 4) uint8 RGBA; what surrounds the subject is under the transparency until the file is encoded."""
    return cv2.merge([rgb, alpha])


def _read(path: Path, max_pixels: int) -> np.ndarray | None:
    try:
        return read_photo(path, max_pixels=max_pixels)
    except (PhotoError, NotAPhotoError, ValueError):  # ValueError: a name that no file can have
        return None


def _read_cut_out(path: Path, box: tuple[int, int, int, int] | None) -> np.ndarray | None:
    """Returns the thumbnail of a cut-out's PNG; its own transparency counts, else the mask that it carries."""
    try:
        with Image.open(path, formats=("PNG",)) as opened:
            rgba = np.asarray(opened.convert("RGBA"))
        mask = read_mask(path) if rgba[..., 3].min() == 255 else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # SyntaxError: Pillow's, of a broken PNG
        return None
    if mask is not None:
        alpha = 255 * mask.astype(np.uint8)
        alpha = alpha if box is None else crop_image(alpha[..., None], tuple(box), (0,))[..., 0]
        if alpha.shape == rgba.shape[:2]:  # else someone has resized the PNG
            return _with_alpha(_shrink(rgba[..., :3]), _shrink(alpha))
    return _shrink(rgba)


def _encode_jpeg(rgb: np.ndarray) -> bytes:
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(rgb), quality=_JPEG_QUALITY, colorspace="RGB", colorsubsampling="420"
    )


def _encode_webp(image: np.ndarray) -> bytes:
    encoded = io.BytesIO()
    # Without `exact`, libwebp flattens the colours under full transparency.
    Image.fromarray(image).save(
        encoded, "WEBP", quality=_WEBP_QUALITY, alpha_quality=_ALPHA_QUALITY, method=_WEBP_METHOD
    )
    return encoded.getvalue()


def _write(path: Place, data: bytes) -> None:
    """Writes a file under a temporary name, then renames it."""
    if isinstance(path, RemotePath):
        path.write_bytes(data)
        return
    temporary = temporary_name(path)
    try:
        try:
            temporary.write_bytes(data)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
