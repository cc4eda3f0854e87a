"""config.json, points.csv and a SAM 2 .yaml as attacks: one line each, whatever they hold, without much memory."""

import contextlib
import json
import os
import random
import threading
import time

import pytest

import focus_utilities
import sam_utilities
from config_utilities import read_config, read_settings
from errors import CheckpointError, ConfigError, PhotoError
from focus_utilities import PointRow, read_points, row_focus, stray_names
from program import count_refusals
from prompt_utilities import get_prompts
from sam_utilities import build_sam2, find_config, load_sam2, read_image_size
from test_weights import damaged

resource = pytest.importorskip("resource", reason="Windows has no pipes in folders, and counts memory in another way")

LISTS = {"prefixes": ["a"], "items": ["red"], "postfixes": ["car"]}


def memory():
    """The most that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


@contextlib.contextmanager
def one_line(kind, path):
    """Expects an error in one line of bounded length that names the file; yields a list that it ends up in."""
    messages = []
    before = memory()
    with pytest.raises(kind) as error:
        yield messages
    messages.append(str(error.value))
    assert str(path) in messages[0]
    assert "\n" not in messages[0]
    assert len(messages[0]) < 1000 + len(str(path))
    assert memory() - before < 1000


def save(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def config(**changes):
    return json.dumps({**LISTS, **changes})


CONFIGS = {
    "empty": (b"", "line 1, column 1: no JSON: Expecting value"),
    "spaces without an end": (b" " * (17 << 20), "is larger than 16 MB; name your file with --config"),
    "a text without an end": (b'{"items": ["' + b"x" * (15 << 20), "no JSON: Unterminated string"),
    "UTF-16": (config().encode("utf-16"), "byte 0 is no UTF-8; save the file as UTF-8"),
    "UTF-16 without a mark": (config().encode("utf-16-le"), "line 1, column 2: no JSON"),
    "Latin-1": ('{"items": ["grün"]}'.encode("latin-1"), "byte 14 is no UTF-8"),
    "a mark in the middle": (b"\xef\xbb\xbf\xef\xbb\xbf" + config().encode(), "line 1, column 1: no JSON"),
    "a key twice": ('{"items": ["a"], "items": ["b"]}', "'items' stands twice; keep one of them"),
    "a key twice, deep inside": ('{"items": [[{"a": {"b": 1, "b": 2}}]]}', "'b' stands twice; keep one of them"),
    "a long key twice": ('{"%s": 1, "%s": 2}' % (("k" * 1_000_000,) * 2), "kkk... stands twice; keep one of them"),
    "a long key": (config(**{"k" * 10_000_000: 1}), "kkk...: unknown key; known keys: dataset_dir"),
    "nested lists": (b"[" * 5_000_000, "nested too deeply; it holds settings and three lists"),
    "nested objects": (b'{"a":' * 2_000_000, "nested too deeply; it holds settings and three lists"),
    "a nested value": (config(margin=None).replace("null", "[" * 900 + "]" * 900), "'margin': [[[[[[[...]]]]]]]: must"),
    "millions of lists": (b'{"items": [' + b"[]," * 2_000_000 + b"[]]}", "'items': a list of 2,000,001; shorten it"),
    "millions of words": (b'{"items": [' + b'"a",' * 2_000_000 + b'"a"]}', "'items': a list of 2,000,001; shorten it"),
    "a number of many digits": (config(seed=None).replace("null", "9" * 1_000_000), "a number of thousands of digits"),
    "NaN": (config(margin=float("nan")), "'margin': NaN: must be a number"),
    "infinity": (config(margin=float("inf")), "'margin': Infinity: must be a number"),
    "a number beyond all": (config(margin=None).replace("null", "1e999"), "'margin': Infinity: must be a number"),
    "a large number": (config(seed=10**4000), "000...: must lie between 0 and 4294967295"),
    "photos without an end at once": (config(batch_size=10**9), "'batch_size': 1000000000: must be at least 1 and at"),
    "half a character": (config(items=["\ud83d"]), "'items': '\\ud83d': holds half a surrogate pair"),
    "half a character in a path": (config(output="out\ud83d"), "'output': \"out\ud83d\": holds half a surrogate pair"),
    "half a character in a key": (config(**{"\udc80": 1}), "'\\udc80': unknown key"),
    "NUL in a path": (config(focus="a\0.csv"), "'focus': \"a\\u0000.csv\": must not be empty or hold NUL"),
    "a long path": (config(output="x" * 5000), "xxx...: must have at most 4,096 characters"),
    "a long word": (config(prefixes=["x" * 1001]), "xxx...: has 1,001 of 1,000 characters at most"),
    "a megabyte for the tokenizer": (config(items=["a " * 500_000]), " ...: has 1,000,000 of 1,000 characters at most"),
    "too many prompts": (
        config(**{key: [f"{key} {number}" for number in range(47)] for key in LISTS}),
        "47 prefixes x 47 items x 47 postfixes make 103,823 prompts, more than 100,000; shorten the lists",
    ),
    "a trillion prompts": (
        config(**{key: [f"{key} {number}" for number in range(10_000)] for key in LISTS}),
        "make 1,000,000,000,000 prompts, more than 100,000",
    ),
}


@pytest.mark.parametrize(("content", "words"), CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_is_an_attack_is_refused_in_one_line(tmp_path, content, words):
    path = save(tmp_path / "c.json", content)
    with one_line(ConfigError, path) as messages:
        read_config(path)
    assert words in messages[0]


def test_as_many_prompts_as_allowed_are_made(tmp_path):
    lists = {"prefixes": [f"a {n}" for n in range(10)], "items": [f"b {n}" for n in range(10_000)], "postfixes": ["c"]}
    values = read_config(save(tmp_path / "c.json", json.dumps(lists)))
    assert len(get_prompts(values["prefixes"], values["items"], values["postfixes"])) == 100_000


ITEMS = {
    **dict.fromkeys(["..", ".", "...", ".git"], "it begins with a dot, which hides it"),
    **dict.fromkeys(["../x", "a/../../x", "/etc", "//server/share", "a/"], "it holds '/'"),
    **dict.fromkeys(["..\\x"], "it holds '\\\\'"),
    **dict.fromkeys(["C:", "C:\\x", "a:stream"], "it holds ':'"),
    **dict.fromkeys(["a\0", "\0"], "it holds '\\x00'"),
    **dict.fromkeys(["a\x1b[2Jb", "\x7f", "\x9b"], "it holds '\\x"),
    **dict.fromkeys(["a\u202etxt.exe", "\u2066a\u2069"], "it holds '\\u20"),
    **dict.fromkeys(["a\u200bb", "\ufeffa", "a\u00adb", "\U000e0041"], "it holds '\\"),
    **dict.fromkeys(["CON", "con.txt", "Aux ", "nul.", "COM1", "lpt9.jpg"], "Windows reserves that name"),
    **dict.fromkeys(["com\u00b9", "LPT\u00b3", "conin$", "COM0"], "Windows reserves that name"),
    **dict.fromkeys(["README.md", "metadata.jsonl", "metadata.j\u017fonl", "Failures.JSONL"], "the output has a file"),
    **dict.fromkeys(["", " ", "\n\t", "\u00a0\u2003"], "it is empty"),
    **dict.fromkeys(["a.", "a. .", "\u00e4" * 200, "\U0001f697" * 51], "it "),
}


@pytest.mark.parametrize(("item", "problem"), ITEMS.items(), ids=map(ascii, ITEMS))
def test_an_item_is_never_another_place_than_a_folder_of_the_output(tmp_path, item, problem):
    path = save(tmp_path / "c.json", config(items=["red", item]))
    with one_line(ConfigError, path) as messages:
        read_config(path)
    assert "can't be the name of a folder: " in messages[0]
    assert problem in messages[0] or "it ends in a dot" in messages[0]


@pytest.mark.parametrize(
    "items",
    [["\u00e9", "e\u0301"], ["K", "\u212a"], ["\u00df", "SS"], ["a  b", "a\u00a0b"], ["\u03c3", "\u03c2"]],
    ids=["composed", "Kelvin", "sharp s", "spaces", "final sigma"],
)
def test_items_that_only_some_file_systems_tell_apart_are_refused(tmp_path, items):
    path = save(tmp_path / "c.json", config(items=items))
    with one_line(ConfigError, path) as messages:
        read_config(path)
    assert "is the same as" in messages[0]


def test_a_config_without_an_end_is_read_only_so_far():
    with one_line(ConfigError, "/dev/zero") as messages:
        read_settings({"config": "/dev/zero"})
    assert messages == ["/dev/zero: is larger than 16 MB; name your file with --config"]


def test_a_config_that_is_a_folder_is_named(tmp_path):
    with one_line(ConfigError, tmp_path) as messages:
        read_settings({"config": str(tmp_path)})
    assert messages == [f"{tmp_path}: Is a directory; name your file with --config"]


def test_a_config_from_a_pipe_is_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    writer = threading.Thread(target=save, args=(tmp_path / "pipe.json", config()))
    writer.start()
    assert read_config(tmp_path / "pipe.json")["items"] == ("red",)
    writer.join()


MICRO = find_config("sam2.1_hiera_micro").read_text(encoding="utf-8")


def micro(old, new):
    """The config of the micro model with something else in one place."""
    assert MICRO.count(old) >= 1
    return MICRO.replace(old, new, 1)


HIERA = "_target_: sam2.modeling.backbones.hieradet.Hiera"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)

YAMLS = {
    "empty": ("", "describes no SAM 2 model"),
    "a text": ("model", "describes no SAM 2 model"),
    "a list": ("[1, 2]", "describes no SAM 2 model"),
    "no model": ("model: null", "describes no SAM 2 model"),
    "not even YAML": ("model: [", "describes no SAM 2 model: while parsing"),
    "bytes": (b"\xff\xfe\0", "describes no SAM 2 model: 'utf-8' codec can't decode byte 0xff"),
    "a large file": (f"# {'x' * 20_000}\n{MICRO}", "it has more than 16384 bytes"),
    "a command": (
        "model: {_target_: os.system, command: touch CREATED}",
        "model._target_: 'os.system' stands there in no config of SAM 2",
    ),
    "a command in a place of its own": (
        f"x: {{_target_: os.system, command: touch CREATED}}\n{MICRO}",
        "x._target_: 'os.system' stands there",
    ),
    "a command deep inside": (micro(HIERA, "_target_: os.system"), "model.image_encoder.trunk._target_: 'os.system'"),
    "a command in a list": (
        micro("stages: [1, 2, 5, 2]", "stages: [{_target_: os.system, command: touch CREATED}]"),
        "model.image_encoder.trunk.stages._target_: 'os.system' stands there",
    ),
    "a command as an argument": (
        micro("scalp: 1", 'scalp: {_target_: builtins.exec, _args_: [\'open("CREATED", "w")\']}'),
        "model.image_encoder.scalp._target_: 'builtins.exec' stands there",
    ),
    "a name below a known one": (
        micro(HIERA, "_target_: sam2.modeling.backbones.hieradet.Hiera.forward.__globals__"),
        "__globals__' stands there in no config",
    ),
    "another module of sam2": (
        micro(HIERA, "_target_: sam2.build_sam._hf_download"),
        "_hf_download' stands there in no config",
    ),
    "a known one elsewhere": (
        micro(HIERA, "_target_: sam2.modeling.memory_encoder.Fuser"),
        "'sam2.modeling.memory_encoder.Fuser' stands there in no config",
    ),
    "a partial model": (
        micro(HIERA, f"_partial_: true\n      {HIERA}"),
        "model.image_encoder.trunk._partial_: 'True' stands there",
    ),
    "weights from elsewhere": (
        micro(HIERA, f"weights_path: /etc/passwd\n      {HIERA}"),
        "model.image_encoder.trunk.weights_path: '/etc/passwd' stands there",
    ),
    "Python objects": ("model: !!python/object/apply:os.system [touch CREATED]", "could not determine a constructor"),
    "the environment": (micro(HIERA, "_target_: ${oc.env:HOME}"), "refers to '${oc.env:HOME}'; write it out"),
    "the environment, escaped": (micro("nearest", '"\\x24{oc.env:HOME}"'), "refers to '${oc.env:HOME}'; write it out"),
    "the environment in a key": (micro("scalp: 1", '"${oc.env:HOME}": 1'), "refers to '${oc.env:HOME}'"),
    "a reference": (micro("d_model: 128", "d_model: ${model.image_size}"), "refers to '${model.image_size}'; write it"),
    "nested references": (f'a: "{"${" * 5_000}"\n{MICRO}', "refers to '${${"),
    "a billion values": (f"{BOMB}{MICRO}", "line 1 refers to 'a'; write it out"),
    "a value within itself": ("model: &m [*m]", "line 1 refers to 'm'; write it out"),
    "nested lists": ("model: " + "[" * 10_000, "line 1: nested deeper than 10"),
    "nested objects": ("model: " + "{a: " * 3_000, "line 1: nested deeper than 10"),
    "nested dashes": ("- " * 8_000, "line 1: nested deeper than 10"),
    "a text as a size": (micro("embed_dim: 32", "embed_dim: many"), "describes no SAM 2 model"),
    "a date as a size": (micro("embed_dim: 32", "embed_dim: 2024-01-01"), "describes no SAM 2 model"),
    "no model of SAM 2": (
        "model: {image_encoder: {_target_: sam2.modeling.backbones.image_encoder.ImageEncoder}}",
        "describes no SAM 2 model",
    ),
}


@pytest.mark.parametrize(("content", "words"), YAMLS.values(), ids=YAMLS)
def test_a_yaml_that_is_an_attack_is_refused_in_one_line(tmp_path, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "secret")
    path = save(tmp_path / "mine.yaml", content)
    assert read_image_size(path) in (256, 1024)
    with one_line(CheckpointError, path) as messages:
        build_sam2(path)
    assert words in messages[0]
    assert "secret" not in messages[0]
    assert list(tmp_path.iterdir()) == [path]


def test_a_config_of_ones_own_is_used(tmp_path, sam2_checkpoint):
    path = save(tmp_path / "mine.yaml", micro("image_size: 256", "image_size: 128"))
    assert load_sam2(str(sam2_checkpoint), str(path)).image_size == 128
    assert read_image_size(path) == 128


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a long name", "a device"])
def test_what_is_no_file_is_no_config_of_a_model(tmp_path, kind):
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    paths = {
        "a folder": tmp_path / "folder.yaml",
        "a pipe": tmp_path / "pipe.yaml",
        "a long name": tmp_path / f"{'x' * 5000}.yaml",
        "a device": tmp_path / "zero.yaml",
    }
    with pytest.raises(
        CheckpointError, match=r"--sam-config .*\.yaml: no such config; use a path to a .yaml or one of"
    ):
        find_config(str(paths[kind]))


HEADER, BOXES = "file_name,x,y\n", "file_name,x,y,x0,y0,x1,y1\n"

POINTS = {
    "a line without an end": (b"x" * 5_000_000, "line 1: no CSV: field larger than field limit (131072)"),
    "a line of many columns": (b"x," * 600_000, "line 1: 'x,x,x,"),
    "zeros": (bytes(3_000_000), "line 1: no CSV: field larger than field limit"),
    "a quote without an end": (HEADER + '"' + "a,1,2\n" * 100_000, "no CSV: field larger than field limit (131072)"),
    "a huge field": (HEADER + f"{'a' * 200_000},1,2\n", "line 2: no CSV: field larger than field limit (131072)"),
    "UTF-16": ((HEADER + "a.jpg,1,2\n").encode("utf-16"), r"line 1: b'\xff': no UTF-8; save the file as UTF-8"),
    "UTF-16 without a mark": ((HEADER + "a,1,2\n").encode("utf-16-le"), "the column file_name is missing; the first"),
    "Latin-1, far below": (
        HEADER.encode() + b"a" * 100 + b",1,2\r\n" + b"".join(b"%d,1,2\r\n" % n for n in range(5000)) + b"\xe4,1,2\n",
        r"line 5003: b'\xe4': no UTF-8; save the file as UTF-8",
    ),
    "Latin-1 after carriage returns": (b"file_name,x,y\ra,1,2\r\xe4,1,2\r", r"line 3: b'\xe4': no UTF-8"),
    "two marks": ("\ufeff\ufeff" + HEADER, r"the column file_name is missing; the first line must be"),
    "a number of many digits": (HEADER + f"a.jpg,{'9' * 100_000},1\n", "99...': x is no finite number; write pixels"),
    "an empty name": (HEADER + ",1,2\n", "line 2: '': no file_name"),
    "one name in two lines": (HEADER + "\n\na,1,2\nb,1,2\na,3,4\n", "line 6: 'a': stands in line 4, too; keep one"),
    "a box that ends before it begins": (BOXES + "a,1,2,1e308,0,1,1\n", "an empty box; x0 must be less than x1"),
}


@pytest.mark.parametrize(("content", "words"), POINTS.values(), ids=POINTS)
def test_a_points_file_that_is_an_attack_is_refused_in_one_line(tmp_path, content, words):
    path = save(tmp_path / "points.csv", content)
    with one_line(ConfigError, path) as messages:
        read_points(path)
    assert words in messages[0]


def test_a_points_file_without_an_end_is_read_only_so_far(tmp_path):
    (tmp_path / "points.csv").symlink_to("/dev/zero")
    with one_line(ConfigError, tmp_path / "points.csv") as messages:
        read_points(tmp_path / "points.csv")
    assert "line 1: no CSV: field larger than field limit" in messages[0]


def test_a_points_file_of_too_many_rows_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(focus_utilities, "_MOST_ROWS", 3)
    path = save(tmp_path / "points.csv", HEADER + "".join(f"{n},1,2\n" for n in range(4)))
    with one_line(ConfigError, path) as messages:
        read_points(path)
    assert "line 5: '3': row 4; divide the dataset" in messages[0]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=ascii)
def test_lines_may_end_in_any_way(tmp_path, end):
    path = save(tmp_path / "points.csv", f"\ufefffile_name,x,y{end}a.jpg,1,2{end}{end}b.jpg,3,4")
    assert read_points(path) == {"a.jpg": PointRow((1, 2)), "b.jpg": PointRow((3, 4))}


def test_pixels_beyond_all_photos_are_the_photos_problem(tmp_path):
    rows = read_points(save(tmp_path / "points.csv", BOXES + "a,1e308,1e308,,,,\nb,1,1,0,0,1e308,1e308\n"))
    for row in rows.values():
        with pytest.raises(PhotoError, match=r"its (point|box) .*1e\+308 .* its 640 x 480 pixels"):
            row_focus(row, 640, 480)


NAMES = [
    "a\0.jpg",
    "x" * 5000,
    "/".join(["x"] * 3000),
    "../outside.jpg",
    "/dev/zero",
    "sub/../../outside.jpg",
    "con",
    "\n",
]


def test_names_of_a_points_file_are_looked_up_inside_the_dataset_and_never_opened(tmp_path):
    dataset = tmp_path / "photos"
    (dataset / "sub").mkdir(parents=True)
    save(dataset / "sub" / "a.jpg", b"")
    save(tmp_path / "outside.jpg", b"")
    os.mkfifo(dataset / "pipe.jpg")  # to open it would wait for ever
    absolute = str(dataset / "sub" / "a.jpg")
    rows = [*NAMES, "sub/a.jpg", "pipe.jpg", "sub", absolute]
    assert stray_names(rows, dataset) == [*NAMES, "pipe.jpg", "sub", absolute]


def test_only_the_first_thousand_names_are_looked_up(tmp_path):
    assert len(stray_names([f"{number}.jpg" for number in range(5000)], tmp_path)) == 1000


def test_rows_are_small(tmp_path, soak, figure):
    count = 1_000_000 if soak else 50_000
    content = "".join(f"folder/photo_{n:07}.jpg,{n / count},0.5,{n / count / 2},0.25,0.9,0.75\n" for n in range(count))
    path = save(tmp_path / "points.csv", BOXES + content)
    began, before = time.monotonic(), memory()
    rows = read_points(path)
    figure("points", f"{count:,} rows in {time.monotonic() - began:.1f} s, {memory() - before:.0f} MB")
    assert len(rows) == count
    assert not hasattr(next(iter(rows.values())), "__dict__")


READERS = {
    "config.json": (read_config, config(margin=0.1, items=["r\u00f6t", "blue"], focus_labels=["car"]), ConfigError),
    "points.csv": (read_points, f'\ufeff{BOXES}a.jpg,1,2,,,,\r\n"b ""c"", d.jpg",3,4,0,0,9,9\n', ConfigError),
    "mine.yaml": (sam_utilities._read_config, MICRO, CheckpointError),
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_bytes_end_in_one_line_or_in_settings(tmp_path, name, soak, figure):
    tries = 20_000 if soak else 300
    read, content, refusal = READERS[name]

    def attempt(seed):
        read(save(tmp_path / name, damaged(content.encode(), random.Random(seed))))

    refused = count_refusals(tries, attempt, refusal)
    figure(f"damaged files, {name}", f"{tries}, {refused} refused, the others read")
