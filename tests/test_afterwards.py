"""What main.py does with an output that is there: review, corrections, other prompts, the report, exports."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import afterwards_utilities
import main
import revision_utilities
from config_utilities import PROGRAM_DIR, SAMPLE_PHOTOS
from csv_utilities import format_csv
from errors import OutputError
from png_utilities import read_mask
from program import contents, pngs, rows
from thumbnail_utilities import source_digest


@pytest.fixture
def done(run, tmp_path):
    """An output with the report that belongs to it."""
    assert run()[0] == 0
    return tmp_path / "out"


@pytest.fixture
def afterwards(tmp_path, capsys):
    """Runs main() on the output, from where no config but the program's is."""

    def call(*flags):
        code = main.main(["-o", str(tmp_path / "out"), *map(str, flags)])
        return code, *capsys.readouterr()

    return call


def records(folder):
    return {row["source"]: row for row in rows(folder / "metadata.jsonl")}


def index(folder):
    text = (folder / "data" / "index.js").read_text()
    return json.loads(text.removeprefix("sam2vit.index(").removesuffix(");\n"))


def write_csv(path, columns, lines):
    path.write_bytes(format_csv(columns, lines))
    return path


def test_a_run_ends_with_a_report(run, tmp_path):
    code, out, _ = run()
    assert code == 0
    assert (tmp_path / "out-report" / "index.html").resolve().as_uri() in out
    report = index(tmp_path / "out-report")
    assert (report["counts"]["output"], report["counts"]["shown"]) == (6, 6)
    assert report["items"] == ["red", "dark red", "blue"]
    assert len(list((tmp_path / "out-report" / "thumbnails").rglob("*.webp"))) == 6
    assert len(list((tmp_path / "out-report" / "thumbnails").rglob("*.jpg"))) == 6


def test_without_a_report_there_is_none_until_it_is_asked_for(run, afterwards, tmp_path):
    run("--no-report")
    assert not (tmp_path / "out-report").exists()
    assert afterwards("--report-only")[0] == 0
    drawn = thumbnails(tmp_path)
    assert len(drawn) == 12
    run("--overwrite")
    again = thumbnails(tmp_path)
    assert set(drawn) == set(again)
    for name, picture in drawn.items():  # from the PNG as from the pixels at hand, but for WebP's and JPEG's losses
        assert np.abs(picture - again[name]).mean() < 2


def thumbnails(tmp_path):
    paths = (tmp_path / "out-report" / "thumbnails").rglob("*.*")
    return {path.name: np.asarray(Image.open(path).convert("RGBA"), np.int16)[..., 3:] for path in paths}


def test_masks_travel_in_their_pngs(done):
    for row in rows(done / "metadata.jsonl"):
        mask = read_mask(done / row["file_name"])
        cut_out = np.asarray(Image.open(done / row["file_name"]))
        assert mask.mean() == pytest.approx(row["mask_area"], abs=1e-6)
        assert (cut_out[~mask][:, :3] == 255).all()


def test_doubtful_photos_go_to_review(run, tmp_path):
    run(output=tmp_path / "all")
    margins = sorted(row["margin"] for row in rows(tmp_path / "all" / "metadata.jsonl"))
    code, out, _ = run("--min-margin", f"{(margins[2] + margins[3]) / 2:.6f}")
    assert code == 0
    assert "in review" in out
    assert len(pngs(tmp_path / "out")) == len(pngs(tmp_path / "out-review")) == 3
    for row in rows(tmp_path / "out-review" / "metadata.jsonl"):
        assert row["margin"] <= margins[2]
        assert row["flags"][-2:] == ["low margin", "review"]
    assert index(tmp_path / "out-report")["counts"]["review"] == 3


def test_a_run_goes_on_with_what_is_in_review(run, tmp_path):
    run("--min-probability", "1")
    assert len(pngs(tmp_path / "out-review")) == 6
    code, out, _ = run("--min-probability", "1")
    assert code == 0
    assert "0 photos written, 0 failed" in out
    code, _, err = run()
    assert (code, "min_probability was 1.0, is null" in err) == (2, True)


