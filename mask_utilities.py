"""From a mask to a cut-out: pure functions on arrays."""

from __future__ import annotations

import numpy as np

_WHITE = (255, 255, 255)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Returns the box (x0, y0, x1, y1) around the true pixels of an (H, W) bool mask; None where there are none.

    In pixels; x1 and y1 are exclusive, so that `image[y0:y1, x0:x1]` is the box.
    """
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    if not columns.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def cut_out(image: np.ndarray, mask: np.ndarray | None, background: str = "white") -> np.ndarray:
    """Returns the subject of a photo on a background, as an (H, W, 4) uint8 RGBA array.

    Inside the mask stand the photo's own pixels, outside it nothing but the background.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool; None keeps the whole photo.
        background: `white`, `#rrggbb`, or `transparent`: alpha 0 over white, so that no pixel of the
            surroundings survives under the transparency.
    """
    rgba = np.full((*image.shape[:2], 4), 255, np.uint8)
    if mask is None:
        rgba[..., :3] = image
        return rgba
    colour = _WHITE if background in ("white", "transparent") else _parse_colour(background)
    rgba[..., :3] = paint_background(image, mask, colour)
    if background == "transparent":
        rgba[..., 3] = np.where(mask, 255, 0)
    return rgba


def paint_background(image: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int] = _WHITE) -> np.ndarray:
    """Returns a photo, (H, W, 3) uint8 RGB, with one colour wherever its (H, W) bool mask is false."""
    return np.where(mask[..., None], image, np.array(colour, np.uint8))


def _parse_colour(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
