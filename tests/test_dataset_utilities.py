import os
import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import save_photo
from dataset_utilities import PhotoFile, copy_name, count_files, find_photos, output_names, watch_dataset
from errors import DatasetError, PhotoError
from photo_utilities import read_photo


def names(*files, is_image=lambda _: True):
    return output_names(files, is_image=is_image)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["car.jpg"], ["car.png"]),
        (["A.JPG"], ["A.png"]),
        (["car"], ["car.png"]),
        (["a.b.jpg"], ["a.b.png"]),
        (["car.jpg", "car.webp", "bus.jpg"], ["car.jpg.png", "car.webp.png", "bus.png"]),
        (["A.JPG", "a.png"], ["A.JPG.png", "a.png.png"]),
        (["car.jpg", "car.webp", "car.jpg.png"], ["car.jpg.png", "car.webp.png", "car.jpg.png.png"]),
    ],
    ids=" ".join,
)
def test_names_of_cut_outs(files, expected):
    assert [names(*files)[file] for file in files] == expected


def test_a_note_beside_a_photo_does_not_lengthen_its_name():
    assert names("car.jpg", "car.txt", is_image=lambda name: name.endswith(".jpg"))["car.jpg"] == "car.png"


def test_names_that_differ_only_in_case_or_normal_form_are_told_apart():
    composed, decomposed = "é.jpg", unicodedata.normalize("NFD", "é.jpg")
    results = list(names("Car.jpg", "car.jpg", composed, decomposed).values())
    folded = {unicodedata.normalize("NFC", name).casefold() for name in results}
    assert len(folded) == 4


@given(
    st.sets(st.text(alphabet="aAé\u0301.jpng1", min_size=1, max_size=8).filter(lambda name: name[0] != "."), max_size=8)
)
def test_names_never_meet_even_where_case_does_not_count(files):
    results = names(*sorted(files)).values()
    assert len({unicodedata.normalize("NFC", name).casefold() for name in results}) == len(files)


@given(st.text(min_size=1, max_size=255).filter(lambda text: "/" not in text and "\0" not in text))
def test_names_fit_into_255_bytes_of_valid_unicode(file):
    file = os.fsdecode(file.encode(errors="replace")[:255])
    [name] = names(file).values()
    assert len(name.encode()) <= 255
    assert name.endswith(".png")


def test_two_long_names_with_the_same_beginning_stay_apart():
    assert len(set(names("x" * 254 + "a", "x" * 254 + "b").values())) == 2


def test_photos_come_folder_by_folder_in_sorted_order(tmp_path):
    for source in ("b.jpg", "a.jpg", "sub/c.jpg", "sub/deep/d.jpg", "other/e.jpg"):
        save_photo(tmp_path / source)
    photos = list(find_photos(tmp_path))
    assert [photo.source for photo in photos] == ["a.jpg", "b.jpg", "other/e.jpg", "sub/c.jpg", "sub/deep/d.jpg"]
    assert photos[3].name == "sub/c.png"
    assert all(photo.path.is_file() for photo in photos)
    assert count_files(tmp_path) == 5


def test_hidden_files_and_the_output_are_left_out(tmp_path):
    for source in ("a.jpg", "._a.jpg", ".thumbs/b.jpg", "output/red/a.png"):
        save_photo(tmp_path / source, format="PNG")
    assert [photo.source for photo in find_photos(tmp_path, exclude=[tmp_path / "output"])] == ["a.jpg"]


def test_outputs_of_earlier_runs_are_left_out_with_what_stands_beside_them(tmp_path, caplog):
    for source in ("a.jpg", "cars-2/b.jpg", "cars-review.jpg", "sub/cars/red/a.png", "sub/cars-review/red/b.png"):
        save_photo(tmp_path / source)
    for source in ("sub/cars-debug/a.jpg", "sub/cars-unknown/c.jpg", "sub/cars-report/d.jpg", "sub/cars-new/e.jpg"):
        save_photo(tmp_path / source)
    (tmp_path / "sub/cars/.run.json").write_text("{}")
    expected = ["a.jpg", "cars-review.jpg", "cars-2/b.jpg", "sub/cars-new/e.jpg"]
    assert [photo.source for photo in find_photos(tmp_path)] == expected
    assert caplog.messages == []
    assert count_files(tmp_path) == len(expected)
    [message] = caplog.messages
    assert message.startswith(f"outputs of earlier runs among the photos: 1, such as {tmp_path / 'sub/cars'}; ")