def test_corrections_are_applied_and_undone(done, afterwards, tmp_path):
    before = contents(done)
    row = records(done)["B.JPG"]
    other = next(item for item in ("red", "dark red", "blue") if item != row["label"])
    path = write_csv(tmp_path / "c.csv", ["file_name", "item", "verdict"], [(row["file_name"], other, "wrong")])
    code, out, _ = afterwards("--apply", path)
    assert code == 0
    assert "1 wrong; 1 record changed" in out
    assert (done / other / "B.png").exists()
    assert records(done)["B.JPG"]["label_source"] == "human"
    assert "1 wrong; 0 records changed" in afterwards("--apply", path)[1]
    assert "Taken back: --apply" in afterwards("--undo")[1]
    after = contents(done)
    assert after.pop(".revisions.jsonl")
    for tree in (before, after):
        tree["metadata.jsonl"].sort(key=lambda each: each["source"])
    assert after == before


def test_a_corrected_output_goes_on(done, run, afterwards, tmp_path):
    row = records(done)["a.png"]
    path = write_csv(tmp_path / "c.csv", ["file_name", "item", "verdict"], [(row["file_name"], "", "bad mask")])
    afterwards("--apply", path)
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "0 photos written" in out
    assert records(tmp_path / "out-review")["a.png"]["flags"][-2:] == ["bad mask", "review"]


def test_the_same_prompts_again_change_no_label(done, afterwards, config):
    before = records(done)
    code, out, _ = afterwards("--relabel", "--config", config)
    assert code == 0
    assert "0 of 6 photos have another item" in out
    for source, row in records(done).items():
        assert row["label"] == before[source]["label"]
        for key in ("probability", "item_probability", "margin"):
            assert row[key] == pytest.approx(before[source][key], abs=2e-3)


def test_other_prompts_label_anew_what_is_there(done, run, afterwards, config, tmp_path):
    other = json.loads(config.read_text()) | {"items": ["green", "yellow"], "prefixes": ["one"]}
    config.write_text(json.dumps(other))
    pictures = sorted((done / name).read_bytes() for name in pngs(done))
    code, out, _ = afterwards("--relabel", "--config", config)
    assert code == 0
    assert "6 of 6 photos have another item" in out
    assert {row["label"] for row in rows(done / "metadata.jsonl")} <= {"green", "yellow"}
    assert sorted((done / name).read_bytes() for name in pngs(done)) == pictures
    assert not (done / "red").exists()
    code, out, _ = run()  # a run with these prompts goes on there, and would have said the same
    assert (code, "0 photos written" in out) == (0, True)
    run(output=tmp_path / "anew")
    assert {source: row["label"] for source, row in records(done).items()} == {
        source: row["label"] for source, row in records(tmp_path / "anew").items()
    }


def test_labels_of_people_that_are_no_item_any_more_are_kept_beside_the_output(done, afterwards, config, tmp_path):
    row = records(done)["a.png"]
    other = "blue" if row["label"] != "blue" else "red"
    before = config.read_text()
    line = (row["file_name"], other, "wrong")
    afterwards("--apply", write_csv(tmp_path / "c.csv", ["file_name", "item", "verdict"], [line]))
    config.write_text(json.dumps(json.loads(before) | {"items": ["green", "yellow"]}))
    out = " ".join(afterwards("--relabel", "--config", config)[1].split())
    [kept] = tmp_path.glob("out-corrections-*.csv")
    assert f"labels that people gave and that are no item any more: 1, such as '{other}' of a.png;" in out
    assert dict(index(tmp_path / "out-report")["facts"])["prompts"] == describe(2)
    config.write_text(before)
    assert "labels that people gave" not in afterwards("--relabel", "--config", config)[1]
    assert dict(index(tmp_path / "out-report")["facts"])["prompts"] == describe(3)
    afterwards("--apply", kept)
    assert (records(done)["a.png"]["label"], records(done)["a.png"]["label_source"]) == (other, "human")


def describe(items):
    return f"2 prefixes x {items} items x 2 postfixes = {4 * items} prompts, decided by top-prompt"


