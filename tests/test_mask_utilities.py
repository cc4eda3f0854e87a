import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import make_image
from mask_utilities import (
    Region,
    bounding_box,
    clean_mask,
    crop,
    crop_box,
    cut_out,
    describe_mask,
    feather_alpha,
    full_size_mask,
    mask_flags,
    paint_background,
    refine_mask,
    soft_alpha,
    square_view,
    subject_colours,
)

WHITE = (255, 255, 255)
BACKGROUNDS = ["white", "#1a2B3c", "transparent"]


def drawn(*rows):
    """A mask from rows of text: # is true."""
    return np.array([[pixel == "#" for pixel in row] for row in rows])


@st.composite
def masks(draw, most=24):
    """Noise of any density, fine or in blots: islands, holes, islands in holes."""
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random((height, width))
    return cv2.blur(noise, (draw(st.integers(1, 3)),) * 2).reshape(height, width) < draw(st.floats(0, 1))


@st.composite
def alphas(draw, most=24):
    """Alpha channels with everything at once: solid parts, nothing, and any level."""
    mask = draw(masks(most))
    levels = np.random.default_rng(draw(st.integers(0, 2**32 - 1))).integers(0, 256, mask.shape, dtype=np.uint8)
    return np.where(levels < draw(st.integers(0, 256)), levels, mask.view(np.uint8) * 255).astype(np.uint8)


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


def test_where_the_network_says_neither_yes_nor_no_there_is_no_subject():
    assert not full_size_mask(np.zeros((4, 4), np.float32), (8, 6)).any()


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


def test_refining_gives_the_same_whatever_has_drawn_random_numbers_before():
    image, logits = make_image(seed=1), np.random.default_rng(1).normal(0, 3, (6, 8)).astype(np.float32)
    masks = []
    for seed in range(6):
        cv2.setRNGSeed(seed)
        masks.append(refine_mask(image, cv2.resize(logits, (64, 64))))
    assert all((mask == masks[0]).all() for mask in masks)


def test_refining_never_goes_where_the_network_is_sure_that_nothing_is():
    image, _, logits = disc_and_logits(shift=0)
    image[60:68, 100:124] = image[60:68, 52:76]  # a part in the subject's colours, joined to it
    refined = refine_mask(image, logits * 2.5)
    assert refined[60:68, 100:104].all()
    assert not refined[logits * 2.5 < -4].any()


def test_refining_takes_in_no_island_that_only_shares_the_colours():
    image, _, logits = disc_and_logits(shift=0)
    image[4:20, 4:20] = image[56:72, 56:72]
    logits = np.maximum(logits, -1.2)  # undecided even there
    assert not refine_mask(image, logits)[4:20, 4:20].any()


def test_refining_does_not_drop_a_subject_in_the_colours_of_its_ground():
    image, _, logits = disc_and_logits(shift=0)
    subject = cv2.resize(logits, image.shape[1::-1]) > 0
    image[:] = np.random.default_rng(0).integers(90, 110, image.shape)
    image[56:72, 56:72] = (250, 250, 250)  # all that stands out
    kept = refine_mask(image, np.clip(logits, -2, 1)) & subject
    assert kept.sum() > 0.9 * subject.sum()


RING = drawn(
    "..........",
    ".######..#",
    ".#....#...",
    ".#.#..#...",
    ".#....#.##",
    ".######.##",
)  # 18 pixels around 12, one of which is an island; two more islands of 1 and 4: 35 with the hole filled


