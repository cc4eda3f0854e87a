import json

import cv2
import numpy as np
import pytest

import report_utilities
from png_utilities import encode_png
from record_utilities import Places
from report_utilities import contour_path, read_facts, write_report
from thumbnail_utilities import source_digest


def row(source, label="red", margin=0.5, *flags):
    return {
        "file_name": f"{label}/{source}.png",
        "label": label,
        "source": source,
        "label_source": "model",
        "model_label": label,
        "prompt": f"a {label} car",
        "item_probability": 0.75,
        "margin": margin,
        "top_items": [{"item": label, "probability": 0.75}],
        "mask_score": 0.9,
        "mask_area": 0.25,
        "width": 100,
        "height": 50,
        "flags": list(flags),
    }


def write(tmp_path, rows, **options):
    given = {"dataset_dir": tmp_path / "my photos", "failures": [], "facts": {}, "items": ["red", "blue"], **options}
    places = Places(tmp_path / "out", tmp_path / "out-review")
    write_report(tmp_path / "out-report", places, iter(rows), **given)
    return script(tmp_path, "index", "sam2vit.index(")


def script(tmp_path, name, call):
    text = (tmp_path / "out-report" / "data" / f"{name}.js").read_text(encoding="ascii")
    return json.loads(text.removeprefix(call).removesuffix(");\n"))


def first_rows(tmp_path, report):
    return script(tmp_path, "rows-0000", f'sam2vit.rows("{report["build"]}", 0, ')


def test_photos_stand_in_the_order_of_doubt(tmp_path):
    report = write(tmp_path, [row("a"), row("b", "blue", 0.1, "small"), row("c", "red", -0.2, "low margin", "review")])
    assert report["columns"] == {
        "id": [source_digest(source) for source in "cba"],
        "item": [0, 1, 0],
        "probability": [0.75] * 3,
        "margin": [-0.2, 0.1, 0.5],
        "mask_score": [0.9] * 3,
        "mask_area": [0.25] * 3,
        "flags": [0b101, 0b010, 0],
        "human": [0, 0, 0],
    }
    assert report["flags"] == ["review", "small", "low margin"]
    assert report["counts"] == {"output": 2, "review": 1, "all": 3, "failed": 0, "shown": 3}
    assert report["per_item"] == [[1, 1], [1, 0]]
    assert report["histograms"]["margin"][8] == report["histograms"]["margin"][11] == 1
    assert report["histograms"]["probability"][15] == 3
    assert [each["source"] for each in first_rows(tmp_path, report)] == ["c", "b", "a"]


def test_whose_the_labels_are_is_told(tmp_path):
    corrected = row("b", "blue") | {"label_source": "human", "model_label": "red"}
    agreed = row("c") | {"label_source": "human"}
    report = write(tmp_path, [row("a"), corrected, agreed])
    assert report["columns"]["human"] == [0, 2, 1]
    assert [each["model"] for each in first_rows(tmp_path, report)] == ["red"] * 3


OTHERS = {
    "a photo more": [row("a"), row("b"), row("c")],
    "another order": [row("a"), row("b", margin=0.4)],
    "another label": [row("a"), row("b", "blue")],
    "another place": [row("a"), row("b") | {"file_name": "red/b (2).png"}],
}


@pytest.mark.parametrize("rows", OTHERS.values(), ids=OTHERS)
def test_a_build_has_its_photos_order_and_labels_as_its_name(tmp_path, rows):
    first = write(tmp_path, [row("a"), row("b")])
    chunk = (tmp_path / "out-report" / "data" / "rows-0000.js").read_bytes()
    assert write(tmp_path, [row("a"), row("b")])["build"] == first["build"]
    assert (tmp_path / "out-report" / "data" / "rows-0000.js").read_bytes() == chunk
    other = write(tmp_path, rows)
    assert other["build"] != first["build"]
    assert len(first_rows(tmp_path, other)) == len(rows)


def test_verdicts_are_of_an_output_and_its_photos(tmp_path):
    key = write(tmp_path, [row("a")])["key"]
    assert write(tmp_path, [row("b")])["key"] == key
    assert write(tmp_path, [row("a")], dataset_dir=tmp_path / "others")["key"] != key
    assert write(tmp_path / "elsewhere", [row("a")], dataset_dir=tmp_path / "my photos")["key"] != key


def test_rows_come_in_chunks_and_those_of_a_larger_report_go(tmp_path, monkeypatch):
    monkeypatch.setattr(report_utilities, "_CHUNK", 2)
    write(tmp_path, [row(str(number)) for number in range(5)])
    data = tmp_path / "out-report" / "data"
    assert sorted(path.name for path in data.iterdir()) == ["index.js", *(f"rows-000{n}.js" for n in range(3))]
    write(tmp_path, [row("1")])
    assert sorted(path.name for path in data.iterdir()) == ["index.js", "rows-0000.js"]


def test_of_more_photos_than_a_page_holds_it_shows_the_most_doubtful(tmp_path, monkeypatch):
    monkeypatch.setattr(report_utilities, "_MOST_PHOTOS", 3)
    monkeypatch.setattr(report_utilities, "_SAMPLE", 0)
    report = write(tmp_path, (row(str(number), margin=number / 10) for number in range(9, -1, -1)))
    assert report["columns"]["margin"][:3] == [0.0, 0.1, 0.2]
    assert (report["counts"]["all"], report["counts"]["shown"]) == (10, 3)
    assert sum(report["histograms"]["margin"]) == 10


