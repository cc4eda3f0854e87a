from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from check_utilities import colour_disagrees, is_disputed, other_views
from config_utilities import PROGRAM_DIR, read_config
from prompt_utilities import Label

COLOURS = read_config(PROGRAM_DIR / "config.json")["colours"]
MASK = np.zeros((3, 4), bool)
MASK[1, 1:3] = True


def label_of(item, **probabilities):
    """A label as CLIP would give it: `item` of the best prompt, and the most probable items."""
    top_items = tuple(sorted(probabilities.items(), key=lambda pair: -pair[1]))
    return Label(item, f"a {item} car", 0.1, probabilities.get(item, 0.01), None, 0.0, top_items)


def painted(rest):
    """A photo of 3 x 4 whose subject, two pixels of (9, 8, 7), stands on one level of grey."""
    image = np.full((3, 4, 3), rest, np.uint8)
    image[MASK] = 9, 8, 7
    return image


@pytest.mark.parametrize(("clip_view", "on_white"), [("full", painted(255)[1:3, 1:3]), ("crop", painted(255))])
def test_the_other_views_are_the_ones_that_clip_was_not_shown(clip_view, on_white):
    views = other_views(painted(40), MASK, clip_view=clip_view)
    assert [view.tolist() for view in views] == [on_white.tolist(), painted(128).tolist()]
    assert all(view.dtype == np.uint8 for view in views)


def test_soft_edges_blend_into_the_background_of_each_view():
    alpha = np.where(MASK, 255, 0).astype(np.uint8)
    alpha[1, 2] = 128
    white, grey = other_views(np.zeros((3, 4, 3), np.uint8), MASK, alpha=alpha, clip_view="crop")
    assert (white[1].tolist(), grey[1].tolist()) == (
        [[255] * 3, [0] * 3, [127] * 3, [255] * 3],
        [[128] * 3, [0] * 3, [64] * 3, [128] * 3],
    )


@pytest.mark.parametrize("clip_view", ["full", "crop"])
def test_without_a_subject_the_views_show_none(clip_view):
    white, grey = other_views(painted(40), np.zeros((3, 4), bool), clip_view=clip_view)
    assert (white == 255).all()
    assert (grey == 128).all()


RED = label_of("red", red=0.6, maroon=0.3)
MAROON = label_of("maroon", maroon=0.6, red=0.3)
# Of its five top items none is its own: the sixth has the best prompt.
SIXTH = replace(label_of("red", maroon=0.11, pink=0.11, gold=0.11, navy=0.11, teal=0.11), item_probability=0.1)


@pytest.mark.parametrize(
    ("label", "others", "expected"),
    [
        pytest.param(RED, [RED, RED], False, id="all views agree"),
        pytest.param(RED, [MAROON, RED], False, id="one view differs and is outvoted"),
        pytest.param(RED, [MAROON, MAROON], True, id="the label is outvoted"),
        pytest.param(RED, [label_of("maroon", maroon=0.99), RED], True, id="one sure view outweighs two unsure ones"),
        pytest.param(RED, [label_of("pink", pink=0.7), label_of("gold", gold=0.5)], True, id="each view has its own"),
        pytest.param(RED, [label_of("pink", pink=0.5), label_of("gold", gold=0.5)], False, id="no other has more"),
        pytest.param(SIXTH, [MAROON], True, id="outvoted without being among its own top items"),
        pytest.param(SIXTH, [label_of("maroon", maroon=0.3, red=0.32)], False, id="counted without being among them"),
        pytest.param(RED, [label_of("red", maroon=0.9), RED], False, id="all views name it, though another has more"),
        pytest.param(label_of("red", red=1.0), [label_of("red", red=1.0)] * 2, False, id="one item only"),
        pytest.param(RED, [], False, id="no other view"),
    ],
)
def test_a_label_is_disputed_where_another_item_has_more_of_all_views(label, others, expected):
    assert is_disputed(label, others) is expected


def car(body, *, light=(1.0, 1.0, 1.0), shade=0.7):
    """A photo, (60, 120, 3) uint8, of a car-like patch on a blue sky, and its mask.

    Its body, shaded from top to bottom, has black tyres, dark glass and a little glare; the light has a colour.
    """
    image = np.full((60, 120, 3), (90, 150, 230), np.float32)
    mask = np.zeros((60, 120), bool)
    mask[10:50, 10:110] = True
    image[10:50, 10:110] = [int(body[at : at + 2], 16) for at in (1, 3, 5)]
    image[10:50] *= np.linspace(1.05, shade, 40)[:, None, None]
    image[13:24, 40:85] = 45, 52, 58  # glass
    image[40:50, 20:36] = image[40:50, 84:100] = 22, 22, 23  # tyres
    image[26:28, 15:105] = 250, 250, 248  # glare
    return np.clip(image * light, 0, 255).astype(np.uint8), mask


LIGHTS = {"daylight": (1, 1, 1), "lamps": (1.08, 1, 0.75), "shade": (0.85, 1, 1.1), "dusk": (0.45, 0.48, 0.55)}


