"""Inspection pictures: what the models saw of one photo, drawn with OpenCV for people to judge."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_PANEL = 480  # pixels, the longer side of each of the two pictures
_ROW = 26  # pixels, one line of text
_GREEN, _BLUE, _GREY, _BLACK, _WHITE = (60, 200, 60), (40, 90, 255), (220, 220, 220), (30, 30, 30), (255, 255, 255)


def draw_inspection(
    image: np.ndarray,
    cut_out: np.ndarray,
    *,
    mask: np.ndarray | None,
    points: np.ndarray | None,
    focus_box: Sequence[float] | None = None,
    crop_box: Sequence[int] | None = None,
    top_items: Sequence[tuple[str, float]],
    caption: str,
) -> np.ndarray:
    """Returns the photo with mask contour and points, beside its cut-out, over the most probable items.

    Args:
        image: (H, W, 3) uint8 RGB, the photo.
        cut_out: (H, W, 4) uint8 RGBA; transparency is drawn as a checkerboard.
        mask: (H, W) bool; None where the photo was not cut.
        points: (N, 2) the points (x, y) given to SAM 2; the first is pass 1's.
        focus_box: (x0, y0, x1, y1) in pixels, the box given to SAM 2; None where there was none.
        crop_box: The part of the cut-out that is written; None where that is all of it.
        top_items: (item, probability), most probable first.
        caption: One line under the pictures.

    Returns:
        (h, w, 3) uint8 RGB, at most twice 480 pixels wide.
    """
    height, width = image.shape[:2]
    scale = min(1.0, _PANEL / max(height, width))
    size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
    photo = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)
    if mask is not None:
        small = cv2.resize(mask.astype(np.uint8), size_wh, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(small, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(photo, contours, -1, _GREEN, 2, cv2.LINE_AA)
    if focus_box is not None:
        _draw_box(photo, focus_box, scale, _BLUE)
    for index, (x, y) in enumerate([] if points is None else (points + 0.5) * scale):
        centre = (int(x), int(y))
        cv2.circle(photo, centre, 6 if index == 0 else 4, _WHITE, -1, cv2.LINE_AA)
        cv2.circle(photo, centre, 4 if index == 0 else 3, _BLUE, -1, cv2.LINE_AA)
    result = cv2.resize(_on_checkerboard(cut_out), size_wh, interpolation=cv2.INTER_AREA)
    if crop_box is not None:
        _draw_box(result, crop_box, scale, _BLUE)
    cv2.rectangle(result, (0, 0), (size_wh[0] - 1, size_wh[1] - 1), _GREY, 1)

    pictures_width = max(2 * size_wh[0] + 10, 480)
    canvas = np.full((size_wh[1] + 10 + _ROW * (1 + len(top_items)), pictures_width, 3), 255, np.uint8)
    canvas[: size_wh[1], : size_wh[0]] = photo
    canvas[: size_wh[1], size_wh[0] + 10 : 2 * size_wh[0] + 10] = result
    y = size_wh[1] + _ROW - 4
    _write(canvas, caption, (4, y))
    for item, probability in top_items:
        y += _ROW
        bar = round(probability * (pictures_width - 260))
        cv2.rectangle(canvas, (250, y - 14), (250 + max(1, bar), y + 2), _BLUE, -1)
        _write(canvas, f"{probability:6.1%}  {item}", (4, y))
    return canvas


def _draw_box(picture: np.ndarray, box: Sequence[float], scale: float, colour: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = (round(each * scale) for each in box)
    cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), colour, 2)


def encode_jpeg(picture: np.ndarray) -> bytes:
    """Returns an (H, W, 3) uint8 RGB picture as the bytes of a JPEG file."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return data.tobytes()


def _on_checkerboard(rgba: np.ndarray) -> np.ndarray:
    height, width = rgba.shape[:2]
    size = max(8, max(height, width) // 40)
    light = (np.arange(height)[:, None] // size + np.arange(width)[None] // size) % 2 == 0
    board = np.where(light, np.uint8(255), np.uint8(205))
    share = rgba[..., 3:].astype(np.float32) / 255
    blended = share * rgba[..., :3] + (1 - share) * board[..., None]
    return np.rint(blended).astype(np.uint8)


def _write(canvas: np.ndarray, text: str, origin_xy: tuple[int, int]) -> None:
    # OpenCV's built-in font knows ASCII only; what it lacks becomes a question mark.
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(canvas, plain, origin_xy, cv2.FONT_HERSHEY_SIMPLEX, 0.5, _BLACK, 1, cv2.LINE_AA)
