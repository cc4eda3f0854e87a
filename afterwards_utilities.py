"""What stands beside an output, and what is done with one that is there: page, exports, corrections, other prompts."""

from __future__ import annotations

import dataclasses
import difflib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from clip_utilities import ClipModel
from config_utilities import CAPTION_KEYS, PROMPT_KEYS, Settings
from console_utilities import RunProgress, count_of, print_changes, print_line
from curation_utilities import (
    Finished,
    apply_corrections,
    read_finished,
    relabel,
    relabelled_settings,
    set_thresholds,
    thresholds_of,
    undo,
)
from device_utilities import count_threads, select_device, select_precision
from errors import ConfigError, OutputError
from evaluation_utilities import (
    Labels,
    confusion_csv,
    count_strays,
    draw_confusion,
    draw_reliability,
    evaluate,
    judge,
    print_evaluation,
    read_labels,
    spell_items,
    to_dict,
    to_look,
)
from export_utilities import Captions, check_exports, check_folder, export
from folder_utilities import Folders, lock_output, name_folders, sibling
from output_utilities import keep_corrections
from preview_utilities import describe_prompts
from prompt_utilities import get_prompts, replace_item
from record_utilities import (
    FAILURE_TYPES,
    FAILURES,
    Places,
    iterate_lines,
    iterate_records,
    write_atomically,
)
from report_utilities import CONFUSION, EVALUATION, LOOKS, forget_evaluation, read_facts, read_looks, write_report
from revision_utilities import Revision, find_revision, finish_revision, read_revisions
from split_utilities import Split, parse_split
from storage_utilities import Place, is_url
from threshold_utilities import describe, find_threshold
from thumbnail_utilities import redraw_missing
from verdict_utilities import to_correction

_LOGGER = logging.getLogger("sam2vit")


def curate(settings: Settings, console: Console) -> bool:
    """Does what is asked for with an output that is there; returns whether all of it could be done."""
    output = Path(settings.output)
    if not output.is_dir():
        raise OutputError(f"--output {output}: no run has written to it yet; name the output of one")
    try:
        with lock_output(output):
            return _curate(settings, output, console)
    except OSError as error:
        raise OutputError(f"{_reason(error, output)}; mend that, and start the same command again") from None


def _curate(settings: Settings, output: Path, console: Console) -> bool:
    places = Places(output, sibling(output, "review"))
    begun = finish_interrupted(places, sibling(output, "report"))
    finished = read_finished(output)
    if settings.given.get("dataset_dir") != "flag":
        dataset_dir = finished.settings.get("dataset_dir", settings.dataset_dir)
        settings = dataclasses.replace(settings, dataset_dir=dataset_dir)
    folders = name_folders(settings.dataset_dir, settings.output)
    check_side_products(settings, has_masks=not finished.settings.get("no_sam"))
    if settings.undo:
        # What was interrupted is what the user repeats, and not one more.
        last = (find_revision(places, begun.undoes) if begun and begun.undoes else None) or undo(finished)
        print_line(console, f"Taken back: {last.by}")
        if last.relabels:
            forget_evaluation(folders.report)
        finished = read_finished(output)
    try:
        return _finish(settings, folders, finished, console)
    except (OSError, OutputError) as error:
        if not settings.undo:
            raise
        raise OutputError(f"{_reason(error, output)}; the undo itself is done: go on with --report-only") from None
    except KeyboardInterrupt:
        if not settings.undo:
            raise
        raise KeyboardInterrupt("interrupted; the undo itself is done: go on with --report-only") from None


def _finish(settings: Settings, folders: Folders, finished: Finished, console: Console) -> bool:
    """Does what may follow an undo, or come alone; each of it may be repeated."""
    complete = True
    if settings.apply:
        counts = apply_corrections(finished, Path(settings.apply))
        changed = counts.pop("changed")
        complete = not counts["unknown"]
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        print_line(console, f"{told or 'No corrections'}; {count_of(changed, 'record')} changed")
    if settings.relabel:
        relabel_photos(finished, settings, console)
        forget_evaluation(folders.report)
    if settings.evaluate:
        complete = evaluate_labels(finished, settings, folders, console) and complete
    around = [name for name in CAPTION_KEYS if name in finished.settings and name not in settings.given]
    made_with = {name: tuple(finished.settings[name]) for name in (*PROMPT_KEYS, *around)}
    settings = dataclasses.replace(settings, **made_with, decision=finished.settings["decision"])
    redraw_thumbnails(settings, folders, finished, console)
    facts = read_facts(folders.report) or {"output": settings.output, "photos": str(folders.dataset)}
    facts["prompts"] = describe_prompts(settings)
    complete &= write_side_products(
        settings,
        folders,
        finished.places,
        finished.items,
        console,
        records=finished.records.rows(),
        count=len(finished.records),
        facts=facts,
    )
    return complete and not (settings.exports and finished.missing)


