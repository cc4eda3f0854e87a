"""Cuts the central subject out of every photo of a folder and files it under the item that CLIP sees in it.

python main.py --dataset-dir dataset_cars --output output
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

from config_utilities import (
    ClipView,
    Compile,
    Edges,
    Precision,
    Settings,
    available_presets,
    read_config,
    read_settings,
)
from errors import ConfigError, OutputError, PromptError, UserError
from prompt_utilities import DecisionRule, get_prompts

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from clip_utilities import ClipModel
    from dataset_utilities import PhotoFile
    from flow_utilities import Flow, Photo
    from focus_utilities import Detector, Focus
    from output_utilities import OutputFolder
    from sam_utilities import Sam2

# Before torch is imported: operations that MPS lacks run on the CPU instead of failing.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

_LOGGER = logging.getLogger("sam2vit")

EXIT_COMPLETE, EXIT_INCOMPLETE, EXIT_UNUSABLE = 0, 1, 2
EXIT_SIGNALLED = 128  # + the number of the signal, as shells count

DRY_RUN_LINES = 20  # photos that --dry-run lists
DRY_RUN_PROMPTS = 8  # prompts that it shows


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code: 0, 1, 2, or 128 + the signal that ended it."""
    for stream in (sys.stdout, sys.stderr):  # a name that a Windows console lacks is shown escaped, not died of
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    config, signals = "", Signals()
    try:
        settings = read_settings(parse_flags(arguments))
        config = settings.config
        if settings.list_presets:
            return list_presets()
        with _console(settings) as console, signals:
            return dry_run(settings, console) if settings.dry_run else run(settings, console, signals)
    except UserError as error:
        _say_error(f"{config}: {error}" if isinstance(error, PromptError) else str(error))
        return EXIT_UNUSABLE
    except KeyboardInterrupt:  # while loading; from the first photo on, run() handles it
        _say_error("interrupted; the same command starts where this one ended")
        return EXIT_SIGNALLED + (signals.number or signal.SIGINT)


def run(settings: Settings, console: Console, signals: Signals) -> int:
    """Does the whole job: every photo of the dataset into the output folder."""
    from output_utilities import clear_temporaries, lock_output

    folders, files = check_folders(settings)
    with lock_output(folders.output):
        for folder in (folders.debug, folders.unknown):
            clear_temporaries(folder)
        return do_dataset(folders, files, settings, console, signals)


