import json
from pathlib import Path

import numpy as np
import pytest
import torch

import revision_utilities
from config_utilities import Settings
from csv_utilities import format_csv
from curation_utilities import (
    apply_corrections,
    read_finished,
    relabel,
    relabelled_settings,
    set_thresholds,
    undo,
    with_thresholds,
)
from errors import ConfigError, OutputError
from feature_utilities import FeatureFile
from program import peak_of, pngs, rows
from prompt_utilities import Label
from record_utilities import METADATA, RUN, Thresholds

ITEMS = ["red", "blue", "green"]


def row(source, label="red", probability=0.5, **more):
    return {
        "file_name": f"{label}/{source.replace('.jpg', '.png')}",
        "label": label,
        "source": source,
        "label_source": "model",
        "model_label": label,
        "prompt": f"a {label} car",
        "probability": 0.2,
        "item_probability": probability,
        "runner_up": "blue",
        "margin": probability - 0.1,
        "top_items": [{"item": label, "probability": probability}],
        "mask_score": 0.9,
        "mask_area": 0.3,
        "width": 4,
        "height": 4,
        "flags": [],
        **more,
    }


@pytest.fixture
def output(tmp_path):
    """Two red photos and a blue one."""
    records = [row("a.jpg", probability=0.9), row("sub/b.jpg", probability=0.6), row("c.jpg", "blue", 0.3)]
    output = tmp_path / "out"
    for each in records:
        path = output / each["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(each["source"])
    (output / METADATA).write_text("".join(json.dumps(each) + "\n" for each in records))
    (output / RUN).write_text(
        json.dumps({"prefixes": ["a"], "items": ITEMS, "postfixes": ["car"], "clip_weights": "x"})
    )
    return output


def corrections(tmp_path, *lines):
    path = tmp_path / "corrections.csv"
    path.write_bytes(format_csv(["file_name", "item", "verdict"], lines))
    return path


def records(folder):
    return {each["source"]: each for each in rows(folder / METADATA)}


LINES = [("red/a.png", "red", "right"), ("red/sub/b.png", "green", "wrong"), ("blue/c.png", "", "wrong")]


def test_corrections_move_photos_to_where_they_belong(output, tmp_path):
    counts = apply_corrections(read_finished(output), corrections(tmp_path, *LINES))
    assert counts == {"right": 1, "wrong": 2, "changed": 3}
    assert pngs(output) == ["green/sub/b.png", "red/a.png"]
    assert pngs(tmp_path / "out-review") == ["blue/c.png"]
    found = records(output)
    assert [(each["label"], each["label_source"], each["model_label"]) for each in found.values()] == [
        ("red", "human", "red"),
        ("green", "human", "red"),
    ]
    assert records(tmp_path / "out-review")["c.jpg"]["flags"] == ["wrong", "review"]


def test_the_same_corrections_change_nothing_a_second_time(output, tmp_path):
    path = corrections(tmp_path, *LINES)
    apply_corrections(read_finished(output), path)
    before = (output / METADATA).read_bytes(), (tmp_path / "out-review" / METADATA).read_bytes()
    counts = apply_corrections(read_finished(output), path)
    assert counts == {"right": 1, "wrong": 2, "changed": 0}
    assert before == ((output / METADATA).read_bytes(), (tmp_path / "out-review" / METADATA).read_bytes())


def test_corrections_can_be_undone_one_after_the_other(output, tmp_path):
    before = records(output)
    apply_corrections(read_finished(output), corrections(tmp_path, LINES[0], LINES[1]))
    middle = records(output)
    apply_corrections(read_finished(output), corrections(tmp_path, ("green/sub/b.png", "blue", "wrong")))
    assert undo(read_finished(output)).by.startswith("--apply ")
    assert records(output) == middle
    undo(read_finished(output))
    assert records(output) == before
    assert pngs(output) == ["blue/c.png", "red/a.png", "red/sub/b.png"]
    with pytest.raises(OutputError, match="has nothing to take back"):
        undo(read_finished(output))


def test_what_was_reviewed_comes_back_when_it_is_corrected(output, tmp_path):
    apply_corrections(read_finished(output), corrections(tmp_path, ("red/a.png", "", "bad mask")))
    assert records(tmp_path / "out-review")["a.jpg"]["flags"] == ["bad mask", "review"]
    apply_corrections(read_finished(output), corrections(tmp_path, ("red/a.png", "red", "right")))
    assert records(output)["a.jpg"]["flags"] == []
    assert records(tmp_path / "out-review") == {}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("red/a.png", "red", "perhaps"), "'perhaps' is no verdict; write right, wrong, bad mask"),
        (("red/a.png", "gren", "wrong"), "'gren' is no item of this run; did you mean 'green'?"),
        (("red/a.png", "zzz", "wrong"), "'zzz' is no item of this run; write one of red, blue, green"),
    ],
)
def test_mistakes_in_corrections_change_nothing(output, tmp_path, line, message):
    before = records(output)
    with pytest.raises(ConfigError) as caught:
        apply_corrections(read_finished(output), corrections(tmp_path, LINES[0], line))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert records(output) == before


