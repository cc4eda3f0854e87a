import numpy as np
import pytest

from scenes import COLOURS, KINDS, make_scene
from scenes.objects import OBJECT_KINDS, draw_object
from scenes.paint import sample_paint, shift_onto
from scenes.vehicles import BODY_TYPES, draw_vehicle


def test_the_same_seed_makes_the_same_scene_and_another_seed_another():
    one, same, other = make_scene(5), make_scene(5), make_scene(6)
    assert (one.image == same.image).all()
    assert (one.mask == same.mask).all()
    assert not (one.image == other.image).all()


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size_wh", [(256, 256), (640, 480), (120, 200)])
def test_a_centred_scene_has_its_subject_at_the_centre_and_room_around_it(seed, size_wh):
    scene = make_scene(seed, size_wh)
    width, height = size_wh
    assert scene.image.shape == (height, width, 3)
    assert scene.image.dtype == np.uint8
    assert scene.mask.shape == (height, width)
    assert scene.mask[height // 2, width // 2]
    assert 0.015 < scene.mask.mean() < 0.8
    assert scene.kind in KINDS
    assert scene.colour in COLOURS


def test_a_vehicle_is_a_vehicle_and_an_object_an_object():
    assert {make_scene(seed, subject="vehicle").kind for seed in range(20)} <= set(BODY_TYPES)
    assert {make_scene(seed, subject="object").kind for seed in range(20)} <= set(OBJECT_KINDS)


def test_the_colours_are_those_of_the_shipped_config(cars):
    assert set(COLOURS) == set(cars["items"])


@pytest.mark.parametrize("colour", COLOURS)
def test_the_paint_of_a_vehicle_looks_like_its_name(colour):
    """The median colour of the body is nearer to its own paints than to any other's, for most vehicles."""
    rng = np.random.default_rng(0)
    paints = {name: np.mean([sample_paint(name, rng) for _ in range(50)], axis=0) for name in COLOURS}
    right = 0
    for seed in range(12):
        canvas = np.full((200, 200, 3), 128, np.uint8)
        mask, _ = draw_vehicle(canvas, (5, 20, 195, 190), np.random.default_rng(seed), colour=colour)
        pixels = canvas[mask].astype(float)
        chroma = np.abs(pixels - paints[colour]).sum(axis=1)
        body = np.median(pixels[chroma <= np.quantile(chroma, 0.3)], axis=0)
        nearest = sorted(paints, key=lambda name: np.abs(paints[name] - body).sum())
        right += colour in nearest[:3]
    assert right >= 9


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_covers_just_what_was_drawn(kind):
    draw = draw_vehicle if kind in BODY_TYPES else draw_object
    option = {"body_type": kind} if kind in BODY_TYPES else {"kind": kind}
    canvas = np.full((220, 220, 3), (255, 0, 255), np.uint8)
    mask, named = draw(canvas, (20, 20, 200, 200), np.random.default_rng(1), colour="green", **option)
    assert named == kind
    untouched = (canvas == (255, 0, 255)).all(axis=2)
    assert (untouched & mask).sum() <= 0.01 * mask.sum()
    beyond = ~untouched & ~mask
    assert beyond.sum() <= 0.12 * mask.sum()  # the soft edge, less than a pixel wide
    assert mask.any()


@pytest.mark.parametrize("draw", [draw_vehicle, draw_object])
def test_what_lies_behind_is_shaded_before_anything_is_drawn(draw):
    canvas = np.full((120, 120, 3), (255, 0, 255), np.uint8)
    seen = []
    mask, _ = draw(
        canvas,
        (10, 10, 110, 110),
        np.random.default_rng(1),
        colour="green",
        shade=lambda picture, outline: seen.append((picture.copy(), outline)),
    )
    [(before, outline)] = seen
    assert (before == (255, 0, 255)).all()
    assert (outline == mask).all()


@pytest.mark.parametrize("draw", [draw_vehicle, draw_object])
def test_a_subject_is_shifted_over_a_pixel_from_wherever_its_box_is(draw):
    covered = 0
    for seed in range(60):
        canvas = np.zeros((200, 200, 3), np.uint8)
        mask, _ = draw(canvas, (120, 10, 195, 80), np.random.default_rng(seed), colour="red", over_xy=(100, 100))
        covered += mask[100, 100]
    assert covered >= 50


def test_the_shift_is_the_shortest_into_the_inner_part():
    square = np.array([(0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0)])
    inset = (0.1, 0.2, 0.3, 0.4)  # x from 1 to 7, y from 2 to 6
    assert shift_onto(square, (5, 5), inset).tolist() == [0, 0]
    assert shift_onto(square, (20, 0), inset).tolist() == [13, -2]
