"""The folders of a run: where they lie, that they do not mix, and that one run at a time writes to them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from config_utilities import Settings
from dataset_utilities import SIDES, count_files
from errors import OutputError
from lease_utilities import Hold, hold_lease
from lock_utilities import hold_lock
from record_utilities import RUN, TEMPORARY
from report_utilities import is_report
from storage_utilities import Place, RemotePath, to_place

_LOGGER = logging.getLogger("sam2vit")

_LOCK = ".lock"  # only while a run is writing
_NOBODYS = {".DS_Store", "Thumbs.db", "desktop.ini", "lost+found"}  # systems put them anywhere


@dataclass(frozen=True)
class Folders:
    """Where the photos are, and where files are written."""

    dataset: Place
    output: Place
    debug: Place
    unknown: Place
    review: Place
    report: Place
    export: Place

    @property
    def own(self) -> list[Place]:
        """The folders that are no photos even where they lie inside the dataset."""
        return [self.output, self.debug, self.unknown, self.review, self.report, self.export]

    def absolute(self) -> Folders:
        """Returns the same folders, for processes that work elsewhere."""
        places = (getattr(self, field.name) for field in fields(self))
        return Folders(*(place if isinstance(place, RemotePath) else place.absolute() for place in places))


def check_folders(settings: Settings) -> tuple[Folders, int]:
    """Returns the folders of a run, and how many files the dataset has; refuses those that would mix."""
    folders = name_folders(settings.dataset_dir, settings.output)
    files = count_files(folders.dataset, exclude=folders.own)
    # That of exports knows its own files, and is looked at where they are checked.
    sides = [
        (folders.debug, settings.debug),
        (folders.unknown, settings.keep_unknown),
        (folders.report, not settings.no_report),
    ]
    check_output(folders.output, folders.dataset, side_folders=[folder for folder, used in sides if used])
    if settings.overwrite:
        left = {"photos": folders.unknown, "inspection pictures": folders.debug}
        if not settings.exports:  # which would replace those that are there
            left["exports"] = folders.export
        for what, folder in left.items():
            if _holds_any(folder):
                _LOGGER.warning(
                    "%s: --overwrite leaves the %s that are there; delete what you don't need", folder, what
                )
    return folders, files


def name_folders(dataset_dir: str, output: str) -> Folders:
    """Returns the folders that go with a dataset and an output."""
    dataset_place, place = to_place(dataset_dir, flag="--dataset-dir"), to_place(output, flag="--output")
    return Folders(dataset_place, place, *(sibling(place, kind) for kind in SIDES))


def sibling(output: Place, kind: str) -> Place:
    """Returns the folder of side products that stands beside the output, such as `output-debug`."""
    if isinstance(output, RemotePath):
        return output.with_name(f"{output.name}-{kind}")
    absolute = Path(os.path.abspath(output))  # `.` has no name of its own  # noqa: PTH100 (links stay links)
    return absolute.parent / f"{absolute.name}-{kind}"


def check_output(output: Place, dataset_dir: Place, *, side_folders: Sequence[Place] = ()) -> None:
    """Refuses an output that would mix with the photos or with somebody's files.

    Args:
        output: Where cut-outs will go.
        dataset_dir: Where the photos are.
        side_folders: Where else files will be written, but for the review folder, which is looked at in any case.

    Raises:
        OutputError: The output or a folder beside it is the dataset or contains it, whether the run will write there or
            not; or the output is no folder, can't be read or holds files of another origin; or it is new, and a side
            folder holds any.
    """
    photos = dataset_dir.resolve()
    for folder in (output, *(sibling(output, kind) for kind in SIDES)):
        if folder.resolve() == photos or folder.resolve() in photos.parents:
            relation = "is" if folder.resolve() == photos else "contains"
            what = f"--output {output}" if folder == output else f"--output {output}: its side folder {folder}"
            raise OutputError(f"{what}: {relation} the dataset {dataset_dir}; name another --output")
    names = _names(output)
    if RUN in names:
        return
    if names:
        raise OutputError(
            f"--output {output}: holds files that are not of a sam2vit run, such as {names[0]!r}; "
            "name a new or empty folder"
        )
    for folder in (sibling(output, "review"), *side_folders):
        if (held := _names(folder)) and not is_report(folder):  # of an output that was deleted
            raise OutputError(
                f"--output {output}: is new, but {folder} beside it holds {held[0]!r}; move that away, or name another "
                "--output"
            )


def _names(folder: Place) -> list[str]:
    """Returns the names in a folder, but for what systems and runs have there meanwhile; none where it is missing."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise OutputError(f"--output {folder}: {error.strerror}; name a folder of your own") from None
    return [name for name in names if name not in {_LOCK, *_NOBODYS} and not TEMPORARY.fullmatch(name)]


def _holds_any(folder: Place) -> bool:
    try:
        return bool(_names(folder))
    except OutputError:  # a file; whoever writes there says so
        return False


@contextlib.contextmanager
def lock_output(output: Place) -> Iterator[Hold]:
    """Keeps other runs out of a folder, which is made where it is missing, as long as the block takes.

    Yields:
        The hold, which another run may have now, in spite of that.

    Raises:
        OutputError: Another run has it, or the folder can't be written.
    """
    path = output / _LOCK

    def refuse(holder: str) -> None:
        raise OutputError(f"--output {output}: {holder} is writing to it; wait for its end, or name another --output")

    if isinstance(output, RemotePath):
        with contextlib.ExitStack() as stack:
            try:
                hold = stack.enter_context(hold_lease(path, on_held=refuse))
            except OSError as error:
                raise unwritable(output, error) from None
            yield hold
        return
    with contextlib.ExitStack() as stack:
        try:
            if not output.exists():
                output.mkdir(parents=True, exist_ok=True)
                stack.callback(_remove_if_empty, output)
            stack.enter_context(hold_lock(path, on_held=lambda: refuse(_holder(path))))
        except OSError as error:
            raise unwritable(output, error) from None
        with contextlib.suppress(OSError):  # a full disk is told of by what needs it
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield Hold()


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not
        folder.rmdir()


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:200] or "another run"
    except (OSError, ValueError):
        return "another run"


def unwritable(output: Place, error: OSError) -> OutputError:
    """Returns the error of an output that can't be written from the beginning."""
    reason = error.strerror or error
    return OutputError(
        f"--output {output}: can't be written: {reason}; make room, mend its permissions, or name another"
    )
