from dataclasses import fields, replace

import pytest

import random_models
from config_utilities import Settings
from device_utilities import Machine
from provenance_utilities import deciding_settings

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
