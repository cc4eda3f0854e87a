import errno
import json
import math
import os
import shutil
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

import output_utilities
import revision_utilities
import writer_utilities
from config_utilities import Settings
from conftest import make_image
from dataset_utilities import SIDES, PhotoFile
from errors import OutputError
from feature_utilities import FeatureFile, read_features
from folder_utilities import check_folders, check_output, sibling
from mask_utilities import cut_out
from output_utilities import OutputFolder, refuse_other_settings
from png_utilities import encode_png, read_mask
from program import peak_of
from prompt_utilities import Label
from record_utilities import RUN, Places, StoredRecords, Thresholds, iterate_records, photo_record, write_atomically
from revision_utilities import REVISIONS, revise

ITEMS = ("red", "dark red", "train")
SETTINGS = {"margin": 0.05, "items": ITEMS}


def photo(source="a.jpg", name=None):
    return PhotoFile(path=Path(source), source=source, name=name or source.replace(".jpg", ".png"))


def record(item="red"):
    label = Label(item, f"a {item} car", 0.25, 0.75, "blue", 0.5, ((item, 0.75), ("blue", 0.25)))
    return photo_record(label, None, None, (64, 96, 3), seconds=0.5)


def open_folder(path, **options):
    return OutputFolder(path, SETTINGS, items=ITEMS, **options)


def fill(path, *photos, item="red", **options):
    with open_folder(path, **options) as output:
        for each in photos:
            output.write(each, lambda: cut_out(make_image(), None), record(item))
    return output


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tree(path):
    return sorted(each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file())


@pytest.mark.parametrize(
    ("wanted", "remedy"),
    [
        ({"min_margin": None}, "was 0.25, is null; add --min-margin 0.25 to go on as before, or add --relabel and"),
        ({"items": ["b"]}, 'was ["a"], is ["b"]; add --relabel and --config (or --preset) to sort what is there anew'),
        ({"items": ["b"], "crop": True}, "crop was null, is true; name another --output, or add --overwrite"),
    ],
)
def test_who_goes_on_with_other_settings_is_told_what_helps(tmp_path, wanted, remedy):
    earlier = {"items": ["a"], "min_margin": 0.25, "clip_weights": "x"}
    (tmp_path / RUN).write_text(json.dumps(earlier))
    asked = {key: value for key, value in (earlier | wanted).items() if value is not None}
    with pytest.raises(OutputError) as caught:
        refuse_other_settings(tmp_path, asked)
    assert remedy in str(caught.value)


def test_what_is_not_known_yet_is_no_other_setting(tmp_path):
    (tmp_path / RUN).write_text(json.dumps({"items": ["a"], "clip_weights": "x"}))
    refuse_other_settings(tmp_path, {"items": ["a"]}, unknown=["clip_weights"])
    refuse_other_settings(tmp_path / "new", {"items": ["a"]})


def test_what_is_settled_may_differ_alone_and_is_told_beside_other_differences(tmp_path):
    (tmp_path / RUN).write_text(json.dumps({"items": ["a"], "focus": "x", "crop": False}))
    refuse_other_settings(tmp_path, {"items": ["a"], "focus": "y", "crop": False}, settled=["focus"])
    with pytest.raises(OutputError, match='focus was "x", is "y", crop was false, is true'):
        refuse_other_settings(tmp_path, {"items": ["a"], "focus": "y", "crop": True}, settled=["focus"])


def test_a_photo_becomes_a_png_and_a_record(tmp_path):
    fill(tmp_path / "out", photo("sub/a.jpg"))
    assert tree(tmp_path / "out") == [".run.json", "README.md", "failures.jsonl", "metadata.jsonl", "red/sub/a.png"]
    image = np.asarray(Image.open(tmp_path / "out" / "red/sub/a.png"))
    assert (image == cut_out(make_image(), None)).all()
    [row] = rows(tmp_path / "out" / "metadata.jsonl")
    assert list(row)[:3] == ["file_name", "label", "source"]
    assert (row["file_name"], row["label"], row["source"]) == ("red/sub/a.png", "red", "sub/a.jpg")


def test_records_follow_the_order_of_the_photos_though_pngs_finish_out_of_order(tmp_path):
    photos = [photo(f"{number:03}.jpg") for number in range(40)]
    sizes = [(600, 400) if number % 2 else (8, 8) for number in range(40)]
    with open_folder(tmp_path / "out", threads=4) as output:
        for each, size in zip(photos, sizes, strict=True):
            output.write(each, lambda size=size: cut_out(make_image(*size), None), record())
    assert [row["source"] for row in rows(tmp_path / "out" / "metadata.jsonl")] == [each.source for each in photos]