@pytest.mark.parametrize(
    ("fraction", "point", "dropped", "filled"),
    [
        (0.02, (1, 1), [], []),
        (1 / 35, (1, 1), [(3, 3), (9, 1)], []),
        (3.9 / 35, (1, 1), [(3, 3), (9, 1)], []),
        (4 / 35, (1, 1), [(3, 3), (9, 1), (8, 4), (9, 4), (8, 5), (9, 5)], []),
        (4 / 35, (9, 5), [(3, 3), (9, 1)], []),
        (4 / 35, (3, 3), [(9, 1), (8, 4), (9, 4), (8, 5), (9, 5)], []),
        (11.9 / 30, (1, 1), [(3, 3), (9, 1), (8, 4), (9, 4), (8, 5), (9, 5)], []),
        (12.1 / 30, (1, 1), [(9, 1), (8, 4), (9, 4), (8, 5), (9, 5)], [(2, 2), (5, 2), (2, 4), (5, 4)]),
        (12 / 30, (7, 0), [(9, 1), (8, 4), (9, 4), (8, 5), (9, 5)], [(2, 2), (5, 2), (2, 4), (5, 4)]),
    ],
    ids=[
        "all is large enough",
        "islands of just the fraction",
        "the next is larger",
        "the next too",
        "the focus lies on it",
        "the focus lies on the smallest",
        "a hole counts with the island in it, and is too large",
        "a hole counts with the island in it",
        "a hole of just the fraction, and a focus beside the subject",
    ],
)
def test_small_islands_go_and_small_holes_are_filled(fraction, point, dropped, filled):
    cleaned = clean_mask(RING, point, fraction)
    for x, y in dropped:
        assert not cleaned[y, x]
    for x, y in filled:
        assert cleaned[y, x]
    if filled:
        assert (cleaned[1:6, 1:7]).all()
        assert cleaned.sum() == 30
    else:
        assert cleaned.sum() == RING.sum() - len(dropped)


def test_a_focus_in_no_island_leaves_the_part_to_the_largest():
    mask = drawn("#..##", "...##")
    assert (clean_mask(mask, (2, 1), 1.0) == drawn("...##", "...##")).all()
    assert (clean_mask(mask, (0, 0), 1.0) == drawn("#....", ".....")).all()


@pytest.mark.parametrize("point", [(9, -3), (4, -1), (10**6, 0)])
def test_a_focus_outside_the_photo_counts_as_the_nearest_pixel(point):
    assert (clean_mask(drawn("##..#", "##..."), point, 1.0) == drawn("....#", ".....")).all()


def test_islands_hang_together_at_corners_and_holes_do_not():
    mask = drawn("#####", "#.###", "##.##", "#####", ".....", "#....", ".#...", "..#..")
    cleaned = clean_mask(mask, (0, 0), 1 / 20)
    assert (cleaned == drawn("#####", "#####", "#####", "#####", ".....", "#....", ".#...", "..#..")).all()


def test_what_is_open_to_a_border_is_no_hole():
    mask = drawn("##.##", "##.##", "#####", ".####", "#####")
    assert (clean_mask(mask, (0, 0), 0.5) == mask).all()


def test_what_lies_off_the_borders_is_cleaned_like_what_touches_them():
    mask = np.pad(drawn("#####", "#.###", "##..#", "###.#"), 7)
    cleaned = clean_mask(mask, (8, 8), 0.1)
    assert (cleaned == np.pad(drawn("#####", "#####", "##..#", "###.#"), 7)).all()


def test_the_subject_counts_once_though_nothing_of_it_touches_the_box_of_all():
    mask = drawn("#......#", "..####..", "..#..#..", "..#..#..", "..####..", "#......#")
    for fraction, area in ((0.24, 12), (0.25, 16)):  # the hole is a quarter of the subject
        assert clean_mask(mask, (2, 1), fraction).sum() == area


@pytest.mark.parametrize("mask", [np.zeros((5, 7), bool), np.ones((5, 7), bool), np.ones((1, 1), bool)])
def test_cleaning_leaves_empty_and_full_masks(mask):
    assert (clean_mask(mask, (3, 3), 1.0) == mask).all()


def test_cleaning_leaves_its_argument_alone():
    mask = RING.copy()
    assert (clean_mask(mask, (1, 1), 0.5) != mask).any()
    assert (mask == RING).all()


FRACTIONS = st.sampled_from([0.0, 0.01, 0.03, 0.1, 0.3, 0.7, 1.0])
POINTS = st.tuples(st.integers(-3, 26), st.integers(-3, 26))


@settings(max_examples=300, deadline=None)
@given(masks(), POINTS, FRACTIONS)
def test_cleaning_twice_changes_nothing_more(mask, point, fraction):
    cleaned = clean_mask(mask, point, fraction)
    assert (clean_mask(cleaned, point, fraction) == cleaned).all()


def filled_up(mask):
    """The mask with all its holes filled: what water from outside the photo does not reach."""
    flooded = np.pad(mask, 1).view(np.uint8).copy()
    cv2.floodFill(flooded, None, (0, 0), 2, flags=4)
    return flooded[1:-1, 1:-1] != 2


