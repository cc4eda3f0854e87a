"""Cuts the central subject out of every photo of a folder and files it under the item that CLIP sees in it.

python main.py --dataset-dir dataset_cars --output output
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import random
import re
import shlex
import signal
import sys
import time

if sys.version_info < (3, 10):  # noqa: UP036 (before anything is imported that older ones can't read)
    sys.exit(f"main.py: needs Python 3.10 or newer, and this is {sys.version.split()[0]}; run .venv/bin/python main.py")

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config_utilities import Settings, read_settings
from errors import ConfigError, OutputError, PromptError, UserError
from flag_utilities import parse_flags
from pipeline_utilities import stage
from prompt_utilities import get_prompts
from signal_utilities import Signals
from storage_utilities import is_url

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

    from clip_utilities import ClipModel
    from console_utilities import RunProgress
    from dataset_utilities import PhotoFile
    from detector_utilities import Detector
    from device_utilities import Machine
    from flow_utilities import Flow, Photo, Progress
    from focus_utilities import Focus
    from folder_utilities import Folders
    from lease_utilities import Hold
    from output_utilities import OutputFolder
    from ray_utilities import CarriedFiles, Cluster, Courier, Plan, Work
    from sam_utilities import Sam2

# Before torch is imported: operations that MPS lacks run on the CPU instead of failing.
os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

_LOGGER = logging.getLogger("sam2vit")
_TOLD = logging.getLogger("sam2vit.told")  # see `console_utilities`
_TOLD.addHandler(logging.NullHandler())  # or logging itself would print errors where there is no --log

EXIT_COMPLETE, EXIT_INCOMPLETE, EXIT_UNUSABLE = 0, 1, 2
EXIT_SIGNALLED = 128  # + the number of the signal, as shells count

RELEASE_EVERY = 200  # photos: freed memory goes back; more often, its new pages would be felt


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code: 0, 1, 2, or 128 + the signal that ended it."""
    _prepare_streams()
    with contextlib.ExitStack() as stack:  # what --log opens is closed after the last word
        return _answer(sys.argv[1:] if arguments is None else arguments, stack)


def _answer(arguments: Sequence[str], stack: contextlib.ExitStack) -> int:
    config, signals, again = "", Signals(), "the same command"
    try:
        settings = _read_settings(arguments, stack)
        config = settings.config
        if settings.overwrite:
            again += " without --overwrite"
        if settings.list_presets:
            from console_utilities import SparableStream
            from preview_utilities import list_presets

            with contextlib.redirect_stdout(SparableStream(sys.stdout)):
                list_presets()
            return EXIT_COMPLETE
        console = stack.enter_context(_console(settings, arguments))
        with signals:
            if settings.dry_run:
                return dry_run(settings, console)
            return afterwards(settings, console) if settings.revises else run(settings, console, signals)
    except UserError as error:
        message = f"{config}: {error}" if isinstance(error, PromptError) else str(error)
        _say_error(message.replace("the same command", again))
        return EXIT_UNUSABLE
    except ModuleNotFoundError as error:
        message = (
            f"main.py: {error.name} is not installed for {sys.executable}; run .venv/bin/python main.py, which "
            "'make run' makes, or pip install -r requirements.txt"
        )
        print(message, file=sys.stderr)
        _TOLD.error("%s", message)
        return EXIT_UNUSABLE
    except KeyboardInterrupt as error:  # while loading, or in an export; from the first photo on, run() handles it
        message = str(error).replace("the same command", again)
        _say_error(message or "interrupted; the same command starts where this one ended")
        return EXIT_SIGNALLED + (signals.number or signal.SIGINT)


def _read_settings(arguments: Sequence[str], stack: contextlib.ExitStack) -> Settings:
    flags = parse_flags(arguments)
    try:
        return read_settings(flags)
    except ConfigError:
        if flags.get("log"):  # it is to say so, too
            told = {name: flags[name] for name in ("output", "log") if name in flags}
            stack.enter_context(_console(Settings(**told), arguments))
        raise