def test_an_undo_that_was_interrupted_takes_back_no_more_than_itself(done, afterwards, tmp_path, monkeypatch):
    first, second = list(records(done).values())[:2]
    for number, row in enumerate((first, second)):
        lines = [(row["file_name"], "", "wrong")]
        afterwards("--apply", write_csv(tmp_path / f"{number}.csv", ["file_name", "item", "verdict"], lines))

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(revision_utilities, "_make", stop)
        assert afterwards("--undo")[0] == 130
    code, out, _ = afterwards("--undo")
    assert (code, f"Taken back: --apply {tmp_path / '1.csv'}" in "".join(out.split("\n"))) == (0, True)
    assert records(tmp_path / "out-review").keys() == {first["source"]}
    assert records(done)[second["source"]] == second
    assert "0.csv" in afterwards("--undo")[1]
    assert records(done)[first["source"]] == first


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device"), OutputError("no room")])
def test_an_undo_is_not_asked_for_again_where_what_follows_it_fails(done, afterwards, tmp_path, monkeypatch, error):
    row = records(done)["a.png"]
    lines = [(row["file_name"], "", "wrong")]
    afterwards("--apply", write_csv(tmp_path / "c.csv", ["file_name", "item", "verdict"], lines))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(afterwards_utilities, "write_report", fail)
    code, _, err = afterwards("--undo")
    assert code == (130 if error is KeyboardInterrupt else 2)
    assert err.endswith("; the undo itself is done: go on with --report-only\n")
    assert records(done)["a.png"] == row


@pytest.mark.parametrize("finishes", ["the same", "a report", "a run"])
def test_a_relabelling_that_was_interrupted_keeps_labels_too_and_no_evaluation(
    done, run, afterwards, config, tmp_path, monkeypatch, finishes
):
    row = records(done)["a.png"]
    other = "blue" if row["label"] != "blue" else "red"
    path = write_csv(tmp_path / "c.csv", ["file_name", "item", "verdict"], [(row["file_name"], other, "wrong")])
    afterwards("--apply", path)
    afterwards("--evaluate", path)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"items": ["green", "yellow"]}))

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(revision_utilities, "_make", stop)
        assert afterwards("--relabel", "--config", config)[0] == 130
    assert (tmp_path / "out-report" / "evaluation.json").exists()
    again = {
        "the same": lambda: afterwards("--relabel", "--config", config),
        "a report": lambda: afterwards("--report-only"),
        "a run": run,
    }
    assert again[finishes]()[0] == 0
    [kept] = tmp_path.glob("out-corrections-*.csv")
    assert f"{other}/a.png,{other},right,a.png" in kept.read_text()
    assert not (tmp_path / "out-report" / "evaluation.json").exists()


@pytest.mark.parametrize(
    "flags", [("--relabel", "--config"), ("--evaluate",), ("--report-only", "--export", "captions")]
)
def test_a_folder_that_can_not_be_written_is_one_line(done, afterwards, config, tmp_path, flags):
    shutil.rmtree(tmp_path / "out-report")
    for name in ("out-report", "out-export"):
        (tmp_path / name).write_text("in the way")
    labels = [(source, row["label"]) for source, row in records(done).items()]
    argument = {
        "--config": config,
        "--evaluate": write_csv(tmp_path / "l.csv", ["file_name", "item"], labels),
    }.get(flags[-1])
    code, _, err = afterwards(*flags, *filter(None, [argument]))
    assert (code, err.count("\n"), f"{tmp_path}/out-" in err) == (2, 1, True), err


def test_an_unreadable_file_of_settings_is_one_line(done, afterwards, run):
    (done / ".run.json").unlink()
    (done / ".run.json").mkdir()
    for code, _, err in (afterwards("--report-only"), run(), run("--dry-run")):
        assert (code, err.count("\n"), ".run.json: " in err) == (2, 1, True), err