@settings(max_examples=200, deadline=None)
@given(masks(), POINTS, FRACTIONS)
def test_cleaning_adds_only_holes_and_keeps_the_island_of_the_focus(mask, point, fraction):
    cleaned = clean_mask(mask, point, fraction)
    open_to_a_border = ~filled_up(mask)
    assert not (cleaned & open_to_a_border).any()
    assert cleaned.any() == mask.any()

    _, islands = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    x, y = (min(max(0, at), extent - 1) for at, extent in zip(point, mask.shape[::-1], strict=True))
    if mask[y, x]:
        assert cleaned[islands == islands[y, x]].all()


@settings(max_examples=200, deadline=None)
@given(masks(), POINTS, st.floats(0.001, 1))
def test_nothing_small_is_left_but_what_the_focus_keeps(mask, point, fraction):
    cleaned = clean_mask(mask, point, fraction)
    most = fraction * filled_up(cleaned).sum()
    islands = cv2.connectedComponentsWithStats(cleaned.view(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA]
    assert (islands <= most).sum() <= 1
    holes = (filled_up(cleaned) & ~cleaned).view(np.uint8)
    assert (cv2.connectedComponentsWithStats(holes, connectivity=4)[2][1:, cv2.CC_STAT_AREA] > most).all()


@pytest.mark.parametrize(
    ("mask", "region", "flags"),
    [
        (drawn("....", "...."), Region(0.0, None, touches_all_borders=False), ["small"]),
        (drawn("....", ".#.."), Region(0.125, (1, 1, 2, 2), touches_all_borders=False), ["small"]),
        (drawn("##..", "...."), Region(0.25, (0, 0, 2, 1), touches_all_borders=False), []),
        (drawn("###.", "###."), Region(0.75, (0, 0, 3, 2), touches_all_borders=False), []),
        (drawn("#...", "...#"), Region(0.25, (0, 0, 4, 2), touches_all_borders=True), ["borders"]),
        (drawn("####", "###."), Region(0.875, (0, 0, 4, 2), touches_all_borders=True), ["large", "borders"]),
    ],
    ids=["empty", "small", "just not small", "just not large", "to all borders", "large and to all borders"],
)
def test_what_a_mask_covers_and_what_is_suspicious_about_it(mask, region, flags):
    assert describe_mask(mask) == region
    assert mask_flags(region, min_area=0.25, max_area=0.75) == flags


def edge_and_logits(slope, size=64, cells=16):
    """A mask whose right half is true, and its logits, which rise by `slope` per cell of 4 pixels."""
    columns = np.arange(cells) - (cells - 1) / 2
    logits = np.tile((columns * slope).astype(np.float32), (cells, 1))
    return full_size_mask(logits, (size, size)), logits


def test_alpha_is_the_networks_probability_near_the_outline_and_nothing_unsure_beyond():
    mask, logits = edge_and_logits(slope=4)
    alpha = soft_alpha(mask, logits)
    assert alpha.dtype == np.uint8
    assert (alpha[:, :28] == 0).all()
    assert (alpha[:, 36:] == 255).all()
    probability = 1 / (1 + np.exp(-(np.arange(28, 36) - 31.5)))  # a pixel is a quarter of a cell
    assert np.abs(alpha[:, 28:36] - 255 * probability).max() <= 1


def test_an_unsure_network_leaves_no_haze_no_glass_and_no_step():
    mask, logits = edge_and_logits(slope=0.02)
    alpha = soft_alpha(mask, logits)
    assert (alpha[:, :28] == 0).all()
    assert (alpha[:, 36:] == 255).all()
    assert np.diff(alpha[0].astype(int)).max() <= 255 / 8 + 1
    assert np.diff(alpha[0].astype(int)).min() >= 0


def test_alpha_follows_a_mask_that_is_not_the_logits_own():
    mask, logits = edge_and_logits(slope=4)
    moved = np.roll(mask, 12, axis=1)
    moved[:, :12] = False
    alpha = soft_alpha(moved, logits)
    assert (alpha[:, :40] == 0).all()
    assert (np.diff(alpha[0, 40:44].astype(int)) > 0).all()  # no plateau of what the network took for the subject
    assert (alpha[:, 44:] == 255).all()


@settings(max_examples=150, deadline=None)
@given(masks(most=40), st.integers(1, 12), st.integers(1, 12), st.floats(0, 200), st.integers(0, 2**32 - 1))
def test_alpha_is_128_or_more_just_inside_the_mask(mask, height, width, scale, seed):
    logits = np.random.default_rng(seed).normal(0, scale, (height, width)).astype(np.float32)
    alpha = soft_alpha(mask, logits)
    assert ((alpha >= 128) == mask).all()


@pytest.mark.parametrize("level", [0, 255])
def test_empty_and_full_masks_have_no_soft_edge(level):
    mask = np.full((40, 60), bool(level))
    assert (soft_alpha(mask, np.full((8, 8), 0.1, np.float32)) == level).all()
    assert (feather_alpha(mask.view(np.uint8) * 255, 5.0) == level).all()


def test_one_pixel_is_the_least_that_becomes_soft():
    mask, _ = edge_and_logits(slope=4)
    alpha = soft_alpha(mask, np.zeros((256, 256), np.float32))
    assert alpha[0, 30:34].tolist() == [0, 64, 191, 255]


def test_edges_are_soft_in_every_direction():
    rows, columns = np.indices((60, 60))
    height = 20 - np.hypot(rows - 29.5, columns - 29.5)
    disc, logits = height > 0, height[2::5, 2::5].astype(np.float32)
    for alpha in soft_alpha(disc, logits), feather_alpha(disc.view(np.uint8) * 255, 4.0):
        assert (alpha == alpha.T).all()
        assert (alpha == alpha[::-1]).all()
        assert 0 < alpha[8, 30] < 128 <= alpha[10, 30] < 255


def far_from(mask, radius):
    """Where no true pixel lies within a radius."""
    rows, columns = np.indices(mask.shape).reshape(2, -1)
    true = mask.ravel()
    gaps = np.hypot(rows[:, None] - rows[true], columns[:, None] - columns[true])
    return (gaps > radius + 1e-3).all(axis=1).reshape(mask.shape)


@settings(max_examples=100, deadline=None)
@given(alphas(), st.floats(0.1, 9))
def test_feathering_stays_within_its_radius(alpha, radius):
    softened = feather_alpha(alpha, radius)
    for level in (0, 255):
        assert (softened[far_from(alpha != level, radius)] == level).all()


def test_feathering_stays_within_a_large_radius_in_every_direction():
    rows, columns = np.indices((100, 100))
    disc = np.hypot(rows - 50, columns - 50) < 25
    softened = feather_alpha(disc.view(np.uint8) * 255, 20.0)
    assert (softened[far_from(disc, 20.0)] == 0).all()
    assert (softened[~far_from(disc, 15.0)] > 0).all()


def test_feathering_is_gaussian_and_the_same_on_both_sides():
    mask, _ = edge_and_logits(slope=1)
    softened = feather_alpha(mask.view(np.uint8) * 255, 6.0)
    assert (softened == softened[0]).all()
    assert (softened[0].astype(int) + softened[0, ::-1] == 255).all()
    assert abs(int(softened[0, 34]) - 255 * 0.798) < 3  # the normal distribution up to 2.5 pixels / 3
    assert softened[0, [25, 38]].tolist() == [0, 255]
    assert 0 < softened[0, 27] < softened[0, 30] < 128


def test_feathering_by_nothing_changes_nothing():
    alpha = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    assert (feather_alpha(alpha, 0.0) == alpha).all()


def test_feathering_leaves_its_argument_alone():
    alpha = drawn("...###", "...###").view(np.uint8) * 255
    before = alpha.copy()
    assert (feather_alpha(alpha, 2.0) != before).any()
    assert (alpha == before).all()


def soft_disc(size=96):
    """A red disc that fades into green as in a photo out of focus, and its true alpha."""
    rows, columns = np.indices((size, size))
    alpha = np.rint(255 / (1 + np.exp(np.hypot(rows - 48, columns - 48) - 30))).astype(np.uint8)
    share = alpha[..., None] / 255
    return np.rint(share * (200, 30, 30) + (1 - share) * (30, 180, 60)).astype(np.uint8), alpha


def test_soft_edges_take_the_subjects_colour_and_no_trace_of_the_background():
    image, alpha = soft_disc()
    colours = subject_colours(image, alpha).astype(int)
    outer = (alpha > 0) & (alpha < 128)
    assert outer.sum() > 500
    assert np.abs(image[outer].astype(int) - (200, 30, 30)).max() > 100
    assert np.abs(colours[outer] - (200, 30, 30)).max() <= 2
    inner = (alpha >= 128) & (alpha < 250)
    assert np.abs(colours[inner] - (200, 30, 30)).max() < 0.15 * 170


def test_a_thin_part_keeps_its_colour_where_a_flat_side_ends_the_subject():
    """A red body with a blue aerial, as wide as the subject: the side of its box is no edge of unknown width."""
    image, alpha = np.full((80, 150, 3), 128, np.uint8), np.zeros((80, 150), np.uint8)
    alpha[19:61, 9:91], alpha[20:60, 10:90], alpha[40:42, 91:140] = 128, 255, 200
    image[alpha > 0], image[40:42, 91:140] = (200, 20, 20), (20, 20, 220)
    assert (subject_colours(image, alpha)[40:42, 120:140] == (20, 20, 220)).all()


def test_the_corner_of_a_soft_edge_takes_the_subjects_colour_too():
    rows, columns = np.indices((40, 40))
    alpha = np.clip(255 - 40 * (np.maximum(abs(rows - 20), abs(columns - 20)) - 10), 0, 255).astype(np.uint8)
    alpha[0, 0] = alpha[-1, -1] = 255  # so that the soft edge does not reach the borders of what is looked at
    image = np.where(alpha[..., None] >= 128, (200, 30, 30), (30, 160, 60)).astype(np.uint8)
    assert alpha[36, 4] == 15
    assert (subject_colours(image, alpha)[alpha > 0] == (200, 30, 30)).all()


def test_details_just_inside_a_soft_edge_come_back_by_degrees():
    image = np.full((40, 60, 3), 100, np.uint8)
    image[:, 30:] = 200
    alpha = np.zeros((40, 60), np.uint8)
    alpha[:, :30], alpha[:, 30:36] = 255, (249, 223, 191, 160, 128, 64)
    colours = subject_colours(image, alpha)
    assert np.abs(colours[20, 30:36, 0].astype(int) - (195, 175, 150, 125, 100, 100)).max() <= 2


@settings(max_examples=100, deadline=None)
@given(alphas(), st.integers(0, 2**32 - 1))
def test_only_soft_edges_change_their_colours(alpha, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*alpha.shape, 3), dtype=np.uint8)
    before = image.copy()
    colours = subject_colours(image, alpha)
    hard = (alpha == 0) | (alpha == 255)
    assert (colours[hard] == image[hard]).all()
    assert (image == before).all()


