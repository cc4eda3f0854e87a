"""What a run is going to do, said before it does it: the presets, a dry run, and the facts that it begins with."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from checkpoint_utilities import SAM2_CHECKPOINTS, check_model, clip_checkpoints, is_present
from clip_utilities import tokenize
from config_utilities import Settings, available_presets, read_config
from console_utilities import count_of, print_facts
from dataset_utilities import find_photos
from detector_utilities import check_detector, detector_checkpoints
from device_utilities import Machine
from errors import OutputError
from flow_utilities import check_focus
from focus_utilities import is_pointed_alike
from folder_utilities import Folders, check_folders
from move_utilities import list_files, possible_moves
from output_utilities import refuse_other_points, refuse_other_settings
from photo_utilities import is_image
from prompt_utilities import get_prompts
from provenance_utilities import LATE, early_settings, settled_settings
from record_utilities import Places, iterate_records

_PHOTOS_SHOWN = 20
_PROMPTS_SHOWN = 8


def list_presets() -> None:
    """Prints the presets with their prompts."""
    table = Table("--preset", "prompts", "items", "for --focus detector")
    for name, path in available_presets().items():
        values = read_config(path)
        prompts = get_prompts(values["prefixes"], values["items"], values["postfixes"])
        table.add_row(name, str(len(prompts)), ", ".join(values["items"]), ", ".join(values["focus_labels"] or ()))
    Console().print(table)


def preview(settings: Settings, console: Console) -> bool:
    """Says what a run would do, without loading a model or writing a file; returns whether there are photos."""
    folders, files = check_folders(settings)
    check_plan(settings, folders)
    prompts = get_prompts(settings.prefixes, settings.items, settings.postfixes)
    tokenize(prompts, settings.items)  # says which of them won't do

    def describe(model: str, public: Any) -> str:  # what is missing, and not public, `check_plan` has refused
        is_here = model not in public or is_present(model, public)
        return f"{model} ({'is in place' if is_here else 'would be downloaded'})"

    facts = {
        "photos": f"{settings.dataset_dir} ({count_of(files, 'file')})",
        "SAM 2": "off: photos stay uncut" if settings.no_sam else describe(settings.sam_model, SAM2_CHECKPOINTS),
        "CLIP": describe(settings.clip_model, clip_checkpoints()),
        "focus": _describe_focus(settings),
        "prompts": _count_prompts(settings),
        "output": settings.output,
    }
    if settings.finds_subjects:
        facts["detector"] = describe(settings.detector, detector_checkpoints())
    try:
        done, in_place = _find_done(Places(folders.output, folders.review), settings.items)
    except OSError as error:
        raise OutputError(f"{error.filename}: can't be read: {error.strerror}; mend its permissions") from None
    if settings.overwrite:
        facts["overwrite"] = f"{count_of(in_place, 'cut-out')} of an earlier run would be deleted"
        done = set()
    elif done:
        facts["done"] = (
            f"{count_of(len(done), 'photo')} of an earlier run, which {'stays' if len(done) == 1 else 'stay'}"
        )
    print_facts(console, facts)
    shown = min(_PROMPTS_SHOWN, len(prompts))
    for index in range(shown):
        print_facts(console, {"CLIP is asked": repr(prompts[index * len(prompts) // shown])})
    if not files:
        return False
    photos = itertools.islice(find_photos(folders.dataset, exclude=folders.own), settings.limit)
    to_do = (photo for photo in photos if hash(photo.source) not in done)
    for photo in itertools.islice(to_do, _PHOTOS_SHOWN):
        plan = f"{folders.output}/<item>/{photo.name}" if is_image(photo.path) else "no image, would be skipped"
        print_facts(console, {f"{photo.source} ->": plan})
    more = sum(1 for _ in to_do)
    if more:
        console.print(f"... and {more} more", highlight=False)
    return True


def _find_done(places: Places, items: Sequence[str]) -> tuple[set[int], int]:
    """Returns hashes of the sources of photos that are done, and how many cut-outs are where their records say."""
    found = {hash((folder, name)) for folder in places for name in list_files(folder)}
    done: set[int] = set()
    in_place = 0
    for row in iterate_records(places):
        is_in_place = hash((places.of(row), row["file_name"])) in found
        in_place += is_in_place
        if is_in_place or any(hash(move) in found for move in possible_moves(row, places, items)):
            done.add(hash(row["source"]))
    return done, in_place


def check_plan(settings: Settings, folders: Folders) -> None:
    """Says what would end a run once its models are downloaded and loaded, before they are.

    Raises:
        UserError: There is no such model, the output was made with other settings, or a file of points won't do.
    """
    check_model(settings.clip_model, clip_checkpoints(), flag="--clip-model")
    if not settings.no_sam:
        check_model(settings.sam_model, SAM2_CHECKPOINTS, flag="--sam-model")
    if settings.finds_subjects:
        check_detector(settings.detector)
    deciding = {} if settings.overwrite else early_settings(settings)
    if deciding:
        refuse_other_settings(folders.output, deciding, unknown=LATE, settled=settled_settings(settings))
    rows = check_focus(settings)
    if deciding and rows:
        is_alike = functools.partial(is_pointed_alike, rows=rows)
        refuse_other_points(folders.output, deciding, is_alike, name=settings.focus)


def run_facts(settings: Settings, machine: Machine, files: int) -> dict[str, str]:
    """Returns what a run of so many files says of itself before it begins, by the names that it says it under."""
    sam2 = f"{settings.sam_model} on {machine.device}, {machine.precision}"
    return {
        "photos": f"{settings.dataset_dir} ({count_of(files, 'file')})",
        "SAM 2": "off: photos stay uncut" if settings.no_sam else sam2,
        **({} if settings.focus == "center" else {"focus": _describe_focus(settings)}),
        "CLIP": f"{settings.clip_model} on {machine.clip_device}, {machine.clip_precision}",
        "prompts": describe_prompts(settings),
        "output": settings.output,
    }


def _describe_focus(settings: Settings) -> str:
    if settings.focus != "detector":
        return settings.focus
    labels = ", ".join(settings.focus_labels or ("anything",))
    return f"{settings.detector}, {labels} from {settings.focus_threshold:g}"


def describe_prompts(settings: Settings) -> str:
    """Returns how many prompts there are, of what, and by which rule they decide."""
    return f"{_count_prompts(settings)}, decided by {settings.decision}"


def _count_prompts(settings: Settings) -> str:
    prefixes, items, postfixes = len(settings.prefixes), len(settings.items), len(settings.postfixes)
    product = f"{prefixes} prefixes x {items} items x {postfixes} postfixes"
    return f"{product} = {prefixes * items * postfixes} prompts"
