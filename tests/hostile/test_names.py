"""Names from strangers: each photo is done once, under a name of its own that every reader of the dataset can use."""

import os
import pty
import re
import socket
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from conftest import make_image, save_photo
from program import command, contents, pngs, rows

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse most of these names")

NAMES = {
    "composed": "\u00e9t\u00e9.jpg",
    "decomposed": unicodedata.normalize("NFD", "\u00e9t\u00e9.jpg"),
    "no UTF-8": os.fsdecode(b"caf\xe9.jpg"),
    "as if escaped": "caf%E9.jpg",
    "a dash": "-rf.jpg",
    "a flag": "--overwrite.jpg",
    "a newline": "new\nline.jpg",
    "a carriage return": "one\rtwo.jpg",
    "an escape sequence": "\x1b[31m\x1b]0;title\x07.jpg",
    "a C1 sequence": "\u009b31m.jpg",
    "turned writing": "\u202egpj.exe.jpg",
    "markup": "[bold red]x[blink].jpg",
    "a formula": "=HYPERLINK(1).jpg",
    "HTML": "<img src=x onerror=alert(1)>.jpg",
    "a shell": "$(touch x);`y`&.jpg",
    "quotes": "'\".jpg",
    "a backslash": "up\\..\\up.jpg",
    "a percent": "100%s%n.jpg",
    "braces": "{0}{x}.jpg",
    "spaces": "  .jpg",
    "an ending alone": "a.",
    "no ending": "photo",
    "many endings": "a.jpg.png.jpg",
    "upper case": "CASE.jpg",
    "lower case": "case.jpg",
    "255 bytes": "a" * 251 + ".jpg",
    "255 bytes of letters that take two": "\u00fc" * 125 + ".jpeg",
    "255 bytes, another": "a" * 250 + "b.png",
    "a long ending": "x." + "y" * 253,
    "a device of Windows": "CON.jpg",
    "a file of the output": "metadata.jsonl",
    "an item": "red",
}


@pytest.fixture
def hostile(tmp_path):
    """A dataset of photos under all these names, beside what must never be opened or done."""
    folder = tmp_path / "hostile"
    folder.mkdir()
    for seed, name in enumerate(NAMES.values()):
        Image.fromarray(make_image(48 + seed, 40, seed)).save(folder / name, "PNG")
    save_photo(folder / ".hidden.jpg")
    save_photo(folder / "..dots.jpg")
    save_photo(folder / ".folder" / "a.jpg")
    save_photo(tmp_path / "elsewhere" / "linked.jpg")
    (folder / "link.jpg").symlink_to(tmp_path / "elsewhere" / "linked.jpg")
    (folder / "linked folder").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    (folder / "nowhere.jpg").symlink_to(tmp_path / "nothing")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        before = Path.cwd()
        os.chdir(folder)  # addresses of sockets are short
        listener.bind("socket.jpg")
        os.chdir(before)
    return folder


DONE = len(NAMES) + 1  # the link to a photo is followed
LOST = {"loop.jpg", "nowhere.jpg"}


def test_each_name_is_done_once_under_a_name_of_its_own(hostile, run, tmp_path):
    code, out, _ = run(dataset=hostile)
    assert code == 1
    assert f"{DONE} photos written, {len(LOST)} failed" in out
    assert {row["source"] for row in rows(tmp_path / "out" / "failures.jsonl")} == LOST
    records = rows(tmp_path / "out" / "metadata.jsonl")
    names = [row["file_name"] for row in records]
    assert len({unicodedata.normalize("NFC", name.partition("/")[2]).casefold() for name in names}) == DONE
    assert pngs(tmp_path / "out") == sorted(names)
    for name in names:
        assert max(len(part.encode()) for part in name.split("/")) <= 255
    widths = {row["source"]: row["width"] for row in records}
    expected = {name: 48 + seed for seed, name in enumerate(NAMES.values())} | {"link.jpg": 96}
    expected["caf%E9.jpg%"] = expected.pop(NAMES["no UTF-8"])  # its byte escaped, and told apart from the other
    assert widths == expected
    before = contents(tmp_path / "out")
    assert run(dataset=hostile)[0] == 1
    assert contents(tmp_path / "out") == before