@pytest.mark.parametrize("surely_inside", [False, True], ids=["nothing sure at all", "nothing sure near enough"])
def test_where_no_surely_inside_pixel_is_near_the_photos_own_colours_stay(surely_inside):
    image, alpha = make_image(96, 64), np.zeros((64, 96), np.uint8)
    alpha[30:32, 20:] = 200  # an aerial
    alpha[20:44, :20] = 255 if surely_inside else 200
    colours = subject_colours(image, alpha)
    assert (colours[:, 30:] == image[:, 30:]).all()
    assert (colours != image).any() == surely_inside


def test_sums_beyond_32_bits_are_no_trouble():
    alpha = np.full((2950, 2950), 255, np.uint8)
    alpha[:, -8:] = 60
    image = np.full((*alpha.shape, 3), 255, np.uint8)
    image[:, -8:] = 10
    assert int(image.sum()) // 3 > 2**31
    assert (subject_colours(image, alpha) == 255).all()


@settings(max_examples=60, deadline=None)
@given(masks(), st.sampled_from(BACKGROUNDS), st.integers(0, 2**32 - 1))
def test_an_alpha_of_nothing_but_0_and_255_gives_the_cut_out_with_hard_edges(mask, background, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*mask.shape, 3), dtype=np.uint8)
    alpha = mask.view(np.uint8) * 255
    np.testing.assert_array_equal(cut_out(image, mask, background, alpha=alpha), cut_out(image, mask, background))


