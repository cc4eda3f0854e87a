"""The folder of photos: what lies in it, and what each photo's cut-out will be called."""

from __future__ import annotations

import hashlib
import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from errors import DatasetError
from photo_utilities import check_open_files, is_image
from record_utilities import RUN
from storage_utilities import Place, RemotePath

SIDES = ("debug", "unknown", "review", "report", "export")  # of folders beside an output: `output-debug`

_LOGGER = logging.getLogger("sam2vit")

_LONGEST_NAME = 255  # bytes, on every common file system
_LONGEST_ENDING = 16  # characters; what is longer is no ending
_HASH_DIGITS = 8


@dataclass(frozen=True)
class PhotoFile:
    """One file of the dataset.

    Attributes:
        path: Where it lies.
        source: Its path relative to the dataset, with forward slashes, in valid Unicode: its identity in all
            records. A byte that is no UTF-8 stands there as %XX, since readers of JSON refuse anything else.
        name: The path of its cut-out relative to the item's folder, such as `berlin/car.png`. A backslash stands there
            as %5C: readers such as `datasets` take it for a slash.
    """

    path: Place
    source: str
    name: str


def find_photos(
    dataset_dir: Place,
    *,
    exclude: Sequence[Place] = (),
    on_unreadable: Callable[[str, OSError], None] | None = None,
) -> Iterator[PhotoFile]:
    """Yields the files of a dataset, folder by folder in sorted order, with the names of their cut-outs.

    What a file holds is not looked at, except where two files of a folder compete for one name. Hidden files and
    folders (leading dot) are left out, as are pipes and devices, and outputs of earlier runs with what stands beside
    them. Links to files are followed, links to folders are not, so that no loop can form. A link that leads nowhere is
    a file, whose failure says so. Memory is that of the largest single folder.

    Args:
        dataset_dir: The folder.
        exclude: Folders to leave out, such as an output inside the dataset.
        on_unreadable: Called with the relative path of a folder that can't be listed, and why.

    Raises:
        DatasetError: The dataset itself is missing or can't be listed.
    """
    for folder in _walk(dataset_dir, exclude=exclude, on_unreadable=on_unreadable):
        names = output_names(
            list(folder.files),
            taken=folder.subfolders.values(),
            is_image=lambda file, folder=folder: is_image(folder.path / file),
        )
        for file, portable in folder.files.items():
            yield PhotoFile(
                path=folder.path / file,
                source=f"{folder.relative}{portable}",
                name=f"{folder.named}{names[file]}",
            )


def count_files(dataset_dir: Place, *, exclude: Sequence[Place] = ()) -> int:
    """Returns how many files `find_photos` will yield, and warns of what it leaves out.

    Raises:
        DatasetError: The dataset is missing or can't be listed, or none of its folders that may have files.
    """
    files, outputs, links, link = 0, [], 0, None
    refused: list[tuple[str, OSError]] = []
    for folder in _walk(dataset_dir, exclude=exclude, on_unreadable=lambda *refusal: refused.append(refusal)):
        files += len(folder.files)
        links += len(folder.links)
        link = link or next((folder.path / name for name in folder.links), None)
        if folder.is_output:
            outputs.append(folder.path)
    if outputs:
        _LOGGER.warning(
            "outputs of earlier runs among the photos: %d, such as %s; they are left out, and what stands beside them",
            len(outputs),
            outputs[0],
        )
    if links:
        _LOGGER.warning("links to folders: %d, such as %s; they are not followed", links, link)
    if refused and not files:
        folder_name, error = refused[0]
        raise DatasetError(f"{dataset_dir / folder_name}: can't be listed: {error.strerror}; mend its permissions")
    return files


