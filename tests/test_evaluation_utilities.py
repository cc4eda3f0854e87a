import io
import itertools
import math
import unicodedata
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from rich.console import Console

from csv_utilities import format_csv, read_csv
from errors import ConfigError
from evaluation_utilities import (
    OTHER,
    Labels,
    Share,
    confusion_csv,
    count_strays,
    draw_confusion,
    draw_reliability,
    evaluate,
    judge,
    print_evaluation,
    read_labels,
    spell_items,
    to_dict,
    to_look,
    wilson_interval,
)
from thumbnail_utilities import source_digest
from verdict_utilities import Verdict

ROWS = {
    name: {
        "source": name,
        "file_name": f"{item}/{name}",
        "label": item,
        "model_label": item,
        "item_probability": probability,
    }
    for name, item, probability in [
        ("a", "red", 0.95),
        ("b", "red", 0.85),
        ("c", "blue", 0.85),
        ("d", "blue", 0.45),
        ("e", "green", 0.25),
    ]
}


def find(names):
    stems = {name: name.rpartition("/")[2].partition(".")[0] for name in names}
    return {name: stem for name, stem in stems.items() if stem in ROWS}


def write(path, columns, *lines):
    path.write_bytes(format_csv(columns, lines))
    return path


def labels(**truth):
    return Labels({name: Verdict((name,), "right" if item else "wrong", item or "") for name, item in truth.items()})


def told(path):
    """Returns what a table or folder says of each photo: an item, or the verdict without one."""
    return {name: each.item or each.verdict for name, each in read_labels(path, find, ROWS).said.items()}


def test_a_table_of_files_and_items_is_read(tmp_path):
    path = write(tmp_path / "l.csv", ["file_name", "label"], ("a.jpg", "red"), ("red/b.png", "blue"), ("z", "red"))
    assert told(path) == {"a": "red", "b": "blue"}
    found = read_labels(path, find, ROWS)
    assert (found.unknown, found.example, found.judged) == (1, "z", False)


def test_corrections_are_labels(tmp_path):
    lines = [
        ("red/a.png", "red", "right"),
        ("red/b.png", "blue", "wrong"),
        ("blue/c.png", "", "Wrong"),
        ("blue/d.png", "", "bad mask"),
    ]
    path = write(tmp_path / "c.csv", ["file_name", "item", "verdict"], *lines)
    assert told(path) == {"a": "red", "b": "blue", "c": "wrong"}
    assert read_labels(path, find, ROWS).bad_masks == {"d"}


PAGE = ["file_name", "item", "verdict", "source"]


def test_the_page_names_a_photo_whatever_its_label_is_now(tmp_path):
    path = write(tmp_path / "c.csv", PAGE, ("pink/x.png", "red", "wrong", "a"), ("blue/c.png", "blue", "right", "gone"))
    assert told(path) == {"a": "red", "c": "blue"}
    assert read_labels(path, find, ROWS).judged


def test_wrong_says_nothing_of_a_label_that_nobody_saw(tmp_path):
    lines = [("green/a.png", "", "wrong", "a"), ("red/b.png", "", "wrong", "b"), ("blue/c.png", "", "right", "c")]
    found = read_labels(write(tmp_path / "c.csv", PAGE, *lines), find, ROWS)
    result = evaluate(ROWS.values(), found, ["red", "green", "blue"])
    assert (result.accuracy.value, result.accuracy.count, result.left_out) == (0.5, 2, 1)


def test_right_without_an_item_is_of_the_label_there(tmp_path):
    path = write(tmp_path / "c.csv", ["file_name", "item", "verdict"], ("a", "", "right"), ("b", "blue", "bad mask"))
    found = evaluate(ROWS.values(), read_labels(path, find, ROWS), ["red", "blue"])
    assert (found.accuracy.value, found.accuracy.count) == (0.5, 2)