@settings(max_examples=60, deadline=None)
@given(alphas(), st.sampled_from(BACKGROUNDS), st.integers(0, 2**32 - 1))
def test_a_soft_cut_out_is_hard_where_its_alpha_is(alpha, background, seed):
    image = np.random.default_rng(seed).integers(0, 256, (*alpha.shape, 3), dtype=np.uint8)
    rgba = cut_out(image, alpha > 127, background, alpha=alpha)
    inside, outside = alpha == 255, alpha == 0
    np.testing.assert_array_equal(rgba[inside], cut_out(image, inside, background)[inside])
    np.testing.assert_array_equal(rgba[outside], cut_out(image, inside, background)[outside])
    assert (rgba[..., 3] == (alpha if background == "transparent" else 255)).all()


def test_soft_edges_blend_into_a_colour_as_a_viewer_blends_the_transparent_ones():
    image, alpha = soft_disc()
    mask, share = alpha > 127, alpha[..., None] / 255
    transparent = cut_out(image, mask, "transparent", alpha=alpha)
    for background, colour in (("white", WHITE), ("#1a2B3c", (26, 43, 60))):
        seen = transparent[..., :3] * share + np.array(colour) * (1 - share)
        assert np.abs(cut_out(image, mask, background, alpha=alpha)[..., :3] - seen).max() <= 0.51
        painted = paint_background(image, mask, colour, alpha=alpha)
        assert (painted == cut_out(image, mask, background, alpha=alpha)[..., :3]).all()


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_without_a_mask_the_whole_photo_stays_whatever_alpha_says(background):
    image = make_image()
    rgba = cut_out(image, None, background, alpha=np.zeros(image.shape[:2], np.uint8))
    assert (rgba == cut_out(image, None)).all()