def test_a_second_run_knows_what_is_done(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"))
    with open_folder(tmp_path / "out") as again:
        assert again.is_done(photo("a.jpg"))
        assert not again.is_done(photo("b.jpg"))
        assert (again.done, again.counts["red"], again.mean_probability("red")) == (1, 1, 0.75)


def test_a_torn_last_record_is_dropped_and_its_photo_done_again(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"), photo("b.jpg"))
    metadata = tmp_path / "out" / "metadata.jsonl"
    metadata.write_bytes(metadata.read_bytes()[:-20])
    with open_folder(tmp_path / "out") as again:
        assert again.is_done(photo("a.jpg"))
        assert not again.is_done(photo("b.jpg"))
    assert [row["source"] for row in rows(metadata)] == ["a.jpg"]


@pytest.mark.parametrize("folders", [("out", "out-review"), ("out-review",)], ids=["both", "review"])
@pytest.mark.parametrize("spoil", ["a torn line", "a record twice"])
def test_what_is_mended_is_counted_once(tmp_path, spoil, folders):
    fill(tmp_path / "out", photo("a.jpg"), photo("b.jpg"))
    fill(tmp_path / "out", photo("c.jpg"), thresholds=Thresholds(item_probability=0.8))
    for path in (tmp_path / folder / "metadata.jsonl" for folder in folders):
        with path.open("a") as metadata:
            metadata.write("{" if spoil == "a torn line" else json.dumps(rows(path)[-1]) + "\n")
    with open_folder(tmp_path / "out") as again:
        assert (again.done, again.total) == (3, 3)
        assert (dict(again.counts), dict(again.in_review)) == ({"red": 2}, {"red": 1})
        assert again.mean_probability("red") == 0.75
    assert [row["source"] for row in rows(tmp_path / "out" / "metadata.jsonl")] == ["a.jpg", "b.jpg"]
    assert [row["source"] for row in rows(tmp_path / "out-review" / "metadata.jsonl")] == ["c.jpg"]


def test_a_record_that_lacks_only_its_newline_does_not_swallow_the_next(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"))
    metadata = tmp_path / "out" / "metadata.jsonl"
    metadata.write_bytes(metadata.read_bytes().rstrip())
    fill(tmp_path / "out", photo("b.jpg"))
    assert [row["source"] for row in rows(metadata)] == ["a.jpg", "b.jpg"]


def test_a_record_whose_png_is_gone_is_dropped(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"))
    (tmp_path / "out" / "red" / "a.png").unlink()
    with open_folder(tmp_path / "out") as again:
        assert not again.is_done(photo("a.jpg"))


def test_a_png_that_a_kill_left_without_a_record_gives_way_wherever_it_lies(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"))
    write_atomically(tmp_path / "out" / "dark red" / "b.png", encode_png(cut_out(make_image(), None)))
    write_atomically(tmp_path / "out" / "red" / "mine.png", encode_png(cut_out(make_image(), None)))
    fill(tmp_path / "out", photo("b.jpg"))
    pngs = [name for name in tree(tmp_path / "out") if name.endswith(".png")]
    assert pngs == ["red/a.png", "red/b.png", "red/mine.png"]  # what no photo is named for stays


def test_a_png_without_a_record_gives_way_under_its_other_name_too(tmp_path):
    fill(tmp_path / "out", photo("car.jpg", "car.png"))
    fill(tmp_path / "out", photo("car.webp", "car.png"))
    [first, second] = rows(tmp_path / "out" / "metadata.jsonl")
    assert second["file_name"] != "red/car.png"
    (tmp_path / "out" / "metadata.jsonl").write_text(json.dumps(first) + "\n")  # killed before the second
    fill(tmp_path / "out", photo("car.webp", "car.png"), item="blue")
    assert [name for name in tree(tmp_path / "out") if name.endswith(".png")] == ["blue/car.png", "red/car.png"]


def test_what_looks_like_a_temporary_file_and_is_none_stays(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"))
    (tmp_path / "out" / "red" / ".tmp-notes").write_text("mine")
    fill(tmp_path / "out", photo("b.jpg"))
    assert "red/.tmp-notes" in tree(tmp_path / "out")


def test_large_cut_outs_wait_for_each_other(tmp_path):
    waiting = []

    def draw(index):
        waiting.append(index)
        return cut_out(make_image(seed=index), None)

    with open_folder(tmp_path / "out", threads=4, most_pixels=1) as output:
        for index in range(6):
            output.write(photo(f"{index}.jpg"), lambda index=index: draw(index), record())
            assert len(output._writer._pending) <= 1
    assert waiting == list(range(6))


def test_failures_are_in_the_order_of_their_sources(tmp_path):
    with open_folder(tmp_path / "out") as output:
        for source in ("b.jpg", "c.jpg", "a.jpg"):
            output.fail(source, "no photo", stage="decode")
    assert [row["source"] for row in rows(tmp_path / "out" / "failures.jsonl")] == ["a.jpg", "b.jpg", "c.jpg"]


def test_temporary_files_of_a_killed_run_are_cleared_away(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"))
    (tmp_path / "out" / "red" / ".tmp-123-4").write_bytes(b"half a PNG")
    (tmp_path / "out" / ".tmp-123-5").write_bytes(b"half a record")
    open_folder(tmp_path / "out").__exit__(None)
    assert not [name for name in tree(tmp_path / "out") if ".tmp-" in name]


def test_a_new_photo_does_not_take_the_name_of_one_that_was_deleted_since(tmp_path):
    fill(tmp_path / "out", photo("car.jpg", "car.png"))
    fill(tmp_path / "out", photo("car.webp", "car.png"))
    assert {row["source"]: row["file_name"] for row in rows(tmp_path / "out" / "metadata.jsonl")} == {
        "car.jpg": "red/car.png",
        "car.webp": "red/car-bd914215.png",
    }


def test_a_new_photo_does_not_take_the_name_of_one_in_review(tmp_path):
    thresholds = Thresholds(item_probability=0.8)
    fill(tmp_path / "out", photo("car.jpg", "car.png"), thresholds=thresholds)
    fill(tmp_path / "out", photo("car.webp", "car.png"), thresholds=thresholds)
    files = {row["source"]: row["file_name"] for row in rows(tmp_path / "out-review" / "metadata.jsonl")}
    assert files == {"car.jpg": "red/car.png", "car.webp": "red/car-bd914215.png"}


def test_a_photo_that_is_recorded_has_not_failed_whatever_a_kill_has_left(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"))
    failure = {"source": "a.jpg", "reason": "truncated", "stage": "decode"}
    (tmp_path / "out" / "failures.jsonl").write_text(json.dumps(failure) + "\n")
    with open_folder(tmp_path / "out") as again:
        assert again.failures == []
    assert rows(tmp_path / "out" / "failures.jsonl") == []


def test_failures_stand_until_their_photo_is_written(tmp_path):
    with open_folder(tmp_path / "out") as output:
        output.fail("a.jpg", "truncated", stage="decode")
        output.fail("b.jpg", "truncated", stage="decode")
    assert rows(tmp_path / "out" / "failures.jsonl") == [
        {"source": "a.jpg", "reason": "truncated", "stage": "decode"},
        {"source": "b.jpg", "reason": "truncated", "stage": "decode"},
    ]
    again = fill(tmp_path / "out", photo("a.jpg"))
    assert [row["source"] for row in again.failures] == ["b.jpg"]
    assert [row["source"] for row in rows(tmp_path / "out" / "failures.jsonl")] == ["b.jpg"]


def test_a_failure_of_a_photo_that_is_no_longer_there_is_forgotten_by_a_whole_run(tmp_path):
    with open_folder(tmp_path / "out") as output:
        output.fail("deleted.jpg", "truncated", stage="decode")
    with open_folder(tmp_path / "out") as again:
        again.fail("b.jpg", "truncated", stage="decode")
        again.finish()
    assert [row["source"] for row in rows(tmp_path / "out" / "failures.jsonl")] == ["b.jpg"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**SETTINGS, "margin": 0.1}, "margin was 0.05, is 0.1"),
        ({**SETTINGS, "items": ["red"]}, r'items was \["red", "dark red", "train"\], is \["red"\]'),
        ({**SETTINGS, "sam_model": "x"}, 'sam_model was null, is "x"'),
        ({"margin": 0.05}, r'items was \["red", "dark red", "train"\], is null'),
    ],
)
def test_other_settings_are_refused_with_what_differs(tmp_path, settings, words):
    fill(tmp_path / "out", photo())
    with pytest.raises(OutputError, match=rf"other settings: {words}; .* --overwrite"):
        OutputFolder(tmp_path / "out", settings, items=ITEMS)
    assert (tmp_path / "out" / "red" / "a.png").exists()


def test_overwrite_deletes_what_the_run_wrote_and_nothing_else(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"), photo("sub/b.jpg"))
    for name in (".image_features", ".revisions.jsonl"):
        (tmp_path / "out" / name).write_bytes(b"of the run before")
    (tmp_path / "out" / "red" / "notes.txt").write_text("mine")
    with OutputFolder(tmp_path / "out", {"margin": 0.1}, items=ITEMS, overwrite=True) as output:
        assert output.done == 0
    assert tree(tmp_path / "out") == [".run.json", "README.md", "failures.jsonl", "metadata.jsonl", "red/notes.txt"]


def test_overwrite_never_follows_a_record_out_of_the_output(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"))
    (tmp_path / "precious.png").write_bytes(b"mine")
    [row] = rows(tmp_path / "out" / "metadata.jsonl")
    with (tmp_path / "out" / "metadata.jsonl").open("a") as metadata:
        metadata.write(json.dumps({**row, "file_name": "../precious.png"}) + "\n")
    open_folder(tmp_path / "out", overwrite=True).__exit__(None)
    assert (tmp_path / "precious.png").exists()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("photos", "is the dataset"),
        (".", "contains the dataset"),
        ("file", "Not a directory"),
        ("full", "holds files that are not of a sam2vit run, such as 'thesis.txt'"),
    ],
)
def test_an_output_that_would_mix_with_other_files_is_refused(tmp_path, output, words):
    (tmp_path / "photos").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=words):
        check_output(tmp_path / output, tmp_path / "photos")


@pytest.mark.parametrize("output", ["photos/output", "new", "empty", "a disk's"])
def test_an_output_of_its_own_is_accepted_inside_the_dataset_as_well(tmp_path, output):
    (tmp_path / "photos").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "a disk's" / "lost+found").mkdir(parents=True)
    check_output(tmp_path / output, tmp_path / "photos")


def test_an_output_that_can_not_be_made_says_why(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"out: can't be written: Not a directory"):
        open_folder(tmp_path / "file" / "out")


def test_a_full_disk_stops_the_run_with_one_line_and_a_later_run_goes_on(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fill(tmp_path / "out", photo("a.jpg"))
    with monkeypatch.context() as patch:
        patch.setattr(writer_utilities, "encode_png", no_space)
        with pytest.raises(
            OutputError, match=r"b.png: can't be written: No space left on device; .* goes on from there"
        ):
            fill(tmp_path / "out", photo("b.jpg"))
    fill(tmp_path / "out", photo("b.jpg"))
    assert [row["source"] for row in rows(tmp_path / "out" / "metadata.jsonl")] == ["a.jpg", "b.jpg"]


def test_a_name_that_the_file_system_refuses_fails_its_photo_alone(tmp_path):
    output = fill(tmp_path / "out", photo("long.jpg", "x" * 300 + ".png"), photo("b.jpg"))
    assert [row["source"] for row in output.failures] == ["long.jpg"]
    assert output.failures[0]["stage"] == "write"
    assert output.counts["red"] == 1


def test_after_an_error_what_was_finished_is_recorded(tmp_path):
    written = threading.Event()

    def draw():
        written.set()  # begun, so that closing in a hurry waits for it
        return cut_out(make_image(), None)

    def run():
        with open_folder(tmp_path / "out") as output:
            output.write(photo("a.jpg"), draw, record())
            written.wait()
            raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        run()
    assert [row["source"] for row in rows(tmp_path / "out" / "metadata.jsonl")] == ["a.jpg"]


def test_a_write_that_fails_leaves_neither_half_a_file_nor_the_loss_of_the_old_one(tmp_path):
    write_atomically(tmp_path / "file", b"old")
    with pytest.raises(TypeError):
        write_atomically(tmp_path / "file", "not bytes")
    assert tree(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("output", ["out", ".", "./sub/.."])
def test_side_products_stand_beside_the_output(tmp_path, monkeypatch, output):
    (tmp_path / "out" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path if output == "out" else tmp_path / "out")
    assert sibling(Path(output), "debug") == tmp_path / "out-debug"


@pytest.mark.parametrize("kind", SIDES)
@pytest.mark.parametrize("relation", ["is", "contains"])
def test_a_side_folder_that_would_mix_with_the_photos_is_refused(tmp_path, relation, kind):
    side = tmp_path / f"out-{kind}"
    photos = side if relation == "is" else side / "photos"
    photos.mkdir(parents=True)
    with pytest.raises(OutputError, match=rf"out: its side folder .*out-{kind}: {relation} the dataset"):
        check_output(tmp_path / "out", photos)


def test_a_cut_out_that_was_moved_to_another_item_by_hand_stays_there(tmp_path):
    fill(tmp_path / "out", photo("sub/a.jpg"), photo("b.jpg"))
    (tmp_path / "out" / "dark red" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "red" / "sub" / "a.png").rename(tmp_path / "out" / "dark red" / "sub" / "a.png")
    with open_folder(tmp_path / "out") as again:
        assert again.is_done(photo("sub/a.jpg"))
        assert again.counts == {"red": 1, "dark red": 1}
    moved, other = rows(tmp_path / "out" / "metadata.jsonl")
    assert (moved["file_name"], moved["label"]) == ("dark red/sub/a.png", "dark red")
    assert (moved["flags"], other["flags"]) == (["moved by hand"], [])


def test_a_cut_out_that_was_dragged_out_of_a_subfolder_onto_another_item_is_of_that_item(tmp_path):
    fill(tmp_path / "out", photo("berlin/a.jpg"), photo("berlin/b.jpg"), photo("rome/b.jpg"), photo("c.jpg"))
    (tmp_path / "out" / "dark red").mkdir()
    for name in ("berlin/a.png", "berlin/b.png", "c.png"):
        (tmp_path / "out" / "red" / name).rename(tmp_path / "out" / "dark red" / Path(name).name)
    open_folder(tmp_path / "out").__exit__(None)
    names = {row["source"]: row["file_name"] for row in rows(tmp_path / "out" / "metadata.jsonl")}
    assert names == {
        "berlin/a.jpg": "dark red/berlin/a.png",
        "berlin/b.jpg": "dark red/berlin/b.png",  # the other b is where it was
        "rome/b.jpg": "red/rome/b.png",
        "c.jpg": "dark red/c.png",
    }
    assert {path.name for path in (tmp_path / "out" / "red").iterdir()} == {"rome"}


def test_of_two_photos_that_a_cut_out_can_be_none_gets_it(tmp_path):
    fill(tmp_path / "out", photo("berlin/a.jpg"), photo("rome/a.jpg"), photo("b.jpg"), photo("berlin/b.jpg"))
    (tmp_path / "out" / "dark red").mkdir()
    (tmp_path / "out" / "red" / "berlin" / "a.png").rename(tmp_path / "out" / "dark red" / "a.png")
    for name in ("rome/a.png", "berlin/b.png"):
        (tmp_path / "out" / "red" / name).unlink()
    with open_folder(tmp_path / "out") as again:
        assert [again.is_done(photo(name)) for name in ("berlin/a.jpg", "rome/a.jpg", "berlin/b.jpg", "b.jpg")] == [
            *(False, False, False, True)
        ]
    assert (tmp_path / "out" / "dark red" / "a.png").exists()


@pytest.mark.parametrize("last", ["moved", "deleted"])
def test_an_item_that_a_user_has_emptied_is_no_class(tmp_path, last):
    fill(tmp_path / "out", photo("sub/a.jpg"))
    (tmp_path / "out" / "dark red" / "sub").mkdir(parents=True)
    png = tmp_path / "out" / "red" / "sub" / "a.png"
    png.rename(tmp_path / "out" / "dark red" / "sub" / "a.png") if last == "moved" else png.unlink()
    open_folder(tmp_path / "out").__exit__(None)
    assert not (tmp_path / "out" / "red").exists()


def test_the_mean_probability_is_of_what_the_model_chose(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"), photo("b.jpg"))
    (tmp_path / "out" / "dark red").mkdir()
    (tmp_path / "out" / "red" / "a.png").rename(tmp_path / "out" / "dark red" / "a.png")
    with open_folder(tmp_path / "out") as again:
        assert (again.mean_probability("red"), again.mean_probability("red", "dark red")) == (0.75, 0.75)
        assert math.isnan(again.mean_probability("dark red"))


def test_pngs_without_a_record_are_named_at_the_end_of_a_whole_run(tmp_path, caplog):
    fill(tmp_path / "out", photo("a.jpg"))
    write_atomically(tmp_path / "out" / "red" / "stranger.png", encode_png(cut_out(make_image(), None)))
    with open_folder(tmp_path / "out") as again:
        again.finish()
    assert f"PNGs in no record: 1, such as {tmp_path / 'out/red/stranger.png'}" in caplog.text


def test_records_of_photos_that_are_gone_are_counted_at_the_end_of_a_whole_run(tmp_path, caplog):
    fill(tmp_path / "out", photo("a.jpg"), photo("b.jpg"), photo("c.jpg"))
    with open_folder(tmp_path / "out") as again:
        assert again.is_done(photo("b.jpg"))
        assert not again.is_done(photo("new name of a.jpg"))
        again.finish()
    [message] = caplog.messages
    assert message.startswith("records of photos that are no longer found: 2, such as a.jpg; ")


@pytest.mark.parametrize("content", ["[]", "{", "7"])
def test_damaged_settings_of_an_earlier_run_say_so(tmp_path, content):
    fill(tmp_path / "out", photo())
    (tmp_path / "out" / ".run.json").write_text(content)
    with pytest.raises(OutputError, match=r".run.json: is damaged; add --overwrite"):
        open_folder(tmp_path / "out")
    open_folder(tmp_path / "out", overwrite=True).__exit__(None)


@pytest.mark.parametrize(
    "row",
    [
        {"source": ["x"]},
        {"file_name": 7},
        {"item_probability": "much"},
        {"item_probability": math.nan},
        {"margin": math.inf},
        {"margin": None},
        {"mask_score": ""},
        {"mask_area": 10**400},
        {"label": None},
        {"model_label": 7},
        {"label_source": None},
        {"prompt": None},
        {"top_items": None},
        {"top_items": ["red"]},
        {"top_items": [{"item": "red"}]},
        {"width": "wide"},
        {"height": 0},
        {"crop": []},
        {"crop": [0, 0, 1.5, 2]},
        {"flags": [["small"]]},
        {"flags": "small"},
        {"flags": None},
        "no object",
    ],
    ids=str,
)
def test_records_that_a_hand_has_damaged_are_dropped(tmp_path, row):
    fill(tmp_path / "out", photo("a.jpg"))
    metadata = tmp_path / "out" / "metadata.jsonl"
    [good] = rows(metadata)
    with metadata.open("a") as file:
        file.write(json.dumps({**good, "source": "b.jpg", **row} if isinstance(row, dict) else row) + "\n")
    assert list(iterate_records([tmp_path / "out"])) == list(StoredRecords([tmp_path / "out"]).rows()) == [good]
    with open_folder(tmp_path / "out") as again:
        assert again.done == 1
    assert rows(metadata) == [good]


@pytest.mark.parametrize("key", ["item_probability", "margin", "prompt", "width", "top_items", "mask_area"])
def test_records_that_lack_a_key_are_dropped(tmp_path, key):
    fill(tmp_path / "out", photo("a.jpg"))
    metadata = tmp_path / "out" / "metadata.jsonl"
    [row] = rows(metadata)
    del row[key]
    metadata.write_text(json.dumps(row) + "\n")
    with open_folder(tmp_path / "out") as again:
        assert again.done == 0
    assert rows(metadata) == []


def fill_with_traps(path):
    """Names that folder-reading loaders take for splits, at several depths."""
    with open_folder(path) as output:
        for source, item in [
            ("IMG_test-1.jpg", "train"),
            ("a.jpg", "dark red"),
            ("sub/deep/b.jpg", "dark red"),
            ("test/c.jpg", "red"),
        ]:
            output.write(photo(source), lambda: cut_out(make_image(), None), record(item))


def test_torchvision_reads_the_folder_with_its_classes(tmp_path):
    fill_with_traps(tmp_path / "out")
    folder = ImageFolder(tmp_path / "out")
    assert folder.classes == ["dark red", "red", "train"]
    assert [folder.classes[label] for _, label in folder.samples] == ["dark red", "dark red", "red", "train"]


def test_hugging_face_datasets_reads_every_photo_with_its_label(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    fill_with_traps(tmp_path / "out")
    splits = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(splits) == {"train"}
    labels = {row["source"]: row["label"] for row in splits["train"]}
    assert labels == {
        "IMG_test-1.jpg": "train",
        "a.jpg": "dark red",
        "sub/deep/b.jpg": "dark red",
        "test/c.jpg": "red",
    }
    assert splits["train"][0]["image"].size == (96, 64)


def test_a_photo_that_is_set_aside_is_copied_as_it_is(tmp_path):
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    file = PhotoFile(tmp_path / "photos" / "sub" / "a.JPG", "sub/a.JPG", "sub/a.png")
    file.path.write_bytes(b"any bytes")
    with open_folder(tmp_path / "out") as output:
        output.set_aside(file)
    with open_folder(tmp_path / "out", unknown=tmp_path / "out-unknown") as output:
        output.set_aside(file)
    assert [path for path in (tmp_path / "out-unknown").rglob("*") if path.is_file()] == [
        tmp_path / "out-unknown" / "sub" / "a.JPG"
    ]
    assert (tmp_path / "out-unknown" / "sub" / "a.JPG").read_bytes() == b"any bytes"
    assert file.path.read_bytes() == b"any bytes"


def test_a_photo_that_is_gone_before_it_is_copied_stops_nothing(tmp_path, caplog):
    with open_folder(tmp_path / "out", unknown=tmp_path / "out-unknown") as output:
        output.set_aside(PhotoFile(tmp_path / "gone.jpg", "gone.jpg", "gone.png"))
    assert "gone.jpg: can't be copied" in caplog.text
    assert not (tmp_path / "out-unknown").exists()


def test_what_is_too_doubtful_goes_to_the_review_folder(tmp_path):
    thresholds = Thresholds(item_probability=0.8)
    output = fill(tmp_path / "out", photo("a.jpg"), thresholds=thresholds)
    assert tree(tmp_path / "out") == [".run.json", "README.md", "failures.jsonl", "metadata.jsonl"]
    assert tree(tmp_path / "out-review") == ["README.md", "metadata.jsonl", "red/a.png"]
    [row] = rows(tmp_path / "out-review" / "metadata.jsonl")
    assert (row["file_name"], row["flags"]) == ("red/a.png", ["low probability", "review"])
    assert (dict(output.counts), dict(output.in_review)) == ({}, {"red": 1})
    with open_folder(tmp_path / "out", thresholds=thresholds) as again:
        assert again.is_done(photo("a.jpg"))
        assert (again.done, dict(again.in_review)) == (1, {"red": 1})


def test_what_a_user_moves_out_of_review_stays_there(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"), photo("b.jpg"), thresholds=Thresholds(item_probability=0.8))
    (tmp_path / "out" / "blue").mkdir()
    (tmp_path / "out" / "dark red").mkdir()
    (tmp_path / "out-review" / "red" / "a.png").rename(tmp_path / "out" / "dark red" / "a.png")
    with open_folder(tmp_path / "out", thresholds=Thresholds(item_probability=0.8)) as again:
        assert again.is_done(photo("a.jpg"))
    [row] = rows(tmp_path / "out" / "metadata.jsonl")
    assert (row["file_name"], row["label"], row["model_label"]) == ("dark red/a.png", "dark red", "red")
    assert (row["label_source"], row["flags"]) == ("human", ["low probability", "moved by hand"])
    assert [row["source"] for row in rows(tmp_path / "out-review" / "metadata.jsonl")] == ["b.jpg"]


def test_overwriting_empties_the_review_folder_too(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"), thresholds=Thresholds(item_probability=0.8))
    fill(tmp_path / "out", photo("b.jpg"), overwrite=True)
    assert not (tmp_path / "out-review").exists()


@pytest.mark.parametrize("kind", ["review", "report"])
def test_a_new_output_takes_no_folder_beside_it_that_holds_files(tmp_path, kind):
    side = tmp_path / f"out-{kind}"
    side.mkdir()
    (side / "Thumbs.db").touch()
    check_output(tmp_path / "out", tmp_path / "photos", side_folders=[side])
    (side / "mine.png").touch()
    with pytest.raises(OutputError, match=rf"is new, but .*out-{kind} beside it holds 'mine.png'; move that away"):
        check_output(tmp_path / "out", tmp_path / "photos", side_folders=[side])
    fill(tmp_path / "out", photo("a.jpg"))
    check_output(tmp_path / "out", tmp_path / "photos", side_folders=[side])


def overwriting(tmp_path, **changes):
    fill(tmp_path / "out", photo("a.jpg"))
    (tmp_path / "photos").mkdir()
    return Settings(dataset_dir=str(tmp_path / "photos"), output=str(tmp_path / "out"), overwrite=True, **changes)


@pytest.mark.parametrize(
    ("kind", "what"), [("unknown", "photos"), ("debug", "inspection pictures"), ("export", "exports")]
)
def test_overwriting_says_what_it_leaves_beside_the_output(tmp_path, caplog, kind, what):
    settings = overwriting(tmp_path, debug=True)
    side = tmp_path / f"out-{kind}"
    check_folders(settings)
    side.mkdir()
    check_folders(settings)
    assert caplog.messages == []
    (side / "b.jpg").touch()
    check_folders(settings)
    assert caplog.messages == [f"{side}: --overwrite leaves the {what} that are there; delete what you don't need"]


def test_overwriting_says_nothing_of_exports_that_are_made_anew_nor_of_a_file_in_a_folders_place(tmp_path, caplog):
    settings = overwriting(tmp_path, export=("coco",))
    (tmp_path / "out-export").mkdir()
    (tmp_path / "out-export" / "coco.json").touch()
    (tmp_path / "out-debug").touch()
    check_folders(settings)
    assert caplog.messages == []


def test_features_and_mask_stand_beside_the_pixels(tmp_path):
    mask = np.tri(64, 96, dtype=bool)
    with open_folder(tmp_path / "out") as output:
        features = np.array([0.6, 0.8], np.float32)
        output.write(photo(), lambda: cut_out(make_image(), mask), record(), mask=mask, features=features)
    np.testing.assert_array_equal(read_mask(tmp_path / "out/red/a.png"), mask)
    stored, [index] = read_features(tmp_path / "out", ["a.jpg"], 2)
    np.testing.assert_array_equal(stored[index], features.astype(np.float16))


def write_with_features(path):
    with open_folder(path) as output:
        output.write(photo(), lambda: cut_out(make_image(), None), record(), features=np.ones(2, np.float32))


def test_what_is_recorded_has_its_features(tmp_path, monkeypatch):
    def refuse(*_):
        raise OutputError("no room")

    monkeypatch.setattr(FeatureFile, "append", refuse)
    with pytest.raises(OutputError, match="no room"):
        write_with_features(tmp_path / "out")
    assert rows(tmp_path / "out" / "metadata.jsonl") == []


def test_at_its_end_a_run_has_brought_records_and_features_to_the_disk(tmp_path, monkeypatch):
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda file: synced.add(os.fstat(file).st_ino))
    write_with_features(tmp_path / "out")
    assert {(tmp_path / "out" / name).stat().st_ino for name in ("metadata.jsonl", ".image_features")} <= synced


def test_what_dead_processes_have_left_of_this_run_is_deleted_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    fill(out, photo("a.jpg"))
    (out / "red" / "mine.png").write_bytes(b"was there before")
    with open_folder(out) as output:
        (out / "red" / ".tmp-123-4").write_bytes(b"half a PNG")
        (out / "blue").mkdir()
        (out / "blue" / "b.png").write_bytes(b"a PNG that nobody was told of")
        output.record({**rows(out / "metadata.jsonl")[0], "source": "c.jpg", "file_name": "red/c.png"}, None)
        (out / "red" / "c.png").write_bytes(b"recorded")
        output.clear_after_deaths()
    assert {name for name in tree(out) if "/" in name} == {"red/a.png", "red/c.png", "red/mine.png"}


def test_going_on_holds_no_records(tmp_path):
    out = tmp_path / "out"
    fill(out, *(photo(f"{index:04}.jpg") for index in range(8)))
    many = [{**row, "prompt": "x" * 10_000} for row in rows(out / "metadata.jsonl")]
    (out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    tracemalloc.start()
    with open_folder(out) as output:
        held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert output.done == 8
    assert held < 8 * 10_000


@pytest.mark.parametrize("ending", ["", "\n"], ids=["cut off after a row", "whole"])
def test_a_last_line_without_its_newline_still_counts(tmp_path, ending):
    out = tmp_path / "out"
    fill(out, photo("a.jpg"), photo("b.jpg"))
    lines = (out / "metadata.jsonl").read_text().rstrip()
    (out / "metadata.jsonl").write_text(lines + ending)
    with open_folder(out) as output:
        assert output.done == 2
        output.write(photo("c.jpg"), lambda: cut_out(make_image(), None), record())
    assert [row["source"] for row in rows(out / "metadata.jsonl")] == ["a.jpg", "b.jpg", "c.jpg"]


def go_on_with(path):
    with open_folder(path) as output:
        assert (output.done, output.counts["train"]) == (3000, 1)


def test_mending_holds_no_records_in_memory(tmp_path):
    fill(tmp_path / "out", photo("first.jpg"))
    metadata = tmp_path / "out" / "metadata.jsonl"
    [first] = rows(metadata)
    for number in range(3000):
        (tmp_path / "out" / "red" / f"{number}.png").touch()
    lines = ({**first, "source": f"{number}.jpg", "file_name": f"red/{number}.png"} for number in range(3000))
    metadata.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "out" / "train").mkdir()
    (tmp_path / "out" / "red" / "7.png").rename(tmp_path / "out" / "train" / "7.png")
    peak = peak_of(go_on_with, tmp_path / "out")
    assert len(rows(metadata)) == 3000
    assert peak < 1500 * 3000  # bytes; 4,800 each when they were held as dictionaries


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_item_that_is_a_link_is_refused_before_anything_is_done_again_or_deleted(tmp_path, overwrite):
    fill(tmp_path / "out", photo("a.jpg"), photo("b.jpg"))
    (tmp_path / "out" / "red").rename(tmp_path / "disk")
    (tmp_path / "out" / "red").symlink_to(tmp_path / "disk")
    with pytest.raises(OutputError, match=r"out/red: is a link to a folder, .*; put the folder itself there, or take"):
        open_folder(tmp_path / "out", overwrite=overwrite)
    assert len(rows(tmp_path / "out" / "metadata.jsonl")) == len(tree(tmp_path / "disk")) == 2


def test_folders_of_systems_that_may_not_be_entered_are_left_alone(tmp_path, monkeypatch):
    fill(tmp_path / "out", photo("a.jpg"))
    refused = ("lost+found", "System Volume Information", "$RECYCLE.BIN", ".Spotlight-V100")
    for name in refused:
        (tmp_path / "out" / name).mkdir()
    refuse_folders(monkeypatch, *refused)
    with open_folder(tmp_path / "out") as again:
        assert again.is_done(photo("a.jpg"))


def refuse_folders(monkeypatch, *names):
    scandir = os.scandir

    def refuse(path):
        if Path(path).name in names:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_an_item_that_can_not_be_read_ends_the_run_before_its_photos_are_done_again(tmp_path, monkeypatch):
    fill(tmp_path / "out", photo("a.jpg"))
    refuse_folders(monkeypatch, "red")
    with pytest.raises(OutputError, match=r"out/red: can't be read: Permission denied; mend that"):
        open_folder(tmp_path / "out")
    assert len(rows(tmp_path / "out" / "metadata.jsonl")) == 1


def test_of_two_photos_of_one_name_the_one_that_was_moved_has_its_cut_out(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"))
    fill(tmp_path / "out", photo("a.jpeg", "a.png"), item="dark red")
    (tmp_path / "out" / "train").mkdir()
    (tmp_path / "out" / "dark red" / "a.png").rename(tmp_path / "out" / "train" / "a.png")
    open_folder(tmp_path / "out").__exit__(None)
    names = {row["source"]: row["file_name"] for row in rows(tmp_path / "out" / "metadata.jsonl")}
    assert names == {"a.jpg": "red/a.png", "a.jpeg": "train/a.png"}
    (tmp_path / "out" / "red" / "a.png").unlink()
    open_folder(tmp_path / "out").__exit__(None)
    assert [row["source"] for row in rows(tmp_path / "out" / "metadata.jsonl")] == ["a.jpeg"]


def test_a_kill_between_the_files_loses_no_record_of_what_was_moved(tmp_path, monkeypatch):
    fill(tmp_path / "out", photo("a.jpg"), photo("b.jpg"))
    (tmp_path / "out-review" / "train").mkdir(parents=True)
    (tmp_path / "out" / "red" / "a.png").rename(tmp_path / "out-review" / "train" / "a.png")
    torn = tmp_path / "out-review" / "metadata.jsonl"
    torn.write_text('{"file_name": "red/z.p')
    write = output_utilities.write_records
    with monkeypatch.context() as patch:
        patch.setattr(
            output_utilities, "write_records", lambda *a: write(*a) if a[0].name == "out" else pytest.fail("killed")
        )
        with pytest.raises(pytest.fail.Exception, match="killed"):
            open_folder(tmp_path / "out")
    with open_folder(tmp_path / "out") as again:
        assert again.is_done(photo("a.jpg"))
        assert (again.counts, again.in_review) == ({"red": 1}, {"train": 1})


def test_a_revision_that_was_cut_off_is_finished_before_anything_is_compared(tmp_path, monkeypatch):
    fill(tmp_path / "out", photo("a.jpg"))
    places = Places(tmp_path / "out", tmp_path / "out-review")
    [row] = iterate_records(places)
    corrected = row | {"file_name": "train/a.png", "label": "train", "label_source": "human"}
    after = SETTINGS | {"items": ["train"]}

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(revision_utilities, "_make", stop)
        with pytest.raises(KeyboardInterrupt):
            revise(places, [(row, corrected)], by="a test", settings=(SETTINGS, after))
    again = shutil.copytree(tmp_path / "out", tmp_path / "again")
    with pytest.raises(OutputError, match="was made with other settings: items was"):
        open_folder(tmp_path / "out")
    open_folder(again, overwrite=True).__exit__(None)
    [kept] = tmp_path.glob("again-corrections-*.csv")
    assert "train/a.png,train,right,a.jpg" in kept.read_text()


def test_a_damaged_log_of_revisions_does_not_keep_one_from_starting_over(tmp_path):
    fill(tmp_path / "out", photo("a.jpg"))
    (tmp_path / "out" / REVISIONS).write_text("x\ny\nz\n")
    with pytest.raises(OutputError, match="is damaged at line 1"):
        open_folder(tmp_path / "out")
    open_folder(tmp_path / "out", overwrite=True).__exit__(None)
    assert rows(tmp_path / "out" / "metadata.jsonl") == []


def test_the_corrections_of_the_folder_that_one_is_in_are_kept_beside_it(tmp_path, monkeypatch):
    fill(tmp_path / "out", photo("a.jpg"))
    (tmp_path / "out" / "train").mkdir()
    (tmp_path / "out" / "red" / "a.png").rename(tmp_path / "out" / "train" / "a.png")
    open_folder(tmp_path / "out").__exit__(None)
    monkeypatch.chdir(tmp_path / "out")
    open_folder(Path(), overwrite=True).__exit__(None)
    assert len(list(tmp_path.glob("out-corrections-*.csv"))) == 1


def test_a_photo_that_has_a_subject_after_all_is_not_set_aside_any_more(tmp_path):
    unknown = tmp_path / "out-unknown"
    (tmp_path / "a.jpg").write_bytes(b"photo")
    aside = PhotoFile(path=tmp_path / "a.jpg", source="a.jpg", name="a.png")
    with open_folder(tmp_path / "out", unknown=unknown) as output:
        output.set_aside(aside)
        output.fail("a.jpg", "no subject: none", stage="focus")
    assert (unknown / "a.jpg").exists()
    fill(tmp_path / "out", photo("a.jpg"), unknown=unknown)
    assert not (unknown / "a.jpg").exists()


def test_the_copy_of_a_photo_that_is_done_after_all_goes_though_its_png_comes_last_and_its_name_is_another(tmp_path):
    unknown = tmp_path / "out-unknown"
    (tmp_path / "a.jpg").write_bytes(b"photo")
    aside = PhotoFile(path=tmp_path / "a.jpg", source="a.jpg", name="a.jpg.png")  # beside an a.png
    with open_folder(tmp_path / "out", unknown=unknown) as output:
        output.set_aside(aside)
        output.fail("a.jpg", "no subject: none", stage="focus")
    assert tree(unknown) == ["a.jpg.jpg"]
    may_draw = threading.Event()

    def draw():
        may_draw.wait(timeout=60)
        return cut_out(make_image(), None)

    with open_folder(tmp_path / "out", unknown=unknown) as output:
        output.write(aside, draw, record())
        output.finish()
        may_draw.set()
    assert tree(unknown) == []


def test_a_copy_that_can_not_be_deleted_does_not_end_the_run(tmp_path, caplog):
    with open_folder(tmp_path / "out") as output:
        output.fail("a.jpg", "no subject: none", stage="focus")
    (tmp_path / "out-unknown" / "a.jpg").mkdir(parents=True)
    fill(tmp_path / "out", photo("a.jpg"), unknown=tmp_path / "out-unknown")
    assert "out-unknown/a.jpg: stays, though its photo is done" in caplog.text
