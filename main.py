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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

from config_utilities import Compile, Precision, Settings, read_settings
from errors import ConfigError, OutputError, PromptError, UserError
from prompt_utilities import DecisionRule, get_prompts

if TYPE_CHECKING:
    from rich.console import Console

    from clip_utilities import ClipModel
    from flow_utilities import Photo
    from output_utilities import OutputFolder
    from sam_utilities import Sam2

# Before torch is imported: operations that MPS lacks run on the CPU instead of failing.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

_LOGGER = logging.getLogger("sam2vit")

EXIT_COMPLETE, EXIT_INCOMPLETE, EXIT_UNUSABLE = 0, 1, 2
EXIT_SIGNALLED = 128  # + the number of the signal, as shells count

DRY_RUN_LINES = 20  # photos that --dry-run lists


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code: 0, 1, 2, or 128 + the signal that ended it."""
    for stream in (sys.stdout, sys.stderr):  # a name that a Windows console lacks is shown escaped, not died of
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    config = ""
    try:
        settings = read_settings(parse_flags(arguments))
        config = settings.config
        with _console(settings) as console, _sigterm_interrupts():
            return dry_run(settings, console) if settings.dry_run else run(settings, console)
    except UserError as error:
        _say_error(f"{config}: {error}" if isinstance(error, PromptError) else str(error))
        return EXIT_UNUSABLE
    except KeyboardInterrupt as interrupt:  # while loading; from the first photo on, run() handles it
        _say_error("interrupted before the first photo")
        return EXIT_SIGNALLED + _signal_of(interrupt)


def run(settings: Settings, console: Console) -> int:
    """Does the whole job: every photo of the dataset into the output folder."""
    from dataset_utilities import find_photos
    from device_utilities import forbid_tf32, keep_freed_memory, leave_cores_to_threads
    from flow_utilities import Flow, cut_photo, label_photos, segment_photos
    from output_utilities import OutputFolder
    from pipeline_utilities import measures_devices, stage
    from report_utilities import RunProgress, count_of, format_seconds, print_facts, print_summary

    folders, files = check_folders(settings)
    _seed_everything(settings.seed)
    keep_freed_memory()
    forbid_tf32()
    machine = select_machine(settings, files)
    leave_cores_to_threads([machine.device, machine.clip_device])
    print_facts(console, _facts(settings, machine, files))

    began = time.monotonic()
    sam2_model, clip_model = load_models(settings, machine)
    print_facts(console, {"ready": f"in {format_seconds(time.monotonic() - began)}"})
    output = OutputFolder(
        folders.output,
        _deciding_settings(settings, machine, clip_model),
        items=settings.items,
        overwrite=settings.overwrite,
        threads=_threads(),
    )
    if output.done:
        _LOGGER.warning("%s: going on after %s done earlier", folders.output, count_of(output.done, "photo"))
    done_before, interrupt = output.done, None
    began = time.monotonic()
    try:
        with stage("all photos"), output, RunProgress(console, total=min(files, settings.limit or files)) as progress:
            fail_folder = functools.partial(_fail_folder, output)
            files_found = find_photos(folders.dataset, exclude=folders.own, on_unreadable=fail_folder)
            overlap = machine.overlaps and not measures_devices()
            flow = Flow(output, progress, batch_size=machine.batch_size, threads=_threads(), overlap=overlap)
            photos = flow.read(files_found, sam2_model, limit=settings.limit)
            if sam2_model is not None:  # predict_sam2() cuts them out, ClipModel.process() labels them
                photos = flow.in_batches(photos, functools.partial(segment_photos, sam2_model, settings.margin))
            photos = flow.in_threads(photos, functools.partial(cut_photo, clip_model, refine=settings.refine))
            photos = flow.in_batches(photos, functools.partial(label_photos, clip_model), machine.clip_batch_size)
            for photo in photos:
                write_photo(photo, output, settings, folders.debug)
                progress.advance()
            if settings.limit is None:
                output.finish()
    except KeyboardInterrupt as error:
        interrupt = error

    print_summary(
        console,
        items=[(item, count, output.mean_probability(item)) for item, count in output.counts.items()],
        failures=output.failures,
        written=sum(output.counts.values()) - done_before,
        skipped=output.skipped,
        seconds=time.monotonic() - began,
    )
    if interrupt is not None:
        _say_error("interrupted; what was finished is in place, the same command goes on from there")
        return EXIT_SIGNALLED + _signal_of(interrupt)
    if not output.counts and not output.failures:
        return _say_no_photos(settings)
    if settings.micro:
        console.print(
            f"Look at {settings.output}/. The micro models are for trying out; for photographs leave out --demo and "
            f"--micro:\n  python main.py --dataset-dir YOUR_PHOTOS --output ANOTHER_FOLDER\nwhich downloads "
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


def load_models(settings: Settings, machine: Machine) -> tuple[Sam2 | None, ClipModel]:
    """Returns SAM 2 (None with `--no-sam`) and CLIP with its prompts encoded, both loaded once per run."""
    from clip_utilities import ClipModel
    from sam_utilities import load_sam2

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
        return None, clip_model
    sam2_model = load_sam2(
        settings.sam_model,
        settings.sam_config,
        machine.device,
        precision=machine.precision,
        compiled=machine.compiled,
        show_progress=not settings.quiet,
    )
    return sam2_model, clip_model


def write_photo(photo: Photo, output: OutputFolder, settings: Settings, debug_dir: Path) -> None:
    """Sends a cut-out and its record on their way, and with `--debug` its inspection picture."""
    from mask_utilities import cut_out
    from output_utilities import photo_record, write_atomically

    label, segmentation = photo.label, photo.segmentation
    draw = functools.partial(cut_out, photo.image, photo.mask, settings.background)
    record = functools.partial(photo_record, label, segmentation, photo.mask, photo.image.shape, seconds=photo.seconds)
    output.write(photo.file, draw, record())

    scores = f"{label.item} {label.item_probability:.3f}, prompt {label.prompt!r} {label.probability:.3f}"
    if segmentation is not None:
        scores += f", mask {segmentation.score:.3f}"
    _LOGGER.info("%s: %s, %.2f s", photo.file.source, scores, photo.seconds)
    if settings.debug:
        from inspection_utilities import draw_inspection, encode_jpeg

        picture = draw_inspection(
            photo.image,
            draw(),
            mask=photo.mask,
            points=None if segmentation is None else segmentation.points,
            top_items=label.top_items,
            caption=scores,
        )
        path = (debug_dir / photo.file.name).with_suffix(".jpg")
        try:
            write_atomically(path, encode_jpeg(picture))
        except OSError as error:
            raise OutputError(f"{path}: can't be written: {error.strerror}; leave out --debug, or make room") from None


def dry_run(settings: Settings, console: Console) -> int:
    """Says what a run would do, without loading a model or writing a file."""
    from checkpoint_utilities import SAM2_CHECKPOINTS, clip_checkpoints, is_present
    from clip_utilities import tokenize
    from dataset_utilities import find_photos
    from photo_utilities import is_image
    from report_utilities import count_of, print_facts

    folders, files = check_folders(settings)
    prompts = get_prompts(settings.prefixes, settings.items, settings.postfixes)
    tokenize(prompts)  # says which prompt is too long

    def describe(model: str, public: Any) -> str:
        state = "is in place" if is_present(model, public) else "would be downloaded" if model in public else "missing"
        return f"{model} ({state})"

    facts = {
        "photos": f"{settings.dataset_dir} ({count_of(files, 'file')})",
        "SAM 2": "off: photos stay uncut" if settings.no_sam else describe(settings.sam_model, SAM2_CHECKPOINTS),
        "CLIP": describe(settings.clip_model, clip_checkpoints()),
        "prompts": f"{_count_prompts(settings)}, such as {prompts[0]!r} and {prompts[-1]!r}",
        "output": settings.output,
    }
    print_facts(console, facts)
    if not files:
        return _say_no_photos(settings)
    files = min(files, settings.limit or files)
    for photo in itertools.islice(find_photos(folders.dataset, exclude=folders.own), min(files, DRY_RUN_LINES)):
        plan = f"{folders.output}/<item>/{photo.name}" if is_image(photo.path) else "no image, would be skipped"
        print_facts(console, {f"{photo.source} ->": plan})
    if files > DRY_RUN_LINES:
        console.print(f"... and {files - DRY_RUN_LINES} more", highlight=False)
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
        "start; 130 interrupted. The same command goes on where the last one stopped.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    default = Settings

    flag = parser.add_argument_group("photos in, cut-outs out").add_argument
    what = "folder of photos, read with its subfolders, in any format that Pillow reads"
    flag("--dataset-dir", "-i", metavar="DIR", help=f"{what} (default: {default.dataset_dir})")
    what = "where the <item>/ folders go"
    flag("--output", "--output-dir", "-o", metavar="DIR", help=f"{what} (default: {default.output})")
    what = "prefixes, items and postfixes of the prompts, and any flag's value under its long name with underscores"
    where = f"./{default.config}, else the one that comes with the program"
    flag("--config", metavar="FILE", help=f"{what}; flags override it (default: {where})")
    what = "white, transparent or #rrggbb; CLIP always sees the subject on white"
    flag("--background", metavar="COLOUR", help=f"{what} (default: {default.background})")
    flag("--no-sam", "-x", action="store_true", help="classify the whole photo and write it uncut")
    flag("--limit", type=int, metavar="N", help="only the first N photos")
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
    what = "let GrabCut move the outlines to the photo's own edges (default: on with --micro, else off)"
    flag("--refine", action=argparse.BooleanOptionalAction, help=what)
    what = "top-prompt: the item of the best prompt; item-sum: probabilities summed per item; ensemble: mean text "
    what += f"feature per item (default: {default.decision})"
    flag("--decision", choices=get_args(DecisionRule), help=what)

    _add_machine_flags(parser)

    flag = parser.add_argument_group("what is shown").add_argument
    what = "a line per photo, and an inspection picture in <output>-debug/: mask, points, cut-out, top items"
    flag("--debug", "-d", action="store_true", help=what)
    flag("--verbose", "-v", action="store_true", help="a line per photo and per skipped file")
    flag("--quiet", action="store_true", help="errors only")
    flag("--log", metavar="FILE", help="append everything to a plain-text log")
    return parser


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

    @property
    def own(self) -> list[Path]:
        """The folders that are no photos even where they lie inside the dataset."""
        return [self.output, self.debug]


def check_folders(settings: Settings) -> tuple[Folders, int]:
    """Returns the folders of a run, and how many files the dataset has; refuses those that would mix."""
    from dataset_utilities import count_files
    from output_utilities import check_output, sibling

    output = Path(settings.output)
    folders = Folders(Path(settings.dataset_dir), output, sibling(output, "debug"))
    files = count_files(folders.dataset, exclude=folders.own)
    check_output(output, folders.dataset, side_folders=[folders.debug] if settings.debug else [])
    return folders, files


def _facts(settings: Settings, machine: Machine, files: int) -> dict[str, str]:
    from report_utilities import count_of

    sam2 = f"{settings.sam_model} on {machine.device}, {machine.precision}"
    return {
        "photos": f"{settings.dataset_dir} ({count_of(files, 'file')})",
        "SAM 2": "off: photos stay uncut" if settings.no_sam else sam2,
        "CLIP": f"{settings.clip_model} on {machine.clip_device}, {machine.clip_precision}",
        "prompts": f"{_count_prompts(settings)}, decided by {settings.decision}",
        "output": settings.output,
    }


def _deciding_settings(settings: Settings, machine: Machine, clip_model: ClipModel) -> dict[str, Any]:
    """Returns the settings that decide results: a run goes on only with the same. Files count by their contents."""
    from checkpoint_utilities import SAM2_CHECKPOINTS, file_digest, find_checkpoint
    from sam_utilities import config_name, find_config

    deciding: dict[str, Any] = {
        name: getattr(settings, name) for name in ("decision", "background", "no_sam", "prefixes", "items", "postfixes")
    }
    deciding["dataset_dir"] = str(Path(settings.dataset_dir).resolve())
    deciding["clip_weights"] = clip_model.digest
    deciding["clip_precision"] = machine.clip_precision
    if not settings.no_sam:
        sam_path = find_checkpoint(settings.sam_model, SAM2_CHECKPOINTS, flag="--sam-model")
        config_path = find_config(settings.sam_config or config_name(settings.sam_model))
        deciding |= {"sam_weights": file_digest(sam_path), "sam_config": file_digest(config_path)}
        deciding |= {"sam_precision": machine.precision, "margin": settings.margin, "refine": settings.refine}
    return deciding


def _count_prompts(settings: Settings) -> str:
    prefixes, items, postfixes = len(settings.prefixes), len(settings.items), len(settings.postfixes)
    product = f"{prefixes} prefixes x {items} items x {postfixes} postfixes"
    return f"{product} = {prefixes * items * postfixes} prompts"


def _fail_folder(output: OutputFolder, folder: str, error: OSError) -> None:
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

    from report_utilities import logging_to

    if settings.log and Path(settings.output).resolve() in Path(settings.log).resolve().parents:
        raise ConfigError(f"--log {settings.log}: lies in the output, where readers expect photos; put it elsewhere")
    console = Console(quiet=settings.quiet)
    level = logging.INFO if settings.verbose or settings.debug else logging.WARNING
    with logging_to(console, level=level, log_file=settings.log):
        yield console


class _Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C is."""


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    def interrupt(*_: object) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _signal_of(interrupt: KeyboardInterrupt) -> int:
    return signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT


def _say_no_photos(settings: Settings) -> int:
    _say_error(f"{settings.dataset_dir}: no photos in it; name your folder with --dataset-dir")
    return EXIT_INCOMPLETE


def _say_error(message: str) -> None:
    from report_utilities import printable

    print(f"main.py: {printable(message)}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