@pytest.mark.parametrize(
    ("box", "padding", "square", "expected"),
    [
        ((20, 30, 60, 50), 0.0, False, (20, 30, 60, 50)),
        ((20, 30, 60, 50), 0.1, False, (16, 26, 64, 54)),
        ((20, 30, 60, 50), 1.0, False, (0, 0, 100, 80)),
        ((20, 30, 60, 50), 0.0, True, (20, 20, 60, 60)),
        ((20, 30, 60, 50), 0.1, True, (16, 16, 64, 64)),
        ((0, 0, 100, 10), 0.0, True, (0, -45, 100, 55)),
        ((90, 0, 100, 80), 0.1, True, (51, 0, 131, 80)),
        ((10, 10, 13, 12), 0.0, True, (10, 10, 13, 13)),
        ((10, 10, 12, 13), 0.0, True, (10, 10, 13, 13)),
        ((0, 0, 100, 80), 0.5, True, (0, -10, 100, 90)),
    ],
)
def test_boxes_to_crop_a_photo_of_100_by_80_to(box, padding, square, expected):
    assert crop_box(box, (80, 100), padding=padding, square=square) == expected


@settings(max_examples=200, deadline=None)
@given(st.data(), st.floats(0, 3), st.booleans())
def test_crops_contain_the_subject_and_leave_the_photo_only_to_become_square(data, padding, square):
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    left, top, right, bottom = crop_box((x0, y0, x1, y1), (height, width), padding=padding, square=square)
    assert left <= x0 < x1 <= right
    assert top <= y0 < y1 <= bottom
    leaves = left < 0 or right > width, top < 0 or bottom > height
    assert sum(leaves) <= square
    if square:
        assert right - left == bottom - top <= max(height, width)


@pytest.mark.parametrize("box", [(2, 1, 6, 5), (0, 0, 9, 7), (-3, 2, 4, 9), (5, -4, 12, 3), (-2, -2, 11, 11)], ids=str)
@pytest.mark.parametrize("fill", [(1, 2, 3), (255, 255, 255, 0)], ids=["RGB", "RGBA"])
def test_a_crop_is_the_image_where_there_is_one_and_else_the_fill(box, fill):
    image = np.random.default_rng(0).integers(0, 256, (7, 9, len(fill)), dtype=np.uint8)
    around = np.empty((27, 29, len(fill)), np.uint8)
    around[:] = fill
    around[10:17, 10:19] = image
    x0, y0, x1, y1 = box
    np.testing.assert_array_equal(crop(image, box, fill), around[10 + y0 : 10 + y1, 10 + x0 : 10 + x1])


def test_the_square_view_holds_the_whole_subject_in_the_middle_of_white():
    image, mask = make_image(200, 90), np.zeros((90, 200), bool)
    mask[5:35, 30:130] = True
    view = square_view(paint_background(image, mask), mask)
    assert view.shape == (110, 110, 3)  # 100 and 5% on either side
    # Cut off at the photo's border, 35 rows become 40 of 110: 35 are added above.
    np.testing.assert_array_equal(view[40:70, 5:105], image[5:35, 30:130])
    assert (view == 255).all(axis=2).sum() >= 110 * 110 - mask.sum()


def test_the_square_view_of_nothing_is_the_photo_on_white():
    image = make_image(96, 64)
    view = square_view(image, np.zeros((64, 96), bool))
    assert view.shape == (96, 96, 3)
    np.testing.assert_array_equal(view[16:80], image)
    assert (view[:16] == 255).all()
    assert (view[80:] == 255).all()
