"""Photos of extreme shapes through the whole program, under each way to cut them."""

import numpy as np
import pytest
from PIL import Image

import main
from conftest import make_image
from program import rows

SHAPES = [(1, 1), (2, 2), (1, 30_000), (30_000, 1), (30_000, 40), (3, 999), (4096, 2)]

WAYS = {
    "plain": [],
    "refined": ["--refine"],
    "cropped": ["--crop", "--square", "--padding", "1", "--clip-view", "crop"],
    "soft": ["--edges", "soft", "--feather", "100", "--background", "transparent"],
    "grid": ["--focus", "grid", "--clean-mask", "1", "--debug"],
    "uncut": ["--no-sam", "--debug"],
    "debug": ["--debug", "--background", "#102030"],
}


@pytest.mark.parametrize("flags", WAYS.values(), ids=WAYS)
def test_every_shape_is_cut_out_or_has_its_reason(run, tmp_path, flags):
    dataset = tmp_path / "shapes"
    dataset.mkdir()
    for width, height in SHAPES:
        Image.fromarray(make_image(width, height)).save(dataset / f"{width}x{height}.png")
    run(*flags, dataset=dataset)
    records, failures = rows(tmp_path / "out" / "metadata.jsonl"), rows(tmp_path / "out" / "failures.jsonl")
    assert len(records) + len(failures) == len(SHAPES)
    assert {row["reason"] for row in failures} <= {
        "no subject at the focus: SAM 2's mask is empty",
        "its square of 30000 x 30000 pixels is above --max-pixels",  # which its 1 x 30000 are not
    }
    for row in records:
        with Image.open(tmp_path / "out" / row["file_name"]) as picture:
            assert picture.mode == "RGBA"
            if row["crop"] is None:
                assert f"{picture.width}x{picture.height}.png" == row["source"]


def test_the_bundled_models_take_them_too(tmp_path):
    (tmp_path / "shapes").mkdir()
    for width, height in SHAPES:
        picture = np.full((height, width, 3), 230, np.uint8)
        picture[height // 4 : height - height // 4, width // 4 : width - width // 4] = (200, 20, 20)
        Image.fromarray(picture).save(tmp_path / "shapes" / f"{width}x{height}.png")
    main.main(["--micro", "-i", str(tmp_path / "shapes"), "-o", str(tmp_path / "out")])
    records, failures = rows(tmp_path / "out" / "metadata.jsonl"), rows(tmp_path / "out" / "failures.jsonl")
    assert len(records) + len(failures) == len(SHAPES)
    assert {row["stage"] for row in failures} <= {"segment"}
