"""Real photos for training and validation, and training pictures of them and of generated scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np

from scenes import Scene, make_scene
from scenes.backgrounds import draw_background

_HELD_OUT = 8  # every eighth photo with a mask is kept for validation
FIRST_HELD_OUT_SEED = 10_000_000  # scenes from here on are never trained on
_LONGEST_SIDE = 480  # photos are kept in memory at this size: reading one costs more than cropping it
_VEHICLE_SHARE = 0.65  # of scenes
_SCENES_KEPT = 8000
_SCENES_AT_FIRST = 500  # new ones, before any is seen again
_FRESH_SHARE = 0.2  # of scenes; the others are seen again, cropped and coloured anew
_AIMED_SHARE = 0.5  # of pictures whose point is chosen on the object instead of at the centre
_LEAST_SHOWN, _LEAST_PIXELS = 0.5, 64  # of an object
_RECOLOURED_SHARE = 0.5  # of scenes; photos are so few that all are

# Other names of an item: for prompts, and for the folders of photos.
SYNONYMS = {
    "gray": ("grey",),
    "beige": ("tan",),
    "gold": ("golden",),
    "maroon": ("burgundy", "dark red"),
    "navy": ("navy blue", "dark blue"),
    "purple": ("violet",),
}


def masked_photo_paths(folder: Path, *, held_out: bool) -> list[Path]:
    """Returns the photos `folder/masks/<set>/<name>.jpg` to train on, or those kept for validation.

    Raises:
        FileNotFoundError: There are none.
    """
    paths = sorted(folder.glob("masks/*/*.jpg"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no masks/<set>/*.jpg in it; leave out --photos to use scenes alone")
    return [path for index, path in enumerate(paths) if (index % _HELD_OUT == 0) == held_out]


def colour_photo_paths(folder: Path, items: Sequence[str], *, held_out: bool) -> list[tuple[Path, str]]:
    """Returns the photos `folder/colours/<item>/<name>.jpg` with their items: four fifths of each, or the others.

    The first by name are to train on: photos of the same car mostly stand together.

    Raises:
        FileNotFoundError: There are none.
    """
    photos: list[tuple[Path, str]] = []
    for colour_dir in sorted(folder.glob("colours/*")):
        item = item_of_folder(colour_dir.name, items)
        if item in items:
            paths = sorted(colour_dir.glob("*.jpg"))
            first_held_out = len(paths) * 4 // 5
            photos += [(path, item) for path in (paths[first_held_out:] if held_out else paths[:first_held_out])]
    if not photos:
        raise FileNotFoundError(f"{folder}: no colours/<item>/*.jpg in it; leave out --photos to use scenes alone")
    return photos


def item_of_folder(name: str, items: Sequence[str]) -> str:
    """Returns the item that a folder's name means: `grey` is gray, unless it is an item of its own."""
    return next((item for item in items if name not in items and name in SYNONYMS.get(item, ())), name)


class MaskedPhotos:
    """Photos with masks of their central object, in `DIR/masks/<set>/<name>.jpg` and `<name>.png`.

    Args:
        folder: DIR.
        held_out: The validation part instead of the training part.
    """

    def __init__(self, folder: Path, *, held_out: bool) -> None:
        self._paths = masked_photo_paths(folder, held_out=held_out)
        # A set counts by the square root of its size: many pets must not drown the few vehicles.
        sizes = Counter(path.parent.name for path in self._paths)
        weights = np.array([sizes[path.parent.name] ** -0.5 for path in self._paths])
        self._weights = weights / weights.sum()

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns a photo, (H, W, 3) uint8 RGB, at most `_LONGEST_SIDE` long, and its mask, (H, W) bool."""
        return _read_shrunk(self._paths[index])

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns a photo and its mask, drawn by the weights of the sets."""
        return self.read(int(rng.choice(len(self._paths), p=self._weights)))


@cache
def _read_shrunk(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    mask = cv2.imread(str(path.with_suffix(".png")), cv2.IMREAD_GRAYSCALE)
    scale = min(1.0, _LONGEST_SIDE / max(mask.shape))
    size = (round(mask.shape[1] * scale), round(mask.shape[0] * scale))
    image, mask = (cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) for pixels in (image, mask))
    return image, mask > 127


