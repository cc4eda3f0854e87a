import json
import os
import subprocess
import sys

import numpy as np
import pytest

from config_utilities import PROGRAM_DIR
from focus_utilities import Focus
from mask_utilities import Region
from prompt_utilities import Label
from record_utilities import (
    METADATA,
    TEMPORARY,
    Places,
    StoredRecords,
    Thresholds,
    clear_temporaries,
    iterate_records,
    photo_record,
    remove_empty,
    review_flags,
    write_atomically,
    write_records,
)
from sam_utilities import Segmentation


def test_a_record_says_all_that_the_design_promises():
    focus = Focus("detector", (2, 2), (0.0, 0.25, 3.96, 4.0), "car", 0.87654321)
    segmentation = Segmentation(np.zeros((2, 2), np.float32), 0.87654321, np.array([[2, 2], [3, 3], [1, 3]]), focus)
    label = Label("red", "a red car", 1 / 3, 2 / 3, None, 2 / 3, (("red", 2 / 3),))
    region = Region(0.25, (0, 0, 4, 4), touches_all_borders=True)
    options = {"seconds": 0.123456, "flags": ("borders",), "crop": (-1, 0, 4, 5)}
    assert photo_record(label, segmentation, region, (4, 4, 3), **options) == {
        "label": "red",
        "label_source": "model",
        "model_label": "red",
        "prompt": "a red car",
        "probability": 0.333333,
        "item_probability": 0.666667,
        "runner_up": None,
        "margin": 0.666667,
        "top_items": [{"item": "red", "probability": 0.666667}],
        "mask_score": 0.876543,
        "mask_area": 0.25,
        "box": (0, 0, 4, 4),
        "points": [[2, 2], [3, 3], [1, 3]],
        "focus": "detector",
        "focus_label": "car",
        "focus_confidence": 0.876543,
        "focus_box": [0.0, 0.2, 4.0, 4.0],
        "crop": (-1, 0, 4, 5),
        "width": 4,
        "height": 4,
        "flags": ["borders"],
        "seconds": 0.1235,
    }


ROW = {"item_probability": 0.6, "margin": 0.1, "mask_score": 0.8, "label_source": "model", "flags": ["small"]}


@pytest.mark.parametrize(
    ("thresholds", "row", "expected"),
    [
        ({}, {}, ["small"]),
        ({"item_probability": 0.6}, {}, ["small"]),
        ({"item_probability": 0.61}, {}, ["small", "low probability", "review"]),
        ({"margin": 0.2, "mask_score": 0.9}, {}, ["small", "low margin", "low mask score", "review"]),
        ({"margin": -0.2}, {"margin": -0.3}, ["small", "low margin", "review"]),
        ({"mask_score": 0.9}, {"mask_score": None}, ["small"]),
        ({"item_probability": 0.9}, {"label_source": "human"}, ["small"]),
        ({}, {"flags": ["low margin", "review"]}, []),
        ({}, {"flags": ["wrong"]}, ["wrong", "review"]),
        ({}, {"flags": ["bad mask"], "label_source": "human"}, ["bad mask", "review"]),
        ({}, {"flags": ["view", "colour"]}, ["view", "colour"]),
        ({"strict": True}, {"flags": ["colour"]}, ["colour", "review"]),
        ({"strict": True}, {"flags": ["view"], "label_source": "human"}, ["view"]),
    ],
)
def test_what_is_doubtful_goes_to_review(thresholds, row, expected):
    assert review_flags({**ROW, **row}, Thresholds(**thresholds)) == expected


def test_flags_say_the_same_however_often_they_are_set():
    thresholds = Thresholds(item_probability=0.9)
    once = review_flags(ROW, thresholds)
    assert review_flags({**ROW, "flags": once}, thresholds) == once


def test_a_flag_says_in_which_folder_a_cut_out_is(tmp_path):
    places = Places(tmp_path / "out", tmp_path / "out-review")
    row = {"file_name": "red/a.png", "flags": ["small"]}
    assert places.png(row) == tmp_path / "out/red/a.png"
    assert places.png({**row, "flags": ["small", "review"]}) == tmp_path / "out-review/red/a.png"


OLD = {
    "file_name": "red/a.png",
    "label": "red",
    "source": "a.jpg",
    "prompt": "a red car",
    "item_probability": 0.5,
    "margin": 0.1,
    "mask_score": None,
    "mask_area": None,
    "width": 4,
    "height": 4,
}


