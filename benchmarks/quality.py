"""How good masks and labels are.

python -m benchmarks.quality                                    the bundled models on held-out scenes
python -m benchmarks.quality --photos DIR                       on photos with masks: DIR/**/a.jpg with a.png beside it
python -m benchmarks.quality --photos DIR --classes             on photos in class folders: DIR/red/a.jpg
python -m benchmarks.quality --photos DIR --held-out            on what training left of DIR/masks and DIR/colours
python -m benchmarks.quality --sam-model sam2.1_hiera_large --clip-model ViT-L/14@336px    any other models

IoU is the mean intersection over union of the program's final mask with the true one. Colours are chosen among the
items of config.json by all of its prompts; near-synonyms count as wrong. Shares come with 95% Wilson intervals.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.baselines import colour_centres, grabcut_mask, nearest_colour
from clip_utilities import ClipModel
from config_utilities import MICRO_CLIP, MICRO_SAM2, PROGRAM_DIR, read_config
from evaluation_utilities import wilson_interval
from mask_utilities import paint_background, subject_mask
from photo_utilities import read_photo
from prompt_utilities import get_prompts
from sam_utilities import Sam2, load_sam2, predict_sam2
from scenes import make_scene
from training.photos import colour_photo_paths, item_of_folder, masked_photo_paths

VEHICLE_SEEDS = 30_000_000  # never trained on, nor among the sample photos
ALL_KINDS_SEEDS = 31_000_000
SIZE_WH = (256, 256)
_TIMED = 100  # photos: enough for a mean time


@dataclass(frozen=True)
class Example:
    """A picture with what is known of it; `mask` and `colour` are None where they are not."""

    image: np.ndarray
    mask: np.ndarray | None
    colour: str | None


@dataclass(frozen=True)
class Measure:
    """One line of the result: a mean or a share, over how many pictures, and how far to trust it."""

    name: str
    value: float
    count: int
    low: float
    high: float


def main() -> None:
    """Measures and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam-model", default=MICRO_SAM2)
    parser.add_argument("--sam-config")
    parser.add_argument("--clip-model", default=MICRO_CLIP)
    parser.add_argument("--scenes", type=int, default=500, help="scenes of each set (default: 500)")
    parser.add_argument("--photos", type=Path, help="folder of photos to measure on instead of scenes")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--classes", action="store_true", help="the folders of --photos are colours, not sets of masks")
    kind.add_argument("--held-out", action="store_true", help="of training's --photos, those kept for validation")
    parser.add_argument("--refine", action=argparse.BooleanOptionalAction, help="default: on with the micro model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.held_out and not arguments.photos:
        parser.error("--held-out: of which photos? add --photos with the folder that training was given")

    config = read_config(PROGRAM_DIR / "config.json")
    prompts = get_prompts(config["prefixes"], config["items"], config["postfixes"])
    sam2_model = load_sam2(arguments.sam_model, arguments.sam_config, arguments.device)
    clip_model = ClipModel(arguments.clip_model, arguments.device, items=config["items"], prompts=prompts)
    if arguments.held_out:
        try:
            masked = masked_photo_paths(arguments.photos, held_out=True)
            coloured = colour_photo_paths(arguments.photos, config["items"], held_out=True)
        except FileNotFoundError as error:
            parser.error(f"--photos {error}")
        examples = {
            "held-out photos with masks": [masked_example(path) for path in masked],
            "held-out vehicles": [Example(read_photo(path), None, item) for path, item in coloured],
        }
    elif arguments.photos:
        items = config["items"] if arguments.classes else None
        examples = {str(arguments.photos): list(read_examples(arguments.photos, items))}
    else:
        examples = {
            "vehicle scenes": scene_examples(VEHICLE_SEEDS, arguments.scenes, vehicles=True),
            "all scenes": scene_examples(ALL_KINDS_SEEDS, arguments.scenes, vehicles=False),
        }
    refine = arguments.sam_model == MICRO_SAM2 if arguments.refine is None else arguments.refine
    measures = [
        measure
        for name, some in examples.items()
        for measure in measure_quality(name, some, sam2_model, clip_model, refine=refine)
    ]
    if arguments.json:
        json.dump([vars(measure) for measure in measures], sys.stdout, indent=1)
        return
    table = Table(title=f"{arguments.sam_model} and {arguments.clip_model}", title_justify="left")
    for column in ("measure", "value", "95%", "pictures"):
        table.add_column(column, justify="left" if column == "measure" else "right")
    for measure in measures:
        table.add_row(
            measure.name, f"{measure.value:.3f}", f"{measure.low:.3f} to {measure.high:.3f}", str(measure.count)
        )
    Console().print(table)


def scene_examples(first_seed: int, count: int, *, vehicles: bool) -> list[Example]:
    """Returns held-out scenes with a subject at the centre; the colours of objects other than vehicles are left out."""
    scenes = [
        make_scene(seed, SIZE_WH, subject="vehicle" if vehicles else "any")
        for seed in range(first_seed, first_seed + count)
    ]
    return [Example(scene.image, scene.mask, scene.colour if vehicles else None) for scene in scenes]


def read_examples(folder: Path, items: Sequence[str] | None) -> Iterator[Example]:
    """Yields the photos of a folder with their masks, or, given the items, with those that their folders name."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"{folder}: no .jpg in it; name a folder of photos with --photos")
    for path in paths:
        if items is not None:
            yield Example(read_photo(path), None, item_of_folder(path.parent.name, items))
        elif path.with_suffix(".png").exists():
            yield masked_example(path)


def masked_example(path: Path) -> Example:
    """Returns a photo with the mask beside it, a .png of the same name."""
    return Example(read_photo(path), read_photo(path.with_suffix(".png"))[..., 0] > 127, None)


def measure_quality(
    name: str, examples: Sequence[Example], sam2_model: Sam2, clip_model: ClipModel, *, refine: bool
) -> Iterator[Measure]:
    """Yields the measures that the examples allow, each with its baseline."""
    began = time.perf_counter()
    masks = [subject_mask(example.image, logits, refine=refine) for example, logits in _segment(examples, sam2_model)]
    sam_seconds = time.perf_counter() - began
    if examples[0].mask is not None:
        truths = [example.mask for example in examples]
        yield mean_measure(f"{name}: IoU", [iou(*pair) for pair in zip(masks, truths, strict=True)])
        grabcut = [grabcut_mask(example.image) for example in examples]
        yield mean_measure(f"{name}: IoU of GrabCut", [iou(*pair) for pair in zip(grabcut, truths, strict=True)])
    cut_outs = [paint_background(example.image, mask) for example, mask in zip(examples, masks, strict=True)]
    began = time.perf_counter()
    chosen = [clip_model.process([cut_out])[0].item for cut_out in cut_outs]
    clip_seconds = time.perf_counter() - began
    if examples[0].colour is not None:
        colours = [example.colour for example in examples]
        uncut = [clip_model.process([example.image])[0].item for example in examples]
        centres = colour_centres(clip_model.items)
        nearest = [
            nearest_colour(example.image, mask, centres) if mask.any() else ""
            for example, mask in zip(examples, masks, strict=True)
        ]
        for title, answers in (("colour", chosen), ("colour, uncut (-x)", uncut), ("nearest CIELAB colour", nearest)):
            yield share_measure(f"{name}: {title}", [one == other for one, other in zip(answers, colours, strict=True)])
    yield _time_measure(f"{name}: seconds a photo", sam_seconds + clip_seconds, len(examples))
    if refine:
        some = examples[:_TIMED]
        began = time.perf_counter()
        for example, logits in _segment(some, sam2_model):
            subject_mask(example.image, logits)
        models_alone = clip_seconds * len(some) / len(examples) + time.perf_counter() - began
        yield _time_measure(f"{name}: seconds a photo, without GrabCut", models_alone, len(some))


def _segment(examples: Sequence[Example], sam2_model: Sam2) -> Iterator[tuple[Example, np.ndarray]]:
    for example in examples:
        [segmentation] = predict_sam2([example.image], sam2_model)
        yield example, segmentation.mask_logits


def _time_measure(name: str, seconds: float, count: int) -> Measure:
    return Measure(name, seconds / count, count, seconds / count, seconds / count)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the intersection over union of two masks; 1 where both are empty."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


def mean_measure(name: str, values: Sequence[float]) -> Measure:
    """Returns a mean with its normal 95% interval."""
    mean, half = float(np.mean(values)), 1.96 * float(np.std(values)) / math.sqrt(len(values))
    return Measure(name, mean, len(values), mean - half, mean + half)


def share_measure(name: str, hits: Sequence[bool]) -> Measure:
    """Returns a share with its 95% Wilson interval."""
    return Measure(name, float(np.mean(hits)), len(hits), *wilson_interval(sum(hits), len(hits)))


if __name__ == "__main__":
    main()
