"""What can be had without a network, to compare with: GrabCut for masks, the nearest CIELAB colour for colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from scenes.paint import sample_paint

_PAINTS_PER_COLOUR = 200
_GRABCUT_SIDE = 256  # GrabCut's time grows with the pixels; masks are enlarged again
_GRABCUT_ROUNDS = 5
_GRABCUT_INSET = 0.1  # of its first rectangle, as a fraction of each side


def grabcut_mask(image: np.ndarray) -> np.ndarray:
    """Returns OpenCV's GrabCut mask, (H, W) bool, started from a rectangle a tenth inside the frame.

    Rother et al., "GrabCut", 2004. `image` is (H, W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    scale = min(1.0, _GRABCUT_SIDE / max(height, width))
    small = cv2.resize(
        image, (max(8, round(width * scale)), max(8, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    h, w = small.shape[:2]
    x, y = int(w * _GRABCUT_INSET), int(h * _GRABCUT_INSET)
    labels = np.zeros((h, w), np.uint8)
    cv2.setRNGSeed(0)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.grabCut(
        small[..., ::-1].copy(), labels, (x, y, w - 2 * x, h - 2 * y), *models, _GRABCUT_ROUNDS, cv2.GC_INIT_WITH_RECT
    )
    found = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    return cv2.resize(found, (width, height), interpolation=cv2.INTER_NEAREST).astype(bool)


def colour_centres(items: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the mean CIELAB value of each item's paints, (3,) float32; for the items that are colours of scenes."""
    rng = np.random.default_rng(0)
    centres = {}
    for item in items:
        paints = np.array([sample_paint(item, rng) for _ in range(_PAINTS_PER_COLOUR)], np.float32)
        centres[item] = _to_lab(paints).mean(axis=0)
    return centres


def nearest_colour(image: np.ndarray, mask: np.ndarray, centres: Mapping[str, np.ndarray]) -> str:
    """Returns the item whose CIELAB centre is nearest to the mean colour of an (H, W, 3) uint8 photo inside a mask."""
    mean = _to_lab(image[mask].astype(np.float32)).mean(axis=0)
    return min(centres, key=lambda item: float(((centres[item] - mean) ** 2).sum()))


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """Returns (N, 3) float32 CIELAB of (N, 3) float32 RGB in [0, 255]."""
    return cv2.cvtColor(rgb[None] / 255, cv2.COLOR_RGB2LAB)[0]
