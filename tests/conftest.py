"""What the tests share: small checkpoints of seeded random weights, and photos to run on."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# Before the program is imported, and for the programs that the tests start: no test writes beside the sources.
_CHECKPOINTS = tempfile.TemporaryDirectory(prefix="sam2vit-checkpoints-")
os.environ["SAM2VIT_CHECKPOINTS"] = _CHECKPOINTS.name

import config_utilities
import random_models
from prompt_utilities import get_prompts


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
    path = tmp_path / "small.json"
    lists = {"prefixes": ["a photo of a", "the"], "items": ["red", "dark red", "blue"], "postfixes": ["car", "van"]}
    path.write_text(json.dumps(lists), encoding="utf-8")
    return path


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