def training_pictures(
    seed: int, size: int, photos: MaskedPhotos | None, *, real_share: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields square pictures, (size, size, 3) uint8 RGB, and their masks, (size, size) bool, without end."""
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while True:
        is_scene = photos is None or rng.random() > real_share
        if is_scene:
            scene = _draw_scene(scenes, size, rng)
            picture, mask = scene.image, scene.mask
            if rng.random() < 0.5:
                picture, mask = _crop(picture, mask, size, rng)
            elif rng.random() < 0.5:
                picture, mask = picture[:, ::-1], mask[:, ::-1]
        else:
            picture, mask = _crop(*photos.draw(rng), size, rng)
            if rng.random() < 0.25:
                picture = _paste(picture, mask, photos, rng)
        if mask[size // 2, size // 2]:
            if not is_scene or rng.random() < _RECOLOURED_SHARE:
                picture = _vary_colours(picture, rng)
            yield picture, mask


def aim(
    picture: np.ndarray, mask: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns a training picture and its mask, perhaps with the object off the centre, and prompts for it.

    Half of the pictures stay as they are, with a point near their centre. The others are moved or cut down to a window,
    so far as half of the object remains, and the point lies somewhere inside that.

    Returns:
        (s, s, 3) uint8, (s, s) bool, the point (x, y) and the box (x0, y0, x1, y1) in pixels, float32.
    """
    size = len(mask)
    point = size / 2 + 0.01 * size * rng.standard_normal(2)
    if rng.random() < _AIMED_SHARE:
        scale, most = (1.0, 0.35) if rng.random() < 0.5 else (1 / rng.uniform(0.55, 1.0), 0.0)
        room = (scale - 1) * size
        shift = -room / 2 + rng.uniform(-1, 1, 2) * (room / 2 + most * size)
        matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        moved = cv2.warpAffine(mask.astype(np.uint8), matrix, (size, size), flags=cv2.INTER_NEAREST) > 0
        if moved.sum() >= max(_LEAST_SHOWN * mask.sum() * scale**2, _LEAST_PIXELS):
            picture = cv2.warpAffine(picture, matrix, (size, size), borderMode=cv2.BORDER_REFLECT_101)
            mask = moved
        depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
        rows, columns = np.nonzero(depth > rng.uniform(0.2, 0.9) * depth.max())
        chosen = rng.integers(len(rows))
        point = np.array([columns[chosen], rows[chosen]])
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    box = np.array([x, y, x + width, y + height]) + 0.04 * rng.standard_normal(4) * [width, height, width, height]
    return picture, mask, point.astype(np.float32), box.clip(0, size).astype(np.float32)


def _draw_scene(kept: list[Scene], size: int, rng: np.random.Generator) -> Scene:
    """Returns a new scene, which replaces one of those kept when these are many, or one of them."""
    if len(kept) >= _SCENES_AT_FIRST and rng.random() > _FRESH_SHARE:
        return kept[rng.integers(len(kept))]
    subject = "vehicle" if rng.random() < _VEHICLE_SHARE else "object"
    scene = make_scene(int(rng.integers(FIRST_HELD_OUT_SEED)), (size, size), subject=subject)
    if len(kept) < _SCENES_KEPT:
        kept.append(scene)
    else:
        kept[rng.integers(len(kept))] = scene
    return scene


def _crop(image: np.ndarray, mask: np.ndarray, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns a square crop around the object, its centre on the object, turned, stretched and mirrored at random."""
    distance = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 3)
    rows, columns = np.nonzero(distance > rng.uniform(0, 0.6) * distance.max())
    middle = np.array([columns.mean(), rows.mean()])
    some = rng.integers(len(rows), size=200)
    near = np.abs(columns[some] - middle[0]) + np.abs(rows[some] - middle[1]) + rng.uniform(0, 0.4 * size, len(some))
    chosen = int(some[near.argmin()])
    box_rows, box_columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    extent = max(np.ptp(box_rows), np.ptp(box_columns)) + 1
    side = np.clip(extent / rng.uniform(0.35, 1.1), 48, 1.5 * max(mask.shape))
    aspect = np.exp(rng.normal(0, 0.18))
    scale = np.array([size / side * aspect, size / side / aspect])
    angle = rng.normal(0, 0.12)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale[:, None]
    if rng.random() < 0.5:
        turn[0] *= -1
    matrix = np.column_stack([turn, size / 2 - turn @ [columns[chosen], rows[chosen]]])
    shape = (size, size)
    picture = cv2.warpAffine(image, matrix, shape, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT_101)
    # What is mirrored at the border is no part of the object; neither is it shown as one: blur it.
    inside = cv2.warpAffine(np.ones(mask.shape, np.uint8), matrix, shape)
    if not inside.all():
        blurred = cv2.blur(cv2.blur(picture, (size // 12, size // 12)), (size // 12, size // 12))
        picture = np.where(inside[..., None] > 0, picture, blurred)
    cut = cv2.warpAffine(mask.astype(np.uint8) * 255, matrix, shape, flags=cv2.INTER_LINEAR)
    return picture, cut > 127


def _paste(picture: np.ndarray, mask: np.ndarray, photos: MaskedPhotos, rng: np.random.Generator) -> np.ndarray:
    """Returns the object before another photo or a generated background."""
    size = len(mask)
    if rng.random() < 0.5:
        other, _ = photos.draw(rng)
        behind = cv2.resize(other, (size, size), interpolation=cv2.INTER_AREA)
    else:
        behind = draw_background((size, size), rng, for_vehicle=rng.random() < 0.5)
    edge = cv2.GaussianBlur(cv2.erode(mask.astype(np.float32), np.ones((3, 3))), (0, 0), 0.8)[..., None]
    return (picture * edge + behind * (1 - edge)).astype(np.uint8)


def _vary_colours(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the picture in another light, with other contrast and saturation, sometimes with shuffled channels."""
    if rng.random() < 0.15:
        picture = picture[..., rng.permutation(3)]
    saturation = 0.0 if rng.random() < 0.05 else rng.uniform(0.5, 1.6)
    contrast, light = rng.uniform(0.6, 1.4), rng.uniform(-40, 40)
    matrix = contrast * (saturation * np.eye(3) + (1 - saturation) / 3)
    matrix = np.column_stack([matrix, np.full(3, 128 - 128 * contrast + light)]) * rng.uniform(0.88, 1.12, (3, 1))
    image = cv2.transform(np.ascontiguousarray(picture), matrix)
    if rng.random() < 0.2:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.5))
    if rng.random() < 0.2:
        noise = cv2.randn(np.empty(image.shape, np.int16), 0, rng.uniform(2, 12))
        image = cv2.add(image, noise, dtype=cv2.CV_8U)
    return image
