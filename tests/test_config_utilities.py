import json
import os
import re

import pytest

from config_utilities import (
    CONFIG_ONLY,
    MICRO_CLIP,
    MICRO_SAM2,
    PROGRAM_DIR,
    Settings,
    find_config,
    read_config,
    read_settings,
)
from errors import ConfigError

LISTS = {"prefixes": ["a"], "items": ["red"], "postfixes": ["car"]}


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_flags_override_the_config_which_overrides_the_defaults(tmp_path):
    path = write(tmp_path / "c.json", {**LISTS, "margin": 0.1, "sam_model": "sam2.1_hiera_small"})
    settings = read_settings({"config": str(path), "margin": 0.2})
    assert (settings.margin, settings.sam_model, settings.seed) == (0.2, "sam2.1_hiera_small", 3)


@pytest.mark.parametrize(
    ("key", "value", "name"),
    [("output_dir", "x", "output"), ("mask_threshold", 0.1, "margin"), ("force_device", "cpu", "device")],
)
def test_a_config_key_may_be_any_long_name_of_a_flag(tmp_path, key, value, name):
    assert read_config(write(tmp_path / "c.json", {**LISTS, key: value}))[name] == value


def test_words_lose_their_outer_and_double_spaces(tmp_path):
    path = write(tmp_path / "c.json", {"prefixes": ["a "], "items": ["  rose   gold"], "postfixes": [" car"]})
    assert read_config(path) == {"prefixes": ("a",), "items": ("rose gold",), "postfixes": ("car",)}


def test_a_byte_order_mark_is_no_part_of_the_config(tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(LISTS).encode())
    assert read_config(path)["items"] == ("red",)


def test_the_shipped_config_is_valid_and_used_where_the_folder_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(None) == PROGRAM_DIR / "config.json"
    assert len(read_settings({}).items) == 18