def _prepare_streams() -> None:
    for name, mode in {"stdin": "r", "stdout": "w", "stderr": "w"}.items():
        if getattr(sys, name) is None:  # it is closed; no file of the output may get its number
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (until the program ends)
    for stream in (sys.stdout, sys.stderr):  # a name that a Windows console lacks is shown escaped, not died of
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def dry_run(settings: Settings, console: Console) -> int:
    """Says what a run would do, and returns the exit code."""
    from preview_utilities import preview

    return EXIT_COMPLETE if preview(settings, console) else _say_no_photos(settings)


def afterwards(settings: Settings, console: Console) -> int:
    """Does what is asked for with an output that is there, and returns the exit code."""
    from afterwards_utilities import curate

    return EXIT_COMPLETE if curate(settings, console) else EXIT_INCOMPLETE


def run(settings: Settings, console: Console, signals: Signals) -> int:
    """Does the whole job: every photo of the dataset into the output folder."""
    from afterwards_utilities import check_side_products, finish_interrupted
    from folder_utilities import check_folders, lock_output
    from record_utilities import Places, clear_temporaries
    from report_utilities import forget_evaluation
    from thumbnail_utilities import forget_thumbnails

    check_side_products(settings, has_masks=not settings.no_sam)
    folders, files = check_folders(settings)
    if not files:
        return _say_no_photos(settings)
    with lock_output(folders.output) as hold:
        for folder in (folders.debug, folders.unknown, folders.report):
            clear_temporaries(folder)
        if not settings.overwrite:  # first of all: it may change what the plan is checked against
            finish_interrupted(Places(folders.output, folders.review), folders.report)
        if settings.overwrite:
            forget_evaluation(folders.report)
            forget_thumbnails(folders.report)
        signals.stop_where(hold.is_lost)
        code = do_dataset(folders, files, settings, console, signals, hold=hold)
        if hold.is_lost():
            raise OutputError(f"--output {folders.output}: another run has taken it over while this one stood still")
        return code


