import numpy as np
import pytest
from PIL import Image

from conftest import make_image
from mask_utilities import cut_out
from png_utilities import encode_png
from record_utilities import TEMPORARY
from thumbnail_utilities import redraw_missing, save_thumbnails, source_digest, thumbnail_names


def read(folder, source):
    cut, photo = (Image.open(folder / name) for name in thumbnail_names(source))
    return np.asarray(cut.convert("RGBA")).astype(int), np.asarray(photo.convert("RGB")).astype(int)


def ellipse(height, width):
    rows, columns = np.mgrid[:height, :width]
    return ((rows - height / 2) / (height / 3)) ** 2 + ((columns - width / 2) / (width / 3)) ** 2 < 1


def test_a_photo_and_its_cut_out_become_two_small_pictures(tmp_path):
    image, mask = make_image(800, 600), ellipse(600, 800)
    save_thumbnails(tmp_path, "berlin/a.jpg", image, alpha=255 * mask.astype(np.uint8), crop=None)
    cut, photo = read(tmp_path, "berlin/a.jpg")
    assert cut.shape == (192, 256, 4)
    assert photo.shape == (192, 256, 3)
    assert (cut[0, 0, 3], cut[96, 128, 3]) == (0, 255)
    assert abs((cut[..., 3] > 127).mean() - mask.mean()) < 0.01
    small = np.asarray(Image.fromarray(image).resize((256, 192), Image.Resampling.BOX)).astype(int)
    assert np.abs(photo - small).mean() < 6
    assert np.abs(cut[96, 80:176, :3] - small[96, 80:176]).mean() < 10


@pytest.mark.parametrize("size_wh", [(1, 1), (1, 3000), (3000, 1), (255, 257), (40, 30)])
def test_any_size_has_thumbnails(tmp_path, size_wh):
    image = np.full((size_wh[1], size_wh[0], 3), 90, np.uint8)
    save_thumbnails(tmp_path, "a", image, alpha=np.full(image.shape[:2], 255, np.uint8), crop=None)
    cut, photo = read(tmp_path, "a")
    assert max(cut.shape[:2]) == max(photo.shape[:2]) == min(256, max(size_wh))
    assert (cut[..., 3] == 255).all()


def test_a_photo_that_was_not_cut_is_its_own_cut_out(tmp_path):
    save_thumbnails(tmp_path, "a", make_image(300, 200), alpha=None, crop=None)
    cut, photo = read(tmp_path, "a")
    assert (cut[..., 3] == 255).all()
    assert np.abs(cut[..., :3] - photo).mean() < 6


def test_a_crop_beyond_the_photo_is_clear_there(tmp_path):
    image, alpha = np.full((100, 200, 3), 200, np.uint8), np.full((100, 200), 255, np.uint8)
    save_thumbnails(tmp_path, "a", image, alpha=alpha, crop=(50, -25, 200, 125))
    cut, _ = read(tmp_path, "a")
    assert cut.shape == (150, 150, 4)
    assert (cut[:24, :, 3] == 0).all()
    assert (cut[27:122, :, 3] == 255).all()
    assert (cut[127:, :, 3] == 0).all()


def test_names_have_nothing_of_the_source_in_them():
    cut, photo = thumbnail_names("../<b>.jpg")
    digest = source_digest("../<b>.jpg")
    assert (cut, photo) == (f"thumbnails/{digest[:2]}/{digest}.webp", f"thumbnails/{digest[:2]}/{digest}.jpg")
    assert source_digest("\ud83d") != source_digest("a")


def test_no_temporary_file_stays(tmp_path):
    save_thumbnails(tmp_path, "a", make_image(), alpha=None, crop=None)
    names = [path.name for path in tmp_path.rglob("*.*") if path.is_file()]
    assert len(names) == 2
    assert not any(map(TEMPORARY.fullmatch, names))


@pytest.mark.parametrize("background", ["white", "transparent"])
def test_what_is_missing_is_drawn_from_the_files(tmp_path, background):
    image, mask = make_image(400, 300), ellipse(300, 400)
    row = {"file_name": "red/a.png", "source": "a.png", "flags": ["review"], "crop": None}
    (tmp_path / "review" / "red").mkdir(parents=True)
    (tmp_path / "review" / "red" / "a.png").write_bytes(encode_png(cut_out(image, mask, background), mask))
    (tmp_path / "photos").mkdir()
    Image.fromarray(image).save(tmp_path / "photos" / "a.png")
    gone = {**row, "source": "b.png", "file_name": "red/b.png"}
    drawn = []
    missing = redraw_missing(
        tmp_path,
        [row, gone],
        output=tmp_path / "out",
        review=tmp_path / "review",
        dataset_dir=tmp_path / "photos",
        on_progress=lambda: drawn.append(1),
    )
    assert (missing, len(drawn)) == (1, 2)
    cut, photo = read(tmp_path, "a.png")
    save_thumbnails(tmp_path, "again", image, alpha=255 * mask.astype(np.uint8), crop=None)
    cut_again, photo_again = read(tmp_path, "again")
    assert (photo == photo_again).all()
    assert np.abs(cut[..., 3] - cut_again[..., 3]).mean() < 1
    inside = cut[..., 3] == 255
    assert np.abs(cut[inside] - cut_again[inside]).mean() < 4
