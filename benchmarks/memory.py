"""Whether the program's memory grows with the number of photos: its resident set after 200 and after 2,000.

python -m benchmarks.memory                     the bundled models on JPEGs of 640 x 480
python -m benchmarks.memory --large             every 25th has 12 megapixels: now and then two of them meet
python -m benchmarks.memory --photos 20000      to wait longer

Reads /proc, so it needs Linux.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.throughput import save_photos
from config_utilities import PROGRAM_DIR

FIRST = 200  # photos, from which on memory should not grow
_WINDOW = 50  # photos around a figure, whose largest resident set it is
SMALL, LARGE = (640, 480), (4000, 3000)


def main() -> None:
    """Runs the program and prints its resident set on the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sam2vit-benchmark-") as folder:
        photos, output = Path(folder, "photos"), Path(folder, "output")
        sizes_wh = (*[SMALL] * 24, LARGE) if arguments.large else (SMALL,)
        save_photos(photos, sizes_wh, arguments.photos, Path(folder, "scenes"))
        samples = watch(photos, output, arguments.photos)
    marks = [FIRST, *range(500, arguments.photos, 500), arguments.photos]
    figures = {mark: max(rss for done, rss in samples if mark - _WINDOW <= done <= mark) for mark in marks}
    for mark, rss in figures.items():
        print(f"after {mark:6} photos {rss / 1e6:8.1f} MB  {rss / figures[FIRST]:.3f}")


def watch(photos: Path, output: Path, count: int) -> list[tuple[int, int]]:
    """Returns (photos recorded, resident set in bytes), many times up to the last photo.

    What comes after it, the end of the interpreter, takes 100 MB more for a moment, however few photos there were.
    """
    command = [sys.executable, str(PROGRAM_DIR / "main.py"), "--micro", "--quiet", "-i", str(photos), "-o", str(output)]
    samples = []
    records = output / "metadata.jsonl"
    position = done = 0
    with subprocess.Popen(command) as process:
        while process.poll() is None and done < count:
            time.sleep(0.05)
            if not records.exists():
                continue
            with records.open("rb") as file:
                file.seek(position)
                new = file.read()
            position, done = position + len(new), done + new.count(b"\n")
            try:
                pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            except (FileNotFoundError, ProcessLookupError, IndexError):
                break
            samples.append((done, pages * os.sysconf("SC_PAGE_SIZE")))
    if process.wait():
        raise SystemExit(f"the program ended with {process.returncode}")
    return samples


if __name__ == "__main__":
    main()