def test_the_labels_are_measured(done, afterwards, config, tmp_path):
    lines = [(source, row["label"]) for source, row in records(done).items()]
    wrong = "blue" if lines[0][1] != "blue" else "red"
    path = write_csv(tmp_path / "labels.csv", ["file_name", "item"], [(lines[0][0], wrong), *lines[1:]])
    code, out, _ = afterwards("--evaluate", path)
    assert code == 0
    evaluation = json.loads((tmp_path / "out-report" / "evaluation.json").read_text())
    assert evaluation["accuracy"]["value"] == pytest.approx(5 / 6)
    assert index(tmp_path / "out-report")["evaluation"]["accuracy"]["count"] == 6
    assert (tmp_path / "out-report" / "confusion.svg").read_text().startswith("<svg")
    assert "0.83" in out
    afterwards("--relabel", "--config", config, "--decision", "ensemble")
    assert index(tmp_path / "out-report")["evaluation"] is None
    afterwards("--evaluate", path)
    assert "Taken back: --relabel" in afterwards("--undo")[1]
    assert index(tmp_path / "out-report")["evaluation"] is None


def test_a_word_that_is_no_item_is_named_with_the_one_that_may_be_meant(done, afterwards, tmp_path):
    lines = [(source, row["label"].upper()) for source, row in records(done).items()]
    lines = [(source, "bleu" if place < 2 else label) for place, (source, label) in enumerate(lines)]
    out = afterwards("--evaluate", write_csv(tmp_path / "l.csv", ["file_name", "item"], lines))[1]
    assert "'bleu' is no item of this output: labels 2; did you mean 'blue'?" in out
    assert "RED" not in out


def test_each_look_for_a_threshold_is_counted_once(done, afterwards, tmp_path):
    lines = [(source, row["label"]) for source, row in records(done).items()]
    for count, looks in ((3, 1), (3, 1), (4, 2), (3, 2)):
        path = write_csv(tmp_path / "l.csv", ["file_name", "item"], lines[:count])
        afterwards("--evaluate", path, "--target-precision", "0.99")
        assert len(json.loads((tmp_path / "out-report" / "evaluation.json").read_text())["looks"]) == looks


def test_verdicts_that_are_no_sample_are_warned_of(done, afterwards, tmp_path):
    ordered = sorted(records(done).values(), key=lambda row: source_digest(row["source"]))
    lines = [(row["file_name"], row["label"], "right", row["source"]) for row in ordered]
    columns = ["file_name", "item", "verdict", "source"]
    flags = "--evaluate", tmp_path / "c.csv", "--target-precision", "0.9"
    write_csv(tmp_path / "c.csv", columns, lines[:2])
    assert "random sample" not in afterwards(*flags)[1]
    write_csv(tmp_path / "c.csv", columns, lines[1:3])
    assert "beyond the page's random sample, or after a photo that it skips: 2;" in afterwards(*flags)[1]


def test_prompts_are_named_where_photos_are_labelled_anew(done, afterwards):
    code, _, err = afterwards("--relabel")
    assert (code, err) == (2, "main.py: --relabel: with which prompts? add --config FILE, or --preset NAME\n")


def test_what_people_said_outlives_an_overwrite(done, run, afterwards, tmp_path):
    first, second, third = list(records(done).values())[:3]
    other = next(item for item in ("red", "blue") if item != first["label"])
    said = [(first, other, "wrong"), (second, "", "wrong"), (third, "", "bad mask")]
    lines = [(row["file_name"], item, verdict) for row, item, verdict in said]
    afterwards("--apply", write_csv(tmp_path / "c.csv", ["file_name", "item", "verdict"], lines))
    before = records(done) | records(tmp_path / "out-review")
    code, out, _ = run("--overwrite")
    assert (code, records(done)[first["source"]]["label_source"]) == (0, "model")
    [kept] = tmp_path.glob("out-corrections-*.csv")
    assert f"is kept in {kept} (lines: 3)" in out.replace("\n", " ").replace("  ", " ")
    afterwards("--apply", kept)
    after = records(done) | records(tmp_path / "out-review")
    for source in (first["source"], second["source"], third["source"]):
        assert {**after[source], "seconds": 0} == {**before[source], "seconds": 0}