def watch_dataset(dataset_dir: Place) -> Callable[[], None]:
    """Returns what raises once the dataset is no longer the folder that it is now: deleted, renamed or unmounted.

    Called where a photo can't be read, it ends a run that would otherwise give each of the others up, too.

    Raises:
        DatasetError: The dataset is gone, now or when what is returned is called.
    """

    def look() -> Any:
        try:
            return dataset_dir.is_dir() if isinstance(dataset_dir, RemotePath) else dataset_dir.stat()
        except OSError as error:
            raise _gone(dataset_dir, error.strerror) from None

    before = look()

    def check() -> None:
        now = look()
        if isinstance(dataset_dir, RemotePath):
            if before and not now:
                raise _gone(dataset_dir, "nothing is there any more")
        elif not os.path.samestat(now, before):
            raise _gone(dataset_dir, "another folder is there now")

    return check


def _gone(dataset_dir: Place, reason: str) -> DatasetError:
    return DatasetError(f"{dataset_dir}: is gone ({reason}); bring it back, and the same command goes on from there")


@dataclass(frozen=True)
class _Folder:
    """A folder of the dataset; names on disk go with their portable forms."""

    path: Place
    relative: str  # portable, with a slash at its end; empty for the dataset itself
    named: str  # the same in the names of cut-outs
    files: dict[str, str]
    subfolders: dict[str, str]  # as in the names of cut-outs
    links: Sequence[str] = ()  # to folders
    is_output: bool = False  # of an earlier run; nothing in it is looked at


def _walk(
    dataset_dir: Place,
    *,
    exclude: Sequence[Place],
    on_unreadable: Callable[[str, OSError], None] | None,
) -> Iterator[_Folder]:
    excluded = {path.resolve() for path in exclude}
    to_visit = [(dataset_dir, "", "")]
    while to_visit:
        path, relative, named = to_visit.pop()
        try:
            listing = _list(path, excluded)
        except OSError as error:
            check_open_files(error)
            if path == dataset_dir:
                raise DatasetError(
                    f"{dataset_dir}: {error.strerror}; name your folder of photos with --dataset-dir"
                ) from None
            if on_unreadable is not None:
                on_unreadable(relative.rstrip("/"), error)
            continue
        if listing.is_output and path != dataset_dir:
            sides = {path.with_name(f"{path.name}-{kind}") for kind in SIDES}  # by their names, they come later
            to_visit = [each for each in to_visit if each[0] not in sides]
            yield _Folder(path, relative, named, {}, {}, is_output=True)
            continue
        portable, plain = _portable_names(listing.names), _portable_names(listing.names, without="\\")
        to_visit += [
            (path / name, f"{relative}{portable[name]}/", f"{named}{plain[name]}/")
            for name in reversed(listing.subfolders)
        ]
        yield _Folder(
            path,
            relative,
            named,
            {name: portable[name] for name in listing.files},
            {name: plain[name] for name in listing.subfolders},
            listing.links,
        )


@dataclass(frozen=True)
class _Listing:
    """The names that are to be seen in a folder, which of them are what, and whether it is a run's output."""

    names: list[str]
    files: list[str]
    subfolders: list[str]
    links: list[str]
    is_output: bool


