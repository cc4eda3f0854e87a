"""Vehicles: bodies extruded from side profiles in 3D, seen from any side, with windows, wheels, lamps and seams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from scenes.paint import fill, sample_paint, shift_onto, texture, to_fixed

# Materials, kept per pixel beside the colours, so that light and dirt can treat each in its own way.
NOTHING, PAINT, GLASS, RUBBER, TRIM, LAMP = range(6)


@dataclass(frozen=True)
class _Body:
    """A body type: lengths in metres; x forward, z up; front and rear of the cabin at its base and at its roof."""

    length: tuple[float, float]
    width: tuple[float, float]
    belt: tuple[float, float]  # height of the window sill
    roof: tuple[float, float]  # height of the roof
    hood: float  # height of the front end as a fraction of the belt
    tail: float  # height of the rear end as a fraction of the belt
    cabin: tuple[float, float, float, float]  # base rear, roof rear, roof front, base front; fractions of the length
    wheel: tuple[float, float]
    cargo: str = ""  # "bed" of a pickup, "box" of a truck


_BODIES = {
    "sedan": _Body((4.3, 4.9), (0.84, 0.92), (0.88, 0.98), (1.38, 1.5), 0.80, 0.92, (0.10, 0.27, 0.55, 0.74), (0.3, 0.35)),
    "hatchback": _Body((3.6, 4.2), (0.80, 0.88), (0.90, 1.0), (1.42, 1.56), 0.82, 1.0, (0.00, 0.10, 0.56, 0.77), (0.29, 0.34)),
    "wagon": _Body((4.4, 4.9), (0.84, 0.92), (0.90, 1.0), (1.42, 1.55), 0.80, 1.0, (0.00, 0.07, 0.56, 0.75), (0.31, 0.36)),
    "coupe": _Body((4.1, 4.7), (0.88, 0.98), (0.78, 0.88), (1.18, 1.32), 0.74, 0.95, (0.08, 0.30, 0.50, 0.72), (0.32, 0.37)),
    "suv": _Body((4.3, 5.0), (0.90, 1.0), (1.08, 1.2), (1.65, 1.9), 0.88, 1.0, (0.00, 0.06, 0.58, 0.74), (0.37, 0.44)),
    "mini": _Body((3.2, 3.7), (0.75, 0.82), (0.88, 0.96), (1.38, 1.5), 0.78, 0.92, (0.05, 0.20, 0.60, 0.78), (0.27, 0.31)),
    "van": _Body((4.6, 5.6), (0.92, 1.02), (1.15, 1.3), (1.85, 2.4), 0.82, 1.0, (0.00, 0.01, 0.74, 0.93), (0.33, 0.38)),
    "bus": _Body((7.5, 10.5), (1.15, 1.25), (1.2, 1.45), (2.7, 3.1), 1.0, 1.0, (0.00, 0.01, 0.97, 1.0), (0.44, 0.5)),
    "pickup": _Body((4.9, 5.6), (0.92, 1.0), (1.08, 1.2), (1.7, 1.9), 0.90, 0.98, (0.38, 0.42, 0.62, 0.75), (0.38, 0.44), "bed"),
    "truck": _Body((5.6, 7.5), (1.0, 1.15), (1.2, 1.4), (2.0, 2.4), 0.86, 0.55, (0.66, 0.68, 0.88, 0.97), (0.4, 0.48), "box"),
}  # fmt: skip

BODY_TYPES = tuple(_BODIES)


@dataclass(frozen=True)
class _Face:
    points: np.ndarray  # (N, 3) metres
    colour: np.ndarray  # (3,) RGB in [0, 255]
    material: int
    bias: float = 0.0  # metres towards the camera, for what lies upon another face
    two_sided: bool = False  # a sheet that stands off the body; of all else only the outer side can be seen
    is_hull: bool = False  # what is filled is the convex hull of the points: a solid, not a sheet


def draw_vehicle(
    canvas: np.ndarray,
    box: tuple[int, int, int, int],
    rng: np.random.Generator,
    *,
    colour: str,
    body_type: str | None = None,
    over_xy: tuple[float, float] | None = None,
    shade: Callable[[np.ndarray, np.ndarray], None] | None = None,
) -> tuple[np.ndarray, str]:
    """Draws a vehicle into a picture.

    Args:
        canvas: (H, W, 3) uint8 RGB, drawn upon.
        box: (x0, y0, x1, y1) pixels that the vehicle fills as far as its proportions allow, standing at the bottom.
        rng: Decides all the rest.
        colour: A name in `paint.COLOURS`.
        body_type: One of `BODY_TYPES`; None draws one.
        over_xy: A pixel to cover, if need be from outside the box; almost always the vehicle does.
        shade: Called with the canvas and the mask, (H, W) bool, before anything is drawn: what lies behind the vehicle.

    Returns:
        The mask, (H, W) bool, and the body type.
    """
    body_type = body_type or BODY_TYPES[rng.choice(len(BODY_TYPES), p=_TYPE_WEIGHTS)]
    paint = sample_paint(colour, rng)
    faces = _build(_BODIES[body_type], paint, rng)
    materials = np.zeros(canvas.shape[:2], np.uint8)
    polygons, box = _project(faces, box, rng, over_xy)
    for corners, _, material in polygons:
        fill(materials, corners, material)
    if shade is not None:
        shade(canvas, materials != NOTHING)
    for corners, colour_seen, _ in polygons:
        fill(canvas, corners, colour_seen)
    _light_up(
        canvas,
        materials,
        box,
        rng,
        metallic=colour in _METALLIC or (colour not in ("white", "beige", "yellow") and rng.random() < 0.3),
    )
    return materials != NOTHING, body_type


_TYPE_WEIGHTS = np.array([5, 4, 3, 3, 5, 2, 3, 1, 3, 1], float) / 30


def _build(body: _Body, paint: np.ndarray, rng: np.random.Generator) -> list[_Face]:
    """Returns the faces of a vehicle of one body type, its lengths drawn within the type's ranges."""
    length, half_width, belt, roof, radius = (
        rng.uniform(*limits) for limits in (body.length, body.width, body.belt, body.roof, body.wheel)
    )
    trim = np.full(3, rng.uniform(18, 60), np.float32)
    bumper = paint if rng.random() < 0.7 else trim
    glass = np.array([38, 46, 54], np.float32) * rng.uniform(0.5, 2.2)
    clearance = radius * rng.uniform(0.5, 0.75)
    hood, tail = belt * body.hood * rng.uniform(0.94, 1.04), belt * body.tail * rng.uniform(0.96, 1.02)
    rear_base, rear_roof, front_roof, front_base = (fraction * length for fraction in body.cabin)
    bulge = length * rng.uniform(0.01, 0.03)
    profile = np.array([
        (0.02 * length, clearance), (0.0, 0.5 * tail), (bulge * 0.5, 0.86 * tail), (max(rear_base * 0.4, bulge), tail),
        (max(rear_base, bulge * 1.2), belt if rear_base > 0.02 * length else tail), (front_base, belt),
        (0.5 * (front_base + length), 0.5 * (belt + hood) * 1.01), (length - bulge, hood * 0.98),
        (length, 0.66 * hood), (length - bulge * 0.3, clearance * 1.15),
    ])  # fmt: skip
    faces = _extrude(profile, half_width, paint, PAINT, taper=0.03 * half_width)
    cabin = np.array(
        [(max(rear_base, bulge), belt), (max(rear_roof, bulge * 1.5), roof), (front_roof, roof), (front_base, belt)]
    )
    faces += _cabin(cabin, half_width * 0.97, half_width * rng.uniform(0.76, 0.9), paint, glass, rng, body.cargo)
    if body.cargo == "box":
        box = np.array(
            [
                (0.0, 0.95 * tail),
                (0.0, roof * rng.uniform(1.05, 1.35)),
                (0.64 * length, roof * 1.2),
                (0.64 * length, 0.95 * tail),
            ]
        )
        box[1, 1] = box[2, 1] = box[:, 1].max()
        faces += _extrude(box, half_width * 1.02, paint * rng.uniform(0.85, 1.0), PAINT)
    if body.cargo == "bed":
        inner = trim * 0.8
        bed = [(0.03 * length, y, tail * 1.005) for y in (-0.85 * half_width, 0.85 * half_width)]
        bed += [(0.36 * length, y, tail * 1.005) for y in (0.85 * half_width, -0.85 * half_width)]
        faces.append(_Face(np.array(bed), inner, TRIM, 0.02))

    faces += _front_and_rear(length, half_width, hood, tail, clearance, bumper, trim, rng)
    rear_axle, front_axle = length * rng.uniform(0.17, 0.22), length * rng.uniform(0.79, 0.83)
    if body.cargo == "box":
        front_axle = length * 0.86
    rim = np.full(3, rng.choice([40, 120, 170, 205]) * rng.uniform(0.9, 1.1), np.float32)
    for side in (-1.0, 1.0):
        faces += _seams(front_base, rear_base, belt, clearance, side * half_width, length, paint, rng)
        for axle in (rear_axle, front_axle):
            faces += _wheel(axle, side * half_width, radius, clearance, rim, trim)
    for face in faces:
        face.points[:, 0] -= length / 2
    return faces