def test_records_of_earlier_versions_get_the_keys_that_they_lack(tmp_path):
    by_hand = {**OLD, "source": "b.jpg", "flags": ["moved by hand"]}
    (tmp_path / METADATA).write_text(json.dumps(OLD) + "\n" + json.dumps(by_hand) + "\n")
    rows = list(iterate_records([tmp_path]))
    assert [row["label_source"] for row in rows] == ["model", "human"]
    assert rows[0]["model_label"] == "red"
    assert rows[0]["top_items"] == [{"item": "red", "probability": 0.5}]
    assert rows[0]["flags"] == []


def stored(folder, *rows):
    folder.mkdir(exist_ok=True)
    lines = [{**OLD, "file_name": f"{each.get('label', 'red')}/{each['source']}", **each} for each in rows]
    (folder / METADATA).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_stored_records_are_read_where_they_stand(tmp_path):
    one = stored(tmp_path / "one", {"source": "ä.jpg"}, {"source": "b.jpg"}, {"source": "c.jpg", "flags": ["small"]})
    other = stored(tmp_path / "other", {"source": "b.jpg", "label": "blue"}, {"source": "d.jpg"})
    records = StoredRecords([one, tmp_path / "none", other])
    assert list(records) == [row["source"] for row in records.rows()] == ["ä.jpg", "c.jpg", "b.jpg", "d.jpg"]
    assert [records[source] for source in records] == list(records.rows())
    assert (records["b.jpg"]["label"], records["c.jpg"]["flags"], records["d.jpg"]["model_label"]) == (
        "blue", ["small"], "red",
    )  # fmt: skip
    assert (len(records), "e.jpg" in records, records.get("e.jpg")) == (4, False, None)


def test_stored_records_are_those_that_count_and_the_last_of_a_source_decides(tmp_path):
    folder = stored(tmp_path, {"source": "a.jpg"}, {"source": "b.jpg"}, {"source": "b.jpg", "label": "blue"})
    assert [row["source"] for row in StoredRecords([folder], lambda row: row["label"] == "red").rows()] == ["a.jpg"]


def test_the_contents_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda file: synced.append((os.fstat(file).st_size, [path.name for path in tmp_path.iterdir()]))
    )
    write_atomically(tmp_path / "a.json", [b"12", b"345"])
    [(size, [name])] = synced
    assert (size, name.startswith(".tmp-")) == (5, True)
    assert (tmp_path / "a.json").read_bytes() == b"12345"


def test_a_folder_without_records_has_no_file_of_them_and_one_that_had_some_has_none_left(tmp_path):
    write_records(tmp_path, [])
    assert not (tmp_path / METADATA).exists()
    write_records(tmp_path, [{"source": "a.jpg"}])
    write_records(tmp_path, [])
    assert (tmp_path / METADATA).read_bytes() == b""


def test_two_containers_with_one_process_number_write_under_different_names(tmp_path):
    code = "import os; os.getpid = lambda: 1; import record_utilities as r; print(r.temporary_name(r.Path('a')).name)"
    names = [
        subprocess.run([sys.executable, "-c", code], cwd=PROGRAM_DIR, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert names[0] != names[1]
    assert all(TEMPORARY.fullmatch(name.strip()) for name in names)


def test_temporary_files_of_others_stay(tmp_path):
    for name in (".tmp-12-3", ".tmp-12-0123abcd-3", ".tmp-12-3.png", "my.tmp-12-3"):
        (tmp_path / name).touch()
    clear_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-12-3.png", "my.tmp-12-3"]


@pytest.mark.parametrize(
    "strange",
    [
        {"file_name": "/tmp/a.png"},
        {"file_name": "red/../../a.png"},
        {"file_name": "red\\..\\..\\a.png"},
        {"file_name": "blue/a.png"},
        {"label": "..", "file_name": "../a.png"},
        {"label": "/tmp", "file_name": "/tmp/a.png"},
        {"label": "", "file_name": "/a.png"},
        {"source": "/etc/passwd"},
        {"source": "../a.jpg"},
        {"file_name": "red/a\0.png"},
        {"source": "a\0.jpg"},
    ],
)
def test_a_record_of_anything_outside_its_folders_is_none(tmp_path, strange):
    folder = stored(tmp_path, {"source": "b.jpg"}, {"source": "a.jpg", **strange})
    assert [row["source"] for row in iterate_records([folder])] == ["b.jpg"]


def test_a_folder_outside_the_output_is_never_removed(tmp_path):
    places = Places(tmp_path / "out", tmp_path / "out-review")
    for folder in ("out/red/sub", "elsewhere/empty"):
        (tmp_path / folder).mkdir(parents=True)
    remove_empty(tmp_path / "elsewhere" / "empty", places)
    remove_empty(tmp_path / "out" / "red" / "sub", places)
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["elsewhere", "empty", "out"]
