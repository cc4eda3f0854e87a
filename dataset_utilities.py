"""The folder of photos: what lies in it, and what each photo's cut-out will be called."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from errors import DatasetError
from photo_utilities import is_image

_LONGEST_NAME = 255  # bytes, on every common file system


@dataclass(frozen=True)
class PhotoFile:
    """One file of the dataset.

    Attributes:
        path: Where it lies.
        source: Its path relative to the dataset, with forward slashes: its identity in all records.
        name: The path of its cut-out relative to the item's folder, such as `berlin/car.png`.
    """

    path: Path
    source: str
    name: str


def find_photos(
    dataset_dir: Path,
    *,
    exclude: Sequence[Path] = (),
    on_unreadable: Callable[[str, OSError], None] | None = None,
) -> Iterator[PhotoFile]:
    """Yields the files of a dataset, folder by folder in sorted order, with the names of their cut-outs.

    What a file holds is not looked at, except where two files of a folder compete for one name. Hidden files and
    folders (leading dot) are left out, as are pipes and devices. Links to files are followed, links to folders
    are not, so that no loop can form. Memory is that of the largest single folder.

    Args:
        dataset_dir: The folder.
        exclude: Folders to leave out, such as an output inside the dataset.
        on_unreadable: Called with the relative path of a folder that can't be listed, and why.

    Raises:
        DatasetError: The dataset itself is missing or can't be listed.
    """
    for folder, files in _walk(dataset_dir, exclude=exclude, on_unreadable=on_unreadable):
        relative = folder.relative_to(dataset_dir)
        names = output_names([entry.name for entry in files], is_image=lambda name: is_image(folder / name))  # noqa: B023
        for entry in files:
            source = (relative / entry.name).as_posix()
            parent = "/".join(_portable(part) for part in relative.parts)
            name = f"{parent}/{names[entry.name]}" if parent else names[entry.name]
            yield PhotoFile(path=folder / entry.name, source=source, name=name)


def count_files(dataset_dir: Path, *, exclude: Sequence[Path] = ()) -> int:
    """Returns how many files `find_photos` will yield."""
    return sum(len(files) for _, files in _walk(dataset_dir, exclude=exclude, on_unreadable=None))


def _walk(
    dataset_dir: Path,
    *,
    exclude: Sequence[Path],
    on_unreadable: Callable[[str, OSError], None] | None,
) -> Iterator[tuple[Path, list[os.DirEntry[str]]]]:
    excluded = {path.resolve() for path in exclude}
    folders = [dataset_dir]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            if folder == dataset_dir:
                raise DatasetError(
                    f"{dataset_dir}: {error.strerror}; name your folder of photos with --dataset-dir"
                ) from None
            if on_unreadable is not None:
                on_unreadable(folder.relative_to(dataset_dir).as_posix(), error)
            continue
        subfolders = [Path(entry.path) for entry in visible if entry.is_dir(follow_symlinks=False)]
        folders += reversed([path for path in subfolders if path.resolve() not in excluded])
        yield folder, [entry for entry in visible if entry.is_file()]


def output_names(file_names: Sequence[str], *, is_image: Callable[[str], bool]) -> dict[str, str]:
    """Returns the PNG name of each file of one folder, all different, even where case does not count.

    `car.jpg` becomes `car.png`. Images that would share a name keep their full file names (`car.jpg.png`,
    `car.webp.png`); a note beside a photo (`car.txt`) is no rival. Should two still meet, as `A.jpg` and `a.jpg`
    do on macOS and Windows, a hash of the file name tells them apart.

    Args:
        file_names: The names of the files, without folders.
        is_image: Whether a file holds an image; asked only about rivals for one name.
    """
    short = {file: _png_name(PurePosixPath(file).stem) for file in file_names}
    full = {file: _png_name(file) for file in file_names}

    def rivals(names: dict[str, str]) -> set[str]:
        count = Counter(_same_on_disk(name) for name in names.values())
        return {file for file, name in names.items() if count[_same_on_disk(name)] > 1}

    no_images = {file for file in rivals(short) if not is_image(file)}
    names = {file: name for file, name in short.items() if file not in no_images}
    # A full name may meet the short name of a file called car.jpg.png: repeat until all short rivals are full.
    while to_lengthen := [file for file in rivals(names) if names[file] != full[file]]:
        names.update((file, full[file]) for file in to_lengthen)
    for file in rivals(names):
        digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:8]
        names[file] = _png_name(f"{file}-{digest}")
    # What holds no image is never written; it needs a name only so that it can be looked at and skipped.
    return {file: names.get(file, full[file]) for file in file_names}


def _png_name(stem: str) -> str:
    """Returns stem + .png in valid Unicode and at most 255 bytes; a cut name ends in a hash of the whole."""
    portable = _portable(stem)
    if len(portable.encode()) + len(".png") <= _LONGEST_NAME:
        return f"{portable}.png"
    digest = hashlib.sha256(portable.encode()).hexdigest()[:8]
    kept = portable.encode()[: _LONGEST_NAME - len("-.png") - len(digest)].decode(errors="ignore")
    return f"{kept}-{digest}.png"


def _portable(name: str) -> str:
    """Returns a file name in valid Unicode: a byte that is no UTF-8 becomes %XX."""
    return "".join(f"%{ord(c) - 0xDC00:02X}" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in name)


def _same_on_disk(name: str) -> str:
    """Returns what case-folding, normalising file systems compare."""
    return unicodedata.normalize("NFC", name).casefold()