def _extrude(
    profile: np.ndarray, half_width: float, colour: np.ndarray, material: int, taper: float = 0.0
) -> list[_Face]:
    """Returns the two sides of a profile and the strip that joins them; the sides lean in towards the top by `taper`."""
    lean = taper * (profile[:, 1] - profile[:, 1].min()) / np.ptp(profile[:, 1])
    sides = [np.column_stack([profile[:, 0], sign * (half_width - lean), profile[:, 1]]) for sign in (-1.0, 1.0)]
    faces = [_Face(sides[0], colour, material), _Face(sides[1][::-1], colour, material)]
    for index in range(len(profile)):
        following = (index + 1) % len(profile)
        quad = np.stack([sides[0][index], sides[1][index], sides[1][following], sides[0][following]])
        faces.append(_Face(quad, colour, material))
    return faces


def _cabin(
    outline: np.ndarray,
    base_width: float,
    roof_width: float,
    paint: np.ndarray,
    glass: np.ndarray,
    rng: np.random.Generator,
    cargo: str,
) -> list[_Face]:
    """Returns roof, pillars and windows over the base; `outline` is rear base, rear roof, front roof, front base."""
    half = np.array([base_width, roof_width, roof_width, base_width])
    left, right = (np.column_stack([outline[:, 0], sign * half, outline[:, 1]]) for sign in (-1.0, 1.0))
    faces = [_Face(left, paint, PAINT), _Face(right[::-1], paint, PAINT)]
    for index in range(3):
        quad = np.stack([left[index], right[index], right[index + 1], left[index + 1]])
        faces.append(_Face(quad, paint, PAINT))
        if index != 1 and not (index == 0 and cargo == "box"):
            faces.append(_Face(_inset(quad, 0.86, 0.86), glass * (1.15 if index else 1.0), GLASS, 0.03))
    panes = 1 if cargo else int(rng.integers(2, 4))
    blind = not cargo and rng.random() < 0.12  # a delivery van
    edges = np.linspace(0, 1, panes + 1)
    for side, sign in ((left, -1.0), (right, 1.0)):
        bottom, top = (side[0], side[3]), (side[1], side[2])
        for start, end in zip(edges[:-1], edges[1:], strict=True):
            if blind and end < 0.99:
                continue
            corners = [bottom[0] + (bottom[1] - bottom[0]) * start, top[0] + (top[1] - top[0]) * start,
                       top[0] + (top[1] - top[0]) * end, bottom[0] + (bottom[1] - bottom[0]) * end]  # fmt: skip
            pane = _inset(np.array(corners), 0.88, 0.78)
            faces.append(_Face(pane if sign < 0 else pane[::-1], glass, GLASS, 0.03))
    return faces