def test_lines_that_a_spreadsheet_left_empty_say_nothing(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("file_name;item;verdict\na;red;right\n;;\n")
    assert told(path) == {"a": "red"}


def test_labels_are_a_sample_as_far_as_the_pages_order_has_no_gap():
    ordered = sorted(ROWS, key=source_digest)
    assert count_strays(labels(**dict.fromkeys(ordered[:3], "red")), ROWS) == 0
    assert count_strays(labels(**dict.fromkeys(ordered, "red")), ROWS) == 0
    gap = dict.fromkeys([ordered[0], *ordered[2:4]], "red")
    assert count_strays(labels(**gap), ROWS) == 2
    assert count_strays(replace(labels(**gap), bad_masks=frozenset(ordered[1:2])), ROWS) == 0


def test_capitals_do_not_make_another_item_and_strange_words_are_counted():
    found, strange = spell_items(labels(a="RED", b="grey", c="grey", d=None, e="green"), ["red", "gray", "green"])
    assert {name: each.item for name, each in found.said.items()} == {
        "a": "red",
        "b": "grey",
        "c": "grey",
        "d": "",
        "e": "green",
    }
    assert strange == {"grey": 2}


def test_a_look_is_another_with_other_labels_or_another_target():
    looks = [to_look(labels(a=item), target) for item in ("red", None) for target in (0.9, 0.95)]
    assert len(set(looks)) == 4
    assert to_look(labels(a="red", b=None), 0.9) == to_look(labels(b=None, a="red"), 0.9)


def test_a_folder_of_class_folders_is_read(tmp_path):
    for name in ("red/a.jpg", "blue/street/b.png", "blue/.hidden/c.jpg", "stray.txt", "blue/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert told(tmp_path) == {"a": "red", "b": "blue"}
    assert read_labels(tmp_path, find, ROWS).example == "blue/x.jpg"


def test_accents_that_a_file_system_takes_apart_are_still_the_item(tmp_path):
    apart = unicodedata.normalize("NFD", "café")
    (tmp_path / "labels" / apart).mkdir(parents=True)
    (tmp_path / "labels" / apart / "a.jpg").touch()
    table = write(tmp_path / "l.csv", ["file_name", "item"], ("a", f" {apart} "))
    assert told(tmp_path / "labels") == told(table) == {"a": "café"}


@pytest.mark.parametrize(
    ("columns", "lines", "message"),
    [
        (
            ["file_name", "item", "verdict"],
            [("a", "red", "good")],
            "'good' is no verdict; write right, wrong, bad mask",
        ),
        (["file_name", "item"], [("a", "red"), ("red/a.png", "blue")], "'a': is called 'red' and 'blue'; keep one"),
        (["file_name", "item", "verdict"], [("a", "", "wrong"), ("a", "red", "wrong")], "is called wrong and 'red'"),
        (["file_name", "colour"], [("a", "red")], "has no column 'item' or 'label'"),
        (["file_name", "item"], [("x", "red")], "labels no photo of this output, such as 'x', which is none"),
    ],
)
def test_mistakes_in_labels_are_one_line(tmp_path, columns, lines, message):
    path = write(tmp_path / "l.csv", columns, *lines)
    with pytest.raises(ConfigError) as caught:
        read_labels(path, find, ROWS)
    assert str(caught.value).startswith(f"--evaluate {path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_intervals_are_wilsons(hits, count, low, high):
    assert wilson_interval(hits, count) == pytest.approx((low, high), abs=1e-4)


def test_no_rounding_takes_an_interval_out_of_0_to_1():
    for count in range(1, 300):
        assert wilson_interval(0, count)[0] >= 0
        assert wilson_interval(count, count)[1] <= 1


TRUTH = {"a": "red", "b": "blue", "c": "blue", "d": None, "e": "green"}


def measured():
    return evaluate(list(ROWS.values()), labels(**TRUTH), ["red", "green", "blue", "unused"])


def test_what_was_chosen_is_compared_with_the_truth():
    found = measured()
    assert (found.accuracy.value, found.accuracy.count) == (0.6, 5)
    assert found.truths == ["red", "green", "blue", OTHER]
    assert found.confusion == [[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]]
    red, green, blue = found.items
    assert (red.precision.value, red.recall.value, red.support) == (0.5, 1.0, 1)
    assert (blue.precision.value, blue.recall.value, blue.support) == (0.5, 0.5, 2)
    assert red.f1 == pytest.approx(2 / 3)
    assert (green.precision.value, green.f1) == (1.0, 1.0)


def test_calibration_is_the_mean_gap_between_promise_and_truth():
    found = measured()
    assert [(each.low, each.high, each.accuracy.count) for each in found.bins] == [
        (0.2, 0.3, 1),
        (0.4, 0.5, 1),
        (0.8, 0.9, 2),
        (0.9, 1.0, 1),
    ]
    gaps = [abs(0.25 - 1), abs(0.45 - 0), 2 * abs(0.85 - 0.5), abs(0.95 - 1)]
    assert found.expected_calibration_error == pytest.approx(sum(gaps) / 5)


def test_the_last_bin_holds_what_is_certain():
    found = evaluate([{**ROWS["a"], "item_probability": 1.0}, ROWS["b"]], labels(a="red", b="red"), ["red"])
    assert [(each.low, each.high, each.mean_probability) for each in found.bins] == [(0.8, 0.9, 0.85), (0.9, 1.0, 1.0)]


def test_an_item_that_the_run_does_not_have_is_another():
    found = evaluate(list(ROWS.values()), labels(a="teal"), ["red", "blue"])
    assert (found.accuracy.value, found.truths, found.confusion) == (0.0, ["red", OTHER], [[0], [1]])


def test_an_item_that_only_the_model_names_can_be_right():
    found = evaluate([ROWS["a"]], labels(a="red"), ["blue"])
    assert (found.accuracy.value, found.truths, found.confusion) == (1.0, ["red"], [[1]])


def test_an_item_may_have_the_name_of_the_others():
    found = evaluate([{**ROWS["a"], "model_label": OTHER, "label": OTHER}], labels(a="teal"), [OTHER])
    assert (found.accuracy.value, found.truths, found.confusion) == (0.0, [OTHER, OTHER], [[0], [1]])


def test_a_correction_that_is_wrong_says_nothing_of_the_model():
    corrected = {**ROWS["b"], "label": "green", "label_source": "human"}
    found = evaluate([ROWS["a"], corrected, ROWS["c"]], labels(a="red", b=None, c=None), ["red", "blue"])
    assert (found.accuracy.value, found.accuracy.count, found.left_out) == (0.5, 2, 1)


def test_judging_counts_as_evaluating_does():
    probabilities, right = judge(list(ROWS.values()), labels(**TRUTH))
    assert probabilities.tolist() == [0.95, 0.85, 0.85, 0.45, 0.25]
    assert right.tolist() == [True, False, True, False, True]


def test_no_labels_are_told_as_such():
    found = evaluate([{**ROWS["a"], "label": "blue"}], labels(a=None), ["red"])
    console = Console(file=io.StringIO(), width=100)
    print_evaluation(console, found)
    assert "1 label left out" in console.file.getvalue()
    assert "No label says whether the model is right" in console.file.getvalue()
    assert to_dict(found)["expected_calibration_error"] is None
    for picture in (draw_confusion(found), draw_reliability(found)):
        assert ElementTree.fromstring(picture).findtext("{*}desc") == "No labels."
        assert "nan" not in picture


def test_corrections_do_not_change_what_the_model_had_chosen():
    rows = [{**ROWS["a"], "label": "blue", "label_source": "human"}]
    assert evaluate(rows, labels(a="blue"), ["red", "blue"]).accuracy.value == 0.0


def test_json_has_null_where_nothing_was_counted():
    found = to_dict(evaluate(list(ROWS.values()), labels(a="blue"), ["red", "blue"]))
    assert found["accuracy"] == {"value": 0.0, "count": 1, "low": 0.0, "high": pytest.approx(0.7935, abs=1e-4)}
    red, blue = found["items"]
    assert (red["recall"]["value"], blue["precision"]["value"]) == (None, None)
    assert math.isnan(Share.of(0, 0).value)


def test_the_tables_name_what_was_confused():
    console = Console(file=io.StringIO(), width=100)
    print_evaluation(console, measured())
    text = console.file.getvalue()
    assert "Accuracy 0.600 (0.231 to 0.882) on 5 labels; expected calibration error" in text
    assert "what it is \\ was taken for" in text
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["blue", "1", "1"] in rows
    assert ["(other)", "1"] in rows


def test_of_many_items_the_confusions_are_named():
    items = [f"item {number}" for number in range(30)]
    rows = [{"source": item, "label": item, "model_label": item, "item_probability": 0.5} for item in items]
    console = Console(file=io.StringIO(), width=100)
    print_evaluation(console, evaluate(rows, labels(**dict(itertools.pairwise(items))), items))
    assert "  item 1 taken for item 0: 1" in console.file.getvalue()


def test_the_most_frequent_confusions_are_named_first():
    items = [f"item {number:02}" for number in range(14)]
    taken = [(item, "item 00") for item in items[1:]] + [("item 13", "item 00")] * 2 + [("item 12", "item 00")]
    rows = [{**ROWS["a"], "source": f"{number}", "model_label": item} for number, (_, item) in enumerate(taken)]
    console = Console(file=io.StringIO(), width=100)
    truth = {f"{number}": item for number, (item, _) in enumerate(taken)}
    print_evaluation(console, evaluate(rows, labels(**truth), items))
    lines = [line.strip() for line in console.file.getvalue().splitlines() if "taken for" in line]
    assert lines[:3] == [
        "item 13 taken for item 00: 3",
        "item 12 taken for item 00: 2",
        "item 01 taken for item 00: 1",
    ]
    assert len(lines) == 10


@pytest.mark.parametrize("count", [8, 9])
def test_a_matrix_of_eight_items_is_printed_whole(count):
    items = [f"item {number}" for number in range(count)]
    rows = [{**ROWS["a"], "source": item, "model_label": item} for item in items]
    console = Console(file=io.StringIO(), width=200)
    print_evaluation(console, evaluate(rows, labels(**dict(zip(items, items, strict=True))), items))
    assert ("was taken for" in console.file.getvalue()) == (count == 8)


def test_the_bars_of_the_reliability_diagram_are_as_high_as_the_labels_are_right():
    found = measured()
    _, *bars = ElementTree.fromstring(draw_reliability(found)).findall("{*}rect")
    lowest = {float(bar.get("y")) + float(bar.get("height")) for bar in bars}
    assert lowest == {34 + 300}
    assert [float(bar.get("height")) for bar in bars] == [300 * each.accuracy.value for each in found.bins]


def test_the_confusion_matrix_is_a_csv_too(tmp_path):
    (tmp_path / "c.csv").write_bytes(confusion_csv(measured()))
    lines = read_csv(tmp_path / "c.csv", flag="--x")
    assert lines[2] == {"truth": "blue", "red": "1", "green": "0", "blue": "1"}
    assert lines[3]["truth"] == OTHER


HOSTILE = "<b>&\"'[red]\x1b"
LONG = "a name that is long 17"


def test_no_item_is_markup_in_tables_or_pictures():
    rows = [{**ROWS["a"], "model_label": HOSTILE}, {**ROWS["b"], "model_label": LONG}]
    found = evaluate(rows, labels(a=HOSTILE, b=HOSTILE), [HOSTILE, LONG])
    console = Console(file=io.StringIO(), width=200)
    print_evaluation(console, found)
    assert "<b>&\"'[red]\\x1b" in console.file.getvalue()
    for picture in (draw_confusion(found), draw_reliability(found)):
        assert not ElementTree.fromstring(picture).findall(".//{*}b")
    root = ElementTree.fromstring(draw_confusion(found))
    texts = [each.text for each in root.findall("{*}text")]
    assert "<b>&\"'[red]?" in texts
    assert "a name tha…long 17" in texts
    assert f"<b>&\"'[red]? taken for {LONG}: 1 of 2" in [each.text for each in root.findall("{*}rect/{*}title")]


def draw_diagonal(items, each=1):
    """Returns the picture of so many right photos of each item."""
    rows = [
        {"source": f"{item} {number}", "label": item, "model_label": item, "item_probability": 0.5}
        for item in items
        for number in range(each)
    ]
    truth = {row["source"]: row["label"] for row in rows}
    return ElementTree.fromstring(draw_confusion(evaluate(rows, labels(**truth), items)))


@pytest.mark.parametrize("count", [2, 50])
@pytest.mark.parametrize(
    "name", ["i", "a name that is long", "W" * 20, "車" * 20], ids=["short", "long", "wide", "cjk"]
)
def test_pictures_hold_few_items_and_many_of_any_name(count, name):
    root = draw_diagonal([f"{name}{number}" for number in range(count)])
    cells = root.findall("{*}rect")[1:]
    assert len(cells) == count * count
    width = float(root.get("width"))
    assert all(float(each.get("x")) + float(each.get("width")) < width for each in cells)
    # No letter of this type is wider than 12 pixels, nor the usual one wider than 7.
    longest = 18 * (12 if name[0] in "W車" else 7)
    left, top = (min(float(each.get(axis)) for each in cells) for axis in "xy")
    assert left > min(longest, 7 * len(name))
    assert top > 0.75 * min(longest, 7 * len(name)) + 16
    last = max(float(each.get("x")) for each in cells)
    assert width - last > 0.6 * min(longest, 7 * len(name))


def test_a_cell_is_as_wide_as_its_number():
    cell = draw_diagonal(["red"], each=12_345).findall("{*}rect")[1]
    assert float(cell.get("width")) > 5 * 7.6


def test_a_dataset_that_has_class_folders_itself_labels_its_own_photos(tmp_path):
    photos = {"1.jpg", "red/1.jpg"}
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "1.jpg").touch()
    found = read_labels(tmp_path, lambda names: {name: name for name in names if name in photos}, photos)
    assert {name: each.item for name, each in found.said.items()} == {"red/1.jpg": "red"}
