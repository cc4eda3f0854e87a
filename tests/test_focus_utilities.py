import math
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from errors import ConfigError, PhotoError
from focus_utilities import (
    Focus,
    PointRow,
    centre_focus,
    find_row,
    fixed_focus,
    grid_points,
    mask_scores,
    parse_focus,
    pixel_at,
    read_points,
    row_focus,
)


@pytest.mark.parametrize(
    ("text", "focus"),
    [
        ("center", "center"),
        ("grid", "grid"),
        ("detector", "detector"),
        ("0.4,0.6", (0.4, 0.6)),
        ("0, 1", (0.0, 1.0)),
        ("points.csv", Path("points.csv")),
        ("a folder/0.4,0.6.CSV", Path("a folder/0.4,0.6.CSV")),
    ],
)
def test_the_value_of_focus_is_a_word_a_point_or_a_file(text, focus):
    assert parse_focus(text) == focus
    assert type(parse_focus(text)) is type(focus)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("centre", "unknown focus; did you mean 'center'?"),
        ("Detectors", "unknown focus; did you mean 'detector'?"),
        ("points.txt", "unknown focus; use center, grid, detector, a point such as 0.4,0.6, or a .csv"),
        ("0.5", "unknown focus; use center, grid, detector, a point such as 0.4,0.6, or a .csv"),
        ("0.4,1.01", "no point in the photo; write two fractions of width and height between 0 and 1"),
        ("-0.1,0.5", "no point in the photo"),
        ("nan,0.5", "no point in the photo"),
        ("0.4,", "no point in the photo"),
        ("0.4,0.5,0.6", "no point in the photo"),
        ("0.4,0.5,x", "no point in the photo"),
        ("320,240", "no point in the photo"),
    ],
)
def test_any_other_value_of_focus_is_refused_in_one_line(text, words):
    with pytest.raises(ConfigError) as error:
        parse_focus(text)
    assert str(error.value).startswith(f"--focus {text!r}: {words}")
    assert "\n" not in str(error.value)


def save_points(folder, content):
    path = folder / "points.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ("file_name,x,y\na.jpg,0.25,1\n", {"a.jpg": PointRow((0.25, 1))}),
        ("file_name,x,y\r\nberlin/a.jpg, 320 ,200.5\r\n", {"berlin/a.jpg": PointRow((320, 200.5))}),
        ("\ufefffile_name,x,y\nstraße.jpg,1,1", {"straße.jpg": PointRow((1, 1))}),
        (
            'file_name,x,y\n"a,b.jpg",1,2\n\n"c ""d"".jpg",3,4',
            {"a,b.jpg": PointRow((1, 2)), 'c "d".jpg': PointRow((3, 4))},
        ),
        (
            "y,x,note,x0,y0,x1,y1, file_name\n2,1,good,0,0,9,8,a.jpg\n4,3,,,, ,,b.jpg\n",
            {"a.jpg": PointRow((1, 2), (0, 0, 9, 8)), "b.jpg": PointRow((3, 4))},
        ),
    ],
    ids=["fractions", "pixels, CRLF, spaces", "byte order mark", "quotes and empty lines", "boxes in any order"],
)
def test_a_points_file_gives_a_row_for_each_photo(tmp_path, content, rows):
    assert read_points(save_points(tmp_path, content)) == rows


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("./a.jpg", "a.jpg"),
        ("sub//./b.jpg", "sub/b.jpg"),
        (unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")),
        (unicodedata.normalize("NFD", "café.jpg"), unicodedata.normalize("NFC", "café.jpg")),
    ],
    ids=["of find", "slashes", "accents together", "accents apart"],
)
def test_a_photo_is_found_under_each_way_of_writing_its_path(tmp_path, name, source):
    rows = read_points(save_points(tmp_path, f"{HEADER}{name},0.1,0.2\n"))
    assert find_row(rows, source) == PointRow((0.1, 0.2))
    assert find_row(rows, "other.jpg") is None


def test_two_ways_of_writing_one_path_are_the_same_photo(tmp_path):
    with pytest.raises(ConfigError, match=r"'a.jpg': stands in line 2, too"):
        read_points(save_points(tmp_path, f"{HEADER}a.jpg,1,2\n./a.jpg,1,2\n"))


@pytest.mark.parametrize(
    ("row", "is_fractions"),
    [
        (PointRow((1, 1)), True),
        (PointRow((0.5, 1.5)), False),
        (PointRow((0.5, 0.5), (0, 0, 1, 1)), True),
        (PointRow((1, 1), (0, 0, 2, 1)), False),
        (PointRow((0.5, 0.5), (0.2, 0.2, 1.0000004, 0.9)), True),
        (PointRow((0.5, 1.01)), False),
    ],
)
def test_numbers_are_fractions_where_none_of_the_row_is_above_1_but_by_rounding(row, is_fractions):
    assert row.is_fractions is is_fractions