def _inset(quad: np.ndarray, along: float, up: float) -> np.ndarray:
    """Returns a quad shrunk towards its centre, by one factor along its base and by another across."""
    centre = quad.sum(axis=0) / len(quad)
    moved = centre + (quad - centre) * along
    moved[:, 2] = centre[2] + (quad[:, 2] - centre[2]) * up
    return moved


def _front_and_rear(
    length: float,
    half_width: float,
    hood: float,
    tail: float,
    clearance: float,
    bumper: np.ndarray,
    trim: np.ndarray,
    rng: np.random.Generator,
) -> list[_Face]:
    """Returns bumpers, grille, plates and lamps."""
    faces = []

    def panel(x: float, y: tuple[float, float], z: tuple[float, float], colour: np.ndarray, material: int) -> None:
        corners = [(x, y[0], z[0]), (x, y[1], z[0]), (x, y[1], z[1]), (x, y[0], z[1])]
        faces.append(_Face(np.array(corners, float), np.asarray(colour, np.float32), material, 0.05))

    wide = half_width * 0.96
    lamp_inner, lamp_height = half_width * rng.uniform(0.5, 0.66), rng.uniform(0.1, 0.2)
    for x, height, front in ((length + 0.01, hood, True), (-0.01, tail, False)):
        panel(
            x,
            (-wide, wide),
            (clearance, height * rng.uniform(0.42, 0.5)),
            bumper * 0.96,
            PAINT if bumper is not trim else TRIM,
        )
        if front and rng.random() < 0.8:
            grille = half_width * rng.uniform(0.3, 0.6)
            panel(x + 0.01, (-grille, grille), (height * 0.52, height * 0.78), trim * 0.7, TRIM)
        panel(x + 0.01, (-0.26, 0.26), (height * 0.34, height * 0.34 + 0.11), (225, 225, 220), TRIM)
        lamp = np.array([235, 235, 225]) if front else np.array([170, 20, 24])
        for sign in (-1, 1):
            y = tuple(sorted((sign * lamp_inner, sign * half_width * 0.97)))
            panel(x + 0.01, y, (height * 0.62, height * 0.62 + lamp_height), lamp * rng.uniform(0.75, 1.0), LAMP)
    return faces


