"""Writes an output folder again and again, killed at each of its file operations in turn, and then undisturbed.

python tests/faults/crashes.py FOLDER    prints how many operations there are, and those whose traces remain

A run into a new folder, one that goes on where another ended, one that overwrites another, and one that corrects it.

It forks, and so must have no threads: it is a program of its own. Python tells an audit hook of each file that is
opened, renamed or removed, before it happens.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from csv_utilities import format_csv
from curation_utilities import apply_corrections, read_finished
from dataset_utilities import PhotoFile
from feature_utilities import FEATURES
from folder_utilities import check_output, lock_output
from output_utilities import OutputFolder
from prompt_utilities import Label
from record_utilities import Thresholds, clear_temporaries, photo_record
from revision_utilities import REVISIONS

_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
_ITEMS = ("red", "blue")


def write_all(output: Path, *, photos: int = 6, margin: float = 0.05, overwrite: bool = False) -> None:
    """What main.py does with an output: lock, take stock, write photos of which one fails, set that one aside."""
    unknown = output.with_name(f"{output.name}-unknown")
    check_output(output, output.parent / "photos")
    with lock_output(output):
        clear_temporaries(unknown)
        settings = {"margin": margin, "prefixes": ["a"], "items": _ITEMS, "postfixes": ["car"]}
        options = {"threads": 1, "unknown": unknown, "overwrite": overwrite, "thresholds": Thresholds(mask_score=0.5)}
        folder = OutputFolder(output, settings, items=_ITEMS, **options)
        with folder:
            for index in range(photos):
                source = f"{index}.jpg"
                photo = PhotoFile(output.parent / "photos" / source, source, f"{index}.png")
                if folder.is_done(photo):
                    continue
                if index == 3:
                    folder.set_aside(photo)
                    folder.fail(source, "no subject", stage="focus")
                    continue
                item = _ITEMS[int(index + 100 * margin) % 2]
                label = Label(item, f"a {item} car", 0.25, 0.75, "blue", 0.5, ((item, 0.75),))
                record = photo_record(label, None, None, (8, 8, 3), seconds=0.0) | {"mask_score": 0.4 + 0.02 * index}
                mask, features = np.eye(8, dtype=bool), np.full(4, index)
                draw = functools.partial(np.full, (8, 8, 4), index, np.uint8)
                folder.write(photo, draw, record, mask=mask, features=features)
            if photos == 6:
                folder.finish()


def correct_all(output: Path) -> None:
    """Puts one photo into another item, one into review, and one out of it, as --apply does."""
    corrections = output.parent / "corrections.csv"
    if not corrections.exists():
        lines = [("0.jpg", "blue", "wrong"), ("5.jpg", "", "bad mask"), ("1.jpg", "blue", "right")]
        corrections.write_bytes(format_csv(["file_name", "item", "verdict"], lines))
    with lock_output(output):
        for folder in (output, output.with_name(f"{output.name}-review")):
            clear_temporaries(folder)
        apply_corrections(read_finished(output), corrections)


def in_child(work: Callable[[], None]) -> int:
    """Returns how a forked process that does the work has ended, as os.waitpid says it."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def killed_at(operation: int, output: Path, work: Callable[[], None]) -> None:
    """Does the work, and is killed before the operation of that number on the output or what lies beside it."""
    left = operation

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _OPERATIONS and str(output.parent) in str(arguments[0]):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(count)
    work()


def tree(folder: Path) -> dict[str, bytes]:
    """Everything under a folder, by path; of features and revisions what they mean, not when it was written."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path, contents in found.items():
        if path.endswith(FEATURES):
            found[path] = b"".join(sorted({contents[place : place + 24] for place in range(16, len(contents), 24)}))
        if path.endswith(REVISIONS):
            found[path] = re.sub(rb'"time": "[^"]*"', b"", contents.replace(str(folder).encode(), b""))
    return found


_Work = Callable[[Path], None]

# name -> what was there before, and the run that is killed and started again
_RUNS: dict[str, tuple[_Work | None, _Work]] = {
    "new": (None, write_all),
    "resumed": (functools.partial(write_all, photos=4), write_all),
    "overwriting": (functools.partial(write_all, margin=0.1), functools.partial(write_all, overwrite=True)),
    "correcting": (write_all, correct_all),
}


def prepare(place: Path, before: _Work | None) -> Path:
    """Makes a folder of photos, and perhaps the output of an earlier run, and returns where the output is."""
    (place / "photos").mkdir(parents=True)
    for index in range(6):
        (place / "photos" / f"{index}.jpg").write_bytes(b"a photo")
    if before is not None and in_child(lambda: before(place / "out")):
        sys.exit("the earlier run failed")
    return place / "out"


def main(folder: Path) -> None:
    """Kills and resumes until no operation is left to be killed at."""
    kills, wrong = 0, []
    for name, (before, run) in _RUNS.items():
        undisturbed = prepare(folder / name / "undisturbed", before)
        if in_child(functools.partial(run, undisturbed)):
            sys.exit("the undisturbed run failed")
        expected = tree(undisturbed.parent)
        for operation in itertools.count():
            output = prepare(folder / name / f"{operation}", before)
            work = functools.partial(run, output)
            status = in_child(functools.partial(killed_at, operation, output, work))
            if status == 0:
                break
            kills += 1
            if not os.WIFSIGNALED(status) or in_child(work):
                wrong.append(f"{name}, operation {operation}: a run failed")
            elif tree(output.parent) != expected:
                differing = sorted({path for path, _ in set(tree(output.parent).items()) ^ set(expected.items())})
                wrong.append(f"{name}, operation {operation}: {differing}")
    print(json.dumps({"kills": kills, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
