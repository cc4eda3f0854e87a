"""What each option changes: where SAM 2 is pointed, what is done to masks, what CLIP sees.

python -m benchmarks.options                       the bundled models on held-out scenes
python -m benchmarks.options --photos DIR          on the held-out photos of training's DIR
python -m benchmarks.options --scenes 100          fewer of each set

Two sets hold windows of larger scenes whose centre misses the subject: by as little as can be, beside it or in a hole,
and by as much as can be while the window shows nine tenths of it. IoU is that of the final mask with the true one; the
difference to the default comes with a 95% interval over the pictures.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.quality import ALL_KINDS_SEEDS, VEHICLE_SEEDS, Example, iou, masked_example, scene_examples
from clip_utilities import ClipModel
from config_utilities import MICRO_CLIP, MICRO_SAM2, PROGRAM_DIR, read_config
from focus_utilities import Focus
from mask_utilities import clean_mask, paint_background, square_view, subject_mask
from photo_utilities import read_photo
from prompt_utilities import get_prompts
from sam_utilities import Sam2, Segmentation, load_sam2, predict_sam2
from scenes import make_scene
from training.photos import colour_photo_paths, masked_photo_paths

OFF_CENTRE_SEEDS = 32_000_000
_SCENE_SIDE, _WINDOW_SIDE, _SIDE, _STEP = 384, 288, 256, 8  # pixels
_KEPT = 0.9  # of the subject that a window must show
_CLEANED = 0.02  # what --clean-mask means without a number

Masks = list[np.ndarray]


def main() -> None:
    """Measures and prints a table per set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam-model", default=MICRO_SAM2)
    parser.add_argument("--clip-model", default=MICRO_CLIP)
    parser.add_argument("--scenes", type=int, default=300, help="of each set (default: 300)")
    parser.add_argument("--photos", type=Path, help="the folder of photos that training was given")
    parser.add_argument("--first-seed", type=int, default=0, help="added to every seed: other scenes")
    arguments = parser.parse_args()
    config = read_config(PROGRAM_DIR / "config.json")
    prompts = get_prompts(config["prefixes"], config["items"], config["postfixes"])
    sam2_model = load_sam2(arguments.sam_model)
    clip_model = ClipModel(arguments.clip_model, items=config["items"], prompts=prompts)
    more = arguments.first_seed
    if arguments.photos:
        coloured = colour_photo_paths(arguments.photos, config["items"], held_out=True)
        sets = {
            "held-out photos": [masked_example(path) for path in masked_photo_paths(arguments.photos, held_out=True)],
            "held-out vehicles": [Example(read_photo(path), None, item) for path, item in coloured],
        }
    else:
        seed = OFF_CENTRE_SEEDS + more
        sets = {
            "vehicle scenes": scene_examples(VEHICLE_SEEDS + more, arguments.scenes, vehicles=True),
            "all scenes": scene_examples(ALL_KINDS_SEEDS + more, arguments.scenes, vehicles=False),
            "centre beside the subject": list(off_centre_examples(seed, arguments.scenes, far=False)),
            "centre far from the subject": list(off_centre_examples(seed, arguments.scenes, far=True)),
        }
    for name, examples in sets.items():
        Console().print(compare(name, examples, sam2_model, clip_model))


def off_centre_examples(first_seed: int, count: int, *, far: bool) -> Iterator[Example]:
    """Yields pictures whose centre misses their subject a little, or by far, though most of it is in the picture."""
    seed = first_seed
    while count:
        scene = make_scene(seed, (_SCENE_SIDE, _SCENE_SIDE), subject="any")
        seed += 1
        window = off_centre_window(scene.mask, far=far)
        if window is not None:
            size_wh = (_SIDE, _SIDE)
            image = cv2.resize(scene.image[window], size_wh, interpolation=cv2.INTER_AREA)
            mask = cv2.resize(scene.mask[window].astype(np.uint8), size_wh, interpolation=cv2.INTER_AREA) > 0
            yield Example(image, mask, None)
            count -= 1


