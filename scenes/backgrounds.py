"""Where things stand: roads, rooms, walls, foliage, studios and clutter, each a picture without its subject."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from scenes.paint import fill, grain, random_colour, smooth_outline, texture, vertical_gradient


def draw_background(size_wh: tuple[int, int], rng: np.random.Generator, *, for_vehicle: bool) -> np.ndarray:
    """Returns a picture, (H, W, 3) uint8 RGB, with ground at the bottom where its kind has any."""
    weights = _FOR_VEHICLES if for_vehicle else _FOR_OBJECTS
    names = list(weights)
    chosen = names[rng.choice(len(names), p=np.array(list(weights.values())) / sum(weights.values()))]
    picture = _PAINTERS[chosen]((size_wh[1], size_wh[0]), rng)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _rgb(red: float, green: float, blue: float) -> np.ndarray:
    """Returns a colour, (3,) float32; in double precision each picture took twice the time."""
    return np.array([red, green, blue], np.float32)


def _sky(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    top = _rgb(rng.uniform(60, 190), rng.uniform(110, 200), rng.uniform(150, 245))
    if rng.random() < 0.4:
        top = _rgb(*(rng.uniform(120, 235) + rng.uniform(-8, 8, 3)))
    sky = vertical_gradient(shape, top, np.minimum(top * rng.uniform(1.0, 1.3) + 20, 250))
    if rng.random() < 0.6:
        clouds = np.clip(texture(shape, rng, 4, 3.0) - rng.uniform(-0.3, 0.8), 0, 1.4)[..., None] * 0.6
        sky += np.minimum(clouds, 1) * (rng.uniform(200, 250) - sky)
    return sky


def _leaves(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    green = _rgb(rng.uniform(30, 110), rng.uniform(60, 130), rng.uniform(20, 70))
    if rng.random() < 0.15:
        green = _rgb(rng.uniform(110, 170), rng.uniform(80, 120), rng.uniform(30, 60))
    return green * (1 + 0.42 * texture(shape, rng, 6, 6.0))[..., None]


def _facade(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A wall of plaster, brick, planks or panes."""
    height, width = shape
    wall = random_colour(rng, muted=True) * (1 + 0.06 * texture(shape, rng, 5, 3.0))[..., None]
    rows, columns = np.ogrid[:height, :width]
    pattern = rng.random()
    if pattern < 0.3:  # bricks or tiles
        course = max(3, int(height / rng.uniform(8, 30)))
        brick = int(course * rng.uniform(1.5, 3.5))
        thick = max(1, course // 9)
        # What is seen of each course; those of one parity have their joints in the same places.
        courses = np.arange(-(-height // course))[:, None]
        shifted = columns + courses % 2 * brick // 2
        tone = np.sin(courses * 12.9898 + shifted // brick * 78.233) * 43758.5453
        tone = (1 + 0.16 * (tone - np.floor(tone) - 0.5)).astype(np.float32)
        of_row = rows[:, 0] // course
        joint = (rows % course < thick) | (shifted % brick < thick)[of_row]
        wall *= tone[of_row][..., None]
        wall[joint] = wall[joint] * 0.4 + rng.uniform(90, 200) * 0.6
    elif pattern < 0.5:  # planks or a fence
        plank = max(3, int(width / rng.uniform(6, 40)))
        across = columns if rng.random() < 0.6 else rows
        wall *= np.where(across % plank < max(1, plank // 10), rng.uniform(0.3, 0.8), 1.0).astype(np.float32)[..., None]
    elif pattern < 0.75:  # windows and doors
        pane = random_colour(rng, muted=True) * 0.5
        step_x, step_y = width / rng.uniform(1.5, 6), height / rng.uniform(1.2, 4)
        start_x, start_y = rng.uniform(-step_x, 0), rng.uniform(-step_y, 0)
        inside = ((columns - start_x) % step_x < step_x * rng.uniform(0.3, 0.7)) & (
            (rows - start_y) % step_y < step_y * rng.uniform(0.4, 0.8)
        )
        wall[inside] = (pane * (1 + 0.2 * texture(shape, rng, 3, 3.0))[..., None])[inside]
    return wall


def _ground(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Asphalt, gravel, sand, grass or snow, nearer towards the bottom."""
    kind = rng.random()
    tone = rng.uniform(60, 160)
    base = _rgb(tone, tone, tone * rng.uniform(0.95, 1.05))
    cells, strength = rng.uniform(8, 30), 0.07
    if kind > 0.85:
        base, strength = _rgb(rng.uniform(60, 120), rng.uniform(90, 140), rng.uniform(30, 80)), 0.2
    elif kind > 0.75:
        base = _rgb(200, 180, 145) * rng.uniform(0.6, 1.1)
    elif kind > 0.7:
        base = _rgb(225, 230, 238) * rng.uniform(0.85, 1.05)
    ground = vertical_gradient(shape, base * rng.uniform(0.9, 1.2), base * rng.uniform(0.8, 1.1))
    ground = ground * (1 + strength * texture(shape, rng, 5, cells) + 0.06 * texture(shape, rng, 2, 2.0))[..., None]
    ground += grain(shape, rng)[..., :1] * rng.uniform(0, 8)
    if kind < 0.7 and rng.random() < 0.5:  # markings
        height, width = shape
        painted = ground.clip(0, 255).astype(np.uint8)
        white = np.array([225, 225, 215]) * rng.uniform(0.7, 1.0) if rng.random() < 0.8 else np.array([220, 180, 60.0])
        for _ in range(int(rng.integers(1, 5))):
            foot, head = rng.uniform(-0.3, 1.3, 2) * width
            near, far = rng.uniform(0.01, 0.05) * width, rng.uniform(0.002, 0.01) * width
            fill(painted, np.array([(foot, height), (foot + near, height), (head + far, 0), (head, 0)]), white)
        ground = painted.astype(np.float32)
    return ground


def _street(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = shape
    horizon = int(height * rng.uniform(0.2, 0.62))
    picture = np.empty((height, width, 3), np.float32)
    behind = rng.random()
    picture[:horizon] = _facade((horizon, width), rng) if behind < 0.35 else _sky((horizon, width), rng)
    if behind >= 0.35:
        for _ in range(int(rng.integers(0, 4))):  # houses, trees and hills before the sky
            left, wide = rng.uniform(-0.2, 1.0) * width, rng.uniform(0.1, 0.7) * width
            tall = rng.uniform(0.1, 0.95) * horizon
            x0, x1, y0 = max(0, int(left)), min(width, int(left + wide)), int(horizon - tall)
            if x1 - x0 < 3:
                continue
            shape_here = (horizon - y0, x1 - x0)
            if rng.random() < 0.45:
                picture[y0:horizon, x0:x1] = _facade(shape_here, rng)
            else:
                crown = np.zeros((*shape_here, 3), np.uint8)
                outline = np.array(
                    [
                        (0, shape_here[0]),
                        *((x, rng.uniform(0, 0.5) * shape_here[0]) for x in np.linspace(0, shape_here[1], 9)),
                        (shape_here[1], shape_here[0]),
                    ]
                )
                fill(crown, smooth_outline(outline), np.full(3, 255))
                alpha = crown[..., :1].astype(np.float32) / 255
                picture[y0:horizon, x0:x1] += alpha * (_leaves(shape_here, rng) - picture[y0:horizon, x0:x1])
    picture[horizon:] = _ground((height - horizon, width), rng)
    if rng.random() < 0.5:  # a kerb or verge along the horizon
        band = max(1, int(height * rng.uniform(0.01, 0.08)))
        picture[horizon : horizon + band] = (
            _leaves((band, width), rng)[: height - horizon] if rng.random() < 0.5 else rng.uniform(90, 190)
        )
    return picture


def _room(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = shape
    edge = int(height * rng.uniform(0.35, 0.85))
    picture = np.empty((height, width, 3), np.float32)
    picture[:edge] = _facade((edge, width), rng)
    floor = random_colour(rng, muted=True)
    picture[edge:] = floor * (1 + 0.12 * texture((height - edge, width), rng, 4, 3.0))[..., None]
    if rng.random() < 0.5:
        boards = np.arange(width) % max(4, int(width / rng.uniform(4, 20))) < 2
        picture[edge:, boards] *= 0.75
    if rng.random() < 0.4:  # a rug or a table top
        cloth = picture.clip(0, 255).astype(np.uint8)
        near = rng.uniform(0.6, 1.0) * width
        corners = np.array(
            [
                (width / 2 - near / 2, height),
                (width / 2 + near / 2, height),
                (width / 2 + near / 3, edge),
                (width / 2 - near / 3, edge),
            ]
        )
        fill(cloth, corners, random_colour(rng, muted=True))
        picture = cloth.astype(np.float32)
    return picture


def _studio(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    tone = random_colour(rng, muted=True) if rng.random() < 0.5 else _rgb(*[rng.uniform(150, 255)] * 3)
    picture = vertical_gradient(shape, tone * rng.uniform(0.8, 1.1), tone * rng.uniform(0.7, 1.1))
    return picture * (1 + 0.02 * texture(shape, rng, 2, 2.0))[..., None]


def _thicket(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    picture = _leaves(shape, rng).clip(0, 255).astype(np.uint8)
    height, width = shape
    for _ in range(int(rng.integers(10, 60))):  # blades, branches and leaves
        start = rng.uniform(0, 1, 2) * [width, height]
        reach = rng.normal(0, 0.16, 2) * max(shape)
        side = np.array([-reach[1], reach[0]]) * rng.uniform(0.03, 0.3)
        colour = np.array([rng.uniform(30, 140), rng.uniform(60, 160), rng.uniform(20, 80)]) * rng.uniform(0.4, 1.2)
        fill(
            picture,
            smooth_outline(np.array([start, start + reach / 2 + side, start + reach, start + reach / 2 - side])),
            colour,
        )
    return picture.astype(np.float32)


def _clutter(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    height, width = shape
    picture = _facade(shape, rng).clip(0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(5, 30))):
        centre = rng.uniform(0, 1, 2) * [width, height]
        size = rng.uniform(0.03, 0.28) * max(shape)
        corners = int(rng.integers(3, 9))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        outline = centre + np.column_stack([np.cos(angles), np.sin(angles)]) * size * rng.uniform(
            0.4, 1.2, (corners, 1)
        )
        fill(
            picture,
            smooth_outline(outline) if rng.random() < 0.6 else outline,
            random_colour(rng, muted=rng.random() < 0.7),
        )
    return picture * (1 + 0.1 * texture(shape, rng, 5, 5.0))[..., None]


def _fractal(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Two colours mixed by fractal noise: stone, water, cloth, blurred anything."""
    one, other = random_colour(rng, muted=True), random_colour(rng, muted=True)
    weight = np.clip(0.5 + 0.4 * texture(shape, rng, 5, rng.uniform(1.5, 6)), 0, 1)[..., None]
    picture = one + weight * (other - one)
    return cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.3, 6))


_PAINTERS: dict[str, Callable[[tuple[int, int], np.random.Generator], np.ndarray]] = {
    "street": _street,
    "room": _room,
    "facade": _facade,
    "studio": _studio,
    "thicket": _thicket,
    "clutter": _clutter,
    "fractal": _fractal,
}
_FOR_VEHICLES = {"street": 12, "facade": 1, "studio": 1.5, "thicket": 1, "clutter": 1, "fractal": 1, "room": 0.5}
_FOR_OBJECTS = {"street": 4, "room": 4, "facade": 2, "studio": 2, "thicket": 3, "clutter": 3, "fractal": 2}