def do_dataset(folders: Folders, files: int, settings: Settings, console: Console, signals: Signals) -> int:
    """Loads the models, does every photo of the dataset, says what came of it, and returns the exit code.

    Args:
        folders: Checked, and locked.
        files: How many the dataset has.
        settings: Of the run.
        console: Where to say it.
        signals: Which may end it early.
    """
    from dataset_utilities import find_photos, watch_dataset
    from device_utilities import forbid_tf32, keep_freed_memory, leave_cores_to_threads, select_pixels_at_once
    from flow_utilities import Flow
    from output_utilities import OutputFolder
    from pipeline_utilities import measures_devices, stage
    from report_utilities import RunProgress, count_of, format_seconds, print_facts, print_summary, printable

    _seed_everything(settings.seed)
    keep_freed_memory()
    forbid_tf32()
    point = read_focus(settings)
    machine = select_machine(settings, files)
    leave_cores_to_threads([machine.device, machine.clip_device])
    print_facts(console, _facts(settings, machine, files))

    began = time.monotonic()
    models = load_models(settings, machine)
    print_facts(console, {"ready": f"in {format_seconds(time.monotonic() - began)}"})
    most_pixels = select_pixels_at_once()
    output = OutputFolder(
        folders.output,
        _deciding_settings(settings, machine, models),
        items=settings.items,
        overwrite=settings.overwrite,
        threads=_threads(),
        most_pixels=most_pixels,
        unknown=folders.unknown if settings.keep_unknown else None,
    )
    if output.done:
        _LOGGER.warning("%s: going on after %s done earlier", folders.output, count_of(output.done, "photo"))
    done_before, stopped = output.done, None
    check_dataset = watch_dataset(folders.dataset)
    began = time.monotonic()
    try:
        with (
            stage("all photos"),
            signals.stop_gently(),
            output,
            RunProgress(console, total=min(files, settings.limit or files)) as progress,
        ):
            flow = Flow(
                output,
                progress,
                batch_size=machine.batch_size,
                threads=_threads(),
                overlap=machine.overlaps and not measures_devices(),
                most_pixels=most_pixels,
                stopping=signals.stopping,
                check=functools.partial(_check_surroundings, check_dataset, machine),
            )
            fail_folder = functools.partial(_fail_folder, output, check_dataset)
            files_found = find_photos(folders.dataset, exclude=folders.own, on_unreadable=fail_folder)
            for photo in do_photos(files_found, flow, settings, machine, models, point=point):
                write_photo(photo, output, settings, folders.debug)
                progress.advance()
            if settings.limit is None and not signals.stopping():
                output.finish()
    except (KeyboardInterrupt, UserError) as error:
        stopped = error

    print_summary(
        console,
        items=[(item, count, output.mean_probability(item)) for item, count in output.counts.items()],
        failures=output.failures,
        written=sum(output.counts.values()) - done_before,
        skipped=output.skipped,
        seconds=time.monotonic() - began,
    )
    if isinstance(stopped, UserError):
        raise stopped
    if stopped is not None or signals.stopping():
        _say_error("interrupted; what was finished is in place, the same command goes on from there")
        return EXIT_SIGNALLED + (signals.number or signal.SIGINT)
    if not output.counts and not output.failures:
        return _say_no_photos(settings)
    if settings.micro:
        console.print(
            f"Look at {printable(settings.output)}/. The micro models are for trying out; for photographs leave out "
            "--demo and --micro:\n  python main.py --dataset-dir YOUR_PHOTOS --output ANOTHER_FOLDER\nwhich downloads "
            f"{Settings.sam_model} and {Settings.clip_model}, 0.9 GB each.",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return EXIT_INCOMPLETE if output.failures else EXIT_COMPLETE


@dataclass(frozen=True)
class Machine:
    """Where the models run, how precisely, on how many photos at once, and whether torch compiles SAM 2 first."""

    device: str
    precision: Literal["fp32", "bf16"]
    clip_device: str
    clip_precision: Literal["fp32", "bf16"]
    batch_size: int
    clip_batch_size: int
    compiled: bool

    @property
    def overlaps(self) -> bool:
        """Whether the models are to work beside each other: with CUDA. MPS was not tried."""
        return any(device.startswith("cuda") for device in (self.device, self.clip_device))


def select_machine(settings: Settings, photos: int) -> Machine:
    """Returns the devices that the settings name, or the best of this machine for so many photos."""
    from device_utilities import auto_batch_size, has_bf16, select_compile, select_device, select_precision
    from sam_utilities import config_name, find_config, read_image_size

    device = select_device(settings.device, purpose="SAM 2")
    clip_device = select_device(settings.clip_device, purpose="CLIP")
    used = {clip_device} if settings.no_sam else {device, clip_device}
    if settings.precision == "bf16":
        for slow in sorted(each for each in used if not has_bf16(each)):
            _LOGGER.warning("--precision bf16: %s has no bf16 in hardware and emulates it, many times slower", slow)
    if settings.compile == "on" and not device.startswith("cuda"):
        _LOGGER.warning("--compile on: has no effect without CUDA; on a CPU compiled models were slower")
    main_device = clip_device if settings.no_sam else device
    batch_size = settings.batch_size
    image_size = 1024
    if not settings.no_sam:
        image_size = read_image_size(find_config(settings.sam_config or config_name(settings.sam_model)))
    if batch_size == "auto":
        batch_size = auto_batch_size(main_device, image_size)
    photos = min(photos, settings.limit or photos)
    clip_precision = select_precision(settings.precision, clip_device)
    return Machine(
        device=device,
        precision=select_precision(settings.precision, device, image_size),
        clip_device=clip_device,
        clip_precision=clip_precision,
        batch_size=batch_size,
        # MKL's fp32 products of few rows differ in the last digit with a row's place in the batch.
        clip_batch_size=1 if (clip_device, clip_precision) == ("cpu", "fp32") else batch_size,
        compiled=select_compile(settings.compile, device, photos),
    )


def do_photos(
    files: Iterator[PhotoFile],
    flow: Flow,
    settings: Settings,
    machine: Machine,
    models: Models,
    *,
    point: Callable[[Photo], Focus | None],
) -> Iterator[Photo]:
    """Yields the photos that are still to be done, cut out and labelled."""
    from flow_utilities import cut_photo, find_subjects, label_photos, segment_photos, verify_subjects

    photos = flow.read(files, models.sam2_model, limit=settings.limit, max_pixels=settings.max_pixels, point=point)
    if settings.focus == "detector":
        photos = flow.in_batches(photos, functools.partial(find_subjects, models.detector, settings))
    if models.sam2_model is not None:  # predict_sam2() cuts them out, ClipModel.process() labels them
        photos = flow.in_batches(photos, functools.partial(segment_photos, models.sam2_model, settings))
    photos = flow.in_threads(photos, functools.partial(cut_photo, models.clip_model, settings))
    if settings.verify_focus:
        photos = flow.in_batches(photos, functools.partial(verify_subjects, models.detector, settings))
    return flow.in_batches(photos, functools.partial(label_photos, models.clip_model), machine.clip_batch_size)


@dataclass(frozen=True)
class Models:
    """What is loaded once per run: CLIP with its prompts encoded, SAM 2 but with `--no-sam`, a detector where asked."""

    clip_model: ClipModel
    sam2_model: Sam2 | None
    detector: Detector | None


def read_focus(settings: Settings) -> Callable[[Photo], Focus | None]:
    """Returns what says where SAM 2 is pointed in a photo, as far as no model is asked; None is the centre.

    Raises:
        ConfigError: The flags ask for what `--focus` does not give, or its file can't be used.
    """
    from errors import NoSubjectError
    from focus_utilities import ROWS_LOOKED_UP, fixed_focus, parse_focus, read_points, row_focus, stray_names

    focus = parse_focus(settings.focus)
    if settings.no_sam and (focus != "center" or settings.verify_focus):
        flag = "--verify-focus" if focus == "center" else f"--focus {settings.focus}"
        raise ConfigError(f"{flag}: SAM 2 is off; leave out --no-sam")
    if settings.require_focus and focus != "detector" and not isinstance(focus, Path):
        raise ConfigError(
            f"--require-focus: with --focus {settings.focus} every photo has one; add --focus detector, or a .csv"
        )
    rows = read_points(focus) if isinstance(focus, Path) else {}
    strays = stray_names(rows, Path(settings.dataset_dir))
    if strays:
        _LOGGER.warning(
            "%s: %d of its %slines name no photo of the dataset, such as %r",
            focus,
            len(strays),
            f"first {ROWS_LOOKED_UP:,} " if len(rows) > ROWS_LOOKED_UP else "",
            strays[0],
        )

    def point(photo: Photo) -> Focus | None:
        height, width = photo.image.shape[:2]
        if isinstance(focus, tuple):
            return fixed_focus(width, height, focus)
        if photo.file.source in rows:
            return row_focus(rows[photo.file.source], width, height)
        if settings.require_focus and isinstance(focus, Path):
            raise NoSubjectError(f"no subject: {focus.name} has no line for it", stage="focus")
        return None

    return point


def load_models(settings: Settings, machine: Machine) -> Models:
    """Returns what the settings ask for."""
    from clip_utilities import ClipModel
    from focus_utilities import check_labels, load_detector
    from sam_utilities import load_sam2

    detector = None
    if settings.focus == "detector" or settings.verify_focus:
        detector = load_detector(settings.detector, machine.device, show_progress=not settings.quiet)
        check_labels(detector, settings.focus_labels or (), flag="--focus-labels")
    clip_model = ClipModel(
        settings.clip_model,
        machine.clip_device,
        items=settings.items,
        prompts=get_prompts(settings.prefixes, settings.items, settings.postfixes),
        decision=settings.decision,
        precision=machine.clip_precision,
        show_progress=not settings.quiet,
    )
    if settings.no_sam:
        return Models(clip_model, None, detector)
    sam2_model = load_sam2(
        settings.sam_model,
        settings.sam_config,
        machine.device,
        precision=machine.precision,
        compiled=machine.compiled,
        show_progress=not settings.quiet,
    )
    return Models(clip_model, sam2_model, detector)


def write_photo(photo: Photo, output: OutputFolder, settings: Settings, debug_dir: Path) -> None:
    """Sends a cut-out and its record on their way, and with `--debug` its inspection picture."""
    from output_utilities import photo_record, write_atomically

    label, segmentation = photo.label, photo.segmentation
    record = photo_record(
        label, segmentation, photo.region, photo.image.shape, seconds=photo.seconds, flags=photo.flags, crop=photo.crop
    )
    output.write(photo.file, functools.partial(_draw, photo, settings.background, photo.crop), record)

    scores = f"{label.item} {label.item_probability:.3f}, prompt {label.prompt!r} {label.probability:.3f}"
    if segmentation is not None:
        scores += f", mask {segmentation.score:.3f}"
        if segmentation.focus.by in ("grid", "detector"):
            focus = segmentation.focus
            scores += f", {focus.label or focus.by} {focus.confidence:.3f}"
    if photo.flags:
        scores += f", {' '.join(photo.flags)}"
    _LOGGER.info("%s: %s, %.2f s", photo.file.source, scores, photo.seconds)
    if settings.debug:
        path = (debug_dir / photo.file.name).with_suffix(".jpg")
        try:
            write_atomically(path, _draw_inspection(photo, settings, scores))
        except OSError as error:
            raise OutputError(f"{path}: can't be written: {error.strerror}; leave out --debug, or make room") from None
        except Exception as error:  # whatever drawing one photo raises, its cut-out is what counts
            _LOGGER.warning("%s: no inspection picture: %s: %s", photo.file.source, type(error).__name__, error)


def _draw_inspection(photo: Photo, settings: Settings, caption: str) -> bytes:
    from inspection_utilities import draw_inspection, encode_jpeg

    segmentation = photo.segmentation
    return encode_jpeg(
        draw_inspection(
            photo.image,
            _draw(photo, settings.background),
            mask=photo.mask,
            points=None if segmentation is None else segmentation.points,
            focus_box=None if segmentation is None else segmentation.focus.box,
            crop_box=photo.crop,
            top_items=photo.label.top_items,
            caption=caption,
        )
    )


def _draw(photo: Photo, background: str, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
    """Returns a photo's cut-out, (h, w, 4) uint8 RGBA, or the part of it that a box (x0, y0, x1, y1) shows."""
    from mask_utilities import background_rgba, crop, cut_out

    picture = cut_out(photo.image, photo.mask, background, alpha=photo.alpha)
    return picture if box is None else crop(picture, box, background_rgba(background))


def dry_run(settings: Settings, console: Console) -> int:
    """Says what a run would do, without loading a model or writing a file."""
    from checkpoint_utilities import SAM2_CHECKPOINTS, clip_checkpoints, is_present
    from clip_utilities import tokenize
    from dataset_utilities import find_photos
    from photo_utilities import is_image
    from report_utilities import count_of, print_facts

    folders, files = check_folders(settings)
    read_focus(settings)
    prompts = get_prompts(settings.prefixes, settings.items, settings.postfixes)
    tokenize(prompts)  # says which prompt is too long

    def describe(model: str, public: Any) -> str:
        state = "is in place" if is_present(model, public) else "would be downloaded" if model in public else "missing"
        return f"{model} ({state})"

    facts = {
        "photos": f"{settings.dataset_dir} ({count_of(files, 'file')})",
        "SAM 2": "off: photos stay uncut" if settings.no_sam else describe(settings.sam_model, SAM2_CHECKPOINTS),
        "CLIP": describe(settings.clip_model, clip_checkpoints()),
        "focus": _describe_focus(settings),
        "prompts": _count_prompts(settings),
        "output": settings.output,
    }
    if settings.focus == "detector" or settings.verify_focus:
        from focus_utilities import detector_checkpoints

        facts["detector"] = describe(settings.detector, detector_checkpoints())
    print_facts(console, facts)
    shown = min(DRY_RUN_PROMPTS, len(prompts))
    for index in range(shown):
        print_facts(console, {"CLIP is asked": repr(prompts[index * len(prompts) // shown])})
    if not files:
        return _say_no_photos(settings)
    files = min(files, settings.limit or files)
    for photo in itertools.islice(find_photos(folders.dataset, exclude=folders.own), min(files, DRY_RUN_LINES)):
        plan = f"{folders.output}/<item>/{photo.name}" if is_image(photo.path) else "no image, would be skipped"
        print_facts(console, {f"{photo.source} ->": plan})
    if files > DRY_RUN_LINES:
        console.print(f"... and {files - DRY_RUN_LINES} more", highlight=False)
    return EXIT_COMPLETE


def list_presets() -> int:
    """Prints the presets with their prompts, and returns the exit code."""
    from rich.console import Console
    from rich.table import Table

    table = Table("--preset", "prompts", "items", "for --focus detector")
    for name, path in available_presets().items():
        values = read_config(path)
        prompts = get_prompts(values["prefixes"], values["items"], values["postfixes"])
        table.add_row(name, str(len(prompts)), ", ".join(values["items"]), ", ".join(values["focus_labels"] or ()))
    Console().print(table)
    return EXIT_COMPLETE


def parse_flags(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns the flags that the command line gives, by the names of `Settings`, and nothing that it does not."""
    return vars(build_parser().parse_args(arguments))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser; a flag that is not given leaves no trace, so that config.json can speak."""
    parser = _Parser(
        prog="main.py",
        description="Cuts the central subject out of every photo with SAM 2, paints the background white, lets CLIP "
        "choose among the prompts of config.json, and writes the cut-outs to OUTPUT/<item>/.",
        epilog="Exit code: 0 every photo written; 1 finished, but some photos failed or there were none; 2 could not "
        "start, or not go on; 130 interrupted. The same command goes on where the last one stopped.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    default = Settings

    flag = parser.add_argument_group("photos in, cut-outs out").add_argument
    what = "folder of photos, read with its subfolders: JPEG, PNG, WebP, TIFF, AVIF, HEIC and others"
    flag("--dataset-dir", "-i", metavar="DIR", help=f"{what} (default: {default.dataset_dir})")
    what = "where the <item>/ folders go"
    flag("--output", "--output-dir", "-o", metavar="DIR", help=f"{what} (default: {default.output})")
    what = "prefixes, items and postfixes of the prompts, and any flag's value under its long name with underscores"
    where = f"./{default.config}, else the one that comes with the program"
    flag("--config", metavar="FILE", help=f"{what}; flags override it (default: {where})")
    flag("--preset", metavar="NAME", help="in place of --config, lists for another kind of things; see --list-presets")
    flag("--list-presets", action="store_true", help="show the presets with their items, and do nothing")
    what = "white, transparent or #rrggbb; CLIP always sees the subject on white"
    flag("--background", metavar="COLOUR", help=f"{what} (default: {default.background})")
    flag("--no-sam", "-x", action="store_true", help="classify the whole photo and write it uncut")
    flag("--limit", type=int, metavar="N", help="only the first N photos")
    what = "photos of more pixels are failures, before they are decoded: a small file may ask for all memory"
    flag("--max-pixels", type=int, metavar="N", help=f"{what} (default: {default.max_pixels})")
    flag("--overwrite", action="store_true", help="delete what the last run wrote, and start over")
    flag("--dry-run", action="store_true", help="show what would be done, and do nothing")

    what = "the sample photos with the bundled micro models, to see what this is about"
    flag("--demo", action="store_true", help=what)

    flag = parser.add_argument_group("models and decisions").add_argument
    what = "the two small models that come with the program: no download, for trying out, tests and plumbing"
    flag("--micro", action="store_true", help=what)
    what = "sam2.1_hiera_tiny, _small, _base_plus or _large, another name under checkpoints/, or a path to a .pt"
    flag("--sam-model", "-s", metavar="MODEL", help=f"{what} (default: {default.sam_model})")
    what = "architecture of a .pt whose name does not tell it, such as sam2.1_hiera_l"
    flag("--sam-config", "-c", metavar="CONFIG", help=f"{what} (default: derived from the model's name)")
    what = "a name of clip.available_models(), another under checkpoints/, or a path to a .pt"
    flag("--clip-model", "-m", metavar="MODEL", help=f"{what} (default: {default.clip_model})")
    what = "how far the two supporting points of pass 2 lie from the centre, as a fraction of the shorter side"
    flag("--margin", "--mask-threshold", type=float, metavar="M", help=f"{what} (default: {default.margin})")
    what = "top-prompt: the item of the best prompt; item-sum: probabilities summed per item; ensemble: mean text "
    what += f"feature per item (default: {default.decision})"
    flag("--decision", choices=get_args(DecisionRule), help=what)

    _add_focus_flags(parser)
    _add_mask_flags(parser)
    _add_machine_flags(parser)

    flag = parser.add_argument_group("what is shown").add_argument
    what = "a line per photo, and an inspection picture in <output>-debug/: mask, points, cut-out, top items"
    flag("--debug", "-d", action="store_true", help=what)
    flag("--verbose", "-v", action="store_true", help="a line per photo and per skipped file")
    flag("--quiet", action="store_true", help="errors only")
    flag("--log", metavar="FILE", help="append everything to a plain-text log")
    return parser


def _add_focus_flags(parser: argparse.ArgumentParser) -> None:
    default = Settings
    flag = parser.add_argument_group("focus: where SAM 2 is pointed").add_argument
    what = "center; X,Y as fractions of width and height, such as 0.4,0.6; FILE.csv with file_name,x,y and perhaps "
    what += (
        "x0,y0,x1,y1 of each photo, in pixels or fractions; grid: nine points are tried, the one with the best mask "
    )
    what += f"wins; detector: an object detector finds the subject (default: {default.focus})"
    flag("--focus", metavar="FOCUS", help=what)
    what = (
        "of --focus detector: a model of torchvision.models.detection, downloaded on first use, or yolo:FILE.pt with "
    )
    flag("--detector", metavar="MODEL", help=f"{what}ultralytics installed (default: {default.detector})")
    what = "what the detector may find, such as car,truck (default: focus_labels of the config, else anything)"
    flag("--focus-labels", type=_labels, metavar="LABELS", help=what)
    what = f"confidence from which a detection counts (default: {default.focus_threshold:g})"
    flag("--focus-threshold", type=float, metavar="P", help=what)
    what = "set photos aside that the detector finds nothing in, or the .csv leaves out, instead of taking the centre"
    flag("--require-focus", action="store_true", help=what)
    flag("--verify-focus", action="store_true", help="the detector must find the subject in the cut-out, too")
    flag("--keep-unknown", action="store_true", help="copy the photos that are set aside to <output>-unknown/")


def _add_mask_flags(parser: argparse.ArgumentParser) -> None:
    default = Settings
    flag = parser.add_argument_group("masks and cut-outs").add_argument
    what = "let GrabCut move the outlines to the photo's own edges (default: on with --micro, else off)"
    flag("--refine", action=argparse.BooleanOptionalAction, help=what)
    what = "fill holes and drop islands of at most this fraction of the subject (without a number: 0.02)"
    flag("--clean-mask", type=float, nargs="?", const=0.02, metavar="F", help=f"{what} (default: off)")
    what = "soft: the outline fades as SAM 2 is unsure of it, blended or in the alpha channel"
    flag("--edges", choices=get_args(Edges), help=f"{what} (default: {default.edges})")
    flag("--feather", type=float, metavar="PX", help="soften the outline by so many pixels (default: 0)")
    flag("--crop", action="store_true", help="write only the part of the photo around the subject")
    what = f"around it with --crop, as a fraction of its longer side (default: {default.padding:g})"
    flag("--padding", type=float, metavar="F", help=what)
    flag("--square", action="store_true", help="with --crop, a square, filled up with the background")
    what = "what CLIP sees: the whole photo's central square, or the subject's box as a square"
    flag("--clip-view", choices=get_args(ClipView), help=f"{what} (default: {default.clip_view})")
    what = "flag masks below this fraction of the photo as small"
    flag("--min-area", type=float, metavar="F", help=f"{what} (default: {default.min_area:g})")
    what = "flag masks above it as large"
    flag("--max-area", type=float, metavar="F", help=f"{what} (default: {default.max_area:g})")
    flag("--strict", action="store_true", help="set flagged masks aside: small, large, or at all four borders")


def _labels(text: str) -> tuple[str, ...]:
    return tuple(label.strip() for label in text.split(","))


def _add_machine_flags(parser: argparse.ArgumentParser) -> None:
    default = Settings
    flag = parser.add_argument_group("machine").add_argument
    what = "of SAM 2: cpu, cuda, cuda:1, mps (default: MPS, else CUDA, else CPU)"
    flag("--device", "--force-device", "-f", metavar="DEVICE", help=what)
    flag("--clip-device", metavar="DEVICE", help="of CLIP (default: CUDA, else CPU)")
    what = f"auto is bf16 where the device has it in hardware, else fp32 (default: {default.precision})"
    flag("--precision", choices=get_args(Precision), help=what)
    what = "let torch compile SAM 2's encoder on CUDA first, half a minute that a long run wins back; auto does so then"
    flag("--compile", choices=get_args(Compile), help=f"{what} (default: {default.compile})")
    what = f"photos per model call (default: {default.batch_size}, by the memory of the device)"
    flag("--batch-size", type=_batch_size, metavar="N", help=what)
    flag("--seed", "-S", type=int, metavar="N", help=f"for numpy and torch (default: {default.seed})")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def _batch_size(text: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number or auto") from None


@dataclass(frozen=True)
class Folders:
    """Where the photos are, and where files are written."""

    dataset: Path
    output: Path
    debug: Path
    unknown: Path

    @property
    def own(self) -> list[Path]:
        """The folders that are no photos even where they lie inside the dataset."""
        return [self.output, self.debug, self.unknown]


def check_folders(settings: Settings) -> tuple[Folders, int]:
    """Returns the folders of a run, and how many files the dataset has; refuses those that would mix."""
    from dataset_utilities import count_files
    from output_utilities import check_output, sibling

    output = Path(settings.output)
    folders = Folders(Path(settings.dataset_dir), output, sibling(output, "debug"), sibling(output, "unknown"))
    files = count_files(folders.dataset, exclude=folders.own)
    sides = [(folders.debug, settings.debug), (folders.unknown, settings.keep_unknown)]
    check_output(output, folders.dataset, side_folders=[folder for folder, used in sides if used])
    return folders, files


def _facts(settings: Settings, machine: Machine, files: int) -> dict[str, str]:
    from report_utilities import count_of

    sam2 = f"{settings.sam_model} on {machine.device}, {machine.precision}"
    return {
        "photos": f"{settings.dataset_dir} ({count_of(files, 'file')})",
        "SAM 2": "off: photos stay uncut" if settings.no_sam else sam2,
        **({} if settings.focus == "center" else {"focus": _describe_focus(settings)}),
        "CLIP": f"{settings.clip_model} on {machine.clip_device}, {machine.clip_precision}",
        "prompts": f"{_count_prompts(settings)}, decided by {settings.decision}",
        "output": settings.output,
    }


def _describe_focus(settings: Settings) -> str:
    if settings.focus != "detector":
        return settings.focus
    labels = ", ".join(settings.focus_labels or ("anything",))
    return f"{settings.detector}, {labels} from {settings.focus_threshold:g}"


def _deciding_settings(settings: Settings, machine: Machine, models: Models) -> dict[str, Any]:
    """Returns the settings that decide results: a run goes on only with the same. Files count by their contents."""
    from checkpoint_utilities import SAM2_CHECKPOINTS, file_digest, find_checkpoint
    from sam_utilities import config_name, find_config

    deciding: dict[str, Any] = {
        name: getattr(settings, name) for name in ("decision", "background", "no_sam", "prefixes", "items", "postfixes")
    }
    deciding["dataset_dir"] = str(Path(settings.dataset_dir).resolve())
    deciding["clip_weights"] = models.clip_model.digest
    deciding["clip_precision"] = machine.clip_precision
    if not settings.no_sam:
        sam_path = find_checkpoint(settings.sam_model, SAM2_CHECKPOINTS, flag="--sam-model")
        config_path = find_config(settings.sam_config or config_name(settings.sam_model))
        deciding |= {"sam_weights": file_digest(sam_path), "sam_config": file_digest(config_path)}
        deciding |= {"sam_precision": machine.precision, "margin": settings.margin, "refine": settings.refine}
    # Only what was asked for: an output made before a flag was invented goes on.
    deciding |= {
        name: getattr(settings, name) for name in _OPTIONAL if getattr(settings, name) != getattr(Settings, name)
    }
    if settings.focus.endswith(".csv"):
        deciding["focus"] = file_digest(Path(settings.focus))
    if models.detector is not None:
        deciding |= {"detector_weights": models.detector.digest, "focus_labels": settings.focus_labels}
        deciding["focus_threshold"] = settings.focus_threshold
    return deciding


_OPTIONAL = (
    *("focus", "require_focus", "verify_focus"),
    *("clean_mask", "edges", "feather", "min_area", "max_area", "strict"),
    *("crop", "padding", "square", "clip_view"),
)


def _count_prompts(settings: Settings) -> str:
    prefixes, items, postfixes = len(settings.prefixes), len(settings.items), len(settings.postfixes)
    product = f"{prefixes} prefixes x {items} items x {postfixes} postfixes"
    return f"{product} = {prefixes * items * postfixes} prompts"


def _check_surroundings(check_dataset: Callable[[], None], machine: Machine) -> None:
    """Raises where the photo that has just failed is not to blame: each of the others would fail, too."""
    from device_utilities import check_device

    check_dataset()
    check_device(machine.device)
    check_device(machine.clip_device)


def _fail_folder(output: OutputFolder, check_dataset: Callable[[], None], folder: str, error: OSError) -> None:
    check_dataset()
    _LOGGER.warning("%s: can't be listed: %s", folder, error.strerror)
    output.fail(folder, f"can't be listed: {error.strerror}", stage="decode")


def _seed_everything(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _threads() -> int:
    """Returns how many threads decode, cut, and write, each: more than 16 outrun any one device."""
    return min(16, os.cpu_count() or 1)


@contextlib.contextmanager
def _console(settings: Settings) -> Iterator[Console]:
    from rich.console import Console

    from report_utilities import SparableStream, logging_to

    if settings.log and Path(settings.output).resolve() in Path(settings.log).resolve().parents:
        raise ConfigError(f"--log {settings.log}: lies in the output, where readers expect photos; put it elsewhere")
    console = Console(file=SparableStream(sys.stdout), quiet=settings.quiet)
    level = logging.INFO if settings.verbose or settings.debug else logging.WARNING
    with logging_to(console, level=level, log_file=settings.log):
        yield console


class Signals:
    """What Ctrl-C, SIGTERM and a closed terminal (SIGHUP) do; a context manager.

    Inside `stop_gently` the first one only asks the run to stop, which then finishes what it has begun: nothing is cut
    off in the middle of its bookkeeping. Elsewhere, and from the second one on, they raise KeyboardInterrupt.

    Attributes:
        number: Of the first signal that came; 0 before it.
    """

    def __init__(self) -> None:
        self.number = 0
        self._gently = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        handled = [signal.SIGINT, signal.SIGTERM]
        hang_up = getattr(signal, "SIGHUP", None)  # not on Windows
        if hang_up is not None and signal.getsignal(hang_up) is signal.SIG_DFL:  # nohup ignores it
            handled.append(hang_up)
        self._before = {number: signal.signal(number, self._handle) for number in handled}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stopping(self) -> bool:
        """Whether the run is to end."""
        return self.number > 0

    @contextlib.contextmanager
    def stop_gently(self) -> Iterator[None]:
        """Lets the first signal in the block ask, not interrupt."""
        self._gently = True
        try:
            yield
        finally:
            self._gently = False

    def _handle(self, number: int, _: object) -> None:
        first = not self.stopping()
        self.number = self.number or number
        if not (first and self._gently):
            raise KeyboardInterrupt
        with contextlib.suppress(OSError):  # not by print: the signal may have come in the middle of one
            os.write(2, b"\nmain.py: stopping after the photos in hand; the same signal again stops at once\n")


def _say_no_photos(settings: Settings) -> int:
    _say_error(f"{settings.dataset_dir}: no photos in it; name your folder with --dataset-dir")
    return EXIT_INCOMPLETE


def _say_error(message: str) -> None:
    from report_utilities import SparableStream, printable

    print(f"main.py: {printable(message)}", file=SparableStream(sys.stderr), flush=True)


if __name__ == "__main__":
    sys.exit(main())