def do_dataset(
    folders: Folders, files: int, settings: Settings, console: Console, signals: Signals, *, hold: Hold
) -> int:
    """Loads the models, does every photo of the dataset, says what came of it, and returns the exit code.

    Args:
        folders: Checked, and locked.
        files: How many the dataset has.
        settings: Of the run.
        console: Where to say it.
        signals: Which may end it early.
        hold: Of the output.
    """
    from afterwards_utilities import write_side_products
    from console_utilities import RunProgress, count_of, format_seconds, print_facts, print_line, print_summary
    from dataset_utilities import find_photos, watch_dataset
    from output_utilities import OutputFolder
    from preview_utilities import check_plan, run_facts
    from provenance_utilities import deciding_settings, settled_settings
    from record_utilities import iterate_records

    check_dataset = watch_dataset(folders.dataset)
    check_plan(settings, folders)  # before anything is loaded
    with contextlib.ExitStack() as stack:
        began = time.monotonic()
        engine = Here(settings, files) if settings.ray is None else stack.enter_context(_on_ray(settings, files, hold))
        facts = run_facts(settings, engine.machine, files) | engine.facts
        print_facts(console, facts)
        weights = engine.load(folders)
        print_facts(console, {"ready": f"in {format_seconds(time.monotonic() - began)}"})
        output = OutputFolder(
            folders.output,
            deciding_settings(settings, engine.machine, weights),
            items=settings.items,
            overwrite=settings.overwrite,
            threads=engine.machine.threads,
            most_pixels=engine.machine.most_pixels,
            unknown=folders.unknown if settings.keep_unknown else None,
            thresholds=settings.thresholds,
            settled=settled_settings(settings),
        )
        if output.done:
            _LOGGER.warning("%s: going on after %s done earlier", folders.output, count_of(output.done, "photo"))
        done_before, stopped = output.done, None
        progress = RunProgress(console, total=min(files, settings.limit or files))
        began = time.monotonic()
        try:
            with stage("all photos"), signals.stop_gently(), output, progress:
                fail_folder = functools.partial(_fail_folder, output, check_dataset)
                files_found = find_photos(folders.dataset, exclude=folders.own, on_unreadable=fail_folder)
                engine.do(files_found, output, progress, signals.stopping)
                if settings.limit is None and not signals.stopping():
                    output.finish()
        except (KeyboardInterrupt, UserError) as error:
            stopped = error

    seconds = time.monotonic() - began
    written = output.total - done_before
    print_summary(
        console,
        items=[
            (item, output.counts[item], output.in_review[item], output.mean_probability(item))
            for item in {**output.counts, **output.in_review}
        ],
        mean_probability=output.mean_probability(*output.counts),
        failures=output.failures,
        written=written,
        skipped=output.skipped,
        seconds=seconds,
    )
    if progress.actors:
        print_line(console, f"Ray: {progress.actors}")
    if isinstance(stopped, UserError):
        raise stopped
    if stopped is not None or signals.stopping():
        again = f"the same command{' without --overwrite' if settings.overwrite else ''}"
        _say_error(f"interrupted; what was finished is in place, {again} goes on from there")
        return EXIT_SIGNALLED + (signals.number or signal.SIGINT)
    if not output.total and not output.failures:
        return _say_no_photos(settings)
    if written:
        facts["speed"] = f"{written / seconds:.2f} photos/s, {count_of(written, 'photo')} in {format_seconds(seconds)}"
    complete = write_side_products(
        settings,
        folders,
        output.places,
        settings.items,
        console,
        records=iterate_records(output.places),
        count=output.total,
        facts=facts,
    )
    if settings.micro:
        _say_what_micro_is_for(console)
    return EXIT_COMPLETE if complete and not output.failures else EXIT_INCOMPLETE


class Here:
    """This process does the photos: the default."""

    def __init__(self, settings: Settings, files: int) -> None:
        self._settings = settings
        self.machine = select_machine(settings, files)
        self.facts: dict[str, str] = {}

    def load(self, folders: Folders) -> dict[str, Any]:
        """Loads the models; returns by what they are known."""
        self._job = start_job(self._settings, folders, self.machine)
        return self._job.models.weights

    def do(
        self, files: Iterator[PhotoFile], output: OutputFolder, progress: RunProgress, stopping: Callable[[], bool]
    ) -> None:
        """Does the photos that are still to be done."""
        self._job.do(files, output, progress, stopping)


class OnRay:
    """As `Here`, but it is workers on a Ray cluster that do the photos."""

    def __init__(self, settings: Settings, files: int, hold: Hold, cluster: Cluster) -> None:
        import main as program  # by its name, under which workers find it
        from flow_utilities import take_photos
        from provenance_utilities import find_files

        here = Path(settings.dataset_dir)  # workers have a working directory of their own
        there = (
            settings
            if is_url(settings.dataset_dir)
            else dataclasses.replace(settings, dataset_dir=str(here.absolute()))
        )
        self._settings, self._hold, self._cluster, self._program = there, hold, cluster, program
        self._take = functools.partial(take_photos, limit=settings.limit, max_pixels=settings.max_pixels)
        self._files = cluster.carry(find_files(settings))
        self.machine, self._weights, text_features = cluster.ask(
            program.scout, settings, files, self._files, cluster.plan
        )
        self._text_features = cluster.share(text_features)
        self.facts = {"Ray": str(cluster.plan)}

    def load(self, folders: Folders) -> dict[str, Any]:
        """Says by what the models are known; the workers load them when they begin."""
        self._folders = folders.absolute()
        return self._weights

    def do(
        self, files: Iterator[PhotoFile], output: OutputFolder, progress: RunProgress, stopping: Callable[[], bool]
    ) -> None:
        """Lets the workers do the photos that are still to be done."""
        from ray_utilities import Surroundings
        from record_utilities import Places

        settings, machine = self._settings, self.machine
        unknown = self._folders.unknown if settings.keep_unknown else None
        self._cluster.do(
            files if settings.limit is None else self._take(files, is_done=output.is_done),
            output,
            progress,
            start=functools.partial(
                self._program.start_work, settings, self._files, self._folders, machine, self._text_features
            ),
            surroundings=Surroundings(
                Places(self._folders.output, self._folders.review),
                settings.thresholds,
                unknown,
                machine.threads,
                machine.most_pixels,
                self._hold.guard,
            ),
            batch_size=machine.batch_size,
            stopping=stopping,
        )


