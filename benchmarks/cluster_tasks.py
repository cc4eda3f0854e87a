"""The other way to use Ray, for `benchmarks.cluster`: decoding and PNGs as tasks, only the models in an actor."""

from __future__ import annotations

import functools
import os
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import main as program
from config_utilities import Settings, read_settings
from dataset_utilities import find_photos
from flag_utilities import parse_flags
from flow_utilities import Photo, cut_photo, label_photos, segment_photos
from photo_utilities import read_photo
from picture_utilities import draw_cut_out
from png_utilities import encode_png
from record_utilities import write_atomically
from sam_utilities import to_pixels


def main() -> None:
    """Runs it with flags of the program."""
    import ray
    import ray.data

    from ray_utilities import join_cluster

    settings = read_settings(parse_flags())
    with join_cluster("local", device="cpu", actors=1):
        photos = [{"photo": pickle.dumps(file)} for file in find_photos(Path(settings.dataset_dir))]
        dataset = ray.data.from_items(photos, override_num_blocks=max(1, len(photos) // 8))
        dataset = dataset.map_batches(decode, batch_size=8, num_cpus=0.5)
        dataset = dataset.map_batches(
            Models,
            fn_constructor_args=(settings,),
            batch_size=8,
            compute=ray.data.ActorPoolStrategy(size=1),
            num_cpus=1,
        )
        dataset = dataset.map_batches(functools.partial(write, settings), batch_size=8, num_cpus=0.5)
        print(dataset.count(), "photos written")


def decode(batch: dict[str, Any]) -> dict[str, list[bytes]]:
    """Decodes photos."""
    files = [pickle.loads(each) for each in batch["photo"]]  # noqa: S301 (our own)
    return {"photo": [pickle.dumps(Photo(file, read_photo(file.path))) for file in files]}


class Models:
    """Cuts photos out and labels them."""

    def __init__(self, settings: Settings) -> None:
        import torch

        torch.set_num_threads(os.cpu_count() or 1)  # as the plain loop
        self._settings, self._machine = settings, program.select_machine(settings, 1)
        self._models = program.load_models(settings, self._machine)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Does a block of photos."""
        photos = [pickle.loads(each) for each in batch["photo"]]  # noqa: S301 (our own)
        done: list[Photo] = []
        for first in range(0, len(photos), self._machine.batch_size):
            done += self._do(photos[first : first + self._machine.batch_size])
        return {"photo": [pickle.dumps(photo) for photo in done]}

    def _do(self, photos: Sequence[Photo]) -> list[Photo]:
        sam2_model, clip_model = self._models.sam2_model, self._models.clip_model
        for photo in photos:
            photo.sam_pixels = to_pixels(photo.image, sam2_model.image_size, sam2_model.device)
        for photo in segment_photos(sam2_model, self._settings, photos):
            label_photos(clip_model, [cut_photo(clip_model, self._settings, photo)])
            photo.segmentation = None
        return list(photos)


def write(settings: Settings, batch: dict[str, Any]) -> dict[str, list[str]]:
    """Writes the cut-outs."""
    photos = [pickle.loads(each) for each in batch["photo"]]  # noqa: S301 (our own)
    for photo in photos:
        path = Path(settings.output, photo.label.item, photo.file.name)
        write_atomically(path, encode_png(draw_cut_out(photo, settings.background), photo.mask))
    return {"name": [photo.file.name for photo in photos]}


if __name__ == "__main__":
    main()