HEADER, BOX_HEADER = "file_name,x,y\n", "file_name,x,y,x0,y0,x1,y1\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "holds no points; the first line must be file_name,x,y"),
        (HEADER, "holds no points; the first line must be file_name,x,y"),
        ("\nfile;x;y\n", "line 2: 'file;x;y': the column file_name is missing; the first line must be"),
        ("file_name,x,x,y\n", "line 1: 'file_name,x,x,y': the column x stands twice; the first"),
        ("file_name,x,y,x0,y0,x1\n", "line 1: 'file_name,x,y,x0,y0,x1': the column y1 is missing; the first"),
        (HEADER + "a.jpg,1\n", "line 2: 'a.jpg,1': 2 values under 3 columns; put a file name"),
        (HEADER + "a.jpg,0,5,0,5\n", "line 2: 'a.jpg,0,5,0,5': 5 values under 3 columns; put a file name"),
        (HEADER + "a.jpg,1,2\nb.jpg,x,2\n", "line 3: 'x': x is no finite number; write pixels, or fractions"),
        (HEADER + "a.jpg,1,\n", "line 2: '': y is no finite number"),
        (HEADER + 'a.jpg,"0,5",1\n', "line 2: '0,5': x is no finite number"),
        (HEADER + "a.jpg,nan,1\n", "line 2: 'nan': x is no finite number"),
        (HEADER + "a.jpg,1,inf\n", "line 2: 'inf': y is no finite number"),
        (HEADER + "a.jpg,1,1e999\n", "line 2: '1e999': y is no finite number"),
        (HEADER + "a.jpg,-1,1\n", "line 2: '-1': x is negative; pixels and fractions count from"),
        (HEADER + f"a.jpg,{'9x' * 60},1\n", f"line 2: '{'9x' * 28}9...': x is no finite number"),
        (HEADER + ",1,1\n", "line 2: '': no file_name; write the photo's path relative to the dataset"),
        (HEADER + '"a\n.jpg",1,2\nb.jpg,1,2\nb.jpg,3,4', "line 5: 'b.jpg': stands in line 4, too; keep one of them"),
        (HEADER + '"a.jpg,1,2\nb.jpg,3,4\n', "line 3: no CSV: unexpected end of data; look for a missing double"),
        (HEADER + f'a.jpg,"{"1" * 200_000}",2\n', "line 2: no CSV: field larger than field limit (131072)"),
        (BOX_HEADER + "a.jpg,1,2,0,0,,9\n", "line 2: '0,0,,9': part of a box; give all of x0, y0, x1, y1, or none"),
        (BOX_HEADER + "a.jpg,1,2,0,0,z,9\n", "line 2: 'z': x1 is no finite number"),
        (BOX_HEADER + "a.jpg,1,2,0,-3,9,9\n", "line 2: '-3': y0 is negative"),
        (BOX_HEADER + "a.jpg,1,2,9,0,9,9\n", "line 2: '9,0,9,9': an empty box; x0 must be less than x1"),
        (BOX_HEADER + "a.jpg,1,2,0,9,9,8\n", "line 2: '0,9,9,8': an empty box; y0 must be less than y1"),
        (HEADER.encode() + b"a.jpg,1,2\nstra\xdfe.jpg,1,2\n", r"line 3: b'\xdf': no UTF-8; save the file as UTF-8"),
    ],
)
def test_an_unusable_points_file_names_line_value_problem_and_remedy(tmp_path, content, words):
    path = save_points(tmp_path, content)
    with pytest.raises(ConfigError) as error:
        read_points(path)
    assert str(error.value).startswith(f"{path}: {words}")
    assert "\n" not in str(error.value)