@contextlib.contextmanager
def _on_ray(settings: Settings, files: int, hold: Hold) -> Iterator[OnRay]:
    from ray_utilities import join_cluster

    with join_cluster(settings.ray, device=settings.device, actors=settings.ray_actors) as cluster:
        yield OnRay(settings, files, hold, cluster)


def scout(
    settings: Settings, files: int, carried: CarriedFiles, plan: Plan
) -> tuple[Machine, dict[str, Any], np.ndarray]:
    """Returns what all workers need to agree on: machine, weights, and the prompts' features; on one of their nodes."""
    from provenance_utilities import with_files

    settings = dataclasses.replace(with_files(settings, carried.here()), quiet=True)
    machine = select_machine(settings, files, plan)
    models = load_models(settings, machine, with_sam=False)
    return machine, models.weights, models.clip_model.text_features


def start_work(
    settings: Settings, carried: CarriedFiles, folders: Folders, machine: Machine, text_features: Callable[[], Any]
) -> Work:
    """Loads the models in a worker, and returns what does its photos."""
    from provenance_utilities import with_files
    from ray_utilities import Unseen

    settings = dataclasses.replace(with_files(settings, carried.here()), quiet=True, limit=None)
    job = start_job(settings, folders, machine, text_features())

    def work(files: Iterator[PhotoFile], courier: Courier, stopping: Callable[[], bool]) -> None:
        job.do(files, courier, Unseen(), stopping)

    return work


@dataclass(frozen=True)
class Job:
    """What does photos: the models, and all that was asked for; in this process, or in each worker."""

    settings: Settings
    folders: Folders
    machine: Machine
    models: Models
    point: Callable[[Photo], Focus | None]
    check_dataset: Callable[[], None]
    done: Iterator[int] = field(default_factory=functools.partial(itertools.count, 1))  # numbers photos

    def do(
        self,
        files: Iterator[PhotoFile],
        output: OutputFolder | Courier,
        progress: Progress,
        stopping: Callable[[], bool],
    ) -> None:
        """Does the photos that are still to be done: SAM 2 cuts them out, CLIP labels them, the output gets them.

        Args:
            files: Of the dataset.
            output: Knows what is done, and is told the rest.
            progress: Counts.
            stopping: Whether the run is to end.
        """
        from device_utilities import release_freed_memory
        from flow_utilities import Flow
        from pipeline_utilities import measures_devices

        machine = self.machine
        flow = Flow(
            output,
            progress,
            batch_size=machine.batch_size,
            threads=machine.threads,
            overlap=machine.overlaps and not measures_devices(),
            most_pixels=machine.most_pixels,
            stopping=stopping,
            check=functools.partial(_check_surroundings, self.check_dataset, machine),
        )
        for photo in do_photos(files, flow, self.settings, machine, self.models, point=self.point):
            write_photo(photo, output, self.settings, self.folders)
            progress.advance()
            if next(self.done) % RELEASE_EVERY == 0:
                release_freed_memory()