def _seams(
    front_base: float,
    rear_base: float,
    belt: float,
    clearance: float,
    y: float,
    length: float,
    paint: np.ndarray,
    rng: np.random.Generator,
) -> list[_Face]:
    """Returns door gaps, handles, a sill and a mirror of one side."""
    faces = []
    outside = y * 1.004

    def strip(x: tuple[float, float], z: tuple[float, float], colour: np.ndarray, material: int) -> None:
        corners = [(x[0], outside, z[0]), (x[0], outside, z[1]), (x[1], outside, z[1]), (x[1], outside, z[0])]
        points = np.array(corners if y < 0 else corners[::-1])
        faces.append(_Face(points, np.asarray(colour, np.float32), material, 0.04))

    doors = rng.integers(1, 3)
    start = max(rear_base, 0.28 * length)
    for x in np.linspace(start, front_base, doors + 1):
        strip((x, x + 0.016), (clearance * 1.5, belt * 0.98), paint * 0.45, PAINT)
        strip((x + 0.1, x + 0.26), (belt * 0.84, belt * 0.86), paint * 0.6, TRIM)
    strip((0.24 * length, 0.74 * length), (clearance, clearance * 1.35), paint * 0.4, TRIM)
    mirror = np.array(
        [(front_base - 0.25, y * s, belt + z) for s, z in ((1.0, 0.02), (1.18, 0.02), (1.18, 0.18), (1.0, 0.18))]
    )
    faces.append(_Face(mirror, paint * 0.8, PAINT, 0.05, two_sided=True))
    return faces


def _wheel(x: float, y: float, radius: float, clearance: float, rim: np.ndarray, trim: np.ndarray) -> list[_Face]:
    """Returns arch, tyre, rim and spokes of a wheel that stands on z = 0 (its hub at z = radius)."""
    circle = _CIRCLE * radius
    hub = np.array([x, y, radius])
    outward = np.array([0.0, np.sign(y) * 0.012, 0.0])
    arch = hub + circle * 1.16 + outward * 0.4
    arch[:, 2] = np.maximum(arch[:, 2], clearance * 0.9)
    tyre = np.full(3, 24, np.float32)
    faces = [_Face(arch, trim * 0.35, TRIM, 0.04)]
    inner = hub - np.array([0.0, np.sign(y) * 0.2, 0.0])
    solid = np.concatenate([inner + circle, hub + circle])
    faces.append(_Face(solid, tyre * 0.7, RUBBER, 0.0, two_sided=True, is_hull=True))
    faces.append(_Face(hub + circle, tyre, RUBBER, 0.06))
    faces.append(_Face(hub + outward + circle * 0.66, rim, TRIM, 0.08))
    gaps = hub + 1.5 * outward + _SPOKE_GAPS * radius
    faces += [_Face(gap, rim * 0.3, TRIM, 0.1) for gap in gaps]
    faces.append(_Face(hub + 2 * outward + circle * 0.12, rim * 0.8, TRIM, 0.12))
    return faces