def _reason(error: OSError | OutputError, output: Path) -> str:
    if isinstance(error, OutputError):
        return str(error)
    return f"{error.filename or output}: {error.strerror or error}"


def finish_interrupted(places: Places, report: Place) -> Revision | None:
    """Finishes what a kill has cut off in an output, with what belongs to it, and returns it; None where nothing was.

    Args:
        places: Of the output, which nobody else may be writing to.
        report: The folder of its page.
    """
    begun = finish_revision(places)
    if begun is not None and begun.relabels:
        forget_evaluation(report)
        _keep_replaced(places, begun)
    return begun


def _keep_replaced(places: Places, revision: Revision) -> None:
    """Keeps the labels of people that other prompts have replaced, as they are no item any more, for `--apply`."""
    lines = [
        to_correction(before)
        for before, after in revision.changes
        if (before["label_source"], after["label_source"]) == ("human", "model") and revision.undoes is None
    ]
    if lines:
        path = keep_corrections(places.output, lines)
        _LOGGER.warning(
            "labels that people gave and that are no item any more: %d, such as %r of %s; the photos have CLIP's now, "
            "--undo takes all that back, and %s has the labels for --apply",
            *(len(lines), lines[0][1], lines[0][3], path),
        )


def relabel_photos(finished: Finished, settings: Settings, console: Console) -> None:
    """Labels every photo of an output anew with other prompts, and says what that has changed."""
    model = finished.settings.get("clip_model", settings.clip_model)
    new = relabelled_settings(finished.settings, settings)
    device = select_device(settings.clip_device, purpose="CLIP")
    clip_model = ClipModel(
        model,
        device,
        items=settings.items,
        prompts=get_prompts(settings.prefixes, settings.items, settings.postfixes),
        decision=new["decision"],
        precision=select_precision(settings.precision, device),
        show_progress=not settings.quiet,
    )
    if clip_model.digest != finished.settings.get("clip_weights"):
        raise OutputError(
            f"--relabel: {model} is not the model that {finished.places.output} was made with; run over the photos "
            "again with --overwrite"
        )
    thresholds = thresholds_of(new)
    result = relabel(
        finished, clip_model, thresholds=thresholds, settings=new, by=f"--relabel --config {settings.config}"
    )
    print_changes(console, result.changed)
    print_line(
        console,
        f"{sum(result.changed.values())} of {count_of(result.photos, 'photo')} have another item, "
        f"{result.kept} keep the one that a human gave them, {result.moved_to_review} went to review",
    )
    if result.replaced:
        _keep_replaced(finished.places, read_revisions(finished.places)[-1])