def start_job(settings: Settings, folders: Folders, machine: Machine, text_features: np.ndarray | None = None) -> Job:
    """Loads the models and returns what does photos with them.

    Args:
        settings: Of the run.
        folders: Checked.
        machine: Where the models run.
        text_features: See `ClipModel`.
    """
    from dataset_utilities import watch_dataset
    from device_utilities import forbid_tf32, keep_freed_memory, share_cores
    from flow_utilities import read_focus

    check_dataset = watch_dataset(folders.dataset)
    point = read_focus(settings)
    _seed_everything(settings.seed)
    keep_freed_memory()
    forbid_tf32()
    share_cores([machine.device, machine.clip_device])
    models = load_models(settings, machine, text_features)
    return Job(settings, folders, machine, models, point, check_dataset)


def select_machine(settings: Settings, photos: int, plan: Plan | None = None) -> Machine:
    """Returns the devices that the settings name, or the best of this machine for so many photos.

    Args:
        settings: Of the run.
        photos: How many there are.
        plan: What of the machine this is about, where others have the rest.
    """
    from device_utilities import (
        Machine,
        auto_batch_size,
        count_threads,
        has_bf16,
        select_compile,
        select_device,
        select_pixels_at_once,
        select_precision,
    )
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
        batch_size = auto_batch_size(main_device, image_size, share=1 if plan is None else 1 / plan.per_gpu)
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
        threads=count_threads() if plan is None else plan.threads,
        most_pixels=select_pixels_at_once() // (1 if plan is None else plan.per_node),
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
    from flow_utilities import (
        check_photos,
        cut_photo,
        find_subjects,
        label_photos,
        segment_photos,
        verify_subjects,
        view_photo,
    )

    photos = flow.read(files, models.sam2_model, limit=settings.limit, max_pixels=settings.max_pixels, point=point)
    if settings.focus == "detector":
        photos = flow.in_batches(photos, functools.partial(find_subjects, models.detector, settings))
    if models.sam2_model is not None:  # predict_sam2() cuts them out, ClipModel.process() labels them
        photos = flow.in_batches(photos, functools.partial(segment_photos, models.sam2_model, settings))
    photos = flow.in_threads(photos, functools.partial(cut_photo, models.clip_model, settings))
    if settings.verify_focus:
        photos = flow.in_batches(photos, functools.partial(verify_subjects, models.detector, settings))
    photos = flow.in_batches(photos, functools.partial(label_photos, models.clip_model), machine.clip_batch_size)
    if settings.check:
        photos = flow.in_threads(photos, functools.partial(view_photo, models.clip_model, settings))
        photos = flow.in_batches(photos, functools.partial(check_photos, models.clip_model), machine.clip_batch_size)
    return photos


@dataclass(frozen=True)
class Models:
    """What is loaded once per run: CLIP with its prompts encoded, SAM 2 but with `--no-sam`, a detector where asked."""

    clip_model: ClipModel
    sam2_model: Sam2 | None
    detector: Detector | None

    @property
    def weights(self) -> dict[str, str]:
        """By what an output knows those that are digested when they are loaded."""
        detector = {} if self.detector is None else {"detector_weights": self.detector.digest}
        return {"clip_weights": self.clip_model.digest, **detector}


def load_models(
    settings: Settings, machine: Machine, text_features: np.ndarray | None = None, *, with_sam: bool = True
) -> Models:
    """Returns what the settings ask for.

    Args:
        settings: Of the run.
        machine: Where the models run.
        text_features: See `ClipModel`.
        with_sam: Else SAM 2 is left out.
    """
    from clip_utilities import ClipModel
    from detector_utilities import check_labels, load_detector
    from sam_utilities import load_sam2

    detector = None
    if settings.finds_subjects:
        detector = load_detector(settings.detector, machine.device, show_progress=not settings.quiet)
        check_labels(detector, settings.focus_labels or (), flag="--focus-labels")
    clip_model = ClipModel(
        settings.clip_model,
        machine.clip_device,
        items=settings.items,
        prompts=get_prompts(settings.prefixes, settings.items, settings.postfixes),
        decision=settings.decision,
        precision=machine.clip_precision,
        text_features=text_features,
        show_progress=not settings.quiet,
    )
    if settings.no_sam or not with_sam:
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


