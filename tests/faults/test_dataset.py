"""Datasets that change while they are read."""

import os
import shutil
import sys

import pytest

import flow_utilities
from conftest import save_photo
from program import results, rows

SOURCE = "1/04.jpg"  # a photo in the middle of `many_photos`


@pytest.fixture
def before_opening(monkeypatch):
    """Lets something happen to the dataset right before one of its photos is opened, once."""

    def prepare(happen):
        happenings = [happen]
        open_photo = flow_utilities._open_photo

        def open_late(file, max_pixels):
            if file.source == SOURCE and happenings:
                happenings.pop()(file.path)
            return open_photo(file, max_pixels)

        monkeypatch.setattr(flow_utilities, "_open_photo", open_late)

    return prepare


def to_fifo(path):
    path.unlink()
    os.mkfifo(path)


def to_folder(path):
    path.unlink()
    path.mkdir()


def to_link_in_a_loop(path):
    path.unlink()
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("happen", "reason"),
    [
        (lambda path: path.unlink(), "can't be read: No such file or directory"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:2000]), "can't be read: "),
        (lambda path: path.write_text("<html>"), "the contents are no image"),
        (to_folder, "can't be read: "),
        pytest.param(to_fifo, "no regular file", marks=pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs")),
        (to_link_in_a_loop, "can't be read: Too many levels of symbolic links"),
    ],
    ids=["deleted", "emptied", "cut short", "another thing", "a folder", "a FIFO", "a link in a loop"],
)
def test_a_photo_that_changes_after_the_scan_fails_alone(many_photos, run, tmp_path, before_opening, happen, reason):
    before_opening(happen)
    code, out, _ = run(dataset=many_photos)
    assert code == 1
    assert "29 photos written, 1 failed" in out
    [failure] = rows(tmp_path / "out" / "failures.jsonl")
    assert (failure["source"], failure["stage"]) == (SOURCE, "decode")
    assert reason in failure["reason"]


def test_a_photo_that_is_replaced_by_another_is_the_other(many_photos, run, tmp_path, before_opening):
    before_opening(lambda path: save_photo(path, 96, 64, 999))
    assert run(dataset=many_photos)[0] == 0
    found = {row["source"]: row for row in rows(tmp_path / "out" / "metadata.jsonl")}
    assert (found[SOURCE]["width"], found[SOURCE]["height"]) == (96, 64)


def test_a_dataset_that_goes_away_stops_the_run_instead_of_failing_each_photo(
    many_photos, run, tmp_path, before_opening, undisturbed
):
    before_opening(lambda _: many_photos.rename(tmp_path / "elsewhere"))
    code, out, err = run(dataset=many_photos)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{many_photos}: is gone (No such file or directory); bring it back" in err
    assert "photos written, 0 failed" in out
    (tmp_path / "elsewhere").rename(many_photos)
    assert run(dataset=many_photos)[0] == 0
    assert results(tmp_path / "out") == undisturbed


def test_a_disk_that_is_unmounted_leaves_another_folder_in_its_place(many_photos, run, tmp_path, before_opening):
    def unmount(_):
        many_photos.rename(tmp_path / "elsewhere")
        many_photos.mkdir()

    before_opening(unmount)
    code, _, err = run(dataset=many_photos)
    assert code == 2
    assert "is gone (another folder is there now)" in err
    assert rows(tmp_path / "out" / "failures.jsonl") == []


def test_a_subfolder_that_goes_away_is_a_failure_until_it_is_back(many_photos, run, tmp_path, before_opening):
    before_opening(lambda _: shutil.move(many_photos / "2", tmp_path / "2"))
    code, out, _ = run(dataset=many_photos)
    assert code == 1
    assert "20 photos written, 1 failed" in out
    [failure] = rows(tmp_path / "out" / "failures.jsonl")
    assert failure == {"source": "2", "reason": "can't be listed: No such file or directory", "stage": "decode"}


def test_a_photo_that_comes_while_the_run_goes_on_is_done_by_this_run_or_the_next(
    many_photos, run, tmp_path, before_opening
):
    before_opening(lambda _: [save_photo(many_photos / folder / "new.jpg") for folder in "02"])
    assert run(dataset=many_photos)[0] == 0
    assert run(dataset=many_photos)[0] == 0
    sources = [row["source"] for row in rows(tmp_path / "out" / "metadata.jsonl")]
    assert len(sources) == len(set(sources)) == 32
