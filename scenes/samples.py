"""The sample photos: python -m scenes.samples dataset_cars writes the same 24 pictures again."""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image

from scenes import COLOURS, make_scene

FIRST_SEED = 20_000_000  # never trained on, and none that benchmarks/quality.py measures on
COUNT = 24
_SIZES = [(640, 480), (800, 600), (480, 640), (720, 480)]


def write_samples(folder: Path) -> None:
    """Writes 24 vehicles, every colour at least once, as JPEG and PNG; a quarter of them in a subfolder."""
    for index in range(COUNT):
        scene = make_scene(
            FIRST_SEED + index, _SIZES[index % len(_SIZES)], subject="vehicle", colour=COLOURS[index % len(COLOURS)]
        )
        ending = "png" if index % 12 == 5 else "jpg"
        path = folder / ("street" if index % 4 == 3 else "") / f"{index + 1:02}_{scene.kind}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(path, quality=88, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    write_samples(parser.parse_args().folder)
