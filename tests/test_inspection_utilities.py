import io

import numpy as np
import pytest
from PIL import Image

from conftest import make_image
from inspection_utilities import draw_inspection, encode_jpeg
from mask_utilities import cut_out

GREEN = (60, 200, 60)


def draw(image, mask, background="white", **options):
    drawn = {"points": np.array([[image.shape[1] // 2, image.shape[0] // 2]]), "top_items": [("red", 0.9)]}
    return draw_inspection(image, cut_out(image, mask, background), mask=mask, caption="red", **{**drawn, **options})


def has_colour(picture, colour):
    return bool((np.abs(picture.astype(int) - colour).max(axis=2) < 4).any())


@pytest.mark.parametrize(("width", "height"), [(1, 1), (700, 1), (1, 700), (64, 64), (1800, 1200)])
def test_photos_of_any_shape_are_drawn_within_bounds(width, height):
    image = make_image(width, height)
    picture = draw(image, np.ones((height, width), bool))
    assert picture.dtype == np.uint8
    assert picture.shape[1] <= 970
    assert picture.shape[0] <= 480 + 10 + 2 * 26


def test_the_outline_of_the_mask_is_drawn_where_there_is_one():
    image = np.full((100, 100, 3), 128, np.uint8)
    mask = np.zeros((100, 100), bool)
    mask[30:70, 30:70] = True
    assert has_colour(draw(image, mask), GREEN)
    assert not has_colour(draw(image, None, points=None), GREEN)


def test_a_hole_in_the_mask_has_an_outline_too():
    image = np.full((100, 100, 3), 128, np.uint8)
    mask = np.ones((100, 100), bool)
    mask[40:60, 40:60] = False
    assert has_colour(draw(image, mask, points=None)[30:70, 30:70], GREEN)


def test_transparency_is_drawn_as_a_checkerboard():
    image = np.full((100, 100, 3), 128, np.uint8)
    picture = draw(image, np.zeros((100, 100), bool), "transparent", points=None)
    assert {tuple(pixel) for pixel in picture[5:95, 115:205].reshape(-1, 3)} == {(255, 255, 255), (205, 205, 205)}


def test_a_longer_bar_means_a_more_probable_item():
    image = make_image()
    items = [("red", 0.9), ("blue", 0.1)]
    picture = draw(image, None, points=None, top_items=items)
    blue = (np.abs(picture.astype(int) - (40, 90, 255)).max(axis=2) < 4).sum(axis=1)
    assert blue[-46] > 5 * blue[-14] > 0


def test_the_photo_is_not_drawn_upon():
    image = make_image()
    before = image.copy()
    draw(image, np.ones(image.shape[:2], bool))
    assert (image == before).all()


def test_the_picture_is_saved_with_its_colours_in_the_right_order():
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 200
    decoded = np.asarray(Image.open(io.BytesIO(encode_jpeg(red))))
    assert np.abs(decoded.astype(int) - red).max() < 6


def test_soft_edges_let_the_checkerboard_through():
    image = np.zeros((100, 100, 3), np.uint8)
    alpha = np.full((100, 100), 128, np.uint8)
    soft = cut_out(image, alpha > 127, "transparent", alpha=alpha)
    picture = draw_inspection(image, soft, mask=None, points=None, top_items=[], caption="")
    assert {tuple(pixel) for pixel in picture[5:95, 115:205].reshape(-1, 3)} == {(127, 127, 127), (102, 102, 102)}


def test_the_detectors_box_and_the_crop_are_drawn():
    image = np.full((100, 100, 3), 128, np.uint8)
    boxed = draw(image, None, points=None, top_items=[], focus_box=(20.0, 30.0, 80.4, 70.0))
    cropped = draw(image, None, points=None, top_items=[], crop_box=(-10, 20, 60, 90))
    blue = (40, 90, 255)
    assert has_colour(boxed[28:32, 20:80], blue)
    assert not has_colour(boxed[:, 110:], blue)
    assert has_colour(cropped[20:90, 168:171], blue)
    assert not has_colour(cropped[:, :100], blue)