def test_lines_that_contradict_each_other_change_nothing(output, tmp_path):
    before = records(output)
    path = corrections(tmp_path, ("red/a.png", "blue", "wrong"), ("a.jpg", "blue", "right"), ("a.jpg", "", "wrong"))
    with pytest.raises(ConfigError, match=r"'a.jpg': has two lines that contradict each other; keep one of them"):
        apply_corrections(read_finished(output), path)
    assert records(output) == before


def test_a_bad_mask_may_have_another_item_too(output, tmp_path):
    apply_corrections(read_finished(output), corrections(tmp_path, ("red/a.png", "blue", "bad mask")))
    found = records(tmp_path / "out-review")["a.jpg"]
    assert (found["label"], found["label_source"], found["flags"]) == ("blue", "human", ["bad mask", "review"])


def test_what_was_wrong_of_another_label_says_nothing_of_this_one(output, tmp_path):
    lines = [("green/a.png", "", "wrong", "a.jpg"), ("green/b.png", "blue", "wrong", "sub/b.jpg")]
    path = tmp_path / "page.csv"
    path.write_bytes(format_csv(["file_name", "item", "verdict", "source"], lines))
    counts = apply_corrections(read_finished(output), path)
    assert counts == {"outdated": 1, "wrong": 1, "changed": 1}
    assert records(output)["a.jpg"] == row("a.jpg", probability=0.9)
    assert records(output)["sub/b.jpg"]["label"] == "blue"


def test_an_undo_takes_no_other_photos_name(output, tmp_path):
    apply_corrections(read_finished(output), corrections(tmp_path, ("red/a.png", "blue", "wrong")))
    with (output / METADATA).open("a") as file:  # as a run does where a.jpg has become a.webp
        file.write(json.dumps(row("a.webp", file_name="red/a.png")) + "\n")
    (output / "red" / "a.png").write_text("a.webp")
    undo(read_finished(output))
    found = records(output)
    assert (found["a.jpg"]["label"], found["a.webp"]["file_name"]) == ("red", "red/a.png")
    assert {(output / each["file_name"]).read_text() == source for source, each in found.items()} == {True}


def test_corrections_of_another_output_are_refused(output, tmp_path):
    with pytest.raises(ConfigError, match=r"is about none of the photos of .*; name its --output"):
        apply_corrections(read_finished(output), corrections(tmp_path, ("red/x.png", "red", "right")))


def test_a_name_that_no_photo_has_is_counted_and_said(output, tmp_path, caplog):
    counts = apply_corrections(read_finished(output), corrections(tmp_path, ("red/x.png", "red", "right"), LINES[0]))
    assert (counts["unknown"], counts["right"]) == (1, 1)
    assert "red/x.png: no photo of this output" in caplog.text


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("red/a.png", "a.jpg"),
        ("a.jpg", "a.jpg"),
        ("a.png", "a.jpg"),
        ("a", "a.jpg"),
        ("sub/b.jpg", "sub/b.jpg"),
        ("sub/b", "sub/b.jpg"),
        ("red/sub/b", "sub/b.jpg"),
        ("sub/b.webp", "sub/b.jpg"),
        ("b.png", None),
        ("", None),
        ("/", None),
    ],
)
def test_a_photo_goes_by_several_names(output, name, source):
    assert read_finished(output).find([name]) == ({name: source} if source else {})


def test_a_name_of_two_photos_means_none(output):
    with (output / METADATA).open("a") as file:
        file.write(json.dumps(row("a.webp", "blue", file_name="blue/a.png")) + "\n")
    (output / "blue" / "a.png").write_text("a.webp")
    assert read_finished(output).find(["a.png", "a", "blue/a.png"]) == {"blue/a.png": "a.webp"}


