"""Colours of things, and the brushes that every other module of the scenes paints with."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import cv2
import numpy as np

# Ranges of paint per colour name, in HSV: hue in degrees, saturation and value in [0, 1]. The 18 of config.json.
# They leave gaps between neighbours, so that a name is right for every paint it is given.
_HSV_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float]]] = {
    "black": ((200, 260), (0.00, 0.15), (0.03, 0.13)),
    "white": ((30, 60), (0.00, 0.04), (0.92, 1.00)),
    "gray": ((200, 230), (0.00, 0.06), (0.28, 0.44)),
    "silver": ((200, 230), (0.00, 0.05), (0.60, 0.73)),
    "red": ((-6, 6), (0.80, 1.00), (0.62, 0.92)),
    "maroon": ((-14, 4), (0.70, 0.95), (0.24, 0.40)),
    "orange": ((18, 28), (0.85, 1.00), (0.88, 1.00)),
    "yellow": ((48, 57), (0.80, 1.00), (0.88, 1.00)),
    "gold": ((38, 44), (0.50, 0.72), (0.62, 0.80)),
    "beige": ((32, 46), (0.16, 0.30), (0.76, 0.92)),
    "brown": ((18, 30), (0.50, 0.75), (0.24, 0.42)),
    "green": ((105, 145), (0.65, 0.95), (0.35, 0.70)),
    "olive": ((62, 78), (0.45, 0.75), (0.30, 0.46)),
    "teal": ((174, 188), (0.65, 0.95), (0.40, 0.66)),
    "blue": ((206, 222), (0.75, 1.00), (0.60, 0.92)),
    "navy": ((218, 236), (0.65, 0.92), (0.17, 0.32)),
    "purple": ((268, 286), (0.55, 0.85), (0.38, 0.66)),
    "pink": ((325, 344), (0.28, 0.60), (0.88, 1.00)),
}

COLOURS = tuple(_HSV_RANGES)


def sample_paint(colour: str, rng: np.random.Generator) -> np.ndarray:
    """Returns a paint of a named colour, (3,) float32 RGB in [0, 255]."""
    hue, saturation, value = (rng.uniform(*limits) for limits in _HSV_RANGES[colour])
    return hsv_to_rgb(hue, saturation, value)


def hsv_to_rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """Returns (3,) float32 RGB in [0, 255]; hue in degrees, the others in [0, 1]."""
    hsv = np.array([[[hue % 360, saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0] * 255


def random_colour(rng: np.random.Generator, *, muted: bool = False) -> np.ndarray:
    """Returns any colour, (3,) float32 RGB in [0, 255]; a muted one is more common in the world."""
    saturation = rng.beta(1.2, 4) if muted else rng.beta(1.5, 1.5)
    return hsv_to_rgb(rng.uniform(0, 360), saturation, rng.uniform(0.1, 0.98))


_SMALL_PICTURE = 320  # pixels of the longer side


@functools.cache
def _noise_bank(side: int, octaves: int) -> np.ndarray:
    """Returns fractal noise, (side, side) float32 of unit deviation, whose largest bumps are side / 8 pixels wide.

    Every texture of every scene is a window of these: making noise anew took most of a scene's time.
    """
    rng = np.random.default_rng(octaves)
    total = np.zeros((side, side), np.float32)
    for octave in range(octaves):
        cells = min(side, round(8 * 2.5**octave))
        coarse = rng.standard_normal((cells, cells)).astype(np.float32)
        total += cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC) * 0.6**octave
    return total / total.std()


def texture(shape_hw: tuple[int, int], rng: np.random.Generator, octaves: int = 4, cells: float = 3.0) -> np.ndarray:
    """Returns fractal noise, (H, W) float32 of about unit deviation.

    Args:
        shape_hw: Its size in pixels.
        rng: Decides which.
        octaves: Sizes of bumps, each 2.5 times smaller and 0.6 times as strong as the one before.
        cells: How many of the largest bumps lie along the longer side.
    """
    height, width = shape_hw
    # A larger picture would show the bank's own pixels, and has room for finer bumps.
    bank = _noise_bank(512, octaves) if max(shape_hw) <= _SMALL_PICTURE else _noise_bank(1024, octaves + 1)
    side = len(bank)
    scale = min(cells * side / 8 / max(shape_hw), (side - 2) / max(shape_hw))
    window_h, window_w = max(2, int(height * scale)), max(2, int(width * scale))
    top, left = rng.integers(0, side - window_h + 1), rng.integers(0, side - window_w + 1)
    window = bank[top : top + window_h, left : left + window_w]
    if rng.random() < 0.5:
        window = window[:, ::-1]
    interpolation = cv2.INTER_LINEAR if scale < 2 else cv2.INTER_AREA
    return cv2.resize(window, (width, height), interpolation=interpolation)


def grain(shape_hw: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Returns noise from pixel to pixel and channel to channel, (H, W, 3) float32 of unit deviation."""
    bank = _grain_bank()
    start = int(rng.integers(0, bank.size // 2))
    needed = shape_hw[0] * shape_hw[1] * 3
    if start + needed > bank.size:
        return rng.standard_normal((*shape_hw, 3), np.float32)
    return bank[start : start + needed].reshape(*shape_hw, 3)


@functools.cache
def _grain_bank() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(1 << 21, np.float32)


def vertical_gradient(shape_hw: tuple[int, int], top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Returns (H, W, 3) float32 that changes from one colour to another."""
    weight = np.linspace(0, 1, shape_hw[0], dtype=np.float32)[:, None, None]
    return np.repeat(top + (bottom - top) * weight, shape_hw[1], axis=1).astype(np.float32)


def fill(canvas: np.ndarray, points_xy: np.ndarray, colour: Sequence[float] | np.ndarray | float) -> None:
    """Fills a polygon on a uint8 picture with a soft edge, or on a (H, W) uint8 map with a hard one.

    The points are (N, 2), float pixels or what `to_fixed` made of them.
    """
    corners = [points_xy if points_xy.dtype == np.int32 else to_fixed(points_xy)]
    if canvas.ndim == 3:
        cv2.fillPoly(canvas, corners, colour if isinstance(colour, list) else colour.tolist(), cv2.LINE_AA, shift=4)
    else:
        cv2.fillPoly(canvas, corners, float(colour), shift=4)


def to_fixed(points_xy: np.ndarray) -> np.ndarray:
    """Returns (N, 2) float pixels as int32 sixteenths of a pixel, as OpenCV draws them."""
    return np.rint(points_xy * 16).astype(np.int32)


def shift_onto(
    points_xy: np.ndarray, target_xy: tuple[float, float], inset: tuple[float, float, float, float]
) -> np.ndarray:
    """Returns the shortest shift, (2,), of points, (N, 2), that brings a target into the inner part of their box.

    The inner part is the box less shares of its width and height: at the left, at the top, at the right, at the bottom.
    """
    low, high = points_xy.min(axis=0), points_xy.max(axis=0)
    size = high - low
    return target_xy - np.clip(target_xy, low + size * inset[:2], high - size * inset[2:])


def smooth_outline(points_xy: np.ndarray, rounds: int = 2) -> np.ndarray:
    """Returns a closed polygon with its corners cut twice over (Chaikin's algorithm), (4 N, 2)."""
    for _ in range(rounds):
        following = np.roll(points_xy, -1, axis=0)
        points_xy = np.stack([0.75 * points_xy + 0.25 * following, 0.25 * points_xy + 0.75 * following], 1)
        points_xy = points_xy.reshape(-1, 2)
    return points_xy
