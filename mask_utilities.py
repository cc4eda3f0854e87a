"""From a mask to a cut-out: pure functions on arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

_WHITE = (255, 255, 255)

_SURELY_SUBJECT = 250  # alpha, from which a pixel's own colour shows no trace of the background
_COLOUR_MARGIN = 2  # pixels beyond the nearest of these: the mean of a few of them, not of one
_VIEW_PADDING = 0.05  # of the subject's longer side, on each side of it
_VIEW_SIDE = 8192  # pixels, of a square that is never too large

# GrabCut's constants, chosen on held-out photos and scenes with the micro model: what the network gives less than 0.05
# is background for certain, what it gives more than 0.85 subject.
_SURELY_OUTSIDE, _SURELY_INSIDE = 0.05, 0.85
_GRABCUT_RIM = 0.15  # of the subject's box, around it: the background that it learns from
_PROBABILITY_SIDE = 512  # pixels
_GRABCUT_SIDE = 160  # pixels, the longer side it works on: its time grows with the area
_GRABCUT_ROUNDS = 1  # the network's start is so good that more rounds change nothing
_GRABCUT_KEPT = 0.5  # of the network's mask, below which GrabCut took the subject for its surroundings
_GRABCUT_LEAST = 16  # pixels on either side, below which there is nothing to learn from


def subject_mask(image: np.ndarray, mask_logits: np.ndarray, *, refine: bool = False) -> np.ndarray:
    """Returns the mask of a photo's subject, (H, W) bool, from the network's logits.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask_logits: (h, w) float32 for the whole photo, positive on the subject.
        refine: Let the outline follow the photo's own edges; see `refine_mask`.
    """
    return refine_mask(image, mask_logits) if refine else full_size_mask(mask_logits, image.shape[:2])


def full_size_mask(mask_logits: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
    """Returns where (h, w) float32 logits are positive after bilinear enlargement, (H, W) bool, as in SAM 2."""
    return _full_size(mask_logits, shape_hw) > 0


def _full_size(mask_logits: np.ndarray, shape_hw: tuple[int, int]) -> np.ndarray:
    """Returns (h, w) float32 logits enlarged bilinearly to (H, W)."""
    import torch
    from torch.nn.functional import interpolate

    # cv2.resize is quicker, but on 12 megapixels decides a few differently.
    logits = interpolate(torch.from_numpy(mask_logits)[None, None], shape_hw, mode="bilinear", align_corners=False)
    return logits[0, 0].numpy()


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Returns the box (x0, y0, x1, y1) around the true pixels of an (H, W) bool mask; None where there are none.

    In pixels; x1 and y1 are exclusive, so that `image[y0:y1, x0:x1]` is the box.
    """
    columns = np.flatnonzero(mask.any(axis=0))
    rows = np.flatnonzero(mask.any(axis=1))
    if not columns.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def refine_mask(image: np.ndarray, mask_logits: np.ndarray) -> np.ndarray:
    """Returns the mask that follows the photo's own edges where the network is undecided, (H, W) bool.

    GrabCut (Rother et al. 2004) in OpenCV, started from the network's probabilities: colour models of subject and
    background are learned from both sides, and the outline moves to where colours change.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask_logits: (h, w) float32 of the network, for the whole photo.
    """
    height, width = image.shape[:2]
    # At most twice the resolution of SAM 2's own logits: a large photo must not cost more than a small one.
    size_wh = _shrunk_size(width, height, _PROBABILITY_SIDE)
    probability = 1 / (1 + np.exp(-cv2.resize(mask_logits, size_wh)))
    refined = np.zeros((height, width), bool)
    box = bounding_box(probability > _SURELY_OUTSIDE)
    if box is None:
        return refined
    x0, y0, x1, y1 = box
    rim_x, rim_y = (4 + int(_GRABCUT_RIM * extent) for extent in (x1 - x0, y1 - y0))
    x0, y0, x1, y1 = max(0, x0 - rim_x), max(0, y0 - rim_y), min(size_wh[0], x1 + rim_x), min(size_wh[1], y1 + rim_y)
    columns = slice(round(x0 * width / size_wh[0]), round(x1 * width / size_wh[0]))
    rows = slice(round(y0 * height / size_wh[1]), round(y1 * height / size_wh[1]))
    refined[rows, columns] = _grab_cut(image[rows, columns], probability[y0:y1, x0:x1])
    return refined