def test_an_output_that_was_deleted_is_made_again_beside_its_report(done, run, tmp_path):
    shutil.rmtree(done)
    assert run()[0] == 0
    shutil.rmtree(done)
    for path in (tmp_path / "out-report").iterdir():  # as an interrupted run leaves it
        if path.name != "thumbnails":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert run()[0] == 0
    shutil.rmtree(done)
    (tmp_path / "out-report" / "data" / "index.js").write_text("mine")
    code, _, err = run()
    assert (code, "is new, but" in err, "out-report beside it holds" in err) == (2, True, True)


def test_starting_over_leaves_no_picture_of_another_photo(done, run, tmp_path):
    assert (tmp_path / "out-report" / "thumbnails").exists()
    run("--overwrite", "--no-report")
    assert not (tmp_path / "out-report" / "thumbnails").exists()


def test_too_few_labels_promise_nothing_and_say_so(done, afterwards, tmp_path):
    before = contents(done)
    lines = [(source, row["label"]) for source, row in records(done).items()]
    path = write_csv(tmp_path / "l.csv", ["file_name", "item"], lines[:3])
    code, out, _ = afterwards("--evaluate", path, "--target-precision", "0.99")
    assert code == 1
    assert "3 labelled photos can't yet promise that 99% of the labels are right" in out
    assert "About 3 more can" in out
    assert contents(done) == before


def test_a_promise_sends_to_review_what_breaks_it(run, many_photos, afterwards, tmp_path):
    """All thirty are labelled, and the less probable ten are wrong."""
    run(dataset=many_photos)
    done = tmp_path / "out"
    found = sorted(records(done).values(), key=lambda row: row["item_probability"])
    wrong = [(row["source"], "blue" if row["label"] != "blue" else "red") for row in found[:10]]
    right = [(row["source"], row["label"]) for row in found[10:]]
    path = write_csv(tmp_path / "l.csv", ["file_name", "item"], wrong + right)
    code, out, _ = afterwards("--evaluate", path, "--target-precision", "0.99")
    assert code == 0
    assert "10 photos moved; runs that add photos go on with --min-probability" in out
    assert set(records(tmp_path / "out-review")) == {source for source, _ in wrong}
    assert json.loads((done / ".run.json").read_text())["min_probability"] == found[10]["item_probability"]
    assert "Taken back: --target-precision 0.99" in afterwards("--undo")[1]
    assert len(records(done)) == 30


