"""The whole program over a folder that holds everything that is wrong with photos, at once."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import hostile_images
from conftest import save_photo
from program import command, contents, pngs, rows

resource = pytest.importorskip("resource", reason="Windows counts memory in another way")

LARGE = {"PNG": (16_000, 12_000), "JPEG": (16_000, 12_000)}  # 192 megapixels, of 1 MB and less


def make_dataset(folder, damaged, large):
    """Saves photos of all kinds, intact and damaged, some that take much memory, and sound ones around them."""
    folder.mkdir()
    photos = hostile_images.intact_photos()
    names = list(photos)
    for name, (ending, intact) in photos.items():
        (folder / f"intact {name}.{ending}").write_bytes(intact)
    for number in range(damaged):
        name = names[number % len(names)]
        ending, intact = photos[name]
        changed = hostile_images.damage(intact, np.random.default_rng(number))
        (folder / f"damaged {number:06} {name}.{ending}").write_bytes(changed)
    for number in range(large):
        kind = ("PNG", "JPEG")[number % 2]
        Image.new("RGB", LARGE[kind], (200, 30, 40)).save(folder / f"large {number}.{kind.lower()}")
    for name in "0az":
        save_photo(folder / f"{name} sound.jpg", 320, 240)


def test_each_file_is_in_the_output_or_has_its_reason(tmp_path, soak, figure):
    make_dataset(tmp_path / "photos", damaged=20_000 if soak else 80, large=8 if soak else 0)
    files = len(list((tmp_path / "photos").iterdir()))
    arguments = command("-i", tmp_path / "photos", "-o", tmp_path / "out", "--micro", "--max-pixels", "200000000")
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr  # libtiff has its say there
    records, failures = rows(tmp_path / "out" / "metadata.jsonl"), rows(tmp_path / "out" / "failures.jsonl")
    skipped = int(re.search(r"(\d+) other files? skipped", result.stdout)[1])
    assert len(records) + len(failures) + skipped == files
    assert not {row["source"] for row in records} & {row["source"] for row in failures}
    assert {row["stage"] for row in failures} <= {"decode", "segment"}  # and nothing that nobody foresaw
    assert pngs(tmp_path / "out") == sorted(row["file_name"] for row in records)
    assert {"0 sound.jpg", "a sound.jpg", "z sound.jpg"} <= {row["source"] for row in records}
    figure("files through the whole program", files)
    figure("of them lost", files - len(records) - len(failures) - skipped)
    if soak:
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        figure("peak memory of the whole program, with 8 photos of 192 megapixels", f"{peak / 1e9:.1f} GB")
        return
    before = contents(tmp_path / "out")
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == 1
    assert contents(tmp_path / "out") == before
