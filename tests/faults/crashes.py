"""Writes an output folder again and again, killed at each of its file operations in turn, and then undisturbed.

python tests/faults/crashes.py FOLDER    prints how many operations there are, and those whose traces remain

It forks, and so must have no threads: it is a program of its own. Python tells an audit hook of each file that is
opened, renamed or removed, before it happens.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from dataset_utilities import PhotoFile
from output_utilities import OutputFolder, clear_temporaries, lock_output, photo_record
from prompt_utilities import Label

_OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
_ITEMS = ("red", "blue")


def write_all(output: Path) -> None:
    """What main.py does with an output: lock, take stock, write six photos of which one fails, set one aside."""
    unknown = output.with_name(f"{output.name}-unknown")
    with lock_output(output):
        clear_temporaries(unknown)
        folder = OutputFolder(output, {"margin": 0.05}, items=_ITEMS, threads=1, unknown=unknown)
        with folder:
            for index in range(6):
                source = f"{index}.jpg"
                photo = PhotoFile(output.parent / "photos" / source, source, f"{index}.png")
                if folder.is_done(photo):
                    continue
                if index == 3:
                    folder.set_aside(photo)
                    folder.fail(source, "no subject", stage="focus")
                    continue
                item = _ITEMS[index % 2]
                label = Label(item, f"a {item} car", 0.25, 0.75, "blue", 0.5, ((item, 0.75),))
                record = photo_record(label, None, None, (8, 8, 3), seconds=0.0)
                folder.write(photo, lambda index=index: np.full((8, 8, 4), index, np.uint8), record)
            folder.finish()


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


def killed_at(operation: int, output: Path) -> None:
    """Writes the folder, and is killed before the operation of that number."""
    left = operation

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in _OPERATIONS and str(output.parent) in str(arguments[0]):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(count)
    write_all(output)


def tree(folder: Path) -> dict[str, bytes]:
    """Everything under a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def main(folder: Path) -> None:
    """Kills and resumes until no operation is left to be killed at."""
    for index in range(6):
        (folder / "undisturbed" / "photos").mkdir(parents=True, exist_ok=True)
        (folder / "undisturbed" / "photos" / f"{index}.jpg").write_bytes(b"a photo")
    if in_child(lambda: write_all(folder / "undisturbed" / "out")):
        sys.exit("the undisturbed run failed")
    expected = tree(folder / "undisturbed")
    kills, wrong = 0, []
    while True:
        place = folder / f"{kills}"
        (place / "photos").mkdir(parents=True)
        for index in range(6):
            (place / "photos" / f"{index}.jpg").write_bytes(b"a photo")
        status = in_child(lambda place=place, kills=kills: killed_at(kills, place / "out"))
        if status == 0:
            break
        if not os.WIFSIGNALED(status) or in_child(lambda place=place: write_all(place / "out")):
            wrong.append(f"operation {kills}: a run failed")
        elif tree(place) != expected:
            wrong.append(f"operation {kills}: {sorted(set(tree(place).items()) ^ set(expected.items()))[:4]}")
        kills += 1
    print(json.dumps({"kills": kills, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
