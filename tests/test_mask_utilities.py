import cv2
import numpy as np
import pytest

from conftest import make_image
from mask_utilities import bounding_box, cut_out, paint_background, refine_mask


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


def disc_and_logits(shift=6, size=128):
    """A red disc on green, the truth, and logits of a disc that lies beside it and is unsure near its edge."""
    rows, columns = np.indices((size, size))
    truth = (rows - 64) ** 2 + (columns - 64) ** 2 < 36**2
    image = np.where(truth[..., None], (200, 40, 40), (40, 160, 60)).astype(np.uint8)
    image = np.clip(image + np.random.default_rng(0).normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    logits = (36 - np.hypot(rows - 64, columns - 64 - shift)) * 0.2
    return image, truth, logits.astype(np.float32)


def test_refining_moves_the_outline_to_the_edge_in_the_photo():
    image, truth, logits = disc_and_logits()
    before, after = (logits > 0) & truth, refine_mask(image, logits)
    assert before.sum() / ((logits > 0) | truth).sum() < 0.82
    assert (after & truth).sum() / (after | truth).sum() > 0.97


def test_refining_keeps_what_the_network_is_sure_of():
    image, _, logits = disc_and_logits(shift=0)
    image[60:68, 60:68] = (40, 160, 60)  # a patch in the middle that looks like background
    assert refine_mask(image, logits * 5)[60:68, 60:68].all()


@pytest.mark.parametrize("size_wh", [(1, 700), (700, 1), (3, 2), (900, 500)])
@pytest.mark.parametrize("level", [-9.0, 9.0])
def test_refining_an_empty_or_a_full_mask_changes_nothing(size_wh, level):
    image = make_image(*size_wh)
    mask = refine_mask(image, np.full((64, 64), level, np.float32))
    assert mask.shape == image.shape[:2]
    assert (mask == (level > 0)).all()


def test_refining_twice_gives_the_same_mask():
    image, _, logits = disc_and_logits()
    assert (refine_mask(image, logits) == refine_mask(image, logits)).all()


def test_refining_takes_in_no_island_that_only_shares_the_colours():
    image, _, logits = disc_and_logits(shift=0)
    image[4:20, 4:20] = (200, 40, 40)
    logits = np.maximum(logits, -1.2)  # undecided even there
    assert not refine_mask(image, logits)[4:20, 4:20].any()


def test_refining_does_not_drop_a_subject_in_the_colours_of_its_ground():
    image, _, logits = disc_and_logits(shift=0)
    subject = cv2.resize(logits, image.shape[1::-1]) > 0
    image[:] = np.random.default_rng(0).integers(90, 110, image.shape)
    image[56:72, 56:72] = (250, 250, 250)  # all that stands out
    kept = refine_mask(image, np.clip(logits, -2, 1)) & subject
    assert kept.sum() > 0.9 * subject.sum()