def test_a_file_name_means_its_photo_whatever_another_photo_is_called_in_the_dataset(output):
    with (output / METADATA).open("a") as file:
        file.write(json.dumps(row("red/a.png", "blue")) + "\n")
    (output / "blue" / "red").mkdir()
    (output / "blue" / "red" / "a.png").write_text("red/a.png")
    assert read_finished(output).find(["red/a.png"]) == {"red/a.png": "a.jpg"}


def test_an_earlier_name_of_a_photo_that_is_gone_means_none(output, tmp_path):
    apply_corrections(read_finished(output), corrections(tmp_path, ("red/a.png", "green", "wrong")))
    assert read_finished(output).find(["red/a.png"]) == {"red/a.png": "a.jpg"}
    (output / "green" / "a.png").unlink()
    assert read_finished(output).find(["red/a.png"]) == {}


def test_two_photos_of_one_name_do_not_meet_in_one_folder(output, tmp_path):
    with (output / METADATA).open("a") as file:
        file.write(json.dumps(row("a.webp", "blue", file_name="blue/a.png")) + "\n")
    (output / "blue" / "a.png").write_text("a.webp")
    lines = [("red/a.png", "green", "wrong"), ("blue/a.png", "green", "wrong")]
    apply_corrections(read_finished(output), corrections(tmp_path, *lines))
    contents = {path.read_text() for path in (output / "green").iterdir()}
    assert contents == {"a.jpg", "a.webp"}
    assert {(output / each["file_name"]).read_text() == source for source, each in records(output).items()} == {True}


def test_an_output_knows_its_settings_after_each_change_of_them(output):
    finished = read_finished(output)
    for probability in (0.7, 0.2, 0.0):
        set_thresholds(finished, Thresholds(item_probability=probability), by="a test")
        assert finished.thresholds == read_finished(output).thresholds == Thresholds(item_probability=probability)


def test_a_photo_that_stays_with_its_item_keeps_its_name(output, tmp_path):
    with (output / METADATA).open("a") as file:
        file.write(json.dumps(row("a.webp", "blue", file_name="blue/a.png")) + "\n")
    (output / "blue" / "a.png").write_text("a.webp")
    apply_corrections(read_finished(output), corrections(tmp_path, ("red/a.png", "", "right")))
    assert (records(output)["a.jpg"]["file_name"], records(output)["a.jpg"]["label_source"]) == ("red/a.png", "human")


def test_an_output_that_was_strict_is_so_afterwards(output, tmp_path):
    settings = json.loads((output / RUN).read_text())
    (output / RUN).write_text(json.dumps({**settings, "strict": True}))
    doubted = row("d.jpg", flags=["view"])
    (output / METADATA).write_text(json.dumps(doubted) + "\n")
    (output / "red" / "d.png").touch()
    apply_corrections(read_finished(output), corrections(tmp_path, ("red/d.png", "", "bad mask")))
    apply_corrections(read_finished(output), corrections(tmp_path, ("red/d.png", "blue", "wrong")))
    assert read_finished(output).thresholds.strict
    assert records(output)["d.jpg"]["flags"] == ["view"]


def test_undoing_leaves_what_has_changed_since(output, tmp_path, caplog):
    apply_corrections(read_finished(output), corrections(tmp_path, ("red/a.png", "green", "wrong"), LINES[1]))
    changed = {**records(output)["a.jpg"], "prompt": "another"}
    lines = [changed if each["source"] == "a.jpg" else each for each in rows(output / METADATA)]
    (output / METADATA).write_text("".join(json.dumps(each) + "\n" for each in lines))
    undo(read_finished(output))
    assert records(output)["a.jpg"] == changed
    assert "changed since, and left so: 1 of 2 records" in caplog.text


def test_thresholds_sort_photos_into_review_and_back(output, tmp_path):
    assert set_thresholds(read_finished(output), Thresholds(item_probability=0.7), by="a test") == 2
    assert pngs(tmp_path / "out-review") == ["blue/c.png", "red/sub/b.png"]
    assert json.loads((output / RUN).read_text())["min_probability"] == 0.7
    assert read_finished(output).thresholds == Thresholds(item_probability=0.7)
    assert set_thresholds(read_finished(output), Thresholds(), by="a test") == 2
    assert pngs(tmp_path / "out-review") == []
    assert "min_probability" not in json.loads((output / RUN).read_text())


