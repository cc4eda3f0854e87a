import csv
import json
import logging
import os
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from conftest import make_image, save_photo
from errors import ConfigError, OutputError
from export_utilities import FORMATS, Captions, check_exports, export
from mask_utilities import cut_out
from png_utilities import encode_png
from program import rows as read_rows
from split_utilities import Split, read_splits

ITEMS = ("red", "blue")
SPLIT = Split(0.6, 0.2, 0.2)
PROMPTS = Captions(lambda row: row["prompt"])


def blob(width=96, height=64, seed=0):
    """A mask as SAM 2 makes them: round, with a hole, and with a small part beside the large one."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    centre = (width // 2 + int(rng.integers(-4, 5)), height // 2)
    cv2.ellipse(mask, centre, (width // 4, height // 3), int(rng.integers(0, 90)), 0, 360, 1, -1)
    cv2.circle(mask, centre, 3, 0, -1)
    cv2.circle(mask, (6, 6), 4, 1, -1)
    return mask.astype(bool)


class Run:
    """A finished run, as far as exports read it."""

    def __init__(self, folder):
        self.dataset, self.output, self.folder = folder / "photos", folder / "out", folder / "out-export"
        self.dataset.mkdir()
        self.rows, self.masks = [], {}

    def add(self, source="a.jpg", item="red", *, name=None, mask=None, flags=(), width=96, height=64):
        if not (self.dataset / source).exists():
            save_photo(self.dataset / source, width, height, len(self.rows))
        mask = blob(width, height, len(self.rows)) if mask is None else mask
        file_name = f"{item}/{name or source.rpartition('.')[0] + '.png'}"
        path = self.output / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(cut_out(make_image(mask.shape[1], mask.shape[0]), mask), mask))
        row = {"file_name": file_name, "label": item, "source": source, "prompt": f"a photo of a {item} car"}
        row |= {"mask_area": float(mask.mean()), "width": mask.shape[1], "height": mask.shape[0], "flags": list(flags)}
        self.rows.append(row)
        self.masks[source] = mask
        return row

    def export(self, *formats, split=None, items=ITEMS, seed=3, captions=PROMPTS):
        return export(
            formats,
            iter(self.rows),
            output=self.output,
            dataset_dir=self.dataset,
            folder=self.folder,
            items=items,
            split=split,
            seed=seed,
            captions=captions,
            threads=2,
        )

    def tree(self):
        return sorted(each.relative_to(self.folder).as_posix() for each in self.folder.rglob("*") if each.is_file())

    def contents(self):
        """What is exported, and not when."""
        return {name: (self.folder / name).read_bytes() for name in self.tree() if not name.startswith(".export-")}


@pytest.fixture
def finished(tmp_path):
    return Run(tmp_path)


def fill(finished, count=20):
    for number in range(count):
        finished.add(f"{'berlin/' if number % 3 else ''}{number}.jpg", ITEMS[number % 2])
    return finished


def read_coco(path):
    from pycocotools.coco import COCO

    return COCO(str(path))


def intersection_over_union(first, second):
    return (first & second).sum() / (first | second).sum()


def fill_holes(mask):
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, -1).astype(bool)


# COCO


def test_coco_has_the_masks_bit_for_bit(finished):
    fill(finished, 5)
    assert finished.export("coco") == {"coco": 5, "left out": 0, "skipped": 0, "missing": 0}
    coco = read_coco(finished.folder / "coco/annotations/instances.json")
    assert [category["name"] for category in coco.loadCats([1, 2])] == ["red", "blue"]
    for number, row in enumerate(finished.rows, 1):
        [image], [annotation] = coco.loadImgs(number), coco.loadAnns(number)
        mask = finished.masks[row["source"]]
        assert image == {"id": number, "file_name": row["source"], "width": 96, "height": 64}
        assert (coco.annToMask(annotation) == mask).all()
        assert (annotation["category_id"], annotation["iscrowd"]) == (ITEMS.index(row["label"]) + 1, 0)
        x, y, width, height = annotation["bbox"]
        assert (annotation["area"], mask[int(y) : int(y + height), int(x) : int(x + width)].sum()) == (mask.sum(),) * 2


def test_coco_polygons_are_the_outlines_with_holes_filled(finished):
    finished.add(mask=blob(480, 320))
    finished.export("coco")
    coco = read_coco(finished.folder / "coco/annotations/instances_polygons.json")
    [annotation] = coco.loadAnns(1)
    assert len(annotation["segmentation"]) == 2
    outline = coco.annToMask(annotation).astype(bool)
    assert intersection_over_union(outline, fill_holes(finished.masks["a.jpg"])) > 0.99


@pytest.mark.parametrize(
    "box",
    [np.s_[0:64, 0:96], np.s_[20:30, 10:40], np.s_[5:6, 5:6], np.s_[5:6, 5:60]],
    ids=["all", "box", "pixel", "line"],
)
def test_polygons_run_along_the_edges_of_pixels(finished, box):
    mask = np.zeros((64, 96), bool)
    mask[box] = True
    finished.add(mask=mask)
    finished.export("coco")
    coco = read_coco(finished.folder / "coco/annotations/instances_polygons.json")
    assert (coco.annToMask(coco.loadAnns(1)[0]) == mask).all()


def test_coco_s_own_evaluation_finds_an_export_equal_to_itself(finished):
    from pycocotools.cocoeval import COCOeval

    fill(finished, 4)
    finished.export("coco")
    truth = read_coco(finished.folder / "coco/annotations/instances.json")
    found = truth.loadRes([{**each, "score": 1.0} for each in truth.loadAnns(truth.getAnnIds())])
    evaluation = COCOeval(truth, found, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1)


def test_coco_has_a_file_for_each_split_and_no_number_twice(finished):
    fill(finished)
    finished.export("coco", split=SPLIT)
    names = ("train", "validation", "test")
    parts = [read_coco(finished.folder / f"coco/annotations/instances_{name}.json") for name in names]
    assert [len(part.imgs) for part in parts] == [12, 4, 4]
    assert sorted(number for part in parts for number in part.imgs) == list(range(1, 21))
    assert {image["file_name"] for part in parts for image in part.imgs.values()} == set(finished.masks)


def test_supervision_reads_coco(finished):
    supervision = pytest.importorskip("supervision")
    fill(finished, 3)
    finished.export("coco")
    path = finished.folder / "coco/annotations/instances.json"
    dataset = supervision.DetectionDataset.from_coco(str(finished.dataset), str(path))
    assert (dataset.classes, len(dataset)) == (list(ITEMS), 3)
    for path, _, detections in dataset:
        assert (detections.mask[0] == finished.masks[os.path.relpath(path, finished.dataset)]).all()


def test_two_exports_are_the_same_to_the_byte(finished):
    fill(finished, 4)
    finished.export("coco", "yolo", "captions", "masks")
    before = finished.contents()
    finished.export("coco", "yolo", "captions", "masks")
    assert finished.contents() == before


def test_an_item_that_a_human_has_added_comes_after_the_others(finished):
    finished.add("a.jpg", "green")
    finished.add("b.jpg", "blue")
    finished.export("coco", "yolo")
    coco = read_coco(finished.folder / "coco/annotations/instances.json")
    assert [annotation["category_id"] for annotation in coco.loadAnns([1, 2])] == [3, 2]
    content = yaml.safe_load((finished.folder / "yolo/detect/data.yaml").read_text())
    assert content["names"] == {0: "red", 1: "blue", 2: "green"}


def test_items_that_a_human_has_added_are_in_alphabetical_order(finished):
    for number, item in enumerate(["pink", "black", "red", "white", "green", "amber"]):
        finished.add(f"{number}.jpg", item)
    finished.export("yolo")
    content = yaml.safe_load((finished.folder / "yolo/detect/data.yaml").read_text())
    assert list(content["names"].values()) == ["red", "blue", "amber", "black", "green", "pink", "white"]


# YOLO


def read_yolo(finished, task, split="train"):
    supervision = pytest.importorskip("supervision")
    folder = finished.folder / "yolo" / task
    return supervision.DetectionDataset.from_yolo(
        str(folder / "images" / split), str(folder / "labels" / split), str(folder / "data.yaml")
    )


def test_supervision_reads_the_polygons_of_yolo(finished):
    for number in range(3):
        finished.add(f"berlin/{number}.jpg", ITEMS[number % 2], width=480, height=320)
    assert finished.export("yolo")["yolo"] == 3
    dataset = read_yolo(finished, "segment")
    assert (dataset.classes, len(dataset)) == (list(ITEMS), 3)
    labels = {row["source"]: row["label"] for row in finished.rows}
    for path, _, detections in dataset:
        source = f"berlin/{path.rpartition('__')[2]}"
        assert len(detections) == 1  # both parts are one object
        assert intersection_over_union(detections.mask[0], fill_holes(finished.masks[source])) > 0.97
        assert ITEMS[detections.class_id[0]] == labels[source]


def test_supervision_reads_the_boxes_of_yolo(finished):
    mask = np.zeros((64, 96), bool)
    mask[10:30, 20:90] = True
    finished.add(mask=mask)
    finished.export("yolo")
    [(_, _, detections)] = read_yolo(finished, "detect")
    assert detections.xyxy[0] == pytest.approx([20, 10, 90, 30], abs=0.01)


def read_polygon(finished, mask):
    """Returns the corners of the polygon that YOLO gets for a mask, (N, 2), and the mask that it encloses."""
    height, width = mask.shape
    finished.add(mask=mask, width=width, height=height)
    finished.export("yolo")
    numbers = (finished.folder / "yolo/segment/labels/train/a.txt").read_text().split()
    polygon = np.round(np.array(numbers[1:], float).reshape(-1, 2) * (width, height)).astype(np.int32)
    return polygon, cv2.fillPoly(np.zeros(mask.shape, np.uint8), [polygon], 1)


@pytest.mark.parametrize(
    "corners",
    [[(10, 10), (10, 300), (200, 150), (250, 350)], [(200, 30), (40, 150)], [(30, 30), (150, 200)]],
    ids=["many", "up to the right", "down to the right"],
)
def test_far_parts_are_joined_without_filling_what_lies_between(finished, corners):
    mask = np.zeros((300, 400), bool)
    for number, (top, left) in enumerate(corners):
        mask[top : top + 44 - number, left : left + 44 - number] = True
    _, drawn = read_polygon(finished, mask)
    seams = cv2.erode(drawn, np.ones((3, 3)))  # lines of one pixel go
    assert not (seams.astype(bool) & ~mask).any()
    assert intersection_over_union(drawn.astype(bool), mask) > 0.85


def test_a_part_is_joined_where_it_is_nearest_to_a_long_outline(finished):
    mask = np.zeros((100, 1400), bool)
    mask[40:60, 40:1340] = True
    mask[20:40, 40:1340:4] = mask[20:40, 41:1340:4] = True  # a comb of 1,300 corners
    mask[80:95, 1300:1330] = True
    polygon, _ = read_polygon(finished, mask)
    steps = np.abs(np.diff(polygon, axis=0))
    assert len(polygon) > 1024
    assert steps.min(axis=1).max() < 30  # no seam runs aslant beneath the comb


def test_a_small_part_belongs_to_the_polygon_and_a_speck_does_not(finished):
    mask = np.zeros((300, 400), bool)
    mask[100:250, 100:250] = True
    mask[20:36, 20:36] = True  # of 1.1% of it
    mask[280:283, 380:383] = True  # of 0.04%
    polygon, _ = read_polygon(finished, mask)
    assert polygon.min(axis=0).tolist() == [20, 20]
    assert polygon.max(axis=0).tolist() == [250, 250]


@pytest.mark.parametrize(
    ("split", "places"),
    [
        (None, {"train": "train", "val": "train"}),
        (SPLIT, {"train": "train", "val": "val", "test": "test"}),
        (Split(0.8, 0.2, 0), {"train": "train", "val": "val"}),
        (Split(0.8, 0, 0.2), {"train": "train", "val": "test", "test": "test"}),
    ],
    ids=["none", "three", "no test", "no validation"],
)
def test_data_yaml_always_has_what_ultralytics_asks_for(finished, split, places):
    fill(finished)
    finished.export("yolo", split=split)
    folder = finished.folder / "yolo" / "segment"
    text = (folder / "data.yaml").read_text()
    assert ("# no photos are kept for val: it is " in text) == (places["val"] != "val")
    content = yaml.safe_load(text)
    assert content.pop("names") == {0: "red", 1: "blue"}
    assert content == {name: f"images/{place}" for name, place in places.items()}
    for place in places.values():
        images = sorted(path.stem for path in (folder / "images" / place).iterdir())
        assert images
        assert images == sorted(path.stem for path in (folder / "labels" / place).iterdir())


@pytest.mark.parametrize("item", ["yes", "1.0", "null", "a: b", "# x", "'", '"', "grün", "\U0001f697", "- a", "\u2028"])
def test_names_of_items_stay_texts_in_yaml(finished, item):
    finished.add(item="red")
    finished.export("yolo", items=("red", item))
    content = yaml.safe_load((finished.folder / "yolo/segment/data.yaml").read_text(encoding="utf-8"))
    assert content["names"] == {0: "red", 1: item}


def test_photos_that_would_share_their_labels_have_names_of_their_own(finished):
    sources = ["a.jpg", "a.png", "A.jpg", "b/c.jpg", "b__c.jpg", "images/d.jpg", "e.jpg", "E.jpg"]
    sources.append(f"{'x' * 200}/{'y' * 200}.jpg")
    for number, source in enumerate(sources):
        finished.add(source, name=f"{number}.png")
    assert finished.export("yolo")["yolo"] == len(sources)
    assert len(read_yolo(finished, "segment")) == len(sources)
    stems = [path.stem for path in (finished.folder / "yolo/segment/labels/train").iterdir()]
    assert len({stem.casefold() for stem in stems}) == len(sources)
    assert "images__d" in stems


def refuse(*_):
    raise PermissionError


@pytest.mark.parametrize("system", ["quick", "without", "refusing"])
def test_photos_and_cut_outs_are_copies_that_may_be_written_to(finished, monkeypatch, system):
    finished.add("berlin/a.jpg")
    originals = [finished.dataset / "berlin/a.jpg", finished.output / "red/berlin/a.png"]
    before = [path.read_bytes() for path in originals]
    if system == "without":
        monkeypatch.delattr(os, "copy_file_range")
    if system == "refusing":
        monkeypatch.setattr(os, "copy_file_range", refuse)
        monkeypatch.setattr(os, "link", refuse)
    finished.export("yolo", "imagefolder", split=Split(1, 0, 0))
    folders = ("yolo/segment/images/train/berlin__a.jpg", "yolo/detect/images/train/berlin__a.jpg")
    copies = [finished.folder / name for name in (*folders, "imagefolder/train/red/berlin/a.png")]
    assert [path.read_bytes() for path in copies] == [before[0], *before]
    assert copies[0].samefile(copies[1]) == (system != "refusing")
    for path in copies:
        path.write_bytes(b"")
    assert [path.read_bytes() for path in originals] == before


@pytest.mark.parametrize("end", [b"\0\0", b"\xff", b""], ids=["notes", "half", "whole"])
def test_a_jpeg_that_ultralytics_would_save_anew_is_made_to_end_as_one(finished, end):
    finished.add()
    original = finished.dataset / "a.jpg"
    original.write_bytes(original.read_bytes() + end)
    finished.export("yolo")
    image = finished.folder / "yolo/segment/images/train/a.jpg"
    assert image.read_bytes() == original.read_bytes() + (b"\xff\xd9" if end else b"")
    assert (np.asarray(Image.open(image)) == np.asarray(Image.open(original))).all()
    assert (cv2.imread(str(image)) == cv2.imread(str(original))).all()


def test_photos_that_ultralytics_does_not_read_are_counted(finished, caplog):
    finished.add("a.jpg")
    for source in ("b.avif", "c"):
        (finished.dataset / source).write_bytes(b"")
        finished.add(source, name=f"{source}.png")
    with caplog.at_level(logging.WARNING):
        assert finished.export("yolo")["yolo"] == 1
    assert caplog.messages == ["--export yolo: left out, as not every ultralytics reads .avif, no ending: 2"]


def test_labels_lie_on_photos_as_opencv_turns_them(finished):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    save_photo(finished.dataset / "a.jpg", 96, 64, exif=exif)
    finished.add("a.jpg", mask=blob(64, 96))
    finished.export("coco", "yolo")
    coco = read_coco(finished.folder / "coco/annotations/instances.json")
    [image] = coco.loadImgs(1)
    assert "PIL.ImageOps.exif_transpose" in coco.dataset["info"]["description"]
    assert ImageOps.exif_transpose(Image.open(finished.dataset / "a.jpg")).size == (image["width"], image["height"])
    assert cv2.imread(str(finished.dataset / "a.jpg")).shape[:2] == (image["height"], image["width"]) == (96, 64)
    [(_, _, detections)] = read_yolo(finished, "segment")
    assert detections.mask.shape == (1, 96, 64)


# Captions


def read_captions(finished):
    with (finished.folder / "captions.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_captions_are_prefix_prompt_and_postfix_with_single_spaces(finished):
    finished.add("berlin/a.jpg")
    finished.export("captions", captions=Captions(lambda row: row["prompt"], ("studio photo, ",), ("on  white",)))
    assert read_captions(finished) == [
        {"file": "red/berlin/a.png", "caption": "studio photo, a photo of a red car on white"}
    ]


def test_a_photo_keeps_its_templates_whatever_photos_are_beside_it(finished):
    captions = Captions(lambda row: "x", ("a", "b", "c"), ("1", "2"))
    fill(finished)
    finished.export("captions", captions=captions)
    before = {line["file"]: line["caption"] for line in read_captions(finished)}
    assert len(set(before.values())) == 6
    del finished.rows[:7]
    finished.export("captions", captions=captions)
    after = read_captions(finished)
    assert len(after) == 13
    assert all(line["caption"] == before[line["file"]] for line in after)


def test_no_caption_is_a_formula(finished):
    finished.add()
    finished.export("captions", captions=Captions(lambda row: '=HYPERLINK("x")'))
    assert read_captions(finished)[0]["caption"] == '\'=HYPERLINK("x")'


# An image folder


@pytest.fixture
def load_dataset(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    return lambda folder: datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))


def test_datasets_loads_the_splits(finished, load_dataset):
    fill(finished)
    assert finished.export("imagefolder", split=SPLIT)["imagefolder"] == 20
    loaded = load_dataset(finished.folder / "imagefolder")
    assert {name: len(split) for name, split in loaded.items()} == {"train": 12, "validation": 4, "test": 4}
    labels = {row["source"]: row["label"] for row in finished.rows}
    assert {each["source"]: each["label"] for split in loaded.values() for each in split} == labels
    assert loaded["train"][0]["image"].size == (96, 64)


def test_names_that_look_like_splits_do_not_mislead_datasets(finished, load_dataset):
    items = ("test", "train val", "red")
    for number in range(20):
        finished.add(f"IMG_test-{number}.jpg", items[number % 2])
    finished.export("imagefolder", split=Split(0.8, 0, 0.2), items=items)
    loaded = load_dataset(finished.folder / "imagefolder")
    assert {name: len(split) for name, split in loaded.items()} == {"train": 16, "test": 4}
    assert set(loaded["train"]["label"]) == set(items[:2])


def test_cut_outs_keep_their_names(finished):
    finished.add("berlin/a.jpg")
    finished.export("imagefolder", split=SPLIT)
    assert read_rows(finished.folder / "imagefolder/train/metadata.jsonl") == [
        {"file_name": "red/berlin/a.png", "label": "red", "source": "berlin/a.jpg"}
    ]


# Masks


def test_masks_are_pictures_of_0_and_255(finished):
    finished.add("berlin/a.jpg")
    finished.export("masks")
    with Image.open(finished.folder / "masks/red/berlin/a.png") as image:
        assert image.mode == "L"
        assert (np.asarray(image) == finished.masks["berlin/a.jpg"] * 255).all()


# What is left out, and what is refused


def test_photos_that_are_gone_are_counted_and_in_no_export_that_names_them(finished, caplog):
    for source in ("a.jpg", "b.jpg"):
        finished.add(source)
    (finished.dataset / "b.jpg").unlink()
    counts = finished.export(*FORMATS, split=Split(1, 0, 0))
    of_all = dict.fromkeys(("captions", "imagefolder", "masks"), 2)
    assert counts == {**of_all, "coco": 1, "yolo": 1, "left out": 0, "skipped": 0, "missing": 1}
    coco = json.loads((finished.folder / "coco/annotations/instances_train.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == ["a.jpg"]
    assert caplog.messages == [
        f"--export: left out of COCO and YOLO, photos no longer in {finished.dataset}: 1, such as b.jpg"
    ]


def test_names_that_are_no_utf_8_are_in_no_export_that_would_have_to_name_them(finished, caplog):
    try:
        (finished.dataset / os.fsdecode(b"x\xff")).mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    save_photo(finished.dataset / os.fsdecode(b"x\xff/caf\xe9.jpg"), 96, 64)
    finished.add("a%FF.jpg")
    finished.add("b.jpg")["source"] = "x%FF/caf%E9.jpg"
    counts = finished.export(*FORMATS, split=Split(1, 0, 0))
    of_all = dict.fromkeys(("captions", "imagefolder", "masks"), 2)
    assert counts == {**of_all, "coco": 1, "yolo": 1, "left out": 0, "skipped": 0, "missing": 0}
    [message] = caplog.messages
    assert message.endswith("whose names are no UTF-8, so that readers could not find them: 1, such as x%FF/caf%E9.jpg")


@pytest.mark.parametrize("name", ["coco", "yolo"])
@pytest.mark.parametrize("what", ["folder", "photos", "folder without records"])
def test_without_any_photo_an_export_stays_as_it_was(finished, name, what):
    finished.add()
    finished.export(name)
    before = finished.contents()
    (finished.dataset / "a.jpg").unlink()
    if what != "photos":
        finished.dataset.rmdir()
    if what == "folder without records":
        finished.rows.clear()
    with pytest.raises(OutputError) as caught:
        finished.export(name)
    assert str(caught.value) == (
        f"--export: {finished.dataset}: holds none of the photos; say where they are with --dataset-dir"
    )
    assert finished.contents() == before
    assert finished.export("captions")["missing"] == 0


@pytest.mark.parametrize("key", ["prompt", "mask_area", "width", "height"])
def test_half_a_record_is_skipped_and_told_of(finished, caplog, key):
    finished.add("a.jpg")
    del finished.add("b.jpg")[key]
    counts = finished.export(*FORMATS, split=Split(1, 0, 0))
    assert counts == {**dict.fromkeys(FORMATS, 1), "left out": 0, "skipped": 1, "missing": 0}
    assert caplog.messages == [f"b.jpg: not exported: its record has no {key}"]


@pytest.mark.parametrize("flag", ["review", "wrong", "bad mask"])
def test_doubtful_photos_are_in_no_export(finished, flag):
    finished.add("a.jpg")
    finished.add("b.jpg", flags=("small", flag))
    counts = finished.export(*FORMATS, split=SPLIT)
    assert counts == {**dict.fromkeys(FORMATS, 1), "left out": 1, "skipped": 0, "missing": 0}
    assert not [name for name in finished.tree() if "b" in name.rpartition("/")[2].partition(".")[0].split()]


def spoil(path, how):
    if how == "gone":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(path.read_bytes()[:60])
    elif how == "saved anew":
        Image.open(path).save(path)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("gone", "No such file or directory"),
        ("damaged", "its mask is damaged"),
        ("saved anew", "holds no mask; another program has saved it anew"),
    ],
    ids=["gone", "damaged", "saved anew"],
)
def test_a_photo_without_its_mask_is_skipped_and_told_of(finished, caplog, how, reason):
    finished.add("a.jpg")
    finished.add("b.jpg")
    spoil(finished.output / "red/b.png", how)
    with caplog.at_level(logging.WARNING):
        counts = finished.export(*FORMATS, split=Split(1, 0, 0))
    assert counts == {**dict.fromkeys(FORMATS, 1), "left out": 0, "skipped": 1, "missing": 0}
    assert caplog.messages == [f"b.jpg: not exported: its PNG red/b.png: {reason}"]


def test_an_empty_mask_is_no_object(finished, caplog):
    finished.add(mask=np.zeros((64, 96), bool))
    assert finished.export("coco")["skipped"] == 1
    assert "its mask is empty" in caplog.text


@pytest.mark.parametrize("key", ["file_name", "source"])
@pytest.mark.parametrize("name", ["../../x.png", "/etc/passwd"])
def test_records_do_not_lead_out_of_their_folders(finished, key, name):
    finished.add("a.jpg")
    finished.add("b.jpg")
    finished.rows[0][key] = name
    assert finished.export(*FORMATS, split=SPLIT)["skipped"] == 1


def test_half_a_character_in_a_record_names_no_photo(finished):
    finished.add("a.jpg")
    finished.add("b.jpg")["source"] = "\ud800.jpg"
    assert finished.export(*FORMATS, split=SPLIT)["missing"] == 1


@pytest.mark.parametrize("name", ["coco", "yolo", "masks"])
def test_without_masks_there_is_one_line(finished, name):
    finished.add()["mask_area"] = None
    flag = "--save-masks" if name == "masks" else f"--export {name}"
    message = f"{flag}: needs masks, and with --no-sam there are none; leave it out"
    with pytest.raises(ConfigError) as caught:
        finished.export(name)
    assert str(caught.value) == message
    with pytest.raises(ConfigError) as caught:
        check_exports([name], split=None, has_masks=False)
    assert str(caught.value) == message
    assert finished.export("captions", "imagefolder", split=SPLIT)["captions"] == 1


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (["voc"], "--export voc: no such format; choose from coco, yolo, captions, imagefolder, masks"),
        (
            ["imagefolder"],
            "--export imagefolder: the output is one already, without splits; add --split 0.8,0.1,0.1 for splits",
        ),
    ],
    ids=["unknown", "imagefolder"],
)
def test_what_makes_no_sense_is_refused_before_a_run(formats, message):
    with pytest.raises(ConfigError) as caught:
        check_exports(formats, split=None)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("coco", "pycocotools.mask", "pycocotools"), ("yolo", "yaml", "PyYAML")],
    ids=["coco", "yolo"],
)
def test_a_library_that_is_missing_is_named(monkeypatch, name, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    check_exports(["captions", "masks"], split=None)
    with pytest.raises(ConfigError) as caught:
        check_exports([name], split=None)
    assert str(caught.value) == f"--export {name}: needs {package}; pip install -r requirements-export.txt"


# The folder


@pytest.mark.parametrize("place", ["notes.txt", "coco/notes.txt"], ids=["beside", "within"])
def test_a_folder_of_another_origin_is_refused(finished, place):
    finished.add()
    path = finished.folder / place
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"is not of an export, or has changed since; move it out of the way$"):
        finished.export("coco")
    assert finished.tree() == [place]


def test_a_format_s_place_that_is_somebody_s_is_refused(finished):
    finished.add()
    finished.export("captions")
    (finished.folder / "coco").mkdir()
    (finished.folder / "coco" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"out-export/coco/notes.txt: is not of an export, or has changed since; "):
        finished.export("coco")


def train(folder):
    (folder / "yolo/segment/runs").mkdir()
    (folder / "yolo/segment/runs/best.pt").write_bytes(b"weights")


STRANGERS = {
    "yolo/segment/runs/best.pt": train,
    "yolo/segment/labels/train/a.txt": lambda folder: (folder / "yolo/segment/labels/train/a.txt").write_text("0 0 0"),
    "coco/images": lambda folder: (folder / "coco/images").symlink_to(folder),
    "captions.csv": lambda folder: (folder / "captions.csv").write_text("file,caption"),
    "masks/red/A.png": lambda folder: (folder / "masks/red/a.png").rename(folder / "masks/red/A.png"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_what_people_have_put_or_changed_in_an_export_is_not_replaced(finished, stranger):
    finished.add()
    formats = ("coco", "yolo", "captions", "masks")
    finished.export(*formats)
    STRANGERS[stranger](finished.folder)
    before = finished.contents()
    with pytest.raises(OutputError) as caught:
        finished.export(*formats)
    path = finished.folder / stranger
    assert str(caught.value) == (f"--export: {path}: is not of an export, or has changed since; move it out of the way")
    assert finished.contents() == before
    path.rename(finished.folder.parent / "elsewhere")
    finished.export(*formats)


def test_what_people_put_there_while_an_export_is_made_is_not_replaced(finished, monkeypatch):
    finished.add()
    finished.export("yolo")
    monkeypatch.setattr("export_utilities._join", lambda outlines: train(finished.folder) or outlines[0])
    with pytest.raises(OutputError, match=r"best.pt: is not of an export, or has changed since; "):
        finished.export("yolo")
    assert (finished.folder / "yolo/segment/runs/best.pt").read_bytes() == b"weights"


def test_what_systems_and_ultralytics_leave_in_an_export_is_no_obstacle(finished):
    finished.add()
    finished.export("yolo")
    before = finished.tree()
    for name in (".DS_Store", "yolo/Thumbs.db", "yolo/detect/desktop.ini", "yolo/segment/labels/train.cache"):
        (finished.folder / name).write_bytes(b"")
    finished.export("yolo")
    assert finished.tree() == [".DS_Store", *before]


def test_an_export_replaces_its_own_and_lets_the_rest_be(finished):
    fill(finished, 4)
    finished.export("masks", "captions")
    captions = (finished.folder / "captions.csv").read_bytes()
    (finished.folder / "notes.txt").write_text("mine")
    del finished.rows[1:]
    finished.export("masks")
    names = [".export-captions", ".export-masks", ".export.json", "captions.csv", "masks/red/0.png", "notes.txt"]
    assert finished.tree() == names
    assert (finished.folder / "captions.csv").read_bytes() == captions


def test_an_export_that_breaks_off_leaves_the_old_one(finished, monkeypatch):
    fill(finished, 4)
    finished.export("coco", "yolo")
    before = finished.contents()
    finished.add("new.jpg")
    monkeypatch.setattr("cv2.findContours", lambda *_: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        finished.export("coco", "yolo")
    assert finished.contents() == before


def test_what_a_kill_between_two_renames_has_left_is_put_back(finished):
    fill(finished, 2)
    finished.export("masks", "captions")
    before = finished.tree()
    (finished.folder / "masks").rename(finished.folder / ".tmp-old-masks")
    (finished.folder / ".tmp-export" / "masks").mkdir(parents=True)
    finished.export("captions")
    assert finished.tree() == before
    finished.export("masks")  # which knows it for its own
    assert finished.tree() == before


def test_the_old_one_is_there_until_the_new_one_is_in_its_place(finished, monkeypatch):
    fill(finished, 2)
    finished.export("masks")
    before = finished.tree()
    rename = Path.rename
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda path, to: refuse() if ".tmp-export" in path.parts else rename(path, to))
        with pytest.raises(OutputError, match="mend that, and export again"):
            finished.export("masks")
    finished.export("captions")
    assert finished.tree() == sorted([*before, ".export-captions", "captions.csv"])


def test_a_later_export_of_another_format_takes_none_of_its_own_for_somebody_s(finished):
    finished.add()
    for name in ("masks", "captions", "masks"):
        assert finished.export(name)[name] == 1


def test_a_first_export_that_was_killed_is_no_obstacle(finished, monkeypatch):
    fill(finished, 2)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)  # so does a kill
    monkeypatch.setattr("cv2.findContours", lambda *_: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        finished.export("coco", split=SPLIT)
    monkeypatch.undo()
    assert finished.export("coco", split=SPLIT)["coco"] == 2
    assert not [name for name in finished.tree() if ".tmp-" in name]


def test_a_folder_that_can_t_be_written_is_one_line(finished):
    finished.add()
    finished.folder.write_text("a file")
    with pytest.raises(OutputError, match=r"^--export: .*out-export: Not a directory; move it out of the way$"):
        finished.export("coco")


# Splits


def read_splits_of(finished):
    names = ("train", "validation", "test")
    paths = {name: finished.folder / f"imagefolder/{name}/metadata.jsonl" for name in names}
    return {row["source"]: name for name, path in paths.items() if path.exists() for row in read_rows(path)}


def test_photos_stay_in_their_split_when_others_are_added_or_labels_corrected(finished):
    fill(finished)
    finished.export("imagefolder", split=SPLIT)
    before = read_splits_of(finished)
    for number in range(20, 40):
        finished.add(f"{number}.jpg", "red")
    finished.rows[0] = finished.add("0.jpg", "blue")
    finished.rows.pop()
    finished.export("imagefolder", split=SPLIT)
    after = read_splits_of(finished)
    assert len(after) == 40
    assert {source: after[source] for source in before} == before


def test_a_photo_in_review_keeps_its_split_for_when_it_comes_back(finished):
    fill(finished)
    finished.export("imagefolder", split=SPLIT)
    before = read_splits_of(finished)
    for row in finished.rows[::2]:
        row["flags"] = ["review"]
    finished.export("imagefolder", split=SPLIT)
    assert len(read_splits_of(finished)) == 10
    assert read_splits(finished.folder / "splits.csv") == before


@pytest.mark.parametrize("change", [{"seed": 4}, {"split": Split(0.5, 0.25, 0.25)}], ids=["seed", "shares"])
def test_other_shares_or_another_seed_make_splits_anew_and_say_so(finished, caplog, change):
    fill(finished)
    finished.export("imagefolder", split=SPLIT)
    before = read_splits_of(finished)
    assert not caplog.messages
    finished.export("imagefolder", **{"split": SPLIT, **change})
    assert read_splits_of(finished) != before
    [message] = caplog.messages
    assert message == (
        f"{finished.folder / 'splits.csv'}: was made with --split 0.6,0.2,0.2 and --seed 3 and is made anew; "
        "exports from before keep the old splits"
    )


def test_all_formats_agree_on_the_splits(finished):
    fill(finished)
    finished.export("coco", "yolo", "imagefolder", split=SPLIT)
    splits = read_splits_of(finished)
    for name, yolo in (("train", "train"), ("validation", "val"), ("test", "test")):
        sources = {source for source, split in splits.items() if split == name}
        coco = json.loads((finished.folder / f"coco/annotations/instances_{name}.json").read_text())
        assert {image["file_name"] for image in coco["images"]} == sources
        images = (finished.folder / "yolo/detect/images" / yolo).iterdir()
        assert {path.name.replace("__", "/") for path in images} == sources


# Names


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab=\n\"';,.é\u0301🚗 _-", min_size=1, max_size=12), min_size=1, max_size=4, unique=True))
def test_hostile_names_come_through_every_format(tmp_path_factory, names):
    finished = Run(tmp_path_factory.mktemp("run"))
    sources = [f"{name}.jpg" for name in names if not name.startswith(".")]
    for number, source in enumerate(sources):
        finished.add(source, name=f"{number}.png", mask=np.ones((8, 8), bool), width=8, height=8)
    counts = finished.export(*FORMATS, split=Split(1, 0, 0))
    assert counts == {**dict.fromkeys(FORMATS, len(sources)), "left out": 0, "skipped": 0, "missing": 0}
    coco = json.loads((finished.folder / "coco/annotations/instances_train.json").read_text())
    assert [image["file_name"] for image in coco["images"]] == sources
    images = list((finished.folder / "yolo/segment/images/train").iterdir())
    labels = list((finished.folder / "yolo/segment/labels/train").iterdir())
    assert sorted(path.stem for path in images) == sorted(path.stem for path in labels)
    copied = sorted(path.read_bytes() for path in images)
    assert copied == sorted((finished.dataset / each).read_bytes() for each in sources)