def _polar(angles: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    """Returns points of the plane of a wheel, (..., 3)."""
    return np.stack([np.cos(angles) * radii, np.zeros_like(angles), np.sin(angles) * radii], axis=-1)


_CIRCLE = _polar(np.linspace(0, 2 * np.pi, 28, endpoint=False), 1.0)
_SPOKE_GAPS = _polar(
    np.linspace(0, 2 * np.pi, 5, endpoint=False)[:, None] + [0.32, 0.94, 0.63], np.array([0.56, 0.56, 0.2])
)


def _project(
    faces: list[_Face],
    box: tuple[int, int, int, int],
    rng: np.random.Generator,
    over_xy: tuple[float, float] | None,
) -> tuple[list[tuple[np.ndarray, list[float], int]], tuple[int, int, int, int]]:
    """Returns what a camera at about eye height sees, and the box in the picture that it fills.

    The faces come from far to near, each as its corners, see `to_fixed`, its RGB colour in [0, 255] and its material.
    """
    yaw = rng.uniform(0, 2 * np.pi) if rng.random() < 0.55 else rng.choice([0.5, 1.5]) * np.pi + rng.normal(0, 0.18)
    pitch = abs(rng.normal(0.09, 0.09))
    distance = rng.uniform(7.5, 20)
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    sun = rng.normal(size=3) * [1, 1, 0.3] + [0, -0.3, 1.1]
    sun /= np.linalg.norm(sun)

    # All faces at once: their points end to end, and where each face begins.
    counts = np.array([len(face.points) for face in faces])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    points = np.concatenate([face.points for face in faces])
    seen = (points - [0, 0, points[:, 2].mean()]) @ (tilt @ turn).T  # x right, y away, z up
    following = np.arange(len(points)) + 1
    following[starts + counts - 1] = starts
    normals = np.add.reduceat(np.cross(seen, seen[following]), starts)  # Newell's method: bent faces have one, too
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9
    centres = np.add.reduceat(seen, starts) / counts[:, None]
    towards_camera = (normals * (centres + [0, distance, 0])).sum(axis=1) < 0
    outwards = (normals * (centres - centres.mean(axis=0))).sum(axis=1) > 0
    shown = (towards_camera == outwards) | [face.two_sided for face in faces]
    normals[~towards_camera] *= -1
    up, light_from = tilt @ [0, 0, 1], tilt @ turn @ sun
    ambient = rng.uniform(0.55, 0.8)
    light = ambient + (1 - ambient) * np.maximum(normals @ light_from, 0) + 0.12 * np.maximum(normals @ up, 0)
    # Exposed for the vehicle: its brightest visible paint shows the paint's own colour, so that white is no gray.
    painted = np.array([face.material == PAINT for face in faces]) & towards_camera
    light *= rng.uniform(0.95, 1.05) / light[painted].max()

    flat = np.column_stack([seen[:, 0], -seen[:, 2]]) / (1 + seen[:, 1:2] / distance)
    low, high = flat.min(axis=0), flat.max(axis=0)
    x0, y0, x1, y1 = box
    scale = min((x1 - x0) / (high[0] - low[0]), (y1 - y0) / (high[1] - low[1]))
    flat = (flat - [(low[0] + high[0]) / 2, high[1]]) * scale + [(x0 + x1) / 2, y1]

    if over_xy is not None:
        flat += shift_onto(flat, over_xy, _INNER_PART)
    depths = centres[:, 1] - [face.bias for face in faces]
    kinds = np.array([face.material for face in faces])
    shades = np.where(kinds == LAMP, 0.5 + 0.5 * light, light)
    colours = np.clip(np.array([face.colour for face in faces]) * shades[:, None], 0, 255).tolist()
    corners = to_fixed(flat)
    polygons = []
    for index in np.argsort(-depths):
        if shown[index]:
            outline = corners[starts[index] : starts[index] + counts[index]]
            outline = cv2.convexHull(outline) if faces[index].is_hull else outline
            polygons.append((outline, colours[index], faces[index].material))
    low, high = np.floor(flat.min(axis=0)), np.ceil(flat.max(axis=0))
    return polygons, (int(low[0]), int(low[1]), int(high[0]), int(high[1]))


_INNER_PART = (0.12, 0.35, 0.12, 0.22)  # what a vehicle fills of its box, but for the roof's corners and the ground


_METALLIC = ("silver", "gold")  # what these are, white, beige and yellow never are


def _light_up(
    canvas: np.ndarray,
    materials: np.ndarray,
    box: tuple[int, int, int, int],
    rng: np.random.Generator,
    *,
    metallic: bool,
) -> None:
    """Adds what makes paint look like paint: soft edges between faces, a reflected horizon, a gleam, dirt."""
    height, width = canvas.shape[:2]
    x0, y0, x1, y1 = max(0, box[0] - 2), max(0, box[1] - 2), min(width, box[2] + 3), min(height, box[3] + 3)
    if x1 - x0 < 2 or y1 - y0 < 2:  # out of the picture
        return
    region, kinds = canvas[y0:y1, x0:x1].astype(np.float32), materials[y0:y1, x0:x1]
    shape = kinds.shape
    is_paint = (kinds == PAINT).astype(np.float32)
    blur = max(shape) / 90
    weight = cv2.GaussianBlur(is_paint, (0, 0), blur)
    soft = cv2.GaussianBlur(region * is_paint[..., None], (0, 0), blur) / np.maximum(weight, 0.3)[..., None]
    region += (0.6 * is_paint * np.clip(weight - 0.4, 0, 0.6))[..., None] * (soft - region)

    rows = np.linspace(0, 1, shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(0, 1, shape[1], dtype=np.float32)[None]
    horizon = rng.uniform(0.4, 0.65) + 0.05 * np.sin(columns * rng.uniform(3, 9) + rng.uniform(0, 6))
    reflection = np.tanh((horizon - rows) * rng.uniform(6, 25))
    gleam = np.exp(-(((rows - rng.uniform(0.3, 0.6)) / rng.uniform(0.02, 0.09)) ** 2))
    shine, gloss = rng.uniform(4, 26), rng.uniform(0, 45) * (rng.random() < 0.5)
    added = shine * np.maximum(reflection, 0) + gloss * gleam
    if (
        metallic
    ):  # scatters what plain lacquer gleams with, or silver would look white, and mirrors the dark ground, too
        added *= 0.4
        reflection = np.where(reflection > 0, 0.4, 2.8).astype(np.float32) * reflection
    factor = 1 + 0.10 * reflection + 0.05 * texture(shape, rng, 2, 2.0)
    region *= (1 + is_paint * (factor - 1))[..., None]
    region += (is_paint * added)[..., None]

    sky = np.array([rng.uniform(120, 220), rng.uniform(140, 225), rng.uniform(150, 240)], np.float32)
    slant = np.clip(0.5 + (columns - rows) * rng.uniform(-3, 3) + 0.3 * texture(shape, rng, 2, 3.0), 0, 1)
    mirror = ((kinds == GLASS).astype(np.float32) * rng.uniform(0, 0.6) * slant)[..., None]
    region += mirror * (sky - region)
    if rng.random() < 0.3:
        dirt = np.clip(texture(shape, rng, 3, 4.0) * 0.5 + (rows - 0.62) * 4, 0, 0.5) * rng.uniform(0.3, 1)
        region += (is_paint * dirt)[..., None] * (np.array([120, 104, 84], np.float32) - region)
    canvas[y0:y1, x0:x1] = np.clip(region, 0, 255)