def test_a_second_opinion_flags_and_with_strict_sends_to_review(tmp_path):
    """A red van, where red is said to be green, and another item to be red."""
    (tmp_path / "photos").mkdir()
    shutil.copy(SAMPLE_PHOTOS / "05_van.jpg", tmp_path / "photos")
    config = json.loads((PROGRAM_DIR / "config.json").read_text())
    config["colours"] = {"red": "#00ff00", "maroon": "#c01f26"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ["--micro", "-i", tmp_path / "photos", "--config", tmp_path / "config.json", "--check", "--quiet"]
    for output, strict in (("out", []), ("strict", ["--strict"])):
        assert main.main([*map(str, flags), "-o", str(tmp_path / output), *strict]) == 0
    assert [row["flags"] for row in rows(tmp_path / "out" / "metadata.jsonl")] == [["colour"]]
    assert [row["flags"] for row in rows(tmp_path / "strict-review" / "metadata.jsonl")] == [["colour", "review"]]
    assert rows(tmp_path / "strict" / "metadata.jsonl") == []


def test_a_label_that_another_view_denies_is_flagged(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("flow_utilities.is_disputed", lambda label, others: asked.append((label, others)) or True)
    run("--check")
    assert all("view" in row["flags"] for row in rows(tmp_path / "out" / "metadata.jsonl"))
    assert {len(others) for _, others in asked} == {2}
    assert {label.item for label, _ in asked} == {row["label"] for row in rows(tmp_path / "out" / "metadata.jsonl")}


def test_exports_are_written_beside_a_run_and_later(run, afterwards, tmp_path):
    code, out, _ = run("--export", "coco,captions", "--save-masks", "--split", "0.5,0.5,0")
    assert code == 0
    export = tmp_path / "out-export"
    assert "coco 6" in out
    assert len((export / "captions.csv").read_text(encoding="utf-8-sig").splitlines()) == 7
    assert len(pngs(export / "masks")) == 6
    assert (export / "coco" / "annotations" / "instances_train.json").exists()
    code, out, _ = afterwards("--report-only", "--export", "yolo")
    assert (code, "yolo 6" in out) == (0, True)
    assert len(list((export / "yolo" / "segment" / "labels").rglob("*.txt"))) == 6


def test_photos_that_have_moved_are_found_where_they_are_said_to_be(done, afterwards, photos, tmp_path):
    photos.rename(tmp_path / "moved")
    code, _, err = afterwards("--report-only", "--no-report", "--export", "yolo")
    assert (code, "photos: holds none of the photos; say where they are with --dataset-dir" in err) == (2, True)
    code, out, _ = afterwards("--report-only", "--no-report", "--export", "yolo", "-i", tmp_path / "moved")
    assert (code, "yolo 6" in out) == (0, True)


def test_a_foreign_export_folder_is_found_before_a_run(run, tmp_path):
    (tmp_path / "out-export" / "sub").mkdir(parents=True)
    (tmp_path / "out-export" / ".DS_Store").touch()
    (tmp_path / "out-export" / "sub" / "notes.txt").write_text("mine")
    code, out, err = run("--export", "captions")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{tmp_path / 'out-export' / 'sub'}: is not of an export" in err
    assert not (tmp_path / "out").exists()
    shutil.rmtree(tmp_path / "out-export" / "sub")
    assert run("--no-report", "--export", "captions")[0] == 0


def test_an_export_that_fails_costs_no_page(run, photos, afterwards, tmp_path):
    run("--no-report")
    shutil.rmtree(photos)
    code, _, err = afterwards("--report-only", "--export", "coco")
    assert (code, "holds none of the photos" in err) == (2, True)
    assert (tmp_path / "out-report" / "index.html").exists()


def test_a_photo_whose_record_stands_twice_is_exported_once(done, afterwards):
    with (done / "metadata.jsonl").open("a") as file:
        file.write(json.dumps(records(done)["a.png"]) + "\n")
    code, out, _ = afterwards("--report-only", "--no-report", "--export", "coco,captions")
    assert (code, "coco 6, captions 6" in out) == (0, True)


@pytest.mark.parametrize("later", [False, True], ids=["with a run", "later"])
def test_an_export_that_is_interrupted_says_what_there_is(run, afterwards, monkeypatch, later):
    run("--no-report")
    monkeypatch.setattr("export_utilities._outlines", lambda *_: exec("raise KeyboardInterrupt"))
    code, _, err = (afterwards if later else run)(
        *(["--report-only"] if later else []), "--no-report", "--export", "coco"
    )
    assert code == 130
    assert err.endswith("interrupted; the exports are as they were, and the same command begins anew with them\n")
    if not later:
        assert "the same command without --overwrite begins" in run("--no-report", "--export", "coco", "--overwrite")[2]


def test_an_export_says_how_far_it_is(done, afterwards, monkeypatch):
    monkeypatch.setattr("console_utilities._PLAIN_INTERVAL", 0)
    _, out, _ = afterwards("--report-only", "--no-report", "--export", "captions")
    assert "6/6 photos" in out


def test_captions_are_the_same_later_as_with_the_run(run, afterwards, config, tmp_path):
    run()  # before there were any: it goes on, though they are other ones now
    config.write_text(json.dumps({**json.loads(config.read_text()), "csv_prefixes": ["seen:"]}))
    code, out, _ = run("--no-report", "--export", "captions")
    assert (code, "0 photos written" in out) == (0, True)
    path = tmp_path / "out-export" / "captions.csv"
    with_the_run = path.read_bytes()
    assert with_the_run.count(b"seen: ") == 6
    afterwards("--report-only", "--no-report", "--export", "captions")
    assert path.read_bytes() == with_the_run
    config.write_text(json.dumps({**json.loads(config.read_text()), "csv_prefixes": ["other:"]}))
    afterwards("--report-only", "--no-report", "--export", "captions", "--config", config)
    assert path.read_bytes() == with_the_run.replace(b"seen:", b"other:")


def test_an_export_has_cut_outs_that_were_moved_by_hand_and_says_which_are_gone(done, afterwards):
    before = {source: row["file_name"] for source, row in records(done).items()}
    (done / "blue").mkdir(exist_ok=True)
    moved = next(source for source, name in before.items() if not name.startswith("blue/"))
    (done / before[moved]).rename(done / "blue" / "moved.png")
    code, out, _ = afterwards("--report-only", "--no-report", "--export", "captions")
    assert (code, "captions 5" in out, "a run over the photos brings them back" in out) == (1, True, True)
    name = before[moved].partition("/")[2]
    (done / "blue" / name).parent.mkdir(parents=True, exist_ok=True)
    (done / "blue" / "moved.png").rename(done / "blue" / name)
    code, out, _ = afterwards("--report-only", "--no-report", "--export", "captions")
    assert (code, "captions 6" in out, "moved to another item by hand: 1" in out) == (0, True, True)


@pytest.mark.parametrize("flags", [[], ["--no-sam"]], ids=["cut out", "whole"])
def test_cards_say_whether_photos_were_cut_out(run, afterwards, tmp_path, flags):
    run(*flags, "--overwrite", "--no-report", "--export", "imagefolder", "--split", "0.5,0.5,0")
    cards = [tmp_path / name / "README.md" for name in ("out", "out-export/imagefolder")]
    for text in (path.read_text() for path in cards):
        assert ("cut out with SAM 2" in text) == (not flags)
        assert ("whole photos, labelled by CLIP" in text) == bool(flags)


def test_an_export_that_lacks_photos_is_not_complete(run, done, afterwards, photos):
    (photos / "car.jpg").unlink()
    code, out, _ = afterwards("--report-only", "--no-report", "--export", "coco")
    assert (code, "coco 5" in out) == (1, True)
    assert "photos: 1, such as car.jpg" in out
    assert run("--no-report", "--export", "coco")[0] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target-precision", "0.9"], "--target-precision 0.9: by which labels? add --evaluate"),
        (["--apply", "x.csv", "--undo"], "--apply x.csv: together with --undo"),
        (
            ["--report-only", "--overwrite"],
            "--overwrite: is for a run over photos, not for what is done with",
        ),
        (["--split", "0.8,0.2,0"], "--split 0.8,0.2,0: of what? add --export, or --save-masks"),
        (["--export", "coco,voc"], "must be some of coco, yolo, captions, imagefolder"),
        (["--split", "0.5,0.6,0", "--export", "coco"], "0.5,0.6,0"),
        (["--export", "imagefolder"], "--split"),
        (["-x", "--check"], "--check: its views are of the cut-out"),
        (["-x", "--min-mask-score", "0.5"], "--min-mask-score 0.5: SAM 2 is off"),
        (["-x", "--export", "coco"], "--no-sam"),
        (
            ["-i", "s3://bucket/photos", "--export", "yolo"],
            "s3://bucket/photos is no disk; leave it out, and export later",
        ),
        (["--apply", "no.csv"], "no run has written to it yet"),
    ],
)
def test_what_can_not_be_is_one_line_before_anything_is_loaded(run, flags, message):
    code, out, err = run(*flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_an_output_of_an_earlier_version_goes_on(run, done, tmp_path):
    old = [
        {key: value for key, value in row.items() if key not in ("label_source", "model_label", "top_items")}
        for row in rows(done / "metadata.jsonl")
    ]
    (done / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    settings = json.loads((done / ".run.json").read_text())
    del settings["clip_model"]
    (done / ".run.json").write_text(json.dumps(settings))
    code, out, _ = run()
    assert (code, "0 photos written" in out) == (0, True)
    mended = rows(done / "metadata.jsonl")
    assert [row["model_label"] for row in mended] == [row["label"] for row in old]
    assert all(row["label_source"] == "model" and row["top_items"] for row in mended)
