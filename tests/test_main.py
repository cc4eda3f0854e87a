"""The whole program: most tests call main() in this process, those about signals and start-up run it as a user does."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

import checkpoint_utilities
import detector_utilities
import device_utilities
import flag_utilities
import flow_utilities
import main
import mask_utilities
import sam_utilities
from checkpoint_utilities import PublicCheckpoint
from config_utilities import CONFIG_ONLY, PROGRAM_DIR, Settings
from conftest import make_image, save_photo
from detector_utilities import Detection
from device_utilities import select_precision
from errors import ConfigError
from focus_utilities import Focus
from mask_utilities import bounding_box, subject_mask
from photo_utilities import read_photo
from program import command, contents, pngs, rows
from sam_utilities import load_sam2, predict_sam2

WHITE = (255, 255, 255, 255)


def test_the_whole_job(run, photos, sam2_checkpoint, tmp_path):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert "2 prefixes x 3 items x 2 postfixes = 12 prompts" in out
    assert "6 photos written, 0 failed, 1 other file skipped" in out

    records = {row["source"]: row for row in rows(tmp_path / "out" / "metadata.jsonl")}
    assert sorted(records) == ["B.JPG", "a.png", "berlin/c.webp", "berlin/x/d.png", "car.jpg", "car.webp"]
    assert pngs(tmp_path / "out") == sorted(row["file_name"] for row in records.values())
    assert records["car.jpg"]["file_name"].endswith("/car.jpg.png")
    assert records["berlin/x/d.png"]["file_name"] == f"{records['berlin/x/d.png']['label']}/berlin/x/d.png"
    assert rows(tmp_path / "out" / "failures.jsonl") == []

    sam2_model = load_sam2(str(sam2_checkpoint), precision=select_precision("auto", "cpu", 256))
    for source, row in records.items():
        image = read_photo(photos / source)
        [segmentation] = predict_sam2([image], sam2_model)
        mask = subject_mask(image, segmentation.mask_logits)
        cut_out = np.asarray(Image.open(tmp_path / "out" / row["file_name"]))
        assert cut_out.shape == (*image.shape[:2], 4)
        assert (cut_out[~mask] == WHITE).all()
        assert (cut_out[mask][:, :3] == image[mask]).all()
        assert (cut_out[..., 3] == 255).all()
        assert row["mask_area"] == pytest.approx(mask.mean(), abs=1e-6)
        assert tuple(row["box"]) == bounding_box(mask)

    folder = ImageFolder(tmp_path / "out")
    assert len(folder) == 6
    assert set(folder.classes) == {row["label"] for row in records.values()}


@pytest.mark.parametrize("batch_size", ["1", "4", "16"])
def test_the_size_of_the_batch_changes_no_result(run, tmp_path, batch_size):
    run(output=tmp_path / "expected")
    run("--batch-size", batch_size)
    expected, result = contents(tmp_path / "expected"), contents(tmp_path / "out")
    for mine, other in zip(result.pop("metadata.jsonl"), expected.pop("metadata.jsonl"), strict=True):
        for key in ("probability", "item_probability", "margin", "mask_score"):
            assert mine.pop(key) == pytest.approx(other.pop(key), abs=1e-4)
        assert mine == other
    assert result == expected


def test_inputs_are_left_as_they_were(run, photos):
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.rglob("*") if path.is_file()}
    run()
    assert before == {
        path: (path.read_bytes(), path.stat().st_mtime_ns) for path in photos.rglob("*") if path.is_file()
    }


def test_without_sam_the_whole_photo_is_classified_and_written_uncut(run, photos, tmp_path):
    code, out, _ = run("-x")
    assert code == 0
    assert "off: photos stay uncut" in out
    for row in rows(tmp_path / "out" / "metadata.jsonl"):
        cut_out = np.asarray(Image.open(tmp_path / "out" / row["file_name"]))
        assert (cut_out[..., :3] == read_photo(photos / row["source"])).all()
        assert (row["mask_score"], row["mask_area"], row["box"], row["points"]) == (None, None, None, None)


def test_the_background_changes_what_is_written_and_not_what_clip_sees(run, tmp_path):
    run(output=tmp_path / "white")
    run("--background", "#102030", output=tmp_path / "blue")
    run("--background", "transparent", output=tmp_path / "clear")
    white, blue, clear = (contents(tmp_path / name) for name in ("white", "blue", "clear"))
    assert white["metadata.jsonl"] == blue["metadata.jsonl"] == clear["metadata.jsonl"]
    name = white["metadata.jsonl"][0]["file_name"]
    images = [np.asarray(Image.open(tmp_path / folder / name)) for folder in ("white", "blue", "clear")]
    outside = images[2][..., 3] == 0
    assert outside.any()
    assert (images[0][outside] == WHITE).all()
    assert (images[1][outside] == (16, 32, 48, 255)).all()
    assert all((image[~outside] == images[0][~outside]).all() for image in images)


def test_debug_draws_a_picture_and_says_a_line_per_photo(run, tmp_path):
    _, out, _ = run("--debug", "--log", str(tmp_path / "run.log"))
    pictures = sorted(
        path.relative_to(tmp_path / "out-debug").as_posix() for path in (tmp_path / "out-debug").rglob("*.jpg")
    )
    assert pictures == ["B.jpg", "a.jpg", "berlin/c.jpg", "berlin/x/d.jpg", "car.jpg.jpg", "car.webp.jpg"]
    assert "berlin/c.webp: " in out
    assert "notes.txt: skipped: no image" in out
    assert "berlin/c.webp: " in (tmp_path / "run.log").read_text(encoding="utf-8")
    assert pngs(tmp_path / "out") == sorted(row["file_name"] for row in rows(tmp_path / "out" / "metadata.jsonl"))


def logged(tmp_path):
    """The log, without times."""
    lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    return [line.split(" ", 2)[2] for line in lines]


def test_the_log_has_the_command_and_all_that_is_said(run, photos, tmp_path):
    (photos / "empty.png").touch()
    code, out, err = run("--quiet", "--log", str(tmp_path / "run.log"))
    assert (code, out, err) == (1, "", "")
    log = logged(tmp_path)
    assert log[0].startswith(f"INFO python main.py -i {photos} -o {tmp_path / 'out'} --sam-model ")
    assert log[0].endswith(f" --quiet --log {tmp_path / 'run.log'}")
    assert f"INFO output   {tmp_path / 'out'}" in log
    assert [line for line in log if "6 photos written, 1 failed" in line]
    assert [line for line in log if "Look through it" in line]
    assert len([line for line in log if "empty.png" in line]) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--margin", "0.1"], "margin was 0.05, is 0.1"),
        (["--margin", "0.6"], "--margin 0.6: must be"),
        (["-i", "s3://key:secret/photos"], "main.py: --dataset-dir s3://...: "),
    ],
    ids=["refused", "no setting", "no bucket"],
)
def test_the_log_has_what_ended_the_program_once(run, tmp_path, flags, words):
    run()
    code, _, err = run("--log", str(tmp_path / "run.log"), *flags)
    first, *others = logged(tmp_path)
    assert (code, others, words in err) == (2, [f"ERROR {err.rstrip()}"], True)
    assert "secret" not in first


def test_the_log_has_what_an_interrupt_leaves(run, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("report_utilities.write_report", interrupt)
    monkeypatch.setattr("afterwards_utilities.write_report", interrupt)
    code, _, err = run("--log", str(tmp_path / "run.log"))
    assert (code, err) == (130, "main.py: interrupted; the same command starts where this one ended\n")
    assert logged(tmp_path)[-1] == f"ERROR {err.rstrip()}"


def test_quiet_says_nothing_when_all_is_well(run):
    assert run("--quiet") == (0, "", "")


def test_freed_memory_goes_back_now_and_then(run, monkeypatch):
    released = []
    monkeypatch.setattr(main, "RELEASE_EVERY", 2)
    monkeypatch.setattr("device_utilities.release_freed_memory", lambda: released.append(1))
    assert run()[0] == 0
    assert len(released) == 3


def test_a_second_run_goes_on_where_the_first_stopped(run, tmp_path):
    run("--limit", "3", output=tmp_path / "out")
    assert len(rows(tmp_path / "out" / "metadata.jsonl")) == 3
    code, out, _ = run()
    assert code == 0
    assert "going on after 3 photos done earlier" in out
    assert "3 photos written" in out
    run(output=tmp_path / "at once")
    assert contents(tmp_path / "out") == contents(tmp_path / "at once")


def test_the_limit_counts_photos_and_not_what_lies_between_them(run, photos, tmp_path):
    (photos / "A notes.txt").write_text("sorted before every photo")
    assert run("--limit", "2")[0] == 0
    assert [row["source"] for row in rows(tmp_path / "out" / "metadata.jsonl")] == ["B.JPG", "a.png"]


def test_the_current_folder_may_be_the_output(run, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert run("--debug", output=".")[0] == 0
    assert len(pngs(tmp_path / "here")) == 6
    assert (tmp_path / "here-debug").is_dir()


def test_debug_never_writes_among_the_photos(run, photos, tmp_path):
    photos.rename(tmp_path / "out-debug")
    code, _, err = run("--debug", dataset=tmp_path / "out-debug")
    assert code == 2
    assert "its side folder" in err


def test_an_inspection_picture_that_can_not_be_written_is_one_line(run, tmp_path):
    run("--limit", "1")
    (tmp_path / "out-debug").write_text("a file in the way")
    code, _, err = run("--debug")
    assert code == 2
    assert "leave out --debug" in err
    assert err.count("\n") == 1


def test_an_inspection_picture_whose_name_a_folder_has_is_done_without(run, tmp_path):
    save_photo(tmp_path / "some" / "a.png")
    save_photo(tmp_path / "some" / "a.jpg" / "b.png")
    code, out, err = run("--debug", dataset=tmp_path / "some")
    assert (code, err) == (0, "")
    assert "a.jpg/b.png: no inspection picture: " in out
    assert len(pngs(tmp_path / "out")) == 2


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="their file systems take valid Unicode only")
def test_an_inspection_picture_whose_folder_would_have_too_long_a_name_is_done_without(run, photos, tmp_path):
    save_photo(photos / "a" / os.fsdecode(b"\xe4" * 90) / "b.png")  # as %E4 it is three times as long
    code, out, err = run("--debug")
    assert (code, err) == (1, "")
    assert "/b.png: no inspection picture: File name too long" in out
    [failure] = rows(tmp_path / "out" / "failures.jsonl")
    assert (failure["stage"], failure["reason"]) == ("write", "can't be written: File name too long")
    assert len(pngs(tmp_path / "out")) == 6
    assert (tmp_path / "out-debug" / "car.webp.jpg").exists()


def test_a_full_disk_of_inspection_pictures_ends_the_run(run, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("picture_utilities.inspection_jpeg", refuse)
    code, _, err = run("--debug")
    assert (code, err.count("\n")) == (2, 1)
    assert "can't be written: No space left on device; leave out --debug, or make room" in err


def test_other_spellings_of_the_same_model_are_no_other_settings(run, sam2_checkpoint, monkeypatch):
    assert run()[0] == 0
    monkeypatch.chdir(sam2_checkpoint.parent)
    assert run("--sam-model", sam2_checkpoint.name)[0] == 0


def test_another_architecture_is_another_setting(run, tmp_path):
    run()
    source = sam_utilities.find_config("sam2.1_hiera_micro").read_text(encoding="utf-8")
    (tmp_path / "other.yaml").write_text(source.replace("image_size: 256", "image_size: 384"))
    code, _, err = run("--sam-config", str(tmp_path / "other.yaml"))
    assert code == 2
    assert "sam_config was" in err


def test_a_finished_run_started_again_does_nothing_and_succeeds(run):
    run()
    code, out, _ = run()
    assert code == 0
    assert "0 photos written, 0 failed" in out


def test_broken_photos_are_failures_with_a_reason_and_stop_nothing(run, photos, tmp_path):
    (photos / "broken.jpg").write_bytes((photos / "car.jpg").read_bytes()[:300])
    (photos / "empty.png").write_bytes(b"")
    code, out, _ = run()
    assert code == 1
    assert {row["source"]: row["stage"] for row in rows(tmp_path / "out" / "failures.jsonl")} == {
        "broken.jpg": "decode",
        "empty.png": "decode",
    }
    assert "empty.png: failed in decode: the file is empty" in out
    assert "6 photos written, 2 failed" in out

    save_photo(photos / "broken.jpg")
    (photos / "empty.png").unlink()
    assert run()[0] == 0
    assert rows(tmp_path / "out" / "failures.jsonl") == []


def test_a_photo_that_makes_the_model_raise_takes_nothing_else_with_it(run, photos, tmp_path, monkeypatch):
    def raise_on_odd_sizes(images, *arguments, **options):
        if any(image.shape[1] == 104 for image in images):
            raise RuntimeError("CUDA error: something with B.JPG\nand more lines")
        return predict_sam2(images, *arguments, **options)

    monkeypatch.setattr(flow_utilities, "predict_sam2", raise_on_odd_sizes)
    code, _, _ = run("--batch-size", "6")
    assert code == 1
    assert rows(tmp_path / "out" / "failures.jsonl") == [
        {"source": "B.JPG", "reason": "RuntimeError: CUDA error: something with B.JPG", "stage": "model"}
    ]
    assert len(rows(tmp_path / "out" / "metadata.jsonl")) == 5


def test_an_empty_mask_is_a_failure_and_never_a_white_picture(run, tmp_path, monkeypatch):
    monkeypatch.setattr(mask_utilities, "full_size_mask", lambda _, shape_hw: np.zeros(shape_hw, bool))
    code, _, _ = run()
    assert code == 1
    assert pngs(tmp_path / "out") == []
    assert {row["reason"] for row in rows(tmp_path / "out" / "failures.jsonl")} == {
        "no subject at the focus: SAM 2's mask is empty"
    }


def test_changed_settings_are_named_and_refused_until_overwrite(run, tmp_path):
    run()
    before = contents(tmp_path / "out")
    code, _, err = run("--margin", "0.1")
    assert code == 2
    assert "margin was 0.05, is 0.1" in err
    assert contents(tmp_path / "out") == before
    assert run("--margin", "0.1", "--overwrite")[0] == 0
    run("--margin", "0.1", output=tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_other_weights_under_the_same_path_are_other_settings(run, photos, tmp_path, config, clip_checkpoint):
    import random_models

    sam = tmp_path / "sam2.1_hiera_micro.pt"
    flags = ["-i", str(photos), "-o", str(tmp_path / "out"), "-s", str(sam), "-m", str(clip_checkpoint)]
    random_models.save_random_sam2(sam, seed=3)
    assert main.main([*flags, "--config", str(config)]) == 0
    random_models.save_random_sam2(sam, seed=4)
    assert main.main([*flags, "--config", str(config)]) == 2


def test_an_output_inside_the_dataset_is_not_read_as_photos(run, photos):
    assert run(output=photos / "output")[0] == 0
    code, out, _ = run(output=photos / "output")
    assert code == 0
    assert "0 photos written" in out


@pytest.mark.parametrize("files", [{}, {"notes.txt": "hello"}], ids=["empty", "no image"])
def test_a_folder_without_photos_is_no_success(run, tmp_path, files):
    (tmp_path / "bare").mkdir()
    for name, text in files.items():
        (tmp_path / "bare" / name).write_text(text)
    code, _, err = run(dataset=tmp_path / "bare")
    assert code == 1
    assert "no photos in it; name your folder with --dataset-dir" in err


def test_an_emptied_dataset_touches_nothing_of_the_output(run, photos, tmp_path):
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    run()
    before = contents(tmp_path / "out")
    photos.rename(tmp_path / "elsewhere")
    photos.mkdir()
    for flags in ((), ("--overwrite",)):
        code, out, err = run(*flags)
        assert (code, out) == (1, "")
        assert "no photos in it" in err
        assert contents(tmp_path / "out") == before


def test_a_dry_run_shows_the_plan_and_writes_nothing(run, tmp_path):
    code, out, err = run("--dry-run")
    assert (code, err) == (0, "")
    assert "is in place" in out
    assert "12 prompts" in out
    assert "CLIP is asked 'a photo of a red car'" in " ".join(out.split())
    assert "berlin/c.webp -> " in out
    assert "<item>/berlin/c.png" in out
    assert "notes.txt -> no image, would be skipped" in " ".join(out.split())
    assert not (tmp_path / "out").exists()


def planned(out):
    """The facts of a dry run, and the photos that it lists."""
    lines = [line.split("  ", 1) for line in out.splitlines() if "  " in line]
    facts = {name: value.strip() for name, value in lines}
    return facts, [name.removesuffix(" ->") for name in facts if name.endswith(" ->") and name != "notes.txt ->"]


def test_a_dry_run_lists_what_is_left_to_be_done_and_counts_what_is_done(run, tmp_path):
    assert "done" not in planned(run("--dry-run")[1])[0]
    run("--limit", "2", "--min-margin", "0.001")
    before = contents(tmp_path / "out")
    facts, listed = planned(run("--dry-run", "--min-margin", "0.001")[1])
    assert facts["done"] == "2 photos of an earlier run, which stay"
    assert listed == ["car.jpg", "car.webp", "berlin/c.webp", "berlin/x/d.png"]
    assert planned(run("--dry-run", "--min-margin", "0.001", "--limit", "2")[1])[1] == []
    assert contents(tmp_path / "out") == before


def test_a_dry_run_says_how_many_cut_outs_overwrite_deletes(run):
    run("--limit", "2")
    facts, listed = planned(run("--dry-run", "--overwrite")[1])
    assert facts["overwrite"] == "2 cut-outs of an earlier run would be deleted"
    assert "done" not in facts
    assert len(listed) == 6


def test_a_dry_run_lists_photos_whose_cut_outs_were_deleted_and_not_those_moved_by_hand(run, tmp_path):
    run()
    deleted, moved, *_ = rows(tmp_path / "out" / "metadata.jsonl")
    (tmp_path / "out" / deleted["file_name"]).unlink()
    other = tmp_path / "out" / ("blue" if moved["label"] != "blue" else "red") / Path(moved["file_name"]).name
    other.parent.mkdir(exist_ok=True)
    (tmp_path / "out" / moved["file_name"]).rename(other)
    facts, listed = planned(run("--dry-run")[1])
    assert (facts["done"], listed) == ("5 photos of an earlier run, which stay", [deleted["source"]])
    assert "4 cut-outs" in planned(run("--dry-run", "--overwrite")[1])[0]["overwrite"]


def test_a_dry_run_counts_what_it_does_not_list(run, many_photos):
    run("--limit", "5", dataset=many_photos)
    assert "... and 5 more" in run("--dry-run", dataset=many_photos)[1]
    assert "... and 10 more" in run("--dry-run", "--overwrite", dataset=many_photos)[1]
    assert "more" not in run("--dry-run", "--limit", "20", dataset=many_photos)[1]


def test_a_dry_run_finds_the_file_of_a_yolo_detector(run, tmp_path):
    yolo = tmp_path / "mine.pt"
    code, _, err = run("--dry-run", "--focus", "detector", "--detector", f"yolo:{yolo}")
    assert (code, "no such .pt" in err) == (2, True)
    yolo.touch()
    code, out, _ = run("--dry-run", "--focus", "detector", "--detector", f"yolo:{yolo}")
    assert (code, "mine.pt (is in place)" in "".join(out.split("\n"))) == (0, True)


NO_NETWORK = {"sam2.1_hiera_tiny": PublicCheckpoint("http://127.0.0.1:9/sam2.1_hiera_none.pt", "0" * 64)}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--margin", "abc"], ["--margin", "abc"]),
        (["--margin", "0.6"], ["--margin 0.6", "below 0.5"]),
        (["--focus", "centre"], ["--focus 'centre'", "did you mean 'center'"]),
        (["--focus", "0.4,1.6"], ["--focus '0.4,1.6'", "between 0 and 1"]),
        (["--focus", "none.csv"], ["none.csv", "No such file"]),
        (["--focus", "grid", "--no-sam"], ["--focus grid: SAM 2 is off; leave out --no-sam"]),
        (["--verify-focus", "--no-sam"], ["--verify-focus: SAM 2 is off"]),
        (["--crop", "--no-sam"], ["--crop: photos stay uncut, as SAM 2 is off; leave out --no-sam"]),
        (["--save-masks", "--no-sam"], ["--save-masks: photos stay uncut"]),
        (["--export", "coco,voc"], ["--export 'coco,voc': must be some of"]),
        (["--require-focus"], ["--require-focus: with --focus center every photo has one"]),
        (["--focus", "detector", "--detector", "yolov9"], ["--detector yolov9", "ssdlite320_mobilenet_v3_large"]),
        (["--focus-threshold", "2"], ["--focus-threshold 2.0", "between 0 and 1"]),
        (["--focus-labels", "car,"], ["--focus-labels", "at least one label"]),
        (["--min-area", "0.5", "--max-area", "0.4"], ["--min-area 0.5: is above --max-area 0.4"]),
        (["--feather", "-1"], ["--feather -1.0", "between 0 and 100 pixels"]),
        (["--edges", "round"], ["--edges", "'round'", "soft"]),
        (["--decision", "best"], ["--decision", "'best'", "top-prompt"]),
        (["--background", "blue"], ["--background 'blue'", "#c0c0c0"]),
        (["--batch-size", "0"], ["--batch-size 0", "at least 1"]),
        (["--batch-size", "x"], ["--batch-size", "'x' must be a whole number or auto"]),
        (["--log", "out/run.log"], ["--log out/run.log", "put it elsewhere"]),
        (["--no-such-flag"], ["--no-such-flag", "--help"]),
        (["--config", "nowhere.json"], ["nowhere.json", "--config"]),
        (["--dataset-dir", "nowhere"], ["nowhere: No such file or directory", "--dataset-dir"]),
        (["--device", "cuda:99"], ["--device cuda:99: not a device of this machine", "cpu"]),
        (["--clip-device", "tpu"], ["--clip-device tpu: not a device of this machine", "cpu"]),
        (["--sam-model", "sam3"], ["--sam-model sam3: no such model", "known by name"]),
        (
            ["--sam-model", "sam3", "--sam-config", "sam2.1_hiera_l"],
            ["--sam-model sam3: no such model", "known by name"],
        ),
        (["--sam-model", "sam2.1_hiera_tiny"], ["127.0.0.1:9", "put it at", "--sam-model"]),
        (["--sam-config", "sam3_l"], ["--sam-config sam3_l: no such config", "sam2.1_hiera_l"]),
        (["--sam-config", "sam2.1_hiera_s"], ["does not fit the architecture sam2.1_hiera_s", "--sam-config"]),
        (["--clip-model", "ViT-X"], ["--clip-model ViT-X: no such model", "ViT-L/14@336px"]),
        (["--log", "/no/such/folder/run.log"], ["--log /no/such/folder/run.log", "No such file or directory"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(run, tmp_path, monkeypatch, flags, words):
    monkeypatch.setattr(checkpoint_utilities, "SAM2_CHECKPOINTS", NO_NETWORK)
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*flags)
    assert code == 2
    assert err.startswith("main.py: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def test_a_prompt_that_is_too_long_names_the_file(run, config):
    lists = {"prefixes": ["a " * 90], "items": ["red"], "postfixes": ["car"]}
    config.write_text(json.dumps(lists))
    code, _, err = run()
    assert code == 2
    assert f"{config}: " in err
    assert "at most 77" in err
    assert err.count("\n") == 1


def test_an_output_around_the_dataset_is_refused(run, photos):
    code, _, err = run(output=photos.parent)
    assert code == 2
    assert "contains the dataset" in err


def test_flags_leave_no_trace_when_they_are_not_given():
    assert flag_utilities.parse_flags([]) == {}
    assert flag_utilities.parse_flags(["-x", "--mask-threshold", "0.1", "-f", "cpu"]) == {
        "no_sam": True,
        "margin": 0.1,
        "device": "cpu",
    }


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("photos/", "photos/: no such flag; for a folder of photos write --dataset-dir photos/; see --help"),
        ("--mircro", "--mircro: no such flag; did you mean --micro? see --help"),
        ("--zzz=1", "--zzz: no such flag; see --help"),
        ("--no-refin", "--no-refin: no such flag; did you mean --no-refine? see --help"),
        ("--force-divice=cpu", "--force-divice: no such flag; did you mean --force-device? see --help"),
        ("--given", "--given: no such flag; did you mean --margin? see --help"),
        ("--items=red", "--items: no such flag; 'items' belongs into config.json; see --help"),
        ("--colour", "--colour: no such flag; 'colours' belongs into config.json; see --help"),
        ("--csv_prefixes", "--csv_prefixes: no such flag; 'csv_prefixes' belongs into config.json; see --help"),
    ],
)
def test_a_flag_that_there_is_not_is_named_with_the_one_that_may_be_meant(flag, words):
    with pytest.raises(ConfigError) as caught:
        flag_utilities.parse_flags([flag])
    assert str(caught.value) == words


def test_packages_that_are_missing_are_named_in_one_line(tmp_path):
    """Without site-packages, as a Python beside the virtual environment is."""
    command = [sys.executable, "-S", str(PROGRAM_DIR / "main.py"), "--demo", "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert re.match(r"main.py: \w+ is not installed for .*; run .venv/bin/python main.py, which 'make", done.stderr)


def test_every_flag_is_a_setting_and_every_setting_has_a_flag():
    flags = {action.dest for action in flag_utilities.build_parser()._actions} - {"help"}
    assert flags == set(vars(Settings())) - {*CONFIG_ONLY, "given"}


# What follows runs the program as its users do.


def test_help_and_bad_flags_answer_without_importing_torch():
    code = "import sys, main\ntry: main.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", code], cwd=PROGRAM_DIR, capture_output=True, text=True, check=True)
    assert "--mask-threshold" in result.stdout


def test_the_program_runs_from_any_folder_and_shows_no_warnings(photos, models, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONWARNINGS"}
    result = subprocess.run(
        command("-i", "photos", "-o", "out", *models),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert len(pngs(Path(tmp_path, "out"))) == 6


def test_a_name_that_the_console_lacks_is_shown_escaped(photos, models, tmp_path):
    (photos / "broken 日本.jpg").write_bytes(b"")
    result = subprocess.run(
        command("-i", photos, "-o", tmp_path / "out", "-x", *models),
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 1
    assert b"broken \\u65e5\\u672c.jpg: failed" in result.stdout


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take valid Unicode only")
def test_names_that_are_no_utf_8_do_not_spoil_the_dataset(run, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    save_photo(photos / os.fsdecode(b"caf\xe9.jpg"))
    assert run()[0] == 0
    split = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert "caf%E9.jpg" in split["source"]
    assert len(split) == 7


@pytest.mark.parametrize(("given", "expected"), [(None, "1"), ("0", "0")], ids=["unset", "set by the user"])
def test_mps_falls_back_to_the_cpu_unless_the_user_says_otherwise(given, expected):
    environment = {key: value for key, value in os.environ.items() if key != "PYTORCH_ENABLE_MPS_FALLBACK"}
    if given is not None:
        environment["PYTORCH_ENABLE_MPS_FALLBACK"] = given
    code = "import main, os; print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=PROGRAM_DIR, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == expected


def test_seeds_are_set_for_numpy_and_torch():
    import torch

    drawn = []
    for seed in (3, 3, 4):
        main._seed_everything(seed)
        drawn.append((np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_run_lets_fp32_mean_fp32_on_a_gpu(run, monkeypatch):
    import torch

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert run("--limit", "1")[0] == 0
    assert torch.backends.cudnn.allow_tf32 is False


@pytest.mark.parametrize(
    ("settings", "in_hardware", "said"),
    [
        ({"precision": "bf16"}, False, ["--precision bf16: cpu has no bf16 in hardware"]),
        ({"precision": "bf16"}, True, []),
        ({"precision": "auto"}, False, []),
        ({"compile": "on"}, True, ["--compile on: has no effect without CUDA"]),
        ({"compile": "auto"}, True, []),
    ],
)
def test_flags_that_this_machine_gains_nothing_by_are_told(monkeypatch, caplog, settings, in_hardware, said):
    monkeypatch.setattr(device_utilities, "has_bf16", lambda _: in_hardware)
    main.select_machine(Settings(device="cpu", clip_device="cpu", **settings), photos=10**6)
    assert [message[: len(words)] for message, words in zip(caplog.messages, said, strict=True)] == said


def test_one_photo_is_a_batch_of_one(sam2_checkpoint):
    assert len(predict_sam2([make_image()], load_sam2(str(sam2_checkpoint)))) == 1


def planted_points(tmp_path, *lines):
    path = tmp_path / "points.csv"
    path.write_text("file_name,x,y,x0,y0,x1,y1\n" + "".join(f"{line}\n" for line in lines))
    return path


def test_each_photo_is_pointed_at_as_the_csv_says(run, tmp_path):
    points = planted_points(tmp_path, "a.png,0.25,0.5,,,,", "berlin/c.webp,60,30,20,10,100,60")
    assert run("--focus", str(points))[0] == 0
    found = {row["source"]: row for row in rows(tmp_path / "out" / "metadata.jsonl")}
    assert (found["a.png"]["focus"], found["a.png"]["points"][0]) == ("point", [24, 32])
    assert found["berlin/c.webp"]["points"][0] == [60, 30]
    assert found["berlin/c.webp"]["focus_box"] == [20.0, 10.0, 100.0, 60.0]
    assert (found["B.JPG"]["focus"], found["B.JPG"]["focus_box"]) == ("center", None)


def test_photos_that_the_csv_leaves_out_are_set_aside_where_it_is_required(run, photos, tmp_path):
    points = planted_points(tmp_path, "a.png,0.25,0.5,,,,")
    flags = ["--focus", str(points), "--require-focus", "--keep-unknown"]
    assert run(*flags)[0] == 1
    assert [row["source"] for row in rows(tmp_path / "out" / "metadata.jsonl")] == ["a.png"]
    failures = rows(tmp_path / "out" / "failures.jsonl")
    assert {row["source"] for row in failures} == {"B.JPG", "berlin/c.webp", "berlin/x/d.png", "car.jpg", "car.webp"}
    assert {(row["reason"], row["stage"]) for row in failures} == {
        ("no subject: points.csv has no line for it", "focus")
    }
    unknown = tmp_path / "out-unknown"
    assert len([path for path in unknown.rglob("*") if path.is_file()]) == 5
    assert (unknown / "berlin" / "c.webp").read_bytes() == (photos / "berlin" / "c.webp").read_bytes()


def test_lines_of_the_csv_that_name_no_photo_are_told(run, tmp_path):
    code, out, _ = run("--focus", str(planted_points(tmp_path, "a.jpg,0.5,0.5,,,,")), "--limit", "1")
    assert code == 0
    assert " ".join(out.split()).count("1 of its lines names no photo of the dataset, such as 'a.jpg'") == 1


def test_an_output_goes_on_only_with_the_same_points(run, tmp_path):
    points = planted_points(tmp_path, "a.png,0.25,0.5,,,,")
    assert run("--focus", str(points))[0] == 0
    assert run("--focus", str(points))[0] == 0
    planted_points(tmp_path, "a.png,0.75,0.5,,,,")
    code, _, err = run("--focus", str(points))
    assert code == 2
    assert "points elsewhere in photos that are done, such as 'a.png'" in " ".join(err.split())


def test_a_points_file_may_grow_with_the_dataset(run, photos, tmp_path):
    lines = ["a.png,0.25,0.5,,,,", "berlin/c.webp,60,30,20,10.04,100,60"]
    points = planted_points(tmp_path, *lines)
    assert run("--focus", str(points))[0] == 0
    before = {row["source"]: row for row in rows(tmp_path / "out" / "metadata.jsonl")}
    (photos / "new.png").write_bytes((photos / "a.png").read_bytes())
    planted_points(tmp_path, *reversed(lines), "new.png,0.75,0.5,,,,")
    for _ in range(2):
        assert run("--focus", str(points))[0] == 0
    found = {row["source"]: row for row in rows(tmp_path / "out" / "metadata.jsonl")}
    assert found.pop("new.png")["points"][0] == [72, 32]
    assert found == before


def test_photos_that_are_to_be_pointed_at_elsewhere_are_done_anew_once_their_cut_outs_are_deleted(run, tmp_path):
    points = planted_points(tmp_path, "a.png,0.25,0.5,,,,")
    assert run("--focus", str(points))[0] == 0
    planted_points(tmp_path, "a.png,0.75,0.5,,,,", "B.JPG,0.4,0.4,,,,")
    for name in ("a.png", "B.JPG"):
        assert run("--focus", str(points))[0] == 2
        [row] = [row for row in rows(tmp_path / "out" / "metadata.jsonl") if row["source"] == name]
        (tmp_path / "out" / row["file_name"]).unlink()
    assert run("--focus", str(points))[0] == 0
    found = {row["source"]: row for row in rows(tmp_path / "out" / "metadata.jsonl")}
    assert (found["a.png"]["points"][0], found["B.JPG"]["focus"]) == ([72, 32], "point")


def test_a_cut_out_moved_by_hand_is_no_deleted_one(run, tmp_path):
    points = planted_points(tmp_path, "a.png,0.25,0.5,,,,")
    assert run("--focus", str(points))[0] == 0
    [row] = [row for row in rows(tmp_path / "out" / "metadata.jsonl") if row["source"] == "a.png"]
    other = "blue" if row["label"] != "blue" else "red"
    moved = tmp_path / "out" / other / "a.png"
    moved.parent.mkdir(exist_ok=True)
    (tmp_path / "out" / row["file_name"]).rename(moved)
    planted_points(tmp_path, "a.png,0.75,0.5,,,,")
    assert run("--focus", str(points))[0] == 2


class Everywhere:
    """A detector that finds a car on the left of wide photos, and nothing in others."""

    labels, digest = ("car", "truck"), "0" * 64

    def detect(self, images, *, fill=0):
        return [
            [Detection((2.0, 2.0, width / 2, height - 2.0), "car", 0.75)] if width > 110 else []
            for height, width in (image.shape[:2] for image in images)
        ]


def test_the_detectors_box_drives_sam_2_and_is_on_record(run, photos, sam2_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(detector_utilities, "load_detector", lambda *_, **__: Everywhere())
    assert run("--focus", "detector", "--focus-labels", "car", "--debug")[0] == 0
    found = {row["source"]: row for row in rows(tmp_path / "out" / "metadata.jsonl")}
    wide = found["berlin/c.webp"]
    assert (wide["focus"], wide["focus_label"], wide["focus_confidence"]) == ("detector", "car", 0.75)
    assert wide["focus_box"] == [2.0, 2.0, wide["width"] / 2, 62.0]
    assert found["a.png"]["focus"] == "center"
    image = read_photo(photos / "berlin" / "c.webp")
    focus = Focus("detector", tuple(wide["points"][0]), tuple(wide["focus_box"]))
    precision = select_precision("auto", "cpu", 256)
    [segmentation] = predict_sam2([image], load_sam2(str(sam2_checkpoint), precision=precision), focuses=[focus])
    assert wide["box"] == list(bounding_box(subject_mask(image, segmentation.mask_logits)))


def test_without_a_detection_a_required_focus_sets_aside(run, tmp_path, monkeypatch):
    monkeypatch.setattr(detector_utilities, "load_detector", lambda *_, **__: Everywhere())
    code, _, err = run("--focus", "detector", "--focus-labels", "car", "--require-focus")
    assert code == 1
    assert {row["reason"] for row in rows(tmp_path / "out" / "failures.jsonl")} == {
        "no subject: the detector finds none of car in the photo from a confidence of 0.4 on"
    }
    code, _, err = run("--focus", "detector", "--focus-labels", "cat", output=tmp_path / "other")
    assert code == 2
    assert "--focus-labels" in err
    assert "cat" in err


def test_a_cropped_cut_out_is_the_part_that_the_record_names(run, tmp_path):
    assert run("--background", "transparent")[0] == 0
    assert (
        run("--background", "transparent", "--crop", "--square", "--padding", "0.1", output=tmp_path / "crop")[0] == 0
    )
    whole = {row["source"]: row for row in rows(tmp_path / "out" / "metadata.jsonl")}
    for row in rows(tmp_path / "crop" / "metadata.jsonl"):
        before = np.asarray(Image.open(tmp_path / "out" / whole[row["source"]]["file_name"]))
        after = np.asarray(Image.open(tmp_path / "crop" / row["file_name"]))
        x0, y0, x1, y1 = row["crop"]
        assert after.shape == (y1 - y0, x1 - x0, 4)
        assert after.shape[0] == after.shape[1]
        left, top, right, bottom = row["box"]
        inside = after[top - y0 : bottom - y0, left - x0 : right - x0]
        np.testing.assert_array_equal(inside, before[top:bottom, left:right])
        assert (after[..., 3] > 0).sum() == (before[..., 3] > 0).sum()  # nothing is lost


@pytest.mark.parametrize("background", ["white", "transparent", "#204060"])
def test_soft_edges_end_in_the_background(run, tmp_path, background):
    assert run("--background", background, "--edges", "soft", "--feather", "2")[0] == 0
    for row in rows(tmp_path / "out" / "metadata.jsonl"):
        cut_out = np.asarray(Image.open(tmp_path / "out" / row["file_name"]))
        if background == "transparent":
            assert ((cut_out[..., 3] > 0) & (cut_out[..., 3] < 255)).any()
            assert (cut_out[cut_out[..., 3] == 0] == (255, 255, 255, 0)).all()
        else:
            assert (cut_out[..., 3] == 255).all()


def test_strict_sets_flagged_masks_aside(run, tmp_path):
    assert run("--min-area", "0.99", "--max-area", "1", "--strict")[0] == 1
    failures = rows(tmp_path / "out" / "failures.jsonl")
    assert failures
    assert all("is below --min-area" in row["reason"] and row["stage"] == "segment" for row in failures)


def test_the_grid_and_the_view_of_the_box_work_end_to_end(run, tmp_path):
    assert run("--focus", "grid", "--clip-view", "crop", "--clean-mask")[0] == 0
    for row in rows(tmp_path / "out" / "metadata.jsonl"):
        assert row["focus"] == "grid"
        assert 0 <= row["focus_confidence"] <= 1
