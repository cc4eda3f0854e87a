"""One scene: a background, things at its edges, a shadow, the subject, what stands before it, and a camera's flaws."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from scenes.backgrounds import draw_background
from scenes.objects import OBJECT_KINDS, draw_object
from scenes.paint import COLOURS, fill, grain, random_colour, texture
from scenes.vehicles import BODY_TYPES, draw_vehicle

KINDS = (*BODY_TYPES, *OBJECT_KINDS)

Subject = Literal["vehicle", "object", "any"]

_VEHICLE_SHARE = 0.5  # of scenes whose subject may be anything


@dataclass(frozen=True)
class Scene:
    """A picture and its truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) bool, true on the visible subject.
        kind: One of `KINDS`.
        colour: The name of the paint of the subject's main part, one of `COLOURS`.
    """

    image: np.ndarray
    mask: np.ndarray
    kind: str
    colour: str


def make_scene(
    seed: int,
    size_wh: tuple[int, int] = (256, 256),
    *,
    subject: Subject = "any",
    colour: str | None = None,
    centred: bool = True,
) -> Scene:
    """Returns the scene of a seed.

    Args:
        seed: Any non-negative number; the same arguments make the same scene.
        size_wh: Pixels.
        subject: What stands in it.
        colour: The paint of the subject; None draws one of the 18.
        centred: Whether the subject covers the centre of the picture, as the program assumes.
    """
    for attempt in range(100):
        rng = np.random.default_rng([seed, attempt])
        canvas, mask, kind, paint = _draw(size_wh, rng, subject=subject, colour=colour, centred=centred)
        if 0.015 < mask.mean() < 0.8 and (not centred or mask[size_wh[1] // 2, size_wh[0] // 2]):
            return Scene(image=_photograph(canvas, rng), mask=mask, kind=kind, colour=paint)
    raise RuntimeError(f"no scene with a subject at the centre for seed {seed}, size {size_wh}, subject {subject}")


def _draw(
    size_wh: tuple[int, int], rng: np.random.Generator, *, subject: Subject, colour: str | None, centred: bool
) -> tuple[np.ndarray, np.ndarray, str, str]:
    """Returns picture, mask, kind and colour of a scene before it is photographed."""
    is_vehicle = subject == "vehicle" or (subject == "any" and rng.random() < _VEHICLE_SHARE)
    canvas = draw_background(size_wh, rng, for_vehicle=is_vehicle)
    box = _place(size_wh, rng, is_vehicle=is_vehicle, centred=centred)
    _draw_neighbours(canvas, box, rng, vehicles=is_vehicle)
    colour = colour or COLOURS[rng.integers(len(COLOURS))]

    draw = draw_vehicle if is_vehicle else draw_object
    middle = (size_wh[0] / 2, size_wh[1] / 2) if centred else None
    shade = functools.partial(_cast_shadow, rng=rng) if rng.random() < 0.85 else None
    mask, kind = draw(canvas, box, rng, colour=colour, over_xy=middle, shade=shade)
    if rng.random() < 0.15:
        mask = mask & ~_draw_occluder(canvas, box, rng)
    return canvas, mask, kind, colour


def _place(
    size_wh: tuple[int, int], rng: np.random.Generator, *, is_vehicle: bool, centred: bool
) -> tuple[int, int, int, int]:
    """Returns a box (x0, y0, x1, y1) for the subject to stand in."""
    width, height = size_wh
    share = rng.uniform(0.35, 0.95) if rng.random() < 0.8 else rng.uniform(0.2, 0.4)
    wide, tall = width * share, height * min(0.9, share * rng.uniform(0.7, 1.1))
    spread = 0.10 if centred else 0.30
    x = width * (0.5 + np.clip(rng.normal(0, spread), -0.4, 0.4))
    y = height * (0.5 + np.clip(rng.normal(0, spread), -0.4, 0.4))
    # A vehicle is about a third as high as wide, so that its middle is near its foot.
    foot = y + min(tall / 2, wide * rng.uniform(0.12, 0.24)) if is_vehicle else y + tall / 2
    return int(x - wide / 2), int(foot - tall), int(x + wide / 2), int(foot)


def _draw_neighbours(
    canvas: np.ndarray, box: tuple[int, int, int, int], rng: np.random.Generator, *, vehicles: bool
) -> None:
    """Draws other things at the sides, partly out of the picture and partly behind the subject."""
    height, width = canvas.shape[:2]
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.5, 0.25, 0.15, 0.1]))):
        wide = (box[2] - box[0]) * rng.uniform(0.4, 1.1)
        tall = (box[3] - box[1]) * rng.uniform(0.4, 1.0)
        x = rng.choice([rng.uniform(-0.2, 0.15), rng.uniform(0.85, 1.2)]) * width
        foot = min(box[3] - rng.uniform(0.0, 0.3) * tall, height)
        other = (int(x - wide / 2), int(foot - tall), int(x + wide / 2), int(foot))
        if vehicles or rng.random() < 0.25:
            draw_vehicle(canvas, other, rng, colour=COLOURS[rng.integers(len(COLOURS))])
        else:
            draw_object(canvas, other, rng)


def _cast_shadow(canvas: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Darkens the ground at the foot of what will stand on the mask."""
    dark = _shadow(mask, rng)
    rows = np.flatnonzero(dark.max(axis=1) > 0.004)
    if len(rows):
        ground = slice(rows[0], rows[-1] + 1)
        canvas[ground] = canvas[ground] * (1 - dark[ground])[..., None]