def test_thresholds_taken_back_count_for_photos_that_came_since(output, tmp_path):
    set_thresholds(read_finished(output), Thresholds(item_probability=0.7), by="a test")
    later = row("later.jpg", probability=0.6, flags=["low probability", "review"])
    with (tmp_path / "out-review" / METADATA).open("a") as file:
        file.write(json.dumps(later) + "\n")
    (tmp_path / "out-review" / "red" / "later.png").write_text("later.jpg")
    undo(read_finished(output))
    assert records(output)["later.jpg"] == {**later, "flags": []}
    assert (output / "red" / "later.png").read_text() == "later.jpg"
    assert pngs(tmp_path / "out-review") == []


def test_what_a_relabelling_is_not_told_stays():
    before = {"items": ["a"], "decision": "ensemble", "min_probability": 0.3, "refine": True}
    prompts = {"prefixes": ("the",), "items": ("b",), "postfixes": ("c",)}
    after = {"prefixes": ["the"], "items": ["b"], "postfixes": ["c"], "decision": "ensemble", "refine": True}
    told = Settings(**prompts, min_margin=0.1, given=dict.fromkeys([*prompts, "min_margin"], "flag"))
    assert relabelled_settings(before, told) == after | {"min_probability": 0.3, "min_margin": 0.1}
    given = dict.fromkeys([*prompts, "min_probability", "decision", "csv_prefixes"], "config")
    told = Settings(**prompts, csv_prefixes=("so",), given=given)
    assert relabelled_settings(before, told) == after | {"decision": "top-prompt", "csv_prefixes": ["so"]}


def test_thresholds_are_written_as_a_run_with_them_would_write_them():
    before = {"items": ["a"], "min_margin": 0.5}
    assert with_thresholds(before, Thresholds(mask_score=0.9)) == {"items": ["a"], "min_mask_score": 0.9}


class Model:
    """Scores features as CLIP does, with one axis for each item."""

    def __init__(self, items, dimension=4):
        self.items, self.dimension = tuple(items), dimension

    def decide_stored(self, features):
        probabilities = torch.from_numpy(features[:, : len(self.items)].astype(np.float32)).softmax(dim=1).numpy()
        labels = []
        for each in probabilities:
            first, second = (-each).argsort()[:2]
            item, top = self.items[first], float(each[first])
            pairs = tuple((self.items[index], float(each[index])) for index in (first, second))
            labels.append(Label(item, f"the {item}", top, top, self.items[second], top - float(each[second]), pairs))
        return labels


def keep_features(output, **features):
    file = FeatureFile(output)
    for source, values in features.items():
        file.append(source.replace("_", "."), np.array(values, np.float32))
    file.close()


def test_other_prompts_move_photos_without_another_look_at_them(output, tmp_path, caplog):
    keep_features(output, a_jpg=[5, 0, 0, 0], c_jpg=[0, 5, 0, 0], **{"sub/b_jpg": [1, 0.9, 0, 0]})
    items = ["crimson", "navy"]
    finished = read_finished(output)
    settings = {**finished.settings, "items": items, "min_margin": 0.2}
    result = relabel(finished, Model(items), thresholds=Thresholds(margin=0.2), settings=settings, by="a test")
    assert result.changed == {("red", "crimson"): 2, ("blue", "navy"): 1}
    assert (result.photos, result.kept, result.moved_to_review) == (3, 0, 1)
    assert pngs(output) == ["crimson/a.png", "navy/c.png"]
    assert pngs(tmp_path / "out-review") == ["crimson/sub/b.png"]
    assert records(output)["a.jpg"]["prompt"] == "the crimson"
    assert json.loads((output / RUN).read_text())["items"] == items
    with (output / METADATA).open("a") as file:
        file.write(json.dumps(row("later.jpg", "navy")) + "\n")
    (output / "navy" / "later.png").touch()
    assert undo(read_finished(output)).relabels
    assert pngs(output) == ["blue/c.png", "navy/later.png", "red/a.png", "red/sub/b.png"]
    assert json.loads((output / RUN).read_text())["items"] == ITEMS
    assert "photos that --relabel had not changed: 1;" in caplog.text


def test_what_a_human_has_said_stays_where_the_item_is_still_one(output, tmp_path):
    keep_features(output, a_jpg=[0, 5, 0, 0], c_jpg=[0, 5, 0, 0], **{"sub/b_jpg": [0, 5, 0, 0]})
    apply_corrections(read_finished(output), corrections(tmp_path, *LINES))
    finished = read_finished(output)
    settings = {**finished.settings, "items": ["red", "navy"]}
    result = relabel(finished, Model(["red", "navy"]), thresholds=Thresholds(), settings=settings, by="a test")
    found = records(output)
    assert (result.kept, result.replaced) == (1, 1)
    assert (found["a.jpg"]["label"], found["a.jpg"]["label_source"], found["a.jpg"]["model_label"]) == (
        "red",
        "human",
        "navy",
    )
    assert (found["sub/b.jpg"]["label"], found["sub/b.jpg"]["label_source"]) == ("navy", "model")  # green is gone
    assert found["c.jpg"]["flags"] == []  # it was not wrong of being navy


