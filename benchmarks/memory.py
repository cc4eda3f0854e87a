"""Whether the program's memory grows with the number of photos: its resident set after 200 and after 2,000.

python -m benchmarks.memory                     the bundled models on JPEGs of 640 x 480
python -m benchmarks.memory --large             every 25th has 12 megapixels: now and then two of them meet
python -m benchmarks.memory --photos 20000      to wait longer
python -m benchmarks.memory --finished 100000   what is done with an output of so many photos, and of a quarter

Reads /proc, so it needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.throughput import save_photos
from config_utilities import PROGRAM_DIR, read_config
from feature_utilities import FEATURES, FeatureFile
from record_utilities import METADATA

FIRST = 200  # photos, from which on memory should not grow
_WINDOW = 50  # photos around a figure, whose largest resident set it is
SMALL, LARGE = (640, 480), (4000, 3000)


def main() -> None:
    """Runs the program and prints its resident set on the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--finished", type=int, metavar="N")
    arguments = parser.parse_args()
    if arguments.finished:
        print_finished(arguments.finished)
        return
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


def print_finished(count: int) -> None:
    """Prints the peaks of what is done with an output of so many photos, and what each photo adds to them."""
    counts = count // 4, count
    with tempfile.TemporaryDirectory(prefix="sam2vit-benchmark-") as folder:
        peaks = [measure_finished(Path(folder), photos) for photos in counts]
    print(f"{'peak, MB':30}" + "".join(f"{photos:>12,}" for photos in counts) + "  bytes a photo")
    for name in peaks[0]:
        few, many = (each[name] for each in peaks)
        print(f"{name:30}{few / 1e6:12.0f}{many / 1e6:12.0f}{(many - few) / (counts[1] - counts[0]):15.0f}")


def measure_finished(folder: Path, count: int) -> dict[str, int]:
    """Returns the largest resident set in bytes of each of some runs on an output of copies of one photo."""
    photos, output = folder / "photos", folder / "output"
    for each in (photos, output):
        shutil.rmtree(each, ignore_errors=True)
    save_photos(photos, (SMALL,), 1, folder / "scenes")
    flags = ["--micro", "--quiet", "--no-report", "-o", str(output)]
    peak_of(*flags, "-i", str(photos), "--overwrite")
    [first] = (json.loads(line) for line in (output / METADATA).read_text(encoding="utf-8").splitlines())
    features = np.fromfile(output / FEATURES, np.float16, offset=32)  # behind the head, and a digest
    item = first["label"]
    other = next(each for each in read_config(PROGRAM_DIR / "config.json")["items"] if each != item)
    file = FeatureFile(output)
    with (output / METADATA).open("a", encoding="utf-8") as records:
        for number in range(count):
            row = {**first, "source": f"{number}.jpg", "file_name": f"{item}/{number}.png"}
            records.write(json.dumps(row) + "\n")
            (output / row["file_name"]).touch()
            file.append(row["source"], features)
    file.close()
    (output / other).mkdir()
    (output / item / "0.png").rename(output / other / "0.png")
    corrections = folder / "corrections.csv"
    corrections.write_text(f"file_name,item,verdict\n1.jpg,{other},wrong\n", encoding="utf-8")
    config = folder / "other.json"
    config.write_text(
        json.dumps({"prefixes": ["a"], "items": [f"other {item}"], "postfixes": ["car"]}), encoding="utf-8"
    )
    return {
        "a run that finds one moved": peak_of(*flags, "-i", str(photos)),
        "a run": peak_of(*flags, "-i", str(photos)),
        "--apply": peak_of(*flags, "--apply", str(corrections)),
        "--relabel, each another item": peak_of(*flags, "--relabel", "--config", str(config)),
        "--undo": peak_of(*flags, "--undo"),
    }


def peak_of(*flags: str) -> int:
    """Runs the program and returns its largest resident set in bytes."""
    process = subprocess.Popen([sys.executable, str(PROGRAM_DIR / "main.py"), *flags])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the program ended with {process.returncode}: {' '.join(flags)}")
    return usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
