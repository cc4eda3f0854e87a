"""A second opinion on each label: other views of the subject, and the colour that its item must have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from config_utilities import ClipView
from mask_utilities import background_rgba, paint_background, square_view
from prompt_utilities import Label

_MID_GREY = (128, 128, 128)

# What follows was chosen on generated scenes that are not held out and on 343 real vehicles, as they are and in warmer,
# colder and less light, so that right labels are left in peace.
_MOST_PIXELS = 5_000  # of a mask that are looked at: all of them change 19 of 20 shares by less than 0.02
_DARKEST, _BRIGHTEST = 0.6**3, 1.1**3  # light on a colour: shade, and a colour that was written down too dark
_PALEST, _STRONGEST = 1 / 3, 1.15  # of a colour's chroma: real paints are duller than their names, and they reflect
_NEAR = 18  # CIELAB units: another white balance moves greys by as much
_GREY_CHROMA = 6  # CIELAB units, below which a colour's hue means nothing
_GREY_WEIGHT, _MOST_WEIGHT = 15, 55  # CIELAB units: tyres, glass and glare are grey, whatever the paint is
_LEAST_OWN, _DOMINANT = 0.3, 0.6  # of the weights
_LIGHTS = (1, 1, 1), (1.05, 1, 0.88), (0.93, 1, 1.06)  # red, green and blue of what the photo may have been taken in


def other_views(
    image: np.ndarray, mask: np.ndarray, *, alpha: np.ndarray | None = None, clip_view: ClipView
) -> list[np.ndarray]:
    """Returns what CLIP could have been shown of a subject and was not, each (h, w, 3) uint8 RGB.

    That is two of these: the whole photo on white, the whole photo on mid grey, the subject as a square on white.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool.
        alpha: (H, W) uint8, soft edges; see `mask_utilities.paint_background`.
        clip_view: What CLIP was shown: `full`, the whole photo on white, or `crop`, the square.
    """
    on_white = paint_background(image, mask, alpha=alpha)
    on_grey = paint_background(image, mask, _MID_GREY, alpha=alpha)
    return [square_view(on_white, mask) if clip_view == "full" else on_white, on_grey]


def is_disputed(label: Label, others: Sequence[Label]) -> bool:
    """Says whether a label does not survive other views: all views together name another item, by mean probability.

    The mean over views is how Krizhevsky et al. classify ("ImageNet Classification with Deep Convolutional Neural
    Networks", 2012, section 4.1). To doubt a label as soon as one view differs catches more wrong labels, but
    disturbs many times as many right ones (`python -m benchmarks.checks`).

    Args:
        label: Of the view that the program goes by.
        others: Of other views of the same photo.
    """
    if all(other.item == label.item for other in others):
        return False
    totals: Counter[str] = Counter()
    for each in (label, *others):
        # The best prompt's item may be none of the top items.
        totals.update({**dict(each.top_items), each.item: each.item_probability})
    return max(totals.values()) > totals[label.item]


def colour_disagrees(image: np.ndarray, mask: np.ndarray, item: str, colours: Mapping[str, str]) -> bool:
    """Says whether a subject shows too little of its item's colour and is mostly of another.

    A pixel can be of several colours, so that near-synonyms do not rule each other out; see `_colour_shares`. And it
    must be so in warmer and in colder light, too, for the photo's white balance may be off.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool.
        item: The label.
        colours: `#rrggbb` of items; an item that has none is never doubted.
    """
    if item not in colours or not mask.any():
        return False
    own, pixels = list(colours).index(item), _subject_pixels(image, mask)
    for light in _LIGHTS:
        balanced = np.clip(pixels / np.array(light), 0, 255).astype(np.uint8)
        shares = _colour_shares(balanced, list(colours.values()))
        if shares[own] >= _LEAST_OWN or shares.max() <= _DOMINANT:
            return False
    return True


def _subject_pixels(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns some thousand pixels of a subject, (N, 3) uint8 RGB, not at its outline where it is more than that."""
    step = math.ceil(math.sqrt(np.count_nonzero(mask) / _MOST_PIXELS))
    # A thin subject can lie between the rows that remain.
    if not mask[::step, ::step].any():
        pixels = image[mask]
        return pixels[:: math.ceil(len(pixels) / _MOST_PIXELS)]
    image, mask = image[::step, ::step], mask[::step, ::step]
    inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return image[inner if inner.any() else mask]


def _colour_shares(pixels: np.ndarray, colours: Sequence[str]) -> np.ndarray:
    """Returns which share of pixels, (N, 3) uint8 RGB, can be of each of I colours, (I,) in [0, 1].

    A pixel can be of a colour where it lies near what the colour becomes in other light: light scales L* + 16, a* and
    b* by the cube root of its strength, and what a surface reflects of its surroundings pales it towards grey but
    leaves its hue (Shafer, "Using color to separate reflection components", 1985). Near is meant by CIE76, the
    Euclidean distance in CIELAB. Pixels weigh the more the stronger their colour.
    """
    lab = _to_lab(pixels)[:, None]  # (N, 1, 3)
    centres = _to_lab(np.array([background_rgba(colour)[:3] for colour in colours], np.uint8))  # (I, 3)
    chroma = np.hypot(centres[:, 1], centres[:, 2])
    hue = centres[:, 1:] / np.maximum(chroma, _GREY_CHROMA)[:, None]
    chroma = np.where(chroma < _GREY_CHROMA, 0, chroma)  # of a grey, all that is off the axis is distance
    along = (lab[..., 1:] * hue).sum(axis=-1)  # (N, I), like all that follows
    across_squared = (lab[..., 1:] ** 2).sum(axis=-1) - along**2
    lightness = lab[..., 0] + 16
    distance_squared = (
        _beyond(lightness, *((centres[:, 0] + 16) * np.cbrt(light) for light in (_DARKEST, _BRIGHTEST))) ** 2
        + _beyond(along, _PALEST * chroma, _STRONGEST * chroma) ** 2
        + across_squared
    )
    weights = np.minimum(_GREY_WEIGHT + np.hypot(lab[..., 1], lab[..., 2]), _MOST_WEIGHT)
    return (weights * (distance_squared < _NEAR**2)).sum(axis=0) / weights.sum()


def _beyond(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Returns how far values lie outside a range, 0 inside."""
    return np.maximum(0, np.maximum(low - values, values - high))


def _to_lab(rgb: np.ndarray) -> np.ndarray:
    """Returns (N, 3) float32 CIELAB of (N, 3) uint8 RGB: OpenCV squeezes it into bytes unless RGB is in [0, 1]."""
    return cv2.cvtColor(rgb[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