def test_a_second_opinion_stays_as_long_as_the_label_that_it_is_on(output):
    lines = [{**each, "flags": ["small", "view", "colour"]} for each in rows(output / METADATA)]
    (output / METADATA).write_text("".join(json.dumps(each) + "\n" for each in lines))
    keep_features(output, a_jpg=[9, 0, 0, 0], c_jpg=[9, 0, 0, 0], **{"sub/b_jpg": [9, 0, 0, 0]})
    finished = read_finished(output)
    relabel(finished, Model(ITEMS), thresholds=Thresholds(), settings=finished.settings, by="a test")
    found = {source: (each["label"], each["flags"]) for source, each in records(output).items()}
    assert found["a.jpg"] == found["sub/b.jpg"] == ("red", ["small", "view", "colour"])
    assert found["c.jpg"] == ("red", ["small"])


def test_photos_without_features_are_named(output):
    keep_features(output, a_jpg=[0, 5, 0, 0])
    with pytest.raises(OutputError, match=r"2 of 3 photos have no image features, such as 'sub/b.jpg'; run over"):
        relabel(read_finished(output), Model(ITEMS), thresholds=Thresholds(), settings={}, by="a test")


def test_an_output_that_is_none_is_refused(tmp_path):
    with pytest.raises(OutputError, match="no run has written to it yet"):
        read_finished(tmp_path)
    Path(tmp_path / RUN).write_text(json.dumps({"items": ITEMS}))
    with pytest.raises(OutputError, match="is damaged"):
        read_finished(tmp_path)
    Path(tmp_path / RUN).write_text("[")
    with pytest.raises(OutputError, match="is damaged"):
        read_finished(tmp_path)


def test_records_without_a_cut_out_are_left_out_and_said(output, caplog):
    (output / "red" / "a.png").unlink()
    assert sorted(read_finished(output).records) == ["c.jpg", "sub/b.jpg"]
    assert "cut-outs gone: 1, such as red/a.png" in caplog.text


def move(output, before, after):
    (output / after).parent.mkdir(parents=True, exist_ok=True)
    (output / before).rename(output / after)


def test_cut_outs_that_were_moved_by_hand_stay_there(output, tmp_path, caplog):
    apply_corrections(read_finished(output), corrections(tmp_path, LINES[0]))
    move(output, "red/sub/b.png", "green/sub/b.png")
    move(output, "blue/c.png", "../out-review/red/c.png")
    finished = read_finished(output)
    assert [(each["source"], each["label"], each["label_source"]) for each in finished.records.values()] == [
        ("a.jpg", "red", "human"),
        ("sub/b.jpg", "green", "human"),
        ("c.jpg", "red", "human"),
    ]
    assert records(tmp_path / "out-review")["c.jpg"]["flags"] == ["moved by hand", "review"]
    assert caplog.messages == [f"{output}: cut-outs moved to another item by hand: 2; that stands"]
    assert finished.find(["red/sub/b.png"]) == {"red/sub/b.png": "sub/b.jpg"}  # as a page from before has it
    assert "| green | 1 |" in (output / "README.md").read_text()
    assert undo(finished).by.startswith("--apply ")
    assert pngs(output) == ["green/sub/b.png", "red/a.png"]


def test_a_cut_out_that_was_dragged_out_of_its_subfolder_is_found_too_and_leaves_no_empty_class(output):
    move(output, "red/sub/b.png", "green/b.png")
    move(output, "blue/c.png", "green/c.png")
    assert {each["file_name"] for each in read_finished(output).records.values()} == {
        *("red/a.png", "green/sub/b.png", "green/c.png")
    }
    assert not (output / "blue").exists()


@pytest.mark.parametrize("how", ["another photo's", "two places", "no item"])
def test_a_cut_out_of_which_nobody_knows_where_it_is_is_gone(output, caplog, how):
    if how == "another photo's":
        with (output / METADATA).open("a") as file:
            file.write(json.dumps(row("a.webp", "blue", file_name="blue/a.png")) + "\n")
        move(output, "red/a.png", "blue/a.png")
    elif how == "two places":
        move(output, "red/a.png", "blue/a.png")
        (output / "green").mkdir()
        (output / "green" / "a.png").write_text("a.jpg")
    else:
        move(output, "red/a.png", "pink/a.png")
    before = (output / METADATA).read_bytes()
    assert "a.jpg" not in read_finished(output).records
    assert "cut-outs gone: 1, such as red/a.png" in caplog.text
    assert (output / METADATA).read_bytes() == before