def test_a_dataset_may_itself_be_an_output(tmp_path):
    save_photo(tmp_path / "red" / "a.png")
    (tmp_path / ".run.json").write_text("{}")
    assert [photo.source for photo in find_photos(tmp_path)] == ["red/a.png"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path, caplog):
    save_photo(tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    assert [photo.source for photo in find_photos(tmp_path / "photos")] == ["link.jpg"]
    assert count_files(tmp_path / "photos") == 1
    assert caplog.messages == [f"links to folders: 1, such as {tmp_path / 'photos/loop'}; they are not followed"]


@pytest.mark.parametrize(
    ("target", "reason"),
    [("nowhere.jpg", "the link leads nowhere: nowhere.jpg"), ("a.jpg", "can't be read: Too many levels of")],
    ids=["nowhere", "itself"],
)
def test_a_link_that_leads_nowhere_is_a_failure(tmp_path, target, reason):
    (tmp_path / "a.jpg").symlink_to(target)
    [photo] = find_photos(tmp_path)
    with pytest.raises(PhotoError, match=reason):
        read_photo(photo.path)


def test_a_link_to_a_device_is_no_photo(tmp_path):
    (tmp_path / "a.jpg").symlink_to("/dev/null")
    assert list(find_photos(tmp_path)) == []


def test_a_folder_that_is_called_like_a_cut_out_keeps_its_name(tmp_path):
    save_photo(tmp_path / "car.jpg")
    save_photo(tmp_path / "car.png" / "a.jpg")
    assert [photo.name for photo in find_photos(tmp_path)] == ["car.jpg.png", "car.png/a.png"]


def test_a_pipe_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert list(find_photos(tmp_path)) == []


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take valid Unicode only")
def test_bytes_that_are_no_utf_8_become_escapes_in_the_name(tmp_path):
    (tmp_path / os.fsdecode(b"gr\xfcn.jpg")).write_bytes(b"x")
    [photo] = find_photos(tmp_path)
    assert (photo.source, photo.name) == ("gr%FCn.jpg", "gr%FCn.png")
    assert photo.path.read_bytes() == b"x"


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take valid Unicode only")
def test_escaped_names_stay_apart_from_names_that_look_escaped(tmp_path):
    for name in (b"gr\xfcn", b"gr%FCn"):
        save_photo(tmp_path / os.fsdecode(name) / "a.jpg")
        save_photo(tmp_path / os.fsdecode(name + b".jpg"))
    photos = list(find_photos(tmp_path))
    assert len({photo.source for photo in photos}) == len({photo.name for photo in photos}) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="there it is a slash")
def test_no_name_of_a_cut_out_has_a_backslash(tmp_path):
    sources = ["a%5Cb.jpg", "a%5Cb/c.jpg", "a\\b.jpg", "a\\b/c.jpg", "a\\b/d\\e.jpg", "x%5Cy.jpg", "x\\y.png/z.jpg"]
    for source in sources:
        save_photo(tmp_path / source)
    photos = list(find_photos(tmp_path))
    assert sorted(photo.source for photo in photos) == sources
    assert all(photo.path.is_file() for photo in photos)
    names = {photo.source: photo.name for photo in photos}
    assert "\\" not in "".join(names.values())
    assert len(set(names.values())) == len(sources)
    assert names["x%5Cy.jpg"] != "x%5Cy.png"  # which is the other's folder
    folders = {source: name.rpartition("/")[0] for source, name in names.items()}
    assert folders["a%5Cb/c.jpg"] != folders["a\\b/c.jpg"] == folders["a\\b/d\\e.jpg"]


def test_a_missing_dataset_names_the_flag(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere: No such file or directory; .* --dataset-dir"):
        list(find_photos(tmp_path / "nowhere"))


def test_a_subfolder_that_can_not_be_listed_is_reported_and_the_rest_is_found(tmp_path, monkeypatch):
    save_photo(tmp_path / "a.jpg")
    save_photo(tmp_path / "locked" / "b.jpg")
    scandir = os.scandir

    def refuse(folder):
        if os.fspath(folder).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    reported = []
    photos = list(find_photos(tmp_path, on_unreadable=lambda folder, error: reported.append((folder, error.strerror))))
    assert [photo.source for photo in photos] == ["a.jpg"]
    assert reported == [("locked", "Permission denied")]
    assert count_files(tmp_path) == 1
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(DatasetError, match="locked: can't be listed: Permission denied; mend its permissions"):
        count_files(tmp_path)


@pytest.mark.parametrize(
    ("source", "name", "pattern"),
    [
        ("sub/a.JPG", "sub/a.png", r"sub/a\.JPG"),
        ("car.webp", "car.webp.png", r"car\.webp\.webp"),
        ("photo", "photo.png", "photo"),
        ("x." + "y" * 200, "x.png", "x"),
        ("a" * 250 + ".jpeg", "a" * 251 + ".png", r"a{241}-[0-9a-f]{8}\.jpeg"),
    ],
    ids=["a photo", "one of two", "no ending", "no ending, but a dot", "255 bytes"],
)
def test_a_copy_of_a_photo_keeps_its_ending(source, name, pattern):
    copy = copy_name(PhotoFile(None, source, name))
    assert re.fullmatch(pattern, copy)
    assert len(copy.encode()) <= 255


def test_a_dataset_is_watched_for_being_another_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    check = watch_dataset(tmp_path / "photos")
    save_photo(tmp_path / "photos" / "a.jpg")
    check()
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=r"photos: is gone \(No such file or directory\); bring it back"):
        check()
    (tmp_path / "photos").mkdir()
    with pytest.raises(DatasetError, match="another folder is there now"):
        check()