def test_side_products_bear_these_names_too(hostile, run, tmp_path):
    flags = ["--debug", "--strict", "--max-area", "0.006", "--keep-unknown"]
    assert run(*flags, "--log", str(tmp_path / "log"), dataset=hostile)[0] == 1
    assert run("--debug", dataset=hostile, output=tmp_path / "other")[0] == 1
    failures = [row for row in rows(tmp_path / "out" / "failures.jsonl") if row["source"] not in LOST]
    assert {row["stage"] for row in failures} == {"segment"}
    copies = [path for path in (tmp_path / "out-unknown").rglob("*") if path.is_file()]
    assert len(copies) == len(failures) == DONE - len(rows(tmp_path / "out" / "metadata.jsonl"))
    assert len(list((tmp_path / "other-debug").rglob("*.jpg"))) == DONE


def test_no_name_steers_the_terminal_or_the_log(hostile, run, tmp_path):
    for name in NAMES.values():
        (hostile / name).write_bytes(b"")  # so that each is spoken of
    log = tmp_path / "run.log"
    code, out, err = run("--verbose", "--log", str(log), dataset=hostile)
    assert code == 1
    assert "[bold red]x[blink].jpg: failed" in out
    assert "\\x1b[31m\\x1b]0;title\\x07.jpg: failed" in out
    for text in (out, err, log.read_text(encoding="utf-8")):
        assert [c for c in text if not c.isprintable() and c != "\n"] == []
    failed = [line for line in out.splitlines() if ": failed in decode" in line]
    claiming = sum(Path(name).suffix in (".jpg", ".jpeg", ".png") for name in NAMES.values())
    assert len(failed) == claiming + len(LOST)


def test_nor_does_it_on_a_real_terminal(hostile, models, tmp_path):
    for name in NAMES.values():
        (hostile / name).write_bytes(b"")
    shown = bytearray()

    def read(descriptor):
        data = os.read(descriptor, 65536)
        shown.extend(data)
        return data

    with Path(os.devnull).open("wb") as nowhere:
        before = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            pty.spawn(command("-i", hostile, "-o", tmp_path / "out", *models), read)
        finally:
            os.dup2(before, 1)
            os.close(before)
    text = shown.decode()
    assert "failed in decode" in text
    rest = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)  # what rich draws its bar and its colours with
    assert [c for c in rest if not c.isprintable() and c not in "\r\n"] == []
    assert "\\x1b[31m\\x1b]0;title\\x07.jpg" in rest
    assert "[bold red]x[blink].jpg" in rest


@pytest.mark.parametrize("inside", ["dataset", "output"])
def test_paths_that_are_too_long_fail_alone(run, tmp_path, inside):
    dataset = tmp_path / "deep"
    save_photo(dataset / "a.jpg")
    # The path of the photo fits into 4,095 bytes, that of its folder's contents or of its cut-out does not.
    room = 4095 - len(str(dataset).encode()) - len("/b.jpg")
    depth, rest = divmod(room + (60 if inside == "dataset" else 0), 201)
    folder = os.open(dataset, os.O_RDONLY)
    for part in [*["d" * 200] * depth, "e" * (rest - 1)] if rest > 1 else ["d" * 200] * depth:
        os.mkdir(part, dir_fd=folder)
        folder, before = os.open(part, os.O_RDONLY, dir_fd=folder), folder
        os.close(before)
    photo = (dataset / "a.jpg").read_bytes()
    os.write(os.open("b.jpg", os.O_WRONLY | os.O_CREAT, dir_fd=folder), photo)
    os.close(folder)
    code, out, _ = run(
        dataset=dataset, output=tmp_path / "an output with a name that is longer than that of the dataset"
    )
    assert code == 1
    assert "1 photo written, 1 failed" in out
    [failure] = rows(tmp_path / "an output with a name that is longer than that of the dataset" / "failures.jsonl")
    assert "File name too long" in failure["reason"]
    assert failure["stage"] == {"dataset": "decode", "output": "write"}[inside]