def evaluate_labels(finished: Finished, settings: Settings, folders: Folders, console: Console) -> bool:
    """Says how good the labels are, keeps that for the page, and sends to review what breaks a promised precision.

    Returns whether it could be promised.
    """
    labels = read_labels(Path(settings.evaluate), finished.find, finished.records)
    if labels.unknown:
        _LOGGER.warning(
            "%s: names that are no photo of this output: %d, such as %s",
            settings.evaluate,
            labels.unknown,
            labels.example,
        )
    labels, strange = spell_items(labels, finished.items)
    for word, count in strange.items():
        near = difflib.get_close_matches(word, finished.items, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        _LOGGER.warning("%s: %r is no item of this output: labels %d%s", settings.evaluate, word, count, hint)
    evaluation = evaluate(finished.records.rows(), labels, finished.items)
    print_evaluation(console, evaluation)
    target = settings.target_precision
    looks = read_looks(folders.report)
    if target is not None and to_look(labels, target) not in looks:
        looks.append(to_look(labels, target))
    contents = {
        EVALUATION: json.dumps(to_dict(evaluation) | {LOOKS: looks}, indent=1, allow_nan=False).encode(),
        CONFUSION: confusion_csv(evaluation),
        "confusion.svg": draw_confusion(evaluation).encode(),
        "reliability.svg": draw_reliability(evaluation).encode(),
    }
    for name, content in contents.items():
        write_atomically(folders.report / name, content)
    print_line(console, f"As JSON, CSV and pictures in {folders.report}/")
    return True if target is None else promise_precision(finished, labels, target, looks, console)


def promise_precision(
    finished: Finished, labels: Labels, target: float, looks: Sequence[str], console: Console
) -> bool:
    """Sends to review what breaks a promised precision; returns whether it could be promised."""
    strays = count_strays(labels, finished.records) if labels.judged else 0
    if strays:
        _LOGGER.warning(
            "verdicts beyond the page's random sample, or after a photo that it skips: %d; what follows holds where "
            "chance has chosen the photos, so leave these out",
            strays,
        )
    probabilities, right = judge(finished.records.rows(), labels)
    scores = np.fromiter((row["item_probability"] for row in finished.records.rows()), float)
    look = 1 + looks.index(to_look(labels, target))
    threshold = find_threshold(scores, probabilities, right, target=target, look=look)
    print_line(console, describe(threshold))
    if threshold.threshold is None:
        return False
    thresholds = dataclasses.replace(finished.thresholds, item_probability=threshold.threshold)
    moved = set_thresholds(finished, thresholds, by=f"--target-precision {target:g}")
    print_line(
        console,
        f"{count_of(moved, 'photo')} moved; runs that add photos go on with --min-probability {threshold.threshold:g}",
    )
    return True


def redraw_thumbnails(settings: Settings, folders: Folders, finished: Finished, console: Console) -> None:
    """Draws the thumbnails of the page that are missing: of a run without a report, or by an earlier version."""
    if settings.no_report:
        return
    with RunProgress(console, total=len(finished.records)) as progress:
        missing = redraw_missing(
            folders.report,
            finished.records.rows(),
            output=finished.places.output,
            review=finished.places.review,
            dataset_dir=folders.dataset,
            max_pixels=settings.max_pixels,
            threads=count_threads(),
            on_progress=progress.advance,
        )
    if missing:
        _LOGGER.warning("photos gone from %s, or unreadable: %d; the page lacks them", folders.dataset, missing)


def check_side_products(settings: Settings, *, has_masks: bool) -> None:
    """Says before a run of hours what would keep its exports from being made."""
    if not settings.exports:
        return
    check_exports(settings.exports, split=_split(settings), has_masks=has_masks)
    if "yolo" in settings.exports and is_url(settings.dataset_dir):
        raise ConfigError(
            f"--export yolo: has the photos beside their labels, and {settings.dataset_dir} is no disk; leave it out, "
            "and export later with --dataset-dir of a copy"
        )
    check_folder(name_folders(settings.dataset_dir, settings.output).export, settings.exports)


def write_side_products(
    settings: Settings,
    folders: Folders,
    places: Places,
    items: Sequence[str],
    console: Console,
    *,
    records: Iterable[Mapping[str, Any]],
    count: int,
    facts: Mapping[str, str],
) -> bool:
    """Writes the report's page, and the exports that are asked for; returns whether these lack no photo.

    Args:
        settings: Of the run.
        folders: Where to, and where the photos are.
        places: Of the cut-outs.
        items: All that photos could be given.
        console: Where to say it.
        records: To be exported, one for each photo.
        count: How many they are.
        facts: What the page says of the run.
    """
    if not settings.no_report:
        failures = list(filter(None, iterate_lines(places.output / FAILURES, FAILURE_TYPES)))
        page = write_report(
            folders.report,
            places,
            iterate_records(places),
            dataset_dir=folders.dataset,
            failures=failures,
            facts=facts,
            items=items,
            threads=count_threads(),
        )
        print_line(console, f"Look through it, the doubtful first: {page.resolve().as_uri()}")
    if not settings.exports:
        return True

    def prompt_for(row: Mapping[str, Any]) -> str:
        item, parts = row["model_label"], {"prefixes": settings.prefixes, "postfixes": settings.postfixes}
        return replace_item(row["prompt"], item, row["label"], **parts)

    try:
        with RunProgress(console, total=count) as progress:
            counts = export(
                settings.exports,
                records,
                output=places.output,
                dataset_dir=folders.dataset,
                folder=folders.export,
                items=items,
                split=_split(settings),
                seed=settings.seed,
                captions=Captions(prompt_for, settings.csv_prefixes, settings.csv_postfixes),
                threads=count_threads(),
                on_progress=progress.advance,
            )
    except KeyboardInterrupt:
        again = "the exports are as they were, and the same command begins anew with them"
        raise KeyboardInterrupt(f"interrupted; {again}") from None
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    print_line(console, f"Exports in {folders.export}/: {told}")
    return not counts["skipped"] and not counts["missing"]


def _split(settings: Settings) -> Split | None:
    return None if settings.split is None else parse_split(settings.split)
