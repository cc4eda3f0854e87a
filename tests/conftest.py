"""What the tests share: small checkpoints of seeded random weights, and photos to run on."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Before the program is imported, and for the programs that the tests start: no test writes beside the sources.
_CHECKPOINTS = tempfile.TemporaryDirectory(prefix="sam2vit-checkpoints-")
os.environ["SAM2VIT_CHECKPOINTS"] = _CHECKPOINTS.name

import config_utilities
import main
import random_models
from program import mount, results
from prompt_utilities import get_prompts

_FIGURES = pytest.StashKey[dict[str, object]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="the long way: more kills, more damaged files, and figures")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash.get(_FIGURES, {})
    if config.getoption("--soak") and figures:
        terminalreporter.section("soak")
        for name, value in figures.items():
            terminalreporter.line(f"{name}: {value}")


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether tests may take long."""
    return request.config.getoption("--soak")


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Keeps a figure by its name, for the end of `make soak`."""
    return request.config.stash.setdefault(_FIGURES, {}).__setitem__


@pytest.fixture(scope="session")
def sam2_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.save_random_sam2(tmp_path_factory.mktemp("sam2") / "sam2.1_hiera_micro.pt")


@pytest.fixture(scope="session")
def clip_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_models.save_random_clip(tmp_path_factory.mktemp("clip") / "clip_micro.pt")


@pytest.fixture(scope="session")
def cars() -> dict[str, tuple[str, ...]]:
    """The prefixes, items and postfixes that the program ships."""
    config = json.loads((config_utilities.PROGRAM_DIR / "config.json").read_text(encoding="utf-8"))
    return {key: tuple(config[key]) for key in config_utilities.PROMPT_KEYS}


@pytest.fixture(scope="session")
def prompts(cars: dict[str, tuple[str, ...]]) -> list[str]:
    return get_prompts(**cars)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config.json of 12 prompts."""
    return save_config(tmp_path / "small.json")


def save_config(path: Path) -> Path:
    lists = {"prefixes": ["a photo of a", "the"], "items": ["red", "dark red", "blue"], "postfixes": ["car", "van"]}
    path.write_text(json.dumps(lists), encoding="utf-8")
    return path


@pytest.fixture
def photos(tmp_path):
    """A dataset with subfolders, several formats, one pair of rivals for a name, and a note."""
    folder = tmp_path / "photos"
    for seed, source in enumerate(["a.png", "B.JPG", "berlin/c.webp", "berlin/x/d.png", "car.jpg", "car.webp"]):
        save_photo(folder / source, 96 + 8 * seed, 64, seed)
    (folder / "notes.txt").write_text("not a photo")
    return folder


@pytest.fixture
def models(sam2_checkpoint, clip_checkpoint, config):
    return ["--sam-model", str(sam2_checkpoint), "--clip-model", str(clip_checkpoint), "--config", str(config)]


@pytest.fixture
def run(photos, models, tmp_path, capsys):
    """Runs main() on the photos; returns its exit code, standard output and standard error."""

    def call(*flags, dataset=photos, output=tmp_path / "out"):
        code = main.main(["-i", str(dataset), "-o", str(output), *models, *flags])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def disk(tmp_path):
    """A disk of 600 kB; skips where this process may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount(folder, "size=600k"):
        pytest.skip("may not mount a disk; the limit of file sizes stands in for a full one")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture
def many_photos(tmp_path):
    return save_photos(tmp_path / "many")


def save_photos(folder, count=30):
    """Saves photos of 400 x 300 in three folders."""
    for seed in range(count):
        save_photo(folder / f"{seed % 3}" / f"{seed:02}.jpg", 400, 300, seed)
    return folder


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, sam2_checkpoint, clip_checkpoint):
    """What a run makes of `many_photos` where nothing goes wrong."""
    folder = tmp_path_factory.mktemp("undisturbed")
    flags = ["-s", sam2_checkpoint, "-m", clip_checkpoint, "--config", save_config(folder / "small.json")]
    dataset = save_photos(folder / "many")
    assert main.main([*map(str, flags), "-i", str(dataset), "-o", str(folder / "out")]) == 0
    return results(folder / "out")


def make_image(width: int = 96, height: int = 64, seed: int = 0) -> np.ndarray:
    """Returns a photo-like (H, W, 3) uint8: smooth colours, a few edges, a little noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    smooth[height // 3 : 2 * height // 3, width // 4 : 3 * width // 4] += rng.integers(-60, 60, 3, dtype=np.int16)
    return np.clip(smooth + rng.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8)


def save_photo(path: Path, width: int = 96, height: int = 64, seed: int = 0, **options: object) -> np.ndarray:
    """Saves a photo in the format of its ending and returns its pixels, before any lossy compression."""
    image = make_image(width, height, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return image
