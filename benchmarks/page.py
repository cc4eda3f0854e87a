"""How long the report's page takes to build, to open, to filter and to scroll.

python -m benchmarks.page                    50,000 photos, in headless Chromium where selenium and a driver are there
python -m benchmarks.page --photos 1000000   beyond 100,000 the page holds the most doubtful

Twenty generated scenes stand in for the photos: their cut-outs, masks and thumbnails are shared by links.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from device_utilities import count_threads
from mask_utilities import cut_out
from png_utilities import encode_png
from record_utilities import Places, write_atomically
from report_utilities import choose_rows, write_report
from scenes import COLOURS, make_scene
from thumbnail_utilities import save_thumbnails, thumbnail_names

_SCENES = 20
_FIRST_SEED = 32_000_000
_FILTER = """
const done = arguments[0], item = document.getElementById("item");
const before = document.getElementById("shown").textContent;
const began = performance.now();
item.selectedIndex = 4;
item.dispatchEvent(new Event("change", { bubbles: true }));
(function wait() {
  if (document.getElementById("shown").textContent !== before) done(performance.now() - began);
  else setTimeout(wait, 1);
})();
"""
_JUMP = """
const done = arguments[0], viewport = document.getElementById("viewport"), frames = [];
let last = performance.now();
(function jump() {
  frames.push(performance.now() - last);
  last = performance.now();
  viewport.scrollTop = (frames.length * 130607) % viewport.scrollHeight;
  if (frames.length < 60) requestAnimationFrame(jump);
  else done(frames.slice(2).sort((one, other) => one - other));
})();
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=50_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        places = Places(Path(folder, "out"), Path(folder, "out-review"))
        report = Path(folder, "out-report")
        draw_scenes(places, report)
        link_thumbnails(report, arguments.photos)
        began = time.perf_counter()
        page = write_report(
            report,
            places,
            make_rows(arguments.photos),
            dataset_dir=Path(folder, "photos"),
            failures=[],
            facts={},
            items=COLOURS,
            threads=count_threads(),
        )
        result: dict[str, Any] = {"seconds to build": time.perf_counter() - began}
        result["MB of data"] = sum(file.stat().st_size for file in (report / "data").iterdir()) / 1e6
        result |= look_at(page)
    if arguments.json:
        json.dump(result, sys.stdout, indent=1)
        return
    for name, value in result.items():
        print(f"{name:44} {value:8.2f}")


def make_rows(count: int) -> Iterator[dict[str, Any]]:
    """Yields so many records, each of one of the scenes' cut-outs."""
    rng = np.random.default_rng(0)
    for number in range(count):
        item = COLOURS[number % len(COLOURS)]
        margin = float(np.clip(1 - rng.exponential(0.2), -1, 1))
        probability = (1 + margin) / 2
        yield {
            "file_name": f"all/{number % _SCENES}.png",
            "label": item,
            "source": f"{number // 1000:04}/{number:07}.jpg",
            "label_source": "model",
            "model_label": item,
            "prompt": f"a photo of a {item} car",
            "item_probability": probability,
            "margin": margin,
            "top_items": [{"item": each, "probability": probability / 2} for each in COLOURS[:5]],
            "mask_score": float(rng.uniform(0.7, 1)),
            "mask_area": float(rng.uniform(0, 0.6)),
            "width": 640,
            "height": 480,
            "flags": ["small"] if number % 50 == 0 else [],
        }


def draw_scenes(places: Places, report: Path) -> None:
    """Writes the cut-outs and thumbnails of the scenes."""
    for number in range(_SCENES):
        scene = make_scene(_FIRST_SEED + number, (640, 480), subject="vehicle")
        write_atomically(places.output / f"all/{number}.png", encode_png(cut_out(scene.image, scene.mask), scene.mask))
        alpha = 255 * scene.mask.astype(np.uint8)
        save_thumbnails(report, str(number), scene.image, alpha=alpha, crop=None)


def link_thumbnails(report: Path, count: int) -> None:
    """Gives those of so many photos that the page shows the thumbnails of the scenes."""
    shown, _ = choose_rows(make_rows(count))
    for row in shown:
        originals = thumbnail_names(Path(row["file_name"]).stem)
        for original, name in zip(originals, thumbnail_names(row["source"]), strict=True):
            (report / name).parent.mkdir(parents=True, exist_ok=True)
            (report / name).symlink_to(report / original)


def look_at(page: Path) -> dict[str, float]:
    """Returns what a browser needs, in milliseconds; nothing where there is none."""
    try:
        from selenium import webdriver
    except ImportError:
        return {}
    driver = shutil.which("chromedriver")
    if driver is None:
        return {}
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "window-size=1300,1000"):
        options.add_argument(f"--{flag}")
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.set_script_timeout(60)
        began = time.perf_counter()
        browser.get(page.as_uri())
        while not browser.execute_script("return document.querySelectorAll('.cell').length"):
            pass
        opened = 1000 * (time.perf_counter() - began)
        filtered = browser.execute_async_script(_FILTER)
        browser.execute_script("document.getElementById('filters').reset()")
        frames = browser.execute_async_script(_JUMP)
        cells = browser.execute_script("return document.querySelectorAll('.cell').length")
    finally:
        browser.quit()
    return {
        "ms until the first cut-outs": opened,
        "ms to filter, 80 of them waiting": filtered,
        "ms a frame while jumping about, median": frames[len(frames) // 2],
        "ms a frame while jumping about, worst": frames[-1],
        "cells in the document": cells,
    }


if __name__ == "__main__":
    main()
