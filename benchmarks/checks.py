"""How many wrong labels a second opinion catches, how many right ones it disturbs, and what low margins do instead.

python -m benchmarks.checks                                the bundled models on held-out vehicle scenes
python -m benchmarks.checks --photos DIR                   on photos in class folders: DIR/red/a.jpg
python -m benchmarks.checks --photos DIR --held-out        on what training left of DIR/colours

Each check is compared with the margin, which costs nothing: of as many photos with the lowest margins, so many have a
wrong label. A check can still be of use beside it: "both" flags the check's photos and as many with the lowest margins,
and is compared with as many lowest margins as both are together. "any view" doubts a label as soon as one other view
differs. Shares come with 95% Wilson intervals.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.quality import VEHICLE_SEEDS, Example, read_examples, scene_examples
from check_utilities import colour_disagrees, is_disputed, other_views
from clip_utilities import ClipModel
from config_utilities import MICRO_CLIP, MICRO_SAM2, PROGRAM_DIR, ClipView, read_config
from evaluation_utilities import wilson_interval
from mask_utilities import paint_background, square_view, subject_mask
from photo_utilities import read_photo
from prompt_utilities import get_prompts
from sam_utilities import Sam2, load_sam2, predict_sam2
from training.photos import colour_photo_paths


@dataclass(frozen=True)
class Opinion:
    """What is known of one photo's label.

    Attributes:
        is_wrong: The label is not the photo's colour.
        margin: Of the label; see `prompt_utilities.Label`.
        doubts: By the name of a check, whether it doubts the label.
        doubts_chance: The check of colours would doubt another item than the photo's, drawn at random.
    """

    is_wrong: bool
    margin: float
    doubts: Mapping[str, bool]
    doubts_chance: bool


@dataclass(frozen=True)
class CheckResult:
    """What a check does to some photos, in numbers of them; `lowest` is of as many photos with the lowest margins.

    Attributes:
        name: Of the check.
        photos: All of them.
        wrong: Photos with a wrong label.
        caught: Wrong labels that are flagged.
        disturbed: Right labels that are flagged.
        lowest_caught: Wrong labels among as many lowest margins as are flagged.
        both: Photos that the check or as many lowest margins flag.
        both_caught: Wrong labels among these.
        lowest_both_caught: Wrong labels among as many lowest margins as `both`.
    """

    name: str
    photos: int
    wrong: int
    caught: int
    disturbed: int
    lowest_caught: int
    both: int
    both_caught: int
    lowest_both_caught: int


def main() -> None:
    """Measures and prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam-model", default=MICRO_SAM2)
    parser.add_argument("--clip-model", default=MICRO_CLIP)
    parser.add_argument("--clip-view", choices=get_args(ClipView), default="full", help="as the program's")
    parser.add_argument("--scenes", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--first-seed", type=int, default=VEHICLE_SEEDS, help="of the scenes")
    parser.add_argument("--photos", type=Path, help="folder of photos to measure on instead of scenes")
    parser.add_argument("--held-out", action="store_true", help="of training's --photos, those kept for validation")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.held_out and not arguments.photos:
        parser.error("--held-out: of which photos? add --photos with the folder that training was given")

    config = read_config(PROGRAM_DIR / "config.json")
    items, colours = config["items"], config.get("colours", {})
    if arguments.held_out:
        try:
            paths = colour_photo_paths(arguments.photos, items, held_out=True)
        except FileNotFoundError as error:
            parser.error(f"--photos {error}")
        examples = [Example(read_photo(path), None, item) for path, item in paths]
    elif arguments.photos:
        examples = list(read_examples(arguments.photos, items))
    else:
        examples = scene_examples(arguments.first_seed, arguments.scenes, vehicles=True)
    prompts = get_prompts(config["prefixes"], items, config["postfixes"])
    opinions = form_opinions(
        examples,
        load_sam2(arguments.sam_model, device=arguments.device),
        ClipModel(arguments.clip_model, arguments.device, items=items, prompts=prompts),
        colours,
        clip_view=arguments.clip_view,
        refine=arguments.sam_model == MICRO_SAM2,
    )
    results = [measure_check(name, opinions) for name in opinions[0].doubts]
    doubted = sum(opinion.doubts_chance for opinion in opinions)
    if arguments.json:
        json.dump({"checks": [vars(result) for result in results], "drawn_doubted": doubted}, sys.stdout, indent=1)
        return
    Console().print(_table(f"{arguments.sam_model} and {arguments.clip_model}", results))
    low, high = wilson_interval(doubted, len(opinions))
    Console().print(
        f"Of {len(opinions)} labels drawn at random from the wrong items the check of colours doubts {doubted} "
        f"({low:.2f} to {high:.2f})."
    )


def form_opinions(
    examples: Iterable[Example],
    sam2_model: Sam2,
    clip_model: ClipModel,
    colours: Mapping[str, str],
    *,
    clip_view: ClipView,
    refine: bool,
) -> list[Opinion]:
    """Returns what the margin and each check say of the labels of photos; those without a mask are left out."""
    opinions = []
    rng = np.random.default_rng(0)
    for example in examples:
        [segmentation] = predict_sam2([example.image], sam2_model)
        mask = subject_mask(example.image, segmentation.mask_logits, refine=refine)
        if not mask.any():
            continue
        shown = paint_background(example.image, mask)
        if clip_view == "crop":
            shown = square_view(shown, mask)
        label, *others = clip_model.process([shown, *other_views(example.image, mask, clip_view=clip_view)])
        view = is_disputed(label, others)
        colour = colour_disagrees(example.image, mask, label.item, colours)
        doubts = {
            "view": view,
            "colour": colour,
            "either": view or colour,
            "any view": any(other.item != label.item for other in others),
        }
        drawn = str(rng.choice([item for item in clip_model.items if item != example.colour]))
        doubts_chance = colour_disagrees(example.image, mask, drawn, colours)
        opinions.append(Opinion(label.item != example.colour, label.margin, doubts, doubts_chance))
    return opinions


def measure_check(name: str, opinions: Sequence[Opinion]) -> CheckResult:
    """Returns what a check does, by its name, and what as many of the lowest margins do."""
    wrong = np.array([opinion.is_wrong for opinion in opinions])
    flagged = np.array([opinion.doubts[name] for opinion in opinions])
    by_margin = np.argsort([opinion.margin for opinion in opinions], kind="stable")
    lowest = by_margin[: flagged.sum()]
    both = flagged.copy()
    both[lowest] = True
    return CheckResult(
        name=name,
        photos=len(opinions),
        wrong=int(wrong.sum()),
        caught=int((flagged & wrong).sum()),
        disturbed=int((flagged & ~wrong).sum()),
        lowest_caught=int(wrong[lowest].sum()),
        both=int(both.sum()),
        both_caught=int((both & wrong).sum()),
        lowest_both_caught=int(wrong[by_margin[: both.sum()]].sum()),
    )


def _table(models: str, results: Sequence[CheckResult]) -> Table:
    photos, wrong = results[0].photos, results[0].wrong
    table = Table(title=f"{models}: {photos} photos, {wrong} labels wrong", title_justify="left")
    table.add_column("")
    for result in results:
        table.add_column(result.name, justify="right")
    table.add_row("photos flagged", *(str(result.caught + result.disturbed) for result in results))
    table.add_row("wrong labels caught", *(_share(result.caught, wrong) for result in results))
    table.add_row("right labels disturbed", *(_share(result.disturbed, photos - wrong) for result in results))
    table.add_row("as many lowest margins catch", *(str(result.lowest_caught) for result in results), end_section=True)
    table.add_row("both: photos flagged", *(str(result.both) for result in results))
    table.add_row("both: wrong labels caught", *(str(result.both_caught) for result in results))
    table.add_row("as many lowest margins catch", *(str(result.lowest_both_caught) for result in results))
    return table


def _share(hits: int, count: int) -> str:
    """Returns a number of so many, and below it the share's interval; of none nothing is known."""
    if not count:
        return "0 of 0"
    low, high = wilson_interval(hits, count)
    return f"{hits} of {count}\n{low:.2f} to {high:.2f}"


if __name__ == "__main__":
    main()