def revise_and_undo(output, names):
    revision_utilities._IN_MEMORY = 1 << 14
    assert set_thresholds(read_finished(output), Thresholds(item_probability=0.5), by="a test") == 1500
    finished = read_finished(output)
    assert finished.find(names).keys() == set(names)
    undo(finished)


def test_records_are_not_held_in_memory(output):
    many = [row(f"{number:04}.jpg", probability=number / 3000) for number in range(3000)]
    (output / METADATA).write_text("".join(json.dumps(each) + "\n" for each in many))
    for each in many:
        (output / each["file_name"]).touch()
    peak = peak_of(revise_and_undo, output, [each["file_name"] for each in many[::10]])
    assert len(records(output)) == 3000
    assert peak < 1000 * 3000  # bytes; 10,000 each when they were held as dictionaries


@pytest.mark.parametrize("label", ["..", "black"])
def test_what_is_right_of_no_item_changes_nothing(output, tmp_path, label):
    (tmp_path / "a.png").write_text("an original")
    path = tmp_path / "corrections.csv"
    path.write_bytes(format_csv(["file_name", "item", "verdict", "source"], [(f"{label}/a.png", "", "right", "a.jpg")]))
    before = records(output)
    assert apply_corrections(read_finished(output), path) == {"outdated": 1, "changed": 0}
    assert (records(output), (tmp_path / "a.png").read_text()) == (before, "an original")


def test_what_was_put_into_review_by_hand_stays_there_until_it_is_called_right(output, tmp_path):
    move(output, "red/a.png", "../out-review/red/a.png")
    finished = read_finished(output)
    assert finished.records["a.jpg"]["label_source"] == "model"  # nobody has said that it is red
    set_thresholds(finished, Thresholds(item_probability=0.1), by="a test")
    assert records(tmp_path / "out-review")["a.jpg"]["flags"] == ["moved by hand", "review"]
    apply_corrections(read_finished(output), corrections(tmp_path, ("red/a.png", "", "right")))
    assert records(output)["a.jpg"]["flags"] == ["moved by hand"]


def test_a_cut_out_that_is_gone_is_not_that_of_another_photo(output):
    with (output / METADATA).open("a") as file:
        file.write(json.dumps(row("c.webp", "green") | {"file_name": "green/c.png"}) + "\n")
    assert read_finished(output).missing == {"c.webp"}  # blue/c.png is another photo's
    move(output, "blue/c.png", "red/c.png")
    assert read_finished(output).missing == {"c.jpg", "c.webp"}  # either's


@pytest.mark.parametrize("flag", ["wrong", "bad mask"])
def test_what_a_user_puts_from_review_into_the_output_is_neither_wrong_nor_badly_cut(output, tmp_path, flag):
    apply_corrections(read_finished(output), corrections(tmp_path, ("red/a.png", "", flag)))
    move(output, "../out-review/red/a.png", "blue/a.png")
    finished = read_finished(output)
    set_thresholds(finished, Thresholds(), by="a test")
    assert (records(output)["a.jpg"]["label"], records(output)["a.jpg"]["flags"]) == ("blue", ["moved by hand"])


def test_a_cut_out_that_was_dragged_out_of_its_subfolder_is_put_back(output, caplog):
    move(output, "red/sub/b.png", "red/b.png")
    assert read_finished(output).missing == set()
    assert (output / "red" / "sub" / "b.png").exists()
    assert "gone" not in caplog.text


@pytest.mark.parametrize("item", ["..", "a/b", "", 7])
def test_an_output_whose_items_are_no_folders_is_damaged(output, item):
    settings = json.loads((output / RUN).read_text())
    (output / RUN).write_text(json.dumps({**settings, "items": ["red", item]}))
    with pytest.raises(OutputError, match="is damaged"):
        read_finished(output)


def test_an_output_with_a_link_to_a_folder_is_refused(output, tmp_path):
    (output / "red").rename(tmp_path / "disk")
    (output / "red").symlink_to(tmp_path / "disk")
    with pytest.raises(OutputError, match="out/red: is a link to a folder"):
        read_finished(output)
