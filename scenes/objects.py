"""Everything that is no vehicle: objects built of a few rounded parts, each with its colour, pattern and gloss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np

from scenes.paint import fill, grain, random_colour, sample_paint, shift_onto, smooth_outline, texture

Pattern = str  # "plain", "noise", "stripes", "spots", "checks", "fur"


@dataclass(frozen=True)
class _Part:
    """A part of an object: an outline in a unit square (x right, y down), and what covers it."""

    outline: np.ndarray  # (N, 2)
    colour: np.ndarray  # (3,) RGB in [0, 255]
    pattern: Pattern = "plain"
    gloss: float = 0.2
    roundness: float = 1.0  # 0 is flat


def draw_object(
    canvas: np.ndarray,
    box: tuple[int, int, int, int],
    rng: np.random.Generator,
    *,
    colour: str | None = None,
    kind: str | None = None,
    over_xy: tuple[float, float] | None = None,
    shade: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> tuple[np.ndarray, str]:
    """Draws an object into a picture; arguments and results are those of `vehicles.draw_vehicle`.

    Without a colour its main part has any colour at all.
    """
    kind = kind or OBJECT_KINDS[rng.integers(len(OBJECT_KINDS))]
    main = random_colour(rng) if colour is None else sample_paint(colour, rng)
    parts = list(_BUILDERS[kind](main, rng))
    parts = _pose(parts, box, rng, upright=kind in _STANDING, over_xy=over_xy)
    sun = (rng.normal(0, 0.6, 2) + [0, -0.5]).astype(np.float32)
    mask = np.zeros(canvas.shape[:2], np.uint8)
    for part in parts:
        fill(mask, part.outline, 1)
    if shade is not None:
        shade(canvas, mask.astype(bool))
    for part in parts:
        _draw_part(canvas, part, sun, rng)
    return mask.astype(bool), kind


def _pose(
    parts: list[_Part],
    box: tuple[int, int, int, int],
    rng: np.random.Generator,
    *,
    upright: bool,
    over_xy: tuple[float, float] | None,
) -> list[_Part]:
    """Returns the parts mirrored, turned and sheared at random, fitted into the box and shifted over a pixel."""
    angle = rng.normal(0, 0.06) if upright else rng.normal(0, 0.5)
    shear = np.array([[rng.choice([-1, 1]), rng.normal(0, 0.12)], [rng.normal(0, 0.04), rng.uniform(0.85, 1.15)]])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = [part.outline @ (turn @ shear).T for part in parts]
    everything = np.concatenate(moved)
    low, high = everything.min(axis=0), everything.max(axis=0)
    x0, y0, x1, y1 = box
    scale = min((x1 - x0) / (high[0] - low[0]), (y1 - y0) / (high[1] - low[1]))
    shift = np.array([(x0 + x1) / 2, y1]) - scale * np.array([(low[0] + high[0]) / 2, high[1]])
    if over_xy is not None:
        # The part with the largest box is most likely to be where a middle is.
        largest = max(moved, key=lambda points: np.ptp(points, axis=0).prod())
        shift += shift_onto(largest * scale + shift, over_xy, (0.3, 0.3, 0.3, 0.3))
    return [replace(part, outline=points * scale + shift) for part, points in zip(parts, moved, strict=True)]


def _draw_part(canvas: np.ndarray, part: _Part, sun: np.ndarray, rng: np.random.Generator) -> None:
    """Draws a part as if it were inflated: its distance from the outline gives heights, these give the light."""
    height, width = canvas.shape[:2]
    x0, y0 = np.maximum(np.floor(part.outline.min(axis=0)).astype(int) - 2, 0)
    x1, y1 = np.minimum(np.ceil(part.outline.max(axis=0)).astype(int) + 3, [width, height])
    if x1 - x0 < 2 or y1 - y0 < 2:
        return
    local = part.outline - [x0, y0]
    shape = (y1 - y0, x1 - x0)
    inside = np.zeros(shape, np.uint8)
    fill(inside, local, 1)
    soft = np.zeros((*shape, 3), np.uint8)
    fill(soft, local, [255.0] * 3)
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    depth = distance.max()
    if depth < 0.5:
        return
    nearness = np.minimum(distance * (1 / (0.9 * float(depth))), 1)
    heights = np.sqrt(nearness * (2 - nearness)) * depth
    heights = cv2.GaussianBlur(heights, (0, 0), max(0.6, depth * 0.18)) * part.roundness
    slope_x, slope_y = (cv2.Sobel(heights, cv2.CV_32F, x, 1 - x, ksize=1, scale=0.5) for x in (1, 0))
    light = 0.82 - 0.55 * (sun[0] * slope_x + sun[1] * slope_y) / np.sqrt(1 + slope_x * slope_x + slope_y * slope_y)
    light = np.clip(light, 0.35, 1.25)[..., None]
    shiny = np.clip((light - 1.02) * 5, 0, 1) * (part.gloss * 160)
    colours = np.clip(_cover(part, shape, rng) * light + shiny, 0, 255)
    region = canvas[y0:y1, x0:x1]
    region[:] = region + (colours - region) * (soft[..., :1] * np.float32(1 / 255))


def _cover(part: _Part, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Returns the colours of a part before light falls on it, (H, W, 3) float32."""
    colours = (1 + 0.05 * texture(shape, rng, 3, 3.0))[..., None] * part.colour.astype(np.float32)
    if part.pattern == "plain":
        return colours
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    other = np.clip(part.colour * rng.uniform(0.3, 0.7) + rng.uniform(0, 60), 0, 255).astype(np.float32)
    if rng.random() < 0.4:
        other = random_colour(rng)
    size = max(shape)
    if part.pattern == "noise":
        weight = np.clip(0.5 + 0.5 * texture(shape, rng, 4, 4.0), 0, 1) * rng.uniform(0.3, 0.8)
    elif part.pattern == "fur":
        streaks = cv2.blur(grain(shape, rng)[..., 0], (1, max(3, size // 20)))
        weight = np.clip(0.4 + 0.9 * streaks + 0.4 * texture(shape, rng, 2, 2.5), 0, 1) * 0.7
    elif part.pattern == "stripes":
        angle, pitch = rng.uniform(0, np.pi), size / rng.uniform(4, 14)
        phase = (rows * np.sin(angle) + columns * np.cos(angle)) / pitch
        weight = (phase % 1 < 0.5).astype(np.float32)
    elif part.pattern == "checks":
        pitch = size / rng.uniform(3, 9)
        weight = ((rows // pitch + columns // pitch) % 2).astype(np.float32)
    else:  # spots
        weight = (texture(shape, rng, 1, rng.uniform(4, 9)) > 0.8).astype(np.float32)
    return colours + weight[..., None] * (other - colours)


def _ellipse(x: float, y: float, radius_x: float, radius_y: float, turn: float = 0.0, wobble: float = 0.0,
             rng: np.random.Generator | None = None) -> np.ndarray:  # fmt: skip
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = np.ones(40)
    if rng is not None and wobble:
        for harmonic in range(2, 6):
            radius += wobble / harmonic * np.sin(harmonic * angles + rng.uniform(0, 2 * np.pi)) * rng.normal()
    points = np.column_stack([radius_x * radius * np.cos(angles), radius_y * radius * np.sin(angles)])
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    return points @ rotation + [x, y]


def _stroke(points: np.ndarray, widths: np.ndarray | float) -> np.ndarray:
    """Returns the outline of a thick line through points, with a width at each."""
    points = np.asarray(points, float)
    along = np.gradient(points, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    across = np.column_stack([-along[:, 1], along[:, 0]]) * np.broadcast_to(widths, len(points))[:, None] / 2
    return np.concatenate([points + across, (points - across)[::-1]])


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def _rounded(points: np.ndarray) -> np.ndarray:
    return smooth_outline(np.asarray(points, float), 3)


def _dark(rng: np.random.Generator) -> np.ndarray:
    return np.full(3, rng.uniform(15, 70)) + rng.uniform(-8, 8, 3)


def _some_pattern(rng: np.random.Generator) -> Pattern:
    return str(rng.choice(["plain", "noise", "stripes", "spots", "checks"], p=[0.5, 0.2, 0.12, 0.09, 0.09]))


def _fruit(colour: np.ndarray, rng: np.random.Generator) -> Iterator[_Part]:
    if rng.random() < 0.25:  # a banana
        bend = np.linspace(-1.1, 1.1, 16)
        arc = np.column_stack([np.sin(bend), -0.8 * np.cos(bend)])
        yield _Part(_stroke(arc, 0.36 * np.cos(bend * 1.25) ** 0.6 + 0.05), colour, "plain", 0.2)
        return
    yield _Part(
        _ellipse(0, 0, 1, rng.uniform(0.8, 1.3), 0, 0.05, rng),
        colour,
        rng.choice(["plain", "noise"]),
        rng.uniform(0.1, 0.7),
    )
    yield _Part(_stroke([(0, -0.85), (0.03, -1.1), (0.12, -1.3)], 0.09), np.array([80, 55, 30.0]))
    if rng.random() < 0.5:
        yield _Part(_ellipse(0.35, -1.2, 0.32, 0.12, 0.4), np.array([60, 120, 40.0]))


def _bag(colour: np.ndarray, rng: np.random.Generator) -> Iterator[_Part]:
    top, height = rng.uniform(0.55, 0.95), rng.uniform(1.1, 2.0)
    reach = rng.uniform(0.3, 0.9)
    bend = np.linspace(np.pi, 2 * np.pi, 14)
    handle = np.column_stack([0.5 * top * np.cos(bend), -height + reach * np.sin(bend)])
    yield _Part(_stroke(handle, rng.uniform(0.06, 0.14)), colour * rng.uniform(0.5, 0.9))
    body = [(-1, 0), (-top, -height), (top, -height), (1, 0)]
    yield _Part(_rounded(body) if rng.random() < 0.6 else np.array(body), colour, _some_pattern(rng), 0.15, 0.5)
    if rng.random() < 0.6:
        flap = [
            (-top, -height),
            (top, -height),
            (0.9 * top, -height * 0.55),
            (0, -height * 0.45),
            (-0.9 * top, -height * 0.55),
        ]
        yield _Part(_rounded(flap), colour * rng.uniform(0.7, 1.05), "plain", 0.15, 0.4)
    if rng.random() < 0.6:
        yield _Part(_rectangle(-0.12, -height * 0.52, 0.12, -height * 0.42), np.array([200, 175, 90.0]), "plain", 0.8)


def _shoe(colour: np.ndarray, rng: np.random.Generator) -> Iterator[_Part]:
    ankle = rng.uniform(0.7, 1.4)
    upper = [(-1, 0), (-1.02, -ankle), (-0.35, -ankle * 1.02), (-0.1, -0.62), (0.55, -0.42), (1.0, -0.3), (1.05, 0)]
    yield _Part(
        _rounded(upper), colour, _some_pattern(rng) if rng.random() < 0.3 else "plain", rng.uniform(0, 0.5), 0.7
    )
    yield _Part(_ellipse(-0.68, -ankle * 0.98, 0.3, 0.1), _dark(rng), "plain", 0.0, 0.3)
    sole = rng.uniform(0.1, 0.28)
    white = np.full(3, rng.uniform(190, 250)) if rng.random() < 0.6 else _dark(rng)
    yield _Part(_rounded([(-1.08, -0.06), (1.12, -0.08), (1.15, sole), (-1.1, sole)]), white, "plain", 0.1, 0.4)
    for step in range(int(rng.integers(0, 5))):
        x = -0.2 + 0.17 * step
        yield _Part(_stroke([(x, -0.68 + 0.08 * step), (x + 0.16, -0.5 + 0.07 * step)], 0.05), white, "plain", 0.0, 0.3)


def _vessel(colour: np.ndarray, rng: np.random.Generator) -> Iterator[_Part]:
    """A bottle, vase, cup or lamp: symmetrical about its axis."""
    levels = np.linspace(0, 1, 7)
    radii = np.abs(0.35 + 0.14 * rng.standard_normal(7)).clip(0.1, 0.6)
    height = rng.uniform(1.2, 2.6)
    side = np.column_stack([radii, -levels * height])
    outline = np.concatenate([side, side[::-1] * [-1, 1]])
    yield _Part(smooth_outline(outline, 2), colour, _some_pattern(rng), rng.uniform(0.1, 1.0))
    if rng.random() < 0.4:
        label = radii[2:5].min() * 0.96
        yield _Part(_rectangle(-label, -height * 0.62, label, -height * 0.32), random_colour(rng), "noise", 0.0, 0.2)
    if rng.random() < 0.5:
        cap = radii[-1] * rng.uniform(0.7, 1.1)
        yield _Part(_rectangle(-cap, -height * 1.1, cap, -height * 0.97), random_colour(rng, muted=True), "plain", 0.4)


def _seat(colour: np.ndarray, rng: np.random.Generator) -> Iterator[_Part]:
    """A chair, stool, sofa or table."""
    width, back = rng.uniform(0.6, 1.8), rng.uniform(0.0, 1.5) * (rng.random() < 0.75)
    legs = rng.uniform(0.25, 1.0)
    wood = colour * rng.uniform(0.4, 0.8) if rng.random() < 0.5 else random_colour(rng, muted=True)
    thick, skew = rng.uniform(0.06, 0.16), rng.uniform(0.1, 0.4)
    for x, y in ((-width + skew, -0.18), (width - thick + skew * 0.6, -0.18), (-width, 0.0), (width - thick, 0.0)):
        yield _Part(_rectangle(x, -legs, x + thick, y), wood * (0.75 if y else 1), "plain", 0.2, 0.6)
    cushion = rng.uniform(0.12, 0.45)
    if back:
        shape = [
            (-width + skew, -legs - back),
            (width + skew, -legs - back),
            (width + skew, -legs),
            (-width + skew, -legs),
        ]
        yield _Part(
            _rounded(shape) if rng.random() < 0.6 else np.array(shape), colour * 0.9, _some_pattern(rng), 0.1, 0.5
        )
    seat = [
        (-width + skew, -legs - 0.22),
        (width + skew, -legs - 0.22),
        (width, -legs + cushion * 0.4),
        (-width, -legs + cushion * 0.4),
    ]
    yield _Part(np.array(seat), colour, "plain", 0.1, 0.5)
    yield _Part(_rectangle(-width, -legs - 0.02, width, -legs + cushion), colour * 0.85, "plain", 0.1, 0.4)


def _animal(colour: np.ndarray, rng: np.random.Generator) -> Iterator[_Part]:
    natural = np.array([rng.uniform(40, 220), 0, 0])
    natural = np.array([natural[0], natural[0] * rng.uniform(0.7, 0.95), natural[0] * rng.uniform(0.4, 0.9)])
    coat = natural if rng.random() < 0.7 else colour
    leg, neck = rng.uniform(0.4, 1.0), rng.uniform(0.1, 0.8)
    width = rng.uniform(0.14, 0.24)
    for x, far in ((-0.62, 1), (0.58, 1), (-0.78, 0), (0.72, 0)):
        foot = x + rng.normal(0, 0.12)
        yield _Part(
            _stroke([(x, -leg - 0.2), (x + rng.normal(0, 0.05), -leg / 2), (foot, 0)], [width * 1.5, width, width]),
            coat * (0.7 if far else 0.95),
            "fur",
            0.0,
        )
    bend = np.linspace(0, 1, 8)
    yield _Part(
        _stroke(np.column_stack([-0.9 - bend * 0.6, -leg - 0.4 - rng.uniform(-0.5, 0.8) * bend**2]), 0.2 - 0.14 * bend),
        coat,
        "fur",
        0.0,
    )
    yield _Part(
        _ellipse(0, -leg - 0.3, 1.0, rng.uniform(0.36, 0.55), 0, 0.05, rng),
        coat,
        rng.choice(["fur", "spots", "noise"]),
        0.05,
    )
    head = np.array([1.0 + 0.25 * neck, -leg - 0.55 - neck])
    yield _Part(_stroke([(0.7, -leg - 0.35), (0.85, -leg - 0.45 - neck / 2), head], [0.6, 0.42, 0.4]), coat, "fur", 0.0)
    for shift in (-0.16, 0.1):
        yield _Part(
            _rounded([head + [shift - 0.12, -0.15], head + [shift, -0.55], head + [shift + 0.14, -0.15]]),
            coat * 0.8,
            "plain",
            0.0,
        )
    yield _Part(_ellipse(*head, 0.34, 0.3, 0, 0.04, rng), coat, "fur", 0.05)
    yield _Part(_ellipse(head[0] + 0.3, head[1] + 0.08, 0.22, 0.15), coat * rng.uniform(0.7, 1.2), "plain", 0.05)
    yield _Part(_ellipse(head[0] + 0.47, head[1] + 0.02, 0.06, 0.05), np.full(3, 20.0), "plain", 0.6)
    yield _Part(_ellipse(head[0] + 0.12, head[1] - 0.08, 0.05, 0.05), np.full(3, 15.0), "plain", 0.9)


def _bird(colour: np.ndarray, rng: np.random.Generator) -> Iterator[_Part]:
    for x in (-0.1, 0.1):
        yield _Part(_stroke([(x, 0.3), (x + 0.04, 0.8)], 0.05), np.array([190, 130, 60.0]))
    yield _Part(
        _rounded([(-0.6, -0.1), (-1.7, rng.uniform(-0.2, 0.5)), (-1.6, rng.uniform(0.2, 0.6)), (-0.5, 0.3)]),
        colour * 0.7,
        "fur",
        0.0,
        0.4,
    )
    yield _Part(
        _ellipse(0, 0, 0.8, 0.5, rng.uniform(0, 0.6), 0.03, rng), colour, rng.choice(["plain", "noise", "fur"]), 0.1
    )
    yield _Part(
        _rounded([(0.3, -0.25), (-0.2, -0.3), (-1.1, 0.15), (-0.3, 0.3), (0.3, 0.1)]),
        colour * rng.uniform(0.5, 0.9),
        "fur",
        0.05,
        0.5,
    )
    yield _Part(np.array([(0.85, -0.5), (1.3, -0.35), (0.85, -0.25)]), np.array([220, 160, 50.0]))
    yield _Part(_ellipse(0.65, -0.42, 0.32, 0.3), colour * rng.uniform(0.7, 1.2), "plain", 0.1)
    yield _Part(_ellipse(0.75, -0.48, 0.05, 0.05), np.full(3, 15.0), "plain", 0.9)


def _plant(colour: np.ndarray, rng: np.random.Generator) -> Iterator[_Part]:
    green = np.array([rng.uniform(30, 110), rng.uniform(80, 160), rng.uniform(25, 80)])
    for _ in range(int(rng.integers(7, 16))):
        angle, reach = rng.uniform(-np.pi, 0), rng.uniform(0.6, 1.5)
        tip = np.array([np.cos(angle) * reach * 0.8, -1.0 + np.sin(angle) * reach])
        yield _Part(
            _stroke([(0, -0.9), tip * [0.6, 1] * 0.5 + [0, -0.5], tip], [0.08, rng.uniform(0.2, 0.45), 0.02]),
            green * rng.uniform(0.6, 1.3),
            "plain",
            0.2,
            0.5,
        )
        if rng.random() < 0.25:
            yield _Part(_ellipse(*tip, 0.2, 0.18, 0, 0.2, rng), colour, "plain", 0.1)
    yield _Part(
        np.array([(-0.5, -1.0), (0.5, -1.0), (0.38, 0), (-0.38, 0)]), random_colour(rng, muted=True), "plain", 0.3
    )


def _flower(colour: np.ndarray, rng: np.random.Generator) -> Iterator[_Part]:
    yield _Part(_stroke([(0, 0), (0.08, 1.2), (rng.normal(0, 0.3), 2.2)], 0.1), np.array([70, 120, 50.0]))
    petals = int(rng.integers(5, 14))
    for petal in range(petals):
        turn = 2 * np.pi * petal / petals
        yield _Part(
            _ellipse(0.65 * np.cos(turn), 0.65 * np.sin(turn), 0.5, 2.2 / petals, -turn),
            colour * rng.uniform(0.85, 1.1),
            "plain",
            0.1,
            0.5,
        )
    yield _Part(_ellipse(0, 0, 0.3, 0.3), random_colour(rng), "noise", 0.1)


def _device(colour: np.ndarray, rng: np.random.Generator) -> Iterator[_Part]:
    """A phone, screen, book or box."""
    width, height = rng.uniform(0.5, 1.4), rng.uniform(0.7, 1.4)
    depth = rng.uniform(0, 0.3)
    if depth > 0.08:
        side = [
            (width, -height),
            (width + depth, -height - depth * 0.6),
            (width + depth, height - depth * 0.6),
            (width, height),
        ]
        yield _Part(np.array(side), colour * 0.6, "plain", 0.1, 0.0)
        top = [
            (-width, -height),
            (width, -height),
            (width + depth, -height - depth * 0.6),
            (-width + depth, -height - depth * 0.6),
        ]
        yield _Part(np.array(top), colour * 1.1, "plain", 0.1, 0.0)
    body = _rectangle(-width, -height, width, height)
    yield _Part(_rounded(body) if depth < 0.08 and rng.random() < 0.5 else body, colour, _some_pattern(rng), 0.4, 0.1)
    inset = rng.uniform(0.8, 0.95)
    if rng.random() < 0.6:
        yield _Part(body * inset, _dark(rng) if rng.random() < 0.5 else random_colour(rng), "noise", 0.6, 0.0)


def _person(colour: np.ndarray, rng: np.random.Generator) -> Iterator[_Part]:
    trousers = random_colour(rng, muted=True)
    skin = np.array([232, 190, 160.0]) * rng.uniform(0.35, 1.0)
    stride = rng.uniform(0.05, 0.5)
    for side in (-1, 1):
        yield _Part(
            _stroke([(0.12 * side, -1.6), (0.2 * side * (1 + stride), -0.8), (side * stride, 0)], [0.42, 0.34, 0.22]),
            trousers * (0.8 if side < 0 else 1),
            "plain",
            0.0,
        )
        yield _Part(_ellipse(side * stride + 0.1, 0, 0.24, 0.1), _dark(rng))
    reach = rng.uniform(-0.5, 0.7)
    yield _Part(
        _stroke([(-0.36, -2.75), (-0.6, -2.1), (-0.5 - reach, -1.7)], [0.26, 0.22, 0.16]), colour * 0.8, "plain", 0.0
    )
    yield _Part(
        _rounded([(-0.45, -2.9), (0.45, -2.9), (0.42, -1.4), (-0.42, -1.4)]), colour, _some_pattern(rng), 0.0, 0.7
    )
    yield _Part(
        _stroke([(0.38, -2.75), (0.6, -2.2), (0.55 + reach, -1.75)], [0.26, 0.22, 0.16]), colour * 0.95, "plain", 0.0
    )
    yield _Part(_ellipse(0.55 + reach, -1.7, 0.1, 0.1), skin)
    yield _Part(_ellipse(0, -3.2, 0.24, 0.31), skin)
    yield _Part(
        _ellipse(0, -3.36, 0.27, 0.2), _dark(rng) if rng.random() < 0.7 else np.array([190, 160, 90.0]), "fur", 0.1
    )


def _blob(colour: np.ndarray, rng: np.random.Generator) -> Iterator[_Part]:
    yield _Part(
        _ellipse(0, 0, 1, rng.uniform(0.5, 1.4), 0, rng.uniform(0.1, 0.5), rng),
        colour,
        _some_pattern(rng),
        rng.uniform(0, 0.6),
        rng.uniform(0.3, 1),
    )
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(-0.6, 0.6, 2)
        size = rng.uniform(0.15, 0.5)
        yield _Part(
            _ellipse(x, y, size, size * rng.uniform(0.5, 1.5), 0, 0.3, rng),
            random_colour(rng),
            _some_pattern(rng),
            0.2,
            rng.uniform(0, 1),
        )


_BUILDERS: dict[str, Callable[[np.ndarray, np.random.Generator], Iterator[_Part]]] = {
    "fruit": _fruit,
    "bag": _bag,
    "shoe": _shoe,
    "vessel": _vessel,
    "seat": _seat,
    "animal": _animal,
    "bird": _bird,
    "plant": _plant,
    "flower": _flower,
    "device": _device,
    "person": _person,
    "blob": _blob,
}  # fmt: skip

OBJECT_KINDS = tuple(_BUILDERS)
_STANDING = {"bag", "shoe", "vessel", "seat", "animal", "plant", "person"}