@pytest.mark.parametrize("item", COLOURS)
@pytest.mark.parametrize("light", LIGHTS)
def test_no_car_is_doubted_under_its_own_colour(item, light):
    assert not colour_disagrees(*car(COLOURS[item], light=LIGHTS[light]), item, COLOURS)


@pytest.mark.parametrize(
    ("body", "item"),
    [
        ("gray", "silver"),
        ("maroon", "red"),
        ("navy", "blue"),
        ("gold", "beige"),
        ("black", "navy"),
        ("brown", "maroon"),
    ],
)
def test_near_synonyms_are_no_reason_to_doubt(body, item):
    assert not colour_disagrees(*car(COLOURS[body]), item, COLOURS)


@pytest.mark.parametrize(
    ("body", "item"),
    [
        ("red", "blue"),
        ("red", "green"),
        ("blue", "red"),
        ("yellow", "purple"),
        ("white", "navy"),
        ("green", "pink"),
        ("blue", "purple"),  # only its hue is another
        ("gray", "red"),  # only its chroma is another
    ],
)
def test_another_colour_altogether_is_doubted(body, item):
    assert colour_disagrees(*car(COLOURS[body]), item, COLOURS)


def test_much_glass_does_not_outweigh_a_strong_paint():
    image, mask = car(COLOURS["red"])
    image[10:40, 10:110] = 45, 52, 58  # leaves a fifth of the paint
    assert not colour_disagrees(image, mask, "red", COLOURS)


def test_an_item_without_a_colour_is_never_doubted():
    image, mask = car(COLOURS["red"])
    assert not colour_disagrees(image, mask, "convertible", COLOURS)
    assert not colour_disagrees(image, mask, "blue", {})


def test_a_subject_of_no_known_colour_is_not_doubted():
    assert not colour_disagrees(*car(COLOURS["green"]), "red", {"red": COLOURS["red"], "blue": COLOURS["blue"]})


def test_what_lies_outside_the_mask_does_not_count():
    image, mask = car(COLOURS["red"])
    assert not colour_disagrees(image, mask, "red", COLOURS)
    assert colour_disagrees(image, ~mask, "red", COLOURS)


def test_the_outline_of_a_mask_does_not_count():
    image, mask = np.full((12, 16, 3), (40, 90, 200), np.uint8), np.zeros((12, 16), bool)
    image[5, 5:11] = 190, 30, 35
    mask[4:7, 4:12] = True  # three quarters of it are sky
    assert not colour_disagrees(image, mask, "red", COLOURS)
    assert colour_disagrees(image, mask, "blue", COLOURS)


def masked(kind, height, width):
    mask = np.zeros((height, width), bool)
    if kind == "one pixel":
        mask[height // 2, width // 3] = True
    elif kind == "diagonal":
        mask[np.arange(min(height, width)), np.arange(min(height, width))] = True
    elif kind == "one row":
        mask[height // 2] = True
    elif kind == "everything":
        mask[:] = True
    return mask


@pytest.mark.parametrize("kind", ["one pixel", "diagonal", "one row", "everything"])
@pytest.mark.parametrize("shape_hw", [(1, 1), (1, 500), (500, 1), (7, 5), (301, 403), (3000, 2000)], ids=str)
def test_a_subject_of_any_shape_has_its_colour(kind, shape_hw):
    mask = masked(kind, *shape_hw)
    image = np.full((*shape_hw, 3), (40, 90, 200), np.uint8)
    image[mask] = 190, 30, 35
    assert not colour_disagrees(image, mask, "red", COLOURS)
    assert colour_disagrees(image, mask, "blue", COLOURS)


def test_a_line_between_the_rows_that_are_looked_at_still_counts():
    image, mask = np.full((3, 30_000, 3), (40, 90, 200), np.uint8), np.zeros((3, 30_000), bool)
    mask[1] = True  # of so many pixels every third row and column is looked at
    image[mask] = 190, 30, 35
    assert not colour_disagrees(image, mask, "red", COLOURS)
    assert colour_disagrees(image, mask, "blue", COLOURS)


@pytest.mark.parametrize("shape_hw", [(1, 1), (60, 120)], ids=str)
def test_without_a_subject_nothing_is_doubted(shape_hw):
    image = np.zeros((*shape_hw, 3), np.uint8)
    assert not colour_disagrees(image, masked("nothing", *shape_hw), "white", COLOURS)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_no_photo_and_mask_raise(height, width, seed, density):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mask = rng.random((height, width)) < density
    doubted = [item for item in COLOURS if colour_disagrees(image, mask, item, COLOURS)]
    assert len(doubted) < len(COLOURS)  # the colour that most of it can have is not


def test_the_photo_and_the_mask_stay_as_they_are():
    image, mask = car(COLOURS["red"])
    before = image.copy(), mask.copy()
    colour_disagrees(image, mask, "blue", COLOURS)
    other_views(image, mask, clip_view="full")
    assert (image == before[0]).all()
    assert (mask == before[1]).all()