def _shadow(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns how dark the ground is around the foot of the subject, (H, W) float32 in [0, 1]."""
    rows, columns = np.nonzero(mask)
    dark = np.zeros(mask.shape, np.float32)
    if not len(rows):
        return dark
    left, right, foot = columns.min(), columns.max(), rows.max()
    wide, flat = (right - left) / 2, max(2.0, (right - left) * rng.uniform(0.03, 0.12))
    centre = (int((left + right) / 2 + rng.normal(0, 0.12) * wide), int(foot - flat * rng.uniform(0.2, 0.8)))
    cv2.ellipse(
        dark,
        centre,
        (max(1, int(wide * rng.uniform(0.8, 1.15))), max(1, int(flat))),
        0,
        0,
        360,
        rng.uniform(0.3, 0.85),
        -1,
    )
    dark = cv2.GaussianBlur(dark, (0, 0), max(0.8, flat * rng.uniform(0.1, 0.6)))
    if rng.random() < 0.3:  # a cast shadow, the subject's own outline laid down
        shear = np.array([[1, rng.normal(0, 0.8), 0], [0, -rng.uniform(0.15, 0.5), 0]], np.float32)
        anchor = np.array([(left + right) / 2, foot], np.float32)
        shear[:, 2] = anchor - shear[:, :2] @ anchor
        cast = cv2.warpAffine(mask.astype(np.float32), shear, mask.shape[::-1])
        dark = np.maximum(dark, cv2.GaussianBlur(cast, (0, 0), 1.5) * rng.uniform(0.2, 0.6))
    return dark


def _draw_occluder(canvas: np.ndarray, box: tuple[int, int, int, int], rng: np.random.Generator) -> np.ndarray:
    """Draws a post or a branch before the subject, beside its middle; returns where, (H, W) bool."""
    height, width = canvas.shape[:2]
    covered = np.zeros((height, width), np.uint8)
    x = box[0] + (box[2] - box[0]) * rng.choice([rng.uniform(0.0, 0.3), rng.uniform(0.7, 1.0)])
    thick, lean = width * rng.uniform(0.01, 0.05), rng.normal(0, 0.08) * width
    outline = np.array([(x, -2), (x + thick, -2), (x + thick + lean, height + 2), (x + lean, height + 2)])
    fill(canvas, outline, random_colour(rng, muted=True))
    fill(covered, outline, 1)
    return covered.astype(bool)


def _photograph(canvas: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the scene as a camera stores it: light, contrast, blur, noise and JPEG's artefacts."""
    shape = canvas.shape[:2]
    curve = np.linspace(0, 1, 256)[:, None] * rng.uniform(0.96, 1.04, 3) * rng.uniform(0.9, 1.1)
    curve = 255 * np.clip(curve, 0, 1) ** rng.uniform(0.92, 1.1)
    image = cv2.LUT(canvas, curve.astype(np.float32)[:, None].repeat(1, axis=1).reshape(1, 256, 3))
    if rng.random() < 0.5:  # uneven light
        image *= (1 + 0.12 * texture(shape, rng, 1, 2.0))[..., None]
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.1) * max(shape) / 256)
    if rng.random() < 0.6:
        image += grain(shape, rng) * np.float32(rng.uniform(1, 9))
    picture = np.clip(image, 0, 255).astype(np.uint8)
    if rng.random() < 0.7:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(45, 96))]
        picture = cv2.imdecode(cv2.imencode(".jpg", picture, quality)[1], cv2.IMREAD_COLOR)
    return picture
