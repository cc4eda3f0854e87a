import numpy as np
import pytest

from conftest import make_image
from mask_utilities import bounding_box, cut_out, paint_background


def test_the_bounding_box_is_exclusive_at_its_end():
    mask = np.zeros((10, 20), bool)
    mask[2:5, 7:19] = True
    x0, y0, x1, y1 = bounding_box(mask)
    assert (x0, y0, x1, y1) == (7, 2, 19, 5)
    assert mask[y0:y1, x0:x1].all()


@pytest.mark.parametrize(
    ("mask", "box"),
    [
        (np.zeros((4, 4), bool), None),
        (np.ones((1, 700), bool), (0, 0, 700, 1)),
        (np.eye(3, dtype=bool), (0, 0, 3, 3)),
    ],
    ids=["empty", "a strip", "a diagonal"],
)
def test_bounding_boxes_of_odd_masks(mask, box):
    assert bounding_box(mask) == box


@pytest.mark.parametrize(
    ("background", "outside"),
    [("white", (255, 255, 255, 255)), ("#1a2B3c", (26, 43, 60, 255)), ("transparent", (255, 255, 255, 0))],
)
def test_outside_the_mask_stands_only_the_background_and_inside_only_the_photo(background, outside):
    image = make_image()
    mask = image[..., 0] > image[..., 1]
    rgba = cut_out(image, mask, background)
    assert rgba.shape == (64, 96, 4)
    assert rgba.dtype == np.uint8
    assert (rgba[~mask] == outside).all()
    assert (rgba[mask] == np.c_[image[mask], np.full(mask.sum(), 255)]).all()


def test_without_a_mask_the_whole_photo_stays():
    image = make_image()
    rgba = cut_out(image, None, "transparent")
    assert (rgba[..., :3] == image).all()
    assert (rgba[..., 3] == 255).all()


def test_painting_leaves_the_photo_itself_alone():
    image = make_image()
    before = image.copy()
    paint_background(image, np.zeros(image.shape[:2], bool))
    assert (image == before).all()