def test_a_config_in_the_current_folder_comes_before_the_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "config.json", LISTS)
    assert read_settings({}).items == ("red",)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{", ["line 1", "column 2"]),
        ("[1]", ["a list", "must be an object"]),
        ({**LISTS, "itmes": ["x"]}, ["'itmes'", "unknown key", "did you mean 'items'"]),
        ({**LISTS, "zzzzzz": 1}, ["'zzzzzz'", "known keys: dataset_dir"]),
        ({**LISTS, "config": "x"}, ["'config': belongs on the command line, as --config"]),
        ({**LISTS, "apply": "x.csv"}, ["'apply': belongs on the command line, as --apply"]),
        ({**LISTS, "colours": ["red"]}, ["'colours'", "must be an object, such as"]),
        ({**LISTS, "colours": {"red": "crimson"}}, ["'colours': 'red'", '"crimson"', 'a colour such as "#c81e1e"']),
        ({**LISTS, "csv_prefixes": []}, ["'csv_prefixes'", "the list is empty"]),
        ({**LISTS, "min_margin": 2}, ["'min_margin'", "between -1 and 1"]),
        ({**LISTS, "min_probability": 2}, ["'min_probability'", "between 0 and 1"]),
        ({**LISTS, "export": ["voc"]}, ["'export'", "some of coco, yolo, captions, imagefolder"]),
        ({**LISTS, "log": "/home/me/.profile"}, ["'log': belongs on the command line, as --log"]),
        ({**LISTS, "detector": "yolo:x.pt"}, ["'detector'", '"yolo:x.pt": belongs on the command line, as --detector']),
        ({**LISTS, "max_pixels": 0}, ["'max_pixels'", "between 1 and 2000000000"]),
        ('{"items": ["a"], "items": ["b"]}', ["'items'", "stands twice"]),
        ({**LISTS, "margin": 0.1, "mask_threshold": 0.1}, ["'mask_threshold'", "another name for 'margin'"]),
        ({"prefixes": ["a"], "items": ["red"]}, ["'postfixes' is missing"]),
        ({**LISTS, "items": []}, ["'items'", "empty", "at least one"]),
        ({**LISTS, "prefixes": []}, ["'prefixes'", 'use [""]']),
        ({**LISTS, "items": "red"}, ["'items'", '"red"', "must be a list of strings, not a string"]),
        ({**LISTS, "items": ["red", 7]}, ["'items'", "7", "must be a string, not a number"]),
        ({**LISTS, "items": ["red", None]}, ["'items'", "must be a string, not null"]),
        ({**LISTS, "items": ["red", " red "]}, ["'items'", "' red '", "same as 'red'"]),
        ({**LISTS, "items": ["Red", "red"]}, ["'items'", "same as 'Red'"]),
        ({**LISTS, "prefixes": ["a", "a "]}, ["'prefixes'", "same as 'a'"]),
        ({**LISTS, "margin": "0.1"}, ["'margin'", '"0.1"', "must be a number"]),
        ({**LISTS, "margin": True}, ["'margin'", "must be a number"]),
        ({**LISTS, "margin": 0.5}, ["'margin'", "below 0.5"]),
        ('{"prefixes": [""], "items": ["a"], "postfixes": [""], "margin": NaN}', ["'margin'", "must be a number"]),
        ({**LISTS, "no_sam": 1}, ["'no_sam'", "must be true or false"]),
        ({**LISTS, "decision": "best"}, ["'decision'", "'top-prompt' or 'item-sum' or 'ensemble'"]),
        ({**LISTS, "batch_size": 0}, ["'batch_size'", "at least 1 and at most 1024, or auto"]),
        ({**LISTS, "batch_size": "many"}, ["'batch_size'", "a whole number or 'auto'"]),
        ({**LISTS, "seed": -1}, ["'seed'", "between 0 and"]),
        ({**LISTS, "background": "blue"}, ["'background'", "#c0c0c0"]),
        ({**LISTS, "output": ""}, ["'output'", "must not be empty"]),
        ('{"items": ["\\ud83d"], "prefixes": [""], "postfixes": [""]}', ["'items'", "half a surrogate pair"]),
        ("[" * 100_000, ["nested too deeply"]),
        ('{"seed": ' + "9" * 5000 + "}", ["no usable JSON"]),
        ({**LISTS, "margin": 10**400}, ["'margin'", "must be a number"]),
    ],
)
def test_a_mistake_is_one_line_with_file_key_value_and_remedy(tmp_path, value, words):
    path = write(tmp_path / "c.json", value)
    with pytest.raises(ConfigError) as error:
        read_config(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("../x", "holds '/'"),
        ("a/b", "holds '/'"),
        ("a\\b", "holds '\\\\'"),
        ("..", "begins with a dot"),
        (".hidden", "begins with a dot"),
        ("a\0b", "holds '\\x00'"),
        ("a\x1bb", "holds '\\x1b'"),
        ("what?", "holds '?'"),
        ("C:", "holds ':'"),
        ("con", "Windows reserves"),
        ("LPT1.old", "Windows reserves"),
        ("trailing.", "ends in a dot"),
        ("  ", "is empty"),
        ("metadata.jsonl", "the output has a file of that name"),
        ("x" * 201, "longer than 200 bytes"),
    ],
)
def test_an_item_that_is_no_safe_folder_name_is_refused(tmp_path, item, problem):
    path = write(tmp_path / "c.json", {**LISTS, "items": ["red", item]})
    with pytest.raises(ConfigError, match=re.escape(problem)):
        read_config(path)


def test_a_missing_config_names_the_flag(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere.json: No such file or directory; name your file with --config"):
        read_settings({"config": str(tmp_path / "nowhere.json")})


def test_a_config_in_another_encoding_says_so(tmp_path):
    path = tmp_path / "c.json"
    path.write_bytes('{"items": ["gr\u00fcn"]}'.encode("latin-1"))
    with pytest.raises(ConfigError, match="is no UTF-8"):
        read_config(path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [({"margin": 0.7}, "--margin 0.7: must be at least 0"), ({"batch_size": 0}, "--batch-size 0: must be at least 1")],
)
def test_a_flag_out_of_range_is_named(flags, words):
    with pytest.raises(ConfigError, match=words):
        read_settings(flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"split": "0.8,0.2,0"}, "--split 0.8,0.2,0: of what[?] add --export"),
        ({"padding": 0.2}, "--padding: nothing is cropped; add --crop"),
        ({"square": True}, "--square: nothing is cropped; add --crop"),
    ],
)
def test_a_flag_without_effect_is_refused(flags, words):
    with pytest.raises(ConfigError, match=words):
        read_settings(flags)
    assert read_settings({**flags, "crop": True, "export": ("coco",)}).crop