def write_photo(photo: Photo, output: OutputFolder | Courier, settings: Settings, folders: Folders) -> None:
    """Sends a cut-out and its record on their way, its thumbnails, and with `--debug` its inspection picture."""
    from picture_utilities import draw_cut_out, inspection_jpeg
    from record_utilities import photo_record, write_atomically
    from writer_utilities import FATAL

    label, segmentation = photo.label, photo.segmentation
    record = photo_record(
        label, segmentation, photo.region, photo.image.shape, seconds=photo.seconds, flags=photo.flags, crop=photo.crop
    )
    report = None if settings.no_report else folders.report
    draw = functools.partial(draw_cut_out, photo, settings.background, report)
    output.write(photo.file, draw, record, mask=photo.mask, features=photo.features)

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
        path = (folders.debug / photo.file.name).with_suffix(".jpg")
        try:
            write_atomically(path, inspection_jpeg(photo, settings.background, scores))
        except OSError as error:
            # Of a.png, beside a folder of photos that is called a.jpg; or the whole folder's name is a file's.
            in_the_way = isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError)
            if error.errno in FATAL or (in_the_way and not folders.debug.is_dir()):
                reason = error.strerror
                raise OutputError(f"{path}: can't be written: {reason}; leave out --debug, or make room") from None
            _LOGGER.warning("%s: no inspection picture: %s", photo.file.source, error.strerror or error)
        except Exception as error:  # whatever drawing one photo raises, its cut-out is what counts
            _LOGGER.warning("%s: no inspection picture: %s: %s", photo.file.source, type(error).__name__, error)


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


@contextlib.contextmanager
def _console(settings: Settings, arguments: Sequence[str]) -> Iterator[Console]:
    from console_utilities import NotingConsole, SparableStream, logging_to

    if settings.log and Path(settings.output).resolve() in Path(settings.log).resolve().parents:
        raise ConfigError(f"--log {settings.log}: lies in the output, where readers expect photos; put it elsewhere")
    console = NotingConsole(file=SparableStream(sys.stdout), quiet=settings.quiet)
    level = logging.INFO if settings.verbose or settings.debug else logging.WARNING
    with logging_to(console, level=level, log_file=settings.log):
        _TOLD.info("%s", _command_line(arguments))
        yield console


def _command_line(arguments: Sequence[str]) -> str:
    """Returns the command as a shell takes it, without what may be a secret in a URL: no bucket's name, or a query."""
    shown = [re.sub(r"://(?![\w.$-]*(:\d+)?(/|$)).*", "://...", argument) for argument in arguments]
    shown = [re.sub(r"(://[^?]*\?).*", r"\1...", argument) for argument in shown]
    return shlex.join(["python", "main.py", *shown])


def _say_what_micro_is_for(console: Console) -> None:
    from console_utilities import print_line

    print_line(console, "The micro models are for trying out; for photographs leave out --demo and --micro:")
    print_line(console, "  python main.py --dataset-dir YOUR_PHOTOS --output ANOTHER_FOLDER")
    print_line(console, f"which downloads {Settings.sam_model} and {Settings.clip_model}, 0.9 GB each.")


def _say_no_photos(settings: Settings) -> int:
    _say_error(f"{settings.dataset_dir}: no photos in it; name your folder with --dataset-dir")
    return EXIT_INCOMPLETE


def _say_error(message: str) -> None:
    from console_utilities import SparableStream, printable

    print(f"main.py: {printable(message)}", file=SparableStream(sys.stderr), flush=True)
    _TOLD.error("main.py: %s", message)


if __name__ == "__main__":
    sys.exit(main())