def test_a_points_file_that_can_not_be_read_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"none.csv: No such file or directory; name your points file with --focus"):
        read_points(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("focus", "expected"),
    [
        (centre_focus(641, 480), Focus("center", (320, 240))),
        (centre_focus(1, 1), Focus("center", (0, 0))),
        (fixed_focus(640, 480, (0.25, 0.5)), Focus("point", (160, 240))),
        (fixed_focus(640, 480, (1.0, 0.0)), Focus("point", (639, 0))),
        (row_focus(PointRow((0.5, 1)), 640, 480), Focus("point", (320, 479))),
        (
            row_focus(PointRow((1.0004, 0.5), (0.5, 0, 1.0004, 1.0001)), 640, 480),
            Focus("point", (639, 240), (320, 0, 640, 480)),
        ),
        (row_focus(PointRow((639.9, 2)), 640, 480), Focus("point", (639, 2))),
        (
            row_focus(PointRow((0.5, 0.5), (0.25, 0, 1, 0.75)), 640, 480),
            Focus("point", (320, 240), (160, 0, 640, 360)),
        ),
        (row_focus(PointRow((1, 1), (0, 0, 640, 480)), 640, 480), Focus("point", (1, 1), (0, 0, 640, 480))),
    ],
)
def test_a_focus_is_in_pixels_inside_the_photo(focus, expected):
    assert focus == expected


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (PointRow((640, 2)), "its point 640,2 lies outside its 640 x 480 pixels"),
        (PointRow((2, 480.5)), "its point 2,480.5 lies outside its 640 x 480 pixels"),
        (PointRow((2, 2), (0, 0, 640.5, 9)), "its box 0,0,640.5,9 reaches outside its 640 x 480 pixels"),
        (PointRow((2, 2), (0, 0, 9, 481)), "its box 0,0,9,481 reaches outside its 640 x 480 pixels"),
    ],
)
def test_pixels_outside_the_photo_fail_that_photo(row, reason):
    with pytest.raises(PhotoError) as error:
        row_focus(row, 640, 480)
    assert (error.value.reason, error.value.stage) == (reason, "focus")


@pytest.mark.parametrize(("width", "height"), [(640, 480), (1, 1), (3, 1000), (7, 8), (2, 2)])
def test_the_grid_is_the_centre_and_eight_around_it_inside_the_photo(width, height):
    points = grid_points(width, height)
    assert (points.shape, points.dtype) == ((9, 2), np.int64)
    assert tuple(points[0]) == centre_focus(width, height).point
    assert (points >= 0).all()
    assert (points < [width, height]).all()


def test_the_grid_goes_row_by_row_in_steps_of_each_side():
    expected = [(50, 100), (30, 60), (50, 60), (70, 60), (30, 100), (70, 100), (30, 140), (50, 140), (70, 140)]
    assert grid_points(100, 200).tolist() == [list(point) for point in expected]


def rectangle_logits(x0, y0, x1, y1, size=100, inside=5.0):
    logits = torch.full((size, size), -5.0)
    logits[y0:y1, x0:x1] = inside
    return logits


@pytest.mark.parametrize(
    ("logits", "iou_prediction", "score"),
    [
        (rectangle_logits(40, 40, 60, 60), 0.75, 0.75),
        (rectangle_logits(40, 40, 60, 60), 1.5, 1),
        (rectangle_logits(40, 40, 60, 60), -0.5, 0),
        (rectangle_logits(0, 0, 20, 20), 1, math.sqrt(1 - math.hypot(40, 40) / math.hypot(50, 50))),
        (rectangle_logits(80, 40, 100, 60), 1, math.sqrt(1 - 40 / math.hypot(50, 50))),
        (rectangle_logits(45, 45, 55, 55), 1, 0.5),
        (rectangle_logits(5, 0, 95, 100), 1, 0.5),
        (rectangle_logits(0, 0, 100, 100), 1, 0),
        (rectangle_logits(0, 0, 0, 0), 1, 0),
        (rectangle_logits(40, 40, 60, 60, inside=0.5), 1, 0),
    ],
    ids=["as predicted", "above 1", "below 0", "in a corner", "at the edge", "1%", "90%", "all", "nothing", "unstable"],
)
def test_a_mask_scores_by_prediction_stability_place_and_area(logits, iou_prediction, score):
    other = rectangle_logits(10, 20, 90, 70)
    scores = mask_scores(torch.stack([other, logits]), torch.tensor([0.9, iou_prediction]))
    assert (scores.shape, scores.dtype) == ((2,), torch.float32)
    assert scores[1].item() == pytest.approx(score, abs=1e-6)


def test_stability_is_the_area_above_1_by_that_above_minus_1():
    logits = rectangle_logits(40, 40, 60, 60)
    logits[40:50, 40:60] = 0.5  # in the mask, but not above +1
    logits[60:70, 40:60] = -0.5  # not in the mask, but above -1
    score = mask_scores(logits[None], torch.ones(1))
    assert score.item() == pytest.approx(200 / 600)


def test_places_are_measured_along_both_sides_of_the_frame():
    logits = torch.full((1, 50, 200), -5.0)
    logits[:, 10:40, 150:200] = 5
    assert mask_scores(logits, torch.ones(1)).item() == pytest.approx(math.sqrt(1 - 75 / math.hypot(100, 25)))


def test_a_position_falls_on_the_pixel_that_it_lies_in():
    assert pixel_at(5.9, 0.2, 10, 10) == (5, 0)
    assert pixel_at(10.0, 9.99, 10, 10) == (9, 9)