def _grab_cut(image: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Returns the subject's mask, (H, W) bool, from a part of a photo, (H, W, 3), and its probabilities, (h, w)."""
    height, width = image.shape[:2]
    size_wh = _shrunk_size(width, height, _GRABCUT_SIDE)
    probability = cv2.resize(probability, size_wh, interpolation=cv2.INTER_AREA)
    labels = np.where(probability > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[probability > _SURELY_INSIDE] = cv2.GC_FGD
    labels[probability < _SURELY_OUTSIDE] = cv2.GC_BGD
    inside = found = probability > 0.5
    # Each colour model has five components and needs as many pixels.
    if min(inside.sum(), (~inside).sum()) >= _GRABCUT_LEAST:
        small = cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA)
        cv2.setRNGSeed(0)  # its k-means begins at random
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(small, labels, None, *models, _GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)
        inside = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD))
        # Islands that the network never took for the subject only share its colours.
        _, islands = cv2.connectedComponents(inside.astype(np.uint8))
        inside &= np.isin(islands, np.unique(islands[found]))
        if (inside & found).sum() < _GRABCUT_KEPT * found.sum():
            inside = found
    return cv2.resize(inside.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) > 0.5


def _shrunk_size(width: int, height: int, most: int) -> tuple[int, int]:
    """Returns the size whose longer side is at most so many pixels."""
    scale = min(1.0, most / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def clean_mask(mask: np.ndarray, point: tuple[int, int], fraction: float) -> np.ndarray:
    """Returns a mask without its small islands and holes, (H, W) bool; what is clean already stays as it is.

    Small is what has at most a fraction of the subject's area, which is that of the mask with all holes filled. Islands
    go first, so that a hole counts with what lay in it. A hole touches no border of the photo.

    Args:
        mask: (H, W) bool.
        point: The focus (x, y) in pixels. Its island stays however small; the largest does where it lies in none.
        fraction: Of the subject's area.
    """
    cleaned = mask.copy()
    box = bounding_box(mask)
    if box is None:
        return cleaned
    x0, y0, x1, y1 = box
    part = cleaned[y0:y1, x0:x1]

    holes, hole_areas = _holes(part)
    most = fraction * (np.count_nonzero(part) + hole_areas.sum())
    _, islands, statistics, _ = cv2.connectedComponentsWithStats(part.view(np.uint8), connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA]
    small = areas <= most
    x, y = (min(max(0, at), extent - 1) for at, extent in zip(point, mask.shape[::-1], strict=True))
    inside = x0 <= x < x1 and y0 <= y < y1 and part[y - y0, x - x0]
    small[islands[y - y0, x - x0] if inside else 1 + areas[1:].argmax()] = False
    if small.any():
        part[small[islands]] = False
        holes, hole_areas = _holes(part)

    most = fraction * (np.count_nonzero(part) + hole_areas.sum())
    small = (hole_areas > 0) & (hole_areas <= most)
    if small.any():
        part[small[holes]] = True
    return cleaned


def _holes(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns labels of the background, (H, W) int32, and the area of each, (n,); 0 where it is no hole.

    Args:
        mask: (H, W) bool, of a box outside which nothing is true: what touches the box reaches the photo's borders.
    """
    height, width = mask.shape
    _, labels, statistics, _ = cv2.connectedComponentsWithStats((~mask).view(np.uint8), connectivity=4)
    left, top, extent_x, extent_y, areas = statistics.T
    enclosed = (left > 0) & (top > 0) & (left + extent_x < width) & (top + extent_y < height)
    enclosed[0] = False  # the mask itself
    return labels, np.where(enclosed, areas, 0)


@dataclass(frozen=True)
class Region:
    """What a mask covers.

    Attributes:
        area: As a fraction of the photo, 0 to 1.
        box: (x0, y0, x1, y1) in pixels, as from `bounding_box`; None where the mask is empty.
        touches_all_borders: The mask reaches all four borders of the photo: more likely the surroundings.
    """

    area: float
    box: tuple[int, int, int, int] | None
    touches_all_borders: bool


def describe_mask(mask: np.ndarray) -> Region:
    """Returns what an (H, W) bool mask covers."""
    height, width = mask.shape
    box = bounding_box(mask)
    return Region(np.count_nonzero(mask) / mask.size, box, touches_all_borders=box == (0, 0, width, height))


def mask_flags(region: Region, *, min_area: float, max_area: float) -> list[str]:
    """Returns what makes a mask suspicious, any of `small`, `large` and `borders`; areas are fractions of the photo."""
    found = {
        "small": region.area < min_area,
        "large": region.area > max_area,
        "borders": region.touches_all_borders,
    }
    return [flag for flag, is_so in found.items() if is_so]


def soft_alpha(mask: np.ndarray, mask_logits: np.ndarray) -> np.ndarray:
    """Returns the alpha channel of a cut-out with soft edges, (H, W) uint8: at least 128 just where the mask is true.

    Alpha is the network's own probability, but only as near to the outline as one cell of its logits. Beyond, it is 255
    and 0: an unsure network must neither make solid bodies see-through nor leave haze. Towards there a straight ramp is
    the least that alpha rises and falls by, so that it arrives without a step, and so that it follows the mask where
    that is not the logits' own.

    Args:
        mask: (H, W) bool.
        mask_logits: (h, w) float32 for the whole photo, positive on the subject.
    """
    height, width = mask.shape
    alpha = mask.view(np.uint8) * 255
    band = max(1, math.ceil(max(height / mask_logits.shape[0], width / mask_logits.shape[1])))
    part = _surroundings(mask, band)
    if part is None:
        return alpha
    inside = mask[part]
    distance = _distance(inside) + _distance(~inside)  # to the first pixel beyond the outline; one of them is 0
    near = np.nonzero(distance <= band)
    side = np.where(inside[near], 1, -1)
    logits = _full_size(mask_logits, mask.shape)[part][near]
    # tanh(x / 2) is 2 sigmoid(x) - 1; the outline runs half a pixel before the first pixel beyond it.
    certainty = np.maximum(side * np.tanh(logits / 2), (distance[near] - 0.5) / band)
    alpha[part][near] = np.rint(127.5 + 127.5 * side * certainty)
    return alpha


def feather_alpha(alpha: np.ndarray, radius: float) -> np.ndarray:
    """Returns an alpha channel, (H, W) uint8, softened by a Gaussian whose standard deviation is half the radius.

    What is 0 or 255 stays so further than the radius, in pixels, from what is not; radius 0 changes nothing.
    """
    reach = math.ceil(radius)
    part = _surroundings(alpha > 0, reach)
    if not reach or part is None:
        return alpha
    before = alpha[part]
    after = cv2.GaussianBlur(before, (2 * reach + 1,) * 2, radius / 2, borderType=cv2.BORDER_REPLICATE)
    for level in (0, 255):
        # The kernel is a square and reaches too far along its diagonals.
        after[_distance(before == level, exact=True) > radius] = level
    softened = alpha.copy()
    softened[part] = after
    return softened


def _surroundings(mask: np.ndarray, rim: int) -> tuple[slice, slice] | None:
    """Returns rows and columns of the box around an (H, W) bool mask, with a rim in pixels; None where it is empty."""
    box = bounding_box(mask)
    if box is None:
        return None
    x0, y0, x1, y1 = box
    return slice(max(0, y0 - rim), y1 + rim), slice(max(0, x0 - rim), x1 + rim)


def _distance(mask: np.ndarray, *, exact: bool = False) -> np.ndarray:
    """Returns the distance from each pixel to the nearest where an (H, W) bool mask is false, (H, W) float32."""
    # The quicker one is up to 2% off. Without any false pixel both say something huge.
    return cv2.distanceTransform(mask.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE if exact else cv2.DIST_MASK_5)


def cut_out(
    image: np.ndarray, mask: np.ndarray | None, background: str = "white", *, alpha: np.ndarray | None = None
) -> np.ndarray:
    """Returns the subject of a photo on a background, as an (H, W, 4) uint8 RGBA array.

    Inside the mask stand the photo's own pixels, outside it nothing but the background; soft edges lie between.

    Args:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool; None keeps the whole photo.
        background: `white`, `#rrggbb`, or `transparent`: alpha 0 over white, so that no pixel of the
            surroundings survives under the transparency.
        alpha: (H, W) uint8, soft edges; it then stands for the mask. None for the mask's hard ones.
    """
    if mask is None:
        return cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)
    if background != "transparent":
        colour = _WHITE if background == "white" else _parse_colour(background)
        return cv2.cvtColor(paint_background(image, mask, colour, alpha=alpha), cv2.COLOR_RGB2RGBA)
    if alpha is not None:
        image, mask = subject_colours(image, alpha), alpha > 0
    rgba = cv2.cvtColor(paint_background(image, mask), cv2.COLOR_RGB2RGBA)
    rgba[..., 3] = np.where(mask, 255, 0) if alpha is None else alpha
    return rgba


def paint_background(
    image: np.ndarray,
    mask: np.ndarray,
    colour: tuple[int, int, int] = _WHITE,
    *,
    alpha: np.ndarray | None = None,
) -> np.ndarray:
    """Returns a photo, (H, W, 3) uint8 RGB, with one colour wherever its (H, W) bool mask is false.

    Where an alpha channel, (H, W) uint8, is given, it stands for the mask, and its soft edges blend into the colour.
    """
    if alpha is not None:
        image, mask = subject_colours(image, alpha), alpha > 0
    # At 1800 x 1200 numpy.where takes 30 ms, this 0.4 with a grey or white, and 13 with a colour.
    painted = np.full_like(image, colour[0] if len(set(colour)) == 1 else colour)
    painted = cv2.copyTo(image, mask.view(np.uint8), painted)
    if alpha is not None:
        rim = np.nonzero(mask & (alpha < 255))
        share = alpha[rim][:, None].astype(np.uint32)
        painted[rim] = (image[rim] * share + np.array(colour, np.uint32) * (255 - share) + 127) // 255
    return painted


def background_rgba(background: str) -> tuple[int, int, int, int]:
    """Returns what stands outside the subject for a `background` of `cut_out`, uint8 RGBA."""
    if background == "transparent":
        return *_WHITE, 0
    return *(_WHITE if background == "white" else _parse_colour(background)), 255


def _parse_colour(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def subject_colours(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Returns a photo whose soft edges have the subject's colours, (H, W, 3) uint8, so that they bring no fringe along.

    At a soft edge a photo shows a mixture with its background. There the colour becomes the mean of what is surely the
    subject in a window that reaches just beyond the nearest such pixel: a normalised convolution (Knutsson and
    Westin 1993). From alpha 128 to 255, where the photo itself shows ever more of the subject, its own colour comes
    back by degrees: details just inside the outline stay. Thin parts with nothing sure near them keep their own too.

    Args:
        image: (H, W, 3) uint8 RGB.
        alpha: (H, W) uint8.
    """
    colours = image.copy()
    box = _surroundings(alpha > 0, 1)  # without a rim, the widths of edges that touch the box could not be told
    if box is None:
        return colours
    part, alpha = colours[box], alpha[box]
    sure = alpha >= _SURELY_SUBJECT
    rim = (alpha > 0) & (alpha < 255)
    if not (sure.any() and rim.any()):
        return colours

    distance = _distance(~sure)
    # Near enough is twice as far as the edge is wide: its corners are farther than its sides.
    edge_width = _distance(alpha > 0)[rim].max()
    rows, columns = np.nonzero(rim & (distance / 2 <= edge_width))
    window = np.ceil(distance[rows, columns]).astype(int) + _COLOUR_MARGIN
    top, left = np.maximum(rows - window, 0), np.maximum(columns - window, 0)
    bottom, right = (np.minimum(at + window + 1, most) for at, most in zip((rows, columns), alpha.shape, strict=True))

    def window_sums(pixels: np.ndarray) -> np.ndarray:
        # Of more than 8 megapixels the sums pass 2**31, but modulo 2**32 their differences are still right.
        sums = cv2.integral(pixels).view(np.uint32)
        return sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]

    mean = window_sums(cv2.copyTo(part, sure.view(np.uint8))) / window_sums(sure.view(np.uint8))[:, None]
    own_share = np.clip((alpha[rows, columns] - 127.5) / 127.5, 0, 1)[:, None]
    part[rows, columns] = np.rint(mean + own_share * (part[rows, columns] - mean))
    return colours


def crop_box(
    box: tuple[int, int, int, int], shape_hw: tuple[int, int], *, padding: float, square: bool
) -> tuple[int, int, int, int]:
    """Returns the box to crop a photo to, (x0, y0, x1, y1) in pixels.

    Args:
        box: The subject's, as from `bounding_box`.
        shape_hw: The photo's.
        padding: What is added on each side, as a fraction of the box's longer side; cut off at the photo's borders.
        square: Let the shorter side grow to the longer, evenly on both sides; only so does the box leave the photo.
    """
    x0, y0, x1, y1 = box
    height, width = shape_hw
    rim = round(padding * max(x1 - x0, y1 - y0))
    x0, y0, x1, y1 = max(0, x0 - rim), max(0, y0 - rim), min(width, x1 + rim), min(height, y1 + rim)
    if square:
        side = max(x1 - x0, y1 - y0)
        x0, y0 = x0 - (side - (x1 - x0)) // 2, y0 - (side - (y1 - y0)) // 2
        x1, y1 = x0 + side, y0 + side
    return x0, y0, x1, y1


def crop(image: np.ndarray, box: tuple[int, int, int, int], fill: tuple[int, ...]) -> np.ndarray:
    """Returns the part of an image in a box, (h, w, C) uint8; what lies beyond the image has the colour `fill`.

    Args:
        image: (H, W, C) uint8.
        box: (x0, y0, x1, y1) in pixels, as from `crop_box`; some of it lies in the image.
        fill: C values.
    """
    x0, y0, x1, y1 = box
    height, width = image.shape[:2]
    part = image[max(0, y0) : y1, max(0, x0) : x1]
    beyond = max(0, -y0), max(0, y1 - height), max(0, -x0), max(0, x1 - width)
    return cv2.copyMakeBorder(part, *beyond, cv2.BORDER_CONSTANT, value=fill)


def square_view(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the subject in a white square, (n, n, 3) uint8, for a model that looks at a photo's central square.

    It has 5% of the subject's longer side around it, less at the photo's borders. Without a subject it is the photo.

    Args:
        image: (H, W, 3) uint8 RGB, on white already.
        mask: (H, W) bool.
    """
    height, width = mask.shape
    box = bounding_box(mask) or (0, 0, width, height)
    x0, y0, x1, y1 = crop_box(box, mask.shape, padding=_VIEW_PADDING, square=False)
    longer = max(x1 - x0, y1 - y0)
    # A strip of 30,000 x 1 would become a square of 0.9 gigapixels.
    scale = min(1.0, max(_VIEW_SIDE, math.sqrt(4 * height * width)) / longer)
    if scale < 1:
        size_wh = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
        image = cv2.resize(image[y0:y1, x0:x1], size_wh, interpolation=cv2.INTER_AREA)
        x0, y0, x1, y1 = 0, 0, *size_wh
    return crop(image, crop_box((x0, y0, x1, y1), image.shape[:2], padding=0, square=True), _WHITE)