def test_a_random_sample_of_all_photos_is_in_any_page(tmp_path, monkeypatch):
    monkeypatch.setattr(report_utilities, "_MOST_PHOTOS", 3)
    monkeypatch.setattr(report_utilities, "_SAMPLE", 4)
    report = write(tmp_path, (row(str(number), margin=number / 100) for number in range(50)))
    sample = sorted(source_digest(str(number)) for number in range(50))[:4]
    shown = report["columns"]["id"]
    assert set(shown) == {*sample, *(source_digest(str(number)) for number in range(3))}
    assert report["sample_ends"] == sample[-1]
    assert report["columns"]["margin"] == sorted(report["columns"]["margin"])
    assert write(tmp_path, [row("1")])["sample_ends"] == "f" * 16


def test_failures_are_grouped_by_reason(tmp_path):
    failures = [{"stage": "decode", "reason": "no JPEG", "source": str(n)} for n in range(3)]
    failures.append({"stage": "model", "reason": "NaN", "source": "x"})
    [first, second] = write(tmp_path, [], failures=failures)["failures"]
    assert (first["reason"], first["count"], first["sources"]) == ("no JPEG", 3, ["0", "1", "2"])
    assert (second["stage"], second["count"]) == ("model", 1)


HOSTILE = "</script><script>alert(1)</script>\u2028\ud83d\"'&"


def test_no_name_ends_the_script(tmp_path):
    report = write(tmp_path, [row(HOSTILE, HOSTILE)], facts={HOSTILE: HOSTILE}, items=[HOSTILE])
    for name in ("index", "rows-0000"):
        text = (tmp_path / "out-report" / "data" / f"{name}.js").read_bytes()
        assert b"<" not in text
        assert text.isascii()
    [described] = first_rows(tmp_path, report)
    assert (described["source"], report["items"]) == (HOSTILE, [HOSTILE])


def test_folders_are_urls_relative_to_the_page(tmp_path):
    assert write(tmp_path, [])["folders"] == {
        "output": "../out/",
        "review": "../out-review/",
        "dataset": "../my%20photos/",
    }


def test_the_page_and_what_it_needs_stand_beside_the_data(tmp_path):
    write(tmp_path, [], facts={"SAM 2": "tiny"})
    names = {path.name for path in (tmp_path / "out-report").iterdir()}
    assert names == {"index.html", "report.css", "report.js", "data", "facts.json"}
    assert read_facts(tmp_path / "out-report") == {"SAM 2": "tiny"}
    assert read_facts(tmp_path) == {}


def test_the_evaluation_is_taken_into_the_page(tmp_path):
    (tmp_path / "out-report").mkdir()
    (tmp_path / "out-report" / "evaluation.json").write_text('{"accuracy": {"value": 0.5}}')
    (tmp_path / "out-report" / "confusion.svg").write_text("<svg/>")
    report = write(tmp_path, [])
    assert report["evaluation"] == {"accuracy": {"value": 0.5}}
    assert [picture["src"] for picture in report["pictures"]] == ["confusion.svg"]
    (tmp_path / "out-report" / "evaluation.json").write_text("{")
    assert write(tmp_path, [])["evaluation"] is None


def fill(path, shape_hw):
    """Returns the mask that an SVG path of straight lines encloses, holes left out."""
    drawn = np.zeros(shape_hw, np.uint8)
    scale = np.array([shape_hw[1], shape_hw[0]]) / 1000
    for part in path.split("Z")[:-1]:
        points = np.array([[float(each) for each in pair.split(" ")] for pair in part[1:].split("L")]) * scale
        one = np.zeros_like(drawn)
        cv2.fillPoly(one, [np.rint(points).astype(np.int32)], 1)
        drawn ^= one
    return drawn.astype(bool)


@pytest.mark.parametrize("shape_hw", [(100, 140), (600, 900), (1200, 500)])
def test_a_contour_encloses_its_mask(shape_hw):
    height, width = shape_hw
    rows, columns = np.mgrid[:height, :width]
    mask = ((rows - height / 2) / (height / 3)) ** 2 + ((columns - width / 2) / (width / 4)) ** 2 < 1
    mask &= ((rows - height / 2) / (height / 8)) ** 2 + ((columns - width / 2) / (width / 8)) ** 2 > 1
    drawn = fill(contour_path(mask), shape_hw)
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.92  # fillPoly takes the pixels of its outline in


def test_of_a_mask_like_noise_few_contours_are_looked_at(monkeypatch):
    looked_at = []
    simplify = cv2.approxPolyDP
    monkeypatch.setattr(cv2, "approxPolyDP", lambda *each, **more: looked_at.append(1) or simplify(*each, **more))
    contour_path(np.random.default_rng(0).random((400, 400)) < 0.5)
    assert 0 < len(looked_at) < 1000  # of thousands of contours, each at several tolerances


def test_a_ragged_mask_has_a_short_contour():
    mask = np.random.default_rng(0).random((400, 400)) < 0.5
    assert contour_path(mask).count(" ") < 300
    assert contour_path(np.zeros((40, 30), bool)) == ""
    assert contour_path(np.ones((1, 1), bool)).startswith("M")


def test_the_mask_in_a_png_becomes_its_outline(tmp_path):
    mask = np.zeros((50, 100), bool)
    mask[10:40, 20:80] = True
    path = tmp_path / "out" / "red" / "a.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(encode_png(np.zeros((4, 4, 3), np.uint8), mask))
    first, second = first_rows(tmp_path, write(tmp_path, [row("a"), row("b")]))
    assert (fill(first["contour"], mask.shape) & mask).sum() > 0.95 * mask.sum()
    assert second["contour"] is None
