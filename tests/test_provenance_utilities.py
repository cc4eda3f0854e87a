import hashlib
from dataclasses import fields, replace

import pytest

import provenance_utilities
import random_models
from checkpoint_utilities import CHECKPOINTS_DIR, PublicCheckpoint
from config_utilities import Settings
from device_utilities import Machine
from errors import CheckpointError
from provenance_utilities import deciding_settings, find_files, with_files

MACHINE = Machine("cpu", "fp32", "cpu", "fp32", 4, 4, compiled=False, threads=2, most_pixels=10**8)
WEIGHTS = {"clip_weights": "c", "detector_weights": "d"}


@pytest.fixture
def settings(sam2_checkpoint, clip_checkpoint, tmp_path):
    (tmp_path / "points.csv").write_text("file_name,x,y\na.jpg,0.5,0.5\n")
    return Settings(dataset_dir=str(tmp_path), sam_model=str(sam2_checkpoint), clip_model=str(clip_checkpoint))


# What results hang on, each with another value; of all else a run may be told anything, and the output goes on.
DECIDING = {
    "dataset_dir": "elsewhere",
    "clip_model": "ViT-B/32",
    "no_sam": True,
    "focus": "grid",
    "margin": 0.1,
    "focus_labels": ("car",),
    "focus_threshold": 0.5,
    "require_focus": True,
    "verify_focus": True,
    "refine": True,
    "clean_mask": 0.1,
    "edges": "soft",
    "feather": 2.0,
    "min_area": 0.1,
    "max_area": 0.9,
    "strict": True,
    "min_probability": 0.5,
    "min_margin": 0.1,
    "min_mask_score": 0.5,
    "check": True,
    "background": "transparent",
    "crop": True,
    "padding": 0.1,
    "square": True,
    "clip_view": "crop",
    "decision": "item-sum",
    "prefixes": ("a",),
    "items": ("red",),
    "postfixes": ("car",),
}


@pytest.mark.parametrize("name", DECIDING)
def test_what_results_hang_on_is_known_of_an_output(settings, name):
    if name.startswith("focus_"):
        settings = replace(settings, focus="detector")
    before = deciding_settings(settings, MACHINE, WEIGHTS)
    assert deciding_settings(replace(settings, **{name: DECIDING[name]}), MACHINE, WEIGHTS) != before


def test_what_no_result_hangs_on_is_not(settings):
    others = {field.name for field in fields(Settings)} - {*DECIDING, "sam_model", "sam_config"}
    changed = {name: {"red": "#ff0000"} if name == "colours" else "another" for name in others}
    before = deciding_settings(settings, MACHINE, WEIGHTS)
    assert deciding_settings(replace(settings, **changed), MACHINE, WEIGHTS) == before


def test_colours_count_where_labels_are_checked_against_them(settings):
    checked = replace(settings, check=True)
    before = deciding_settings(checked, MACHINE, WEIGHTS)
    assert deciding_settings(replace(checked, colours={"red": "#ff0000"}), MACHINE, WEIGHTS) != before


@pytest.mark.parametrize("change", ["precision", "clip_precision"])
def test_the_precision_counts_and_the_rest_of_the_machine_does_not(settings, change):
    before = deciding_settings(settings, MACHINE, WEIGHTS)
    assert deciding_settings(settings, replace(MACHINE, **{change: "bf16"}), WEIGHTS) != before
    assert deciding_settings(settings, replace(MACHINE, device="mps", batch_size=9), WEIGHTS) == before


@pytest.mark.parametrize("name", WEIGHTS)
def test_other_weights_of_clip_or_of_the_detector_count(settings, name):
    before = deciding_settings(settings, MACHINE, WEIGHTS)
    assert deciding_settings(settings, MACHINE, {**WEIGHTS, name: "other"}) != before


def test_files_count_by_their_contents_and_not_by_their_paths(settings, tmp_path):
    points = tmp_path / "points.csv"
    pointed = replace(settings, focus=str(points))
    before = deciding_settings(pointed, MACHINE, WEIGHTS)
    copy = points.rename(tmp_path / "copy.csv")
    other = random_models.save_random_sam2(tmp_path / "sam2.1_hiera_micro.pt")
    moved = replace(pointed, focus=str(copy), sam_model=str(other))
    assert deciding_settings(moved, MACHINE, WEIGHTS) == before
    random_models.save_random_sam2(other, seed=9)
    assert deciding_settings(moved, MACHINE, WEIGHTS) != before
    copy.write_text("file_name,x,y\na.jpg,0.5,0.6\n")
    assert deciding_settings(replace(moved, sam_model=settings.sam_model), MACHINE, WEIGHTS) != before


def test_paths_are_the_same_from_any_folder(settings, tmp_path, monkeypatch, clip_checkpoint):
    before = deciding_settings(settings, MACHINE, WEIGHTS)
    monkeypatch.chdir(clip_checkpoint.parent)
    relative = replace(settings, clip_model=clip_checkpoint.name)
    assert deciding_settings(relative, MACHINE, WEIGHTS) == before
    monkeypatch.chdir(tmp_path)
    assert deciding_settings(replace(settings, dataset_dir="."), MACHINE, WEIGHTS) == before


def test_an_output_of_before_a_flag_was_invented_goes_on(settings):
    assert not {"focus", "edges", "crop", "check", "strict"} & deciding_settings(settings, MACHINE, WEIGHTS).keys()


def test_the_files_that_other_machines_need_are_named_with_their_digests(settings, tmp_path):
    points, yolo = (tmp_path / "points.csv").rename(tmp_path / "points.CSV"), tmp_path / "mine.pt"
    yolo.write_bytes(b"boxes")
    needed = replace(settings, focus=str(points), detector=f"yolo:{yolo}", verify_focus=True)
    files = find_files(needed)
    suffixes = {"clip_model": ".pt", "sam_model": ".pt", "sam_config": ".yaml", "focus": ".CSV", "detector": ".pt"}
    assert {name: path.suffix for name, (path, _) in files.items()} == suffixes
    assert all(digest == hashlib.sha256(path.read_bytes()).hexdigest() for path, digest in files.values())
    there = with_files(needed, {name: f"/there/{name}" for name in files})
    assert (there.focus, there.detector) == ("/there/focus", "yolo:/there/detector")
    assert find_files(replace(settings, no_sam=True)).keys() == {"clip_model"}


@pytest.mark.parametrize("name", ["clip_model", "sam_model"])
def test_under_a_public_name_another_file_is_not_taken_to_other_machines(settings, tmp_path, monkeypatch, name):
    public = {"public": PublicCheckpoint(f"http://127.0.0.1:9/{tmp_path.name}.pt", "0" * 64)}
    monkeypatch.setattr(provenance_utilities, "clip_checkpoints", lambda: public)
    monkeypatch.setattr(provenance_utilities, "SAM2_CHECKPOINTS", public)
    (CHECKPOINTS_DIR / f"{tmp_path.name}.pt").write_bytes(b"another")
    named = replace(settings, **{name: "public"}, sam_config="sam2.1_hiera_t")
    with pytest.raises(CheckpointError, match="is not the public that was published"):
        find_files(named)