def _list(folder: Place, excluded: Collection[Place]) -> _Listing:
    if isinstance(folder, RemotePath):
        found = folder.scan()
        seen = [entry for entry in found if not entry.name.startswith(".")]
        files = [entry.name for entry in seen if not entry.is_folder]
        subfolders = [entry.name for entry in seen if entry.is_folder and folder / entry.name not in excluded]
        links = []
    else:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        seen = [entry for entry in found if not entry.name.startswith(".")]
        files = [entry.name for entry in seen if _is_file(entry)]
        subfolders = [
            entry.name
            for entry in seen
            if entry.is_dir(follow_symlinks=False) and Path(entry.path).resolve() not in excluded
        ]
        links = [entry.name for entry in seen if entry.is_symlink() and os.path.isdir(entry.path)]  # noqa: PTH112 (quick)
    return _Listing([entry.name for entry in seen], files, subfolders, links, any(entry.name == RUN for entry in found))


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, or a link that leads to one, or nowhere."""
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))  # noqa: PTH110 (quick)
    except OSError:  # a link in a loop, or through a folder that is closed
        return True


def _portable_names(names: Sequence[str], *, without: str = "") -> dict[str, str]:
    """Returns the names of one folder in valid Unicode, all different.

    A byte that is no UTF-8 becomes %XX, and so do the characters that they are to be without.
    """
    taken = set(names)
    portable: dict[str, str] = {}
    for name in names:
        escaped = "".join(f"%{ord(c) & 0xFF:02X}" if 0xDC80 <= ord(c) <= 0xDCFF or c in without else c for c in name)
        while escaped != name and escaped in taken:
            escaped += "%"
        taken.add(escaped)
        portable[name] = escaped
    return portable


def output_names(
    file_names: Sequence[str], *, is_image: Callable[[str], bool], taken: Iterable[str] = ()
) -> dict[str, str]:
    """Returns the PNG name of each file of one folder, all different, even where case does not count.

    `car.jpg` becomes `car.png`. Images that would share a name keep their full file names (`car.jpg.png`,
    `car.webp.png`); a note beside a photo (`car.txt`) is no rival. Should two still meet, as `A.jpg` and `a.jpg`
    do on macOS and Windows, a hash of the file name tells them apart.

    Args:
        file_names: The names of the files, without folders.
        is_image: Whether a file holds an image; asked only about rivals for one name.
        taken: Names that no PNG may have: those of the subfolders beside the files.
    """
    taken = tuple(taken)
    short = {file: _fit(PurePosixPath(file).stem) for file in file_names}
    full = {file: _fit(file) for file in file_names}

    def rivals(names: dict[str, str]) -> set[str]:
        count = Counter(same_on_disk(name) for name in [*names.values(), *taken])
        return {file for file, name in names.items() if count[same_on_disk(name)] > 1}

    no_images = {file for file in rivals(short) if not is_image(file)}
    names = {file: name for file, name in short.items() if file not in no_images}
    # A full name may meet the short name of a file called car.jpg.png: repeat until all short rivals are full.
    while to_lengthen := [file for file in rivals(names) if names[file] != full[file]]:
        names.update((file, full[file]) for file in to_lengthen)
    for file in rivals(names):
        names[file] = _fit(f"{file}-{_short_hash(file)}")
    # What holds no image is never written; it needs a name only so that it can be looked at and skipped.
    return {file: names.get(file, full[file]) for file in file_names}


def _fit(stem: str, ending: str = ".png") -> str:
    """Returns stem + ending as a portable name of at most 255 bytes; a cut one ends in a hash of the whole."""
    [portable] = _portable_names([stem], without="\\").values()
    if len(f"{portable}{ending}".encode()) <= _LONGEST_NAME:
        return f"{portable}{ending}"
    kept = portable.encode()[: _LONGEST_NAME - len(f"-{ending}".encode()) - _HASH_DIGITS].decode(errors="ignore")
    return f"{kept}-{_short_hash(stem)}{ending}"


def name_cut_out(photo: PhotoFile, item: str, *, taken: Iterable[str] = ()) -> str:
    """Returns the path of a photo's cut-out relative to the output: another one under items where its name is taken."""
    return f"{item}/{alternative_name(photo) if item in taken else photo.name}"


def alternative_name(photo: PhotoFile) -> str:
    """Returns another name for a photo's cut-out, for where `photo.name` is taken by a photo since deleted."""
    folder, slash, last = photo.name.rpartition("/")
    return f"{folder}{slash}{_fit(f'{PurePosixPath(last).stem}-{_short_hash(photo.source)}')}"


def copy_name(photo: PhotoFile) -> str:
    """Returns the name of a copy of the photo: that of its cut-out, but with the photo's own ending."""
    folder, slash, last = photo.name.rpartition("/")
    ending = PurePosixPath(photo.source).suffix
    return f"{folder}{slash}{_fit(last.removesuffix('.png'), ending if len(ending) <= _LONGEST_ENDING else '')}"


def _short_hash(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:_HASH_DIGITS]


def same_on_disk(name: str) -> str:
    """Returns what case-folding, normalising file systems compare."""
    return unicodedata.normalize("NFC", name).casefold()