def test_why_a_config_file_was_read_is_said_where_nobody_has_named_it(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"name": "of another tool"}')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"config.json: 'name': unknown key.*\(it is read because it lies in this folder"
    ):
        read_settings({})
    with pytest.raises(ConfigError) as caught:
        read_settings({"config": "config.json"})
    assert "it is read because" not in str(caught.value)


def test_no_config_file_starts_over(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads((PROGRAM_DIR / "config.json").read_text()) | {"overwrite": True}))
    with pytest.raises(ConfigError, match="'overwrite': belongs on the command line, as --overwrite"):
        read_settings({"config": str(path)})


def test_the_defaults_pass_their_own_checks():
    flags = {name: value for name, value in vars(Settings()).items() if name not in (*CONFIG_ONLY, "config", "given")}
    assert read_settings(flags).margin == Settings.margin


@pytest.mark.parametrize(
    ("in_config", "flags", "sam_model", "clip_model"),
    [
        ({}, {"micro": True}, MICRO_SAM2, MICRO_CLIP),
        ({"micro": True}, {}, MICRO_SAM2, MICRO_CLIP),
        ({"sam_model": "x", "clip_model": "y"}, {"micro": True}, MICRO_SAM2, MICRO_CLIP),
        ({"micro": True}, {"sam_model": "x"}, "x", MICRO_CLIP),
        ({}, {"micro": True, "clip_model": "y"}, MICRO_SAM2, "y"),
        ({}, {"demo": True}, MICRO_SAM2, MICRO_CLIP),
    ],
)
def test_micro_names_two_models_unless_the_same_place_names_others(tmp_path, in_config, flags, sam_model, clip_model):
    path = write(tmp_path / "c.json", {**LISTS, **in_config})
    settings = read_settings({"config": str(path), **flags})
    assert (settings.sam_model, settings.clip_model) == (sam_model, clip_model)
    assert settings.refine
    assert not read_settings({"config": str(path), **flags, "refine": False}).refine


def test_the_demonstration_reads_the_sample_photos_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_settings({"demo": True}).dataset_dir == str(PROGRAM_DIR / "dataset_cars")
    assert read_settings({"demo": True, "dataset_dir": "mine"}).dataset_dir == "mine"


def test_colours_go_by_the_items_as_they_are_written_everywhere(tmp_path):
    colours = read_config(write(tmp_path / "c.json", {**LISTS, "colours": {" dark  red ": "#5c1420"}}))["colours"]
    assert colours == {"dark red": "#5c1420"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"ray_actors": 2}, "--ray-actors 2: without Ray there are none; add --ray"),
        ({"ray": "local", "ray_actors": 0}, "--ray-actors 0: must be at least 1"),
        ({"ray": "local", "device": "cuda:1"}, "--device cuda:1: with --ray it is Ray that hands out the GPUs"),
        ({"ray": "local", "clip_device": "mps"}, "--clip-device mps: with --ray it is Ray that hands out the GPUs"),
        ({"output": "s3://bucket/out", "undo": True}, "--output s3://bucket/out: exports, and what is done with"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_flags_of_clusters_and_stores_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        read_settings(flags)


def test_a_file_url_is_read_as_its_path():
    settings = read_settings({"dataset_dir": "file:///data/my%20photos", "output": "FILE:///out"})
    assert (settings.dataset_dir, settings.output) == ("/data/my photos", "/out")
    settings = read_settings({"dataset_dir": "file:///a%E4#1?", "output": "file://LOCALHOST/out"})
    assert (settings.dataset_dir, settings.output) == (os.fsdecode(b"/a\xe4#1?"), "/out")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file://cutouts", "cutouts would be another machine; write file:///FOLDER"),
        ("FILE://server/share", "server would be another machine"),
        ("file://[::1/x", r"\[::1 would be another machine"),
        ("file://", "names no folder; write file:///FOLDER, or a path"),
        ("file://localhost", "names no folder"),
        ("file:///a%00b", "must not hold NUL; leave out %00"),
    ],
)
@pytest.mark.parametrize("name", ["dataset_dir", "output"])
def test_a_file_url_that_names_no_folder_of_this_machine_is_refused(name, url, words):
    flag = re.escape(f"--{name.replace('_', '-')} {url}: ")
    with pytest.raises(ConfigError, match=f"^{flag}{words}"):
        read_settings({name: url})


def test_a_format_that_is_named_twice_is_exported_once():
    assert Settings(export=("coco", "captions", "coco"), save_masks=True).exports == ("coco", "captions", "masks")