def off_centre_window(mask: np.ndarray, *, far: bool) -> tuple[slice, slice] | None:
    """Returns a window whose centre misses the (H, W) bool mask by as little, or as much, as can be; or None."""
    area, best = mask.sum(), None
    distances = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)  # to the subject
    half = _WINDOW_SIDE // 2
    for top in range(0, len(mask) - _WINDOW_SIDE + 1, _STEP):
        for left in range(0, mask.shape[1] - _WINDOW_SIDE + 1, _STEP):
            window = slice(top, top + _WINDOW_SIDE), slice(left, left + _WINDOW_SIDE)
            distance = distances[top + half, left + half] * (-1 if far else 1)
            if distance and mask[window].sum() >= _KEPT * area and (best is None or distance < best[0]):
                best = distance, window
    return None if best is None else best[1]


def compare(name: str, examples: Sequence[Example], sam2_model: Sam2, clip_model: ClipModel) -> Table:
    """Returns the table of a set: options, what they change, and by how much."""
    refine = sam2_model.image_size < 512  # pixels: as the program does with its micro models
    found = {
        "default": [_segment(example, sam2_model) for example in examples],
        "--focus grid": [_segment(example, sam2_model, grid=True) for example in examples],
    }
    if examples[0].mask is not None:
        found["a box and its centre (true ones)"] = [
            _segment(example, sam2_model, focus=true_focus(example.mask)) for example in examples
        ]
    masks = {option: _masks(examples, results, refine=refine) for option, results in found.items()}
    default = found["default"]
    other = "--no-refine" if refine else "--refine"
    masks[other] = _masks(examples, default, refine=not refine)
    masks[f"--clean-mask {_CLEANED:g}"] = [
        clean_mask(mask, result.focus.point, _CLEANED) for mask, result in zip(masks["default"], default, strict=True)
    ]
    table = Table(title=f"{name}, {len(examples)} pictures", title_justify="left")
    for column in ("option", "changes", "IoU", "difference"):
        table.add_column(column, justify="left" if column == "option" else "right")
    if examples[0].mask is not None:
        truths = [example.mask for example in examples]
        scores = {option: np.array([*map(iou, some, truths)]) for option, some in masks.items()}
        for option, some in masks.items():
            changed = np.mean([not np.array_equal(*pair) for pair in zip(some, masks["default"], strict=True)])
            table.add_row(
                option,
                f"{changed:.0%}",
                f"{scores[option].mean():.3f}",
                _difference(scores[option] - scores["default"]),
            )
    if examples[0].colour is not None:
        views: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
            "colour, --clip-view full": lambda view, _: view,
            "colour, --clip-view crop": square_view,
        }
        answers = {option: _colours(examples, masks["default"], view, clip_model) for option, view in views.items()}
        first = answers["colour, --clip-view full"]
        for option, right in answers.items():
            table.add_row(
                option,
                f"{np.mean(right != first):.0%}",
                f"{right.mean():.3f}",
                _difference(right.astype(float) - first),
            )
    return table


def true_focus(mask: np.ndarray) -> Focus:
    """Returns the focus of a detector that never errs: the subject's true box and its centre."""
    x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
    box = (float(x), float(y), float(x + width), float(y + height))
    return Focus("detector", (x + width // 2, y + height // 2), box)


def _segment(example: Example, sam2_model: Sam2, *, focus: Focus | None = None, grid: bool = False) -> Segmentation:
    foci = None if focus is None else [focus]
    [result] = predict_sam2([example.image], sam2_model, focuses=foci, grid=grid)
    return result


def _masks(examples: Sequence[Example], results: Sequence[Segmentation], *, refine: bool) -> Masks:
    pairs = zip(examples, results, strict=True)
    return [subject_mask(example.image, result.mask_logits, refine=refine) for example, result in pairs]


def _colours(
    examples: Sequence[Example],
    masks: Masks,
    view: Callable[[np.ndarray, np.ndarray], np.ndarray],
    clip_model: ClipModel,
) -> np.ndarray:
    """Returns where CLIP names the true colour, (N,) bool."""
    right = []
    for example, mask in zip(examples, masks, strict=True):
        shown = view(paint_background(example.image, mask), mask) if mask.any() else example.image
        right.append(clip_model.process([shown])[0].item == example.colour)
    return np.array(right)


def _difference(values: np.ndarray) -> str:
    half = 1.96 * values.std() / math.sqrt(len(values))
    return f"{values.mean():+.3f} ± {half:.3f}" if half else f"{values.mean():+.3f}"


if __name__ == "__main__":
    main()
