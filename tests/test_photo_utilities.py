import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

import photo_utilities
from conftest import make_image, save_photo
from dataset_utilities import find_photos
from errors import NotAPhotoError, PhotoError, UserError
from photo_utilities import is_image, read_photo

# A picture of four quarters: which corner is which shows its orientation, which colour its conversion.
QUARTERS = np.zeros((40, 60, 3), np.uint8)
QUARTERS[:20, :30], QUARTERS[:20, 30:], QUARTERS[20:, :30], QUARTERS[20:, 30:] = (
    (200, 30, 40),
    (40, 180, 60),
    (50, 60, 190),
    (230, 220, 90),
)


def read(image, tmp_path, name="photo.png", **options):
    image.save(tmp_path / name, **options)
    return read_photo(tmp_path / name)


def test_a_lossless_rgb_photo_comes_back_pixel_for_pixel(tmp_path):
    image = read(Image.fromarray(QUARTERS), tmp_path)
    assert image.dtype == np.uint8
    assert (image == QUARTERS).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](QUARTERS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read(Image.fromarray(np.ascontiguousarray(stored)), tmp_path, "p.jpg", exif=exif, quality=95, subsampling=0)
    assert image.shape == QUARTERS.shape
    assert np.abs(image.astype(int) - QUARTERS).mean() < 3


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [6, 8])
def test_an_uncompressed_tiff_is_turned_without_being_scrambled(tmp_path, mode, orientation):
    stored = np.ascontiguousarray(np.rot90(QUARTERS) if orientation == 6 else np.rot90(QUARTERS, -1))
    image = Image.fromarray(stored)
    image = Image.fromarray(stored[..., 0].astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = read(image, tmp_path, "turned.tif", exif=exif)
    upright = read(image, tmp_path, "stored.tif")
    assert (turned == (np.rot90(upright, -1) if orientation == 6 else np.rot90(upright))).all()


def test_damaged_exif_costs_no_photo(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 1, "maker"
    data = io.BytesIO()
    Image.fromarray(QUARTERS).save(data, "JPEG", exif=exif)
    block = bytearray(data.getvalue())
    start = block.index(b"Exif") + 16
    for offset in range(start, start + 24):
        for value in (0, 255):
            damaged = block.copy()
            damaged[offset] = value
            (tmp_path / "photo.jpg").write_bytes(damaged)
            assert 60 in read_photo(tmp_path / "photo.jpg").shape


def with_alpha(image, alpha):
    return np.dstack([image, np.full(image.shape[:2], alpha, np.uint8)])


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(255, QUARTERS), (0, np.full_like(QUARTERS, 255)), (128, (QUARTERS.astype(int) + 255) // 2)],
    ids=["opaque", "transparent", "half"],
)
def test_alpha_is_laid_over_white(tmp_path, alpha, expected):
    image = read(Image.fromarray(with_alpha(QUARTERS, alpha)), tmp_path)
    assert np.abs(image.astype(int) - expected).max() <= 1


def test_the_transparent_colour_of_a_palette_becomes_white(tmp_path):
    palette = Image.fromarray(QUARTERS).quantize(4)
    transparent = palette.getpixel((0, 0))
    image = read(palette, tmp_path, transparency=transparent)
    assert (image[5, 5] == 255).all()
    assert np.abs(image[5, 50].astype(int) - QUARTERS[5, 50]).max() < 4


GREY = np.linspace(0, 65535, 60 * 40).reshape(40, 60)


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (Image.fromarray((GREY / 257).round().astype(np.uint8)), "8.png"),
        (Image.fromarray(GREY.astype(np.uint16)), "16.png"),
        (Image.fromarray(GREY.astype(np.uint16)), "16.tif"),
        (Image.fromarray(GREY.astype(np.int32)), "32.tif"),
        (Image.fromarray((GREY / 65535).astype(np.float32)), "unit float.tif"),
        (Image.fromarray((GREY / 257).astype(np.float32)), "byte float.tif"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_grey_of_any_depth_keeps_its_range(tmp_path, image, name):
    result = read(image, tmp_path, name)
    assert result.shape == (40, 60, 3)
    assert (result[..., 0] == result[..., 2]).all()
    assert np.abs(result[..., 0] - GREY / 257).max() <= 1


def test_a_dark_grey_of_16_bits_stays_dark_in_either_byte_order(tmp_path):
    dark = np.full((8, 8), 200, np.uint16)
    for mode in ("I;16", "I;16B"):
        stored = Image.frombytes(mode, (8, 8), dark.astype("<u2" if mode == "I;16" else ">u2").tobytes())
        assert (read(stored, tmp_path, "dark.tif") == 1).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "RGB"])
def test_every_mode_of_png_becomes_rgb(tmp_path, mode):
    white = read(Image.new("RGB", (8, 8), "white").convert(mode), tmp_path)
    assert (white == 255).all()
    assert white.shape == (8, 8, 3)


def test_cmyk_jpegs_keep_their_colours(tmp_path):
    image = read(Image.fromarray(QUARTERS).convert("CMYK"), tmp_path, "p.jpg", quality=95)
    assert np.abs(image.astype(int) - QUARTERS).mean() < 6


def test_a_cmyk_jpeg_with_adobes_inversion_is_no_negative(tmp_path):
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    data = io.BytesIO()
    cyan.save(data, "JPEG", quality=95)
    assert b"Adobe" in data.getvalue()  # Pillow writes Photoshop's inverted kind
    (tmp_path / "p.jpg").write_bytes(data.getvalue())
    assert np.abs(read_photo(tmp_path / "p.jpg")[8, 8].astype(int) - (0, 255, 255)).max() < 12


def test_a_colour_profile_is_converted_to_srgb(tmp_path):
    lab_red = Image.fromarray(np.full((8, 8, 3), (136, 208, 195), np.uint8), "LAB")
    expected = read(ImageCms.profileToProfile(
        lab_red, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    ), tmp_path)  # fmt: skip
    assert (read(lab_red, tmp_path, "lab.tif") == expected).all()


def swapped_profile():
    """A profile whose red and green primaries are those of sRGB in the other order."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    table = range(132, 132 + 12 * int.from_bytes(profile[128:132], "big"), 12)
    offsets = {profile[entry : entry + 4]: int.from_bytes(profile[entry + 4 : entry + 8], "big") for entry in table}
    red, green = offsets[b"rXYZ"], offsets[b"gXYZ"]
    swapped = bytearray(profile)
    swapped[red : red + 20], swapped[green : green + 20] = profile[green : green + 20], profile[red : red + 20]
    return bytes(swapped).replace("sRGB".encode("utf-16-be"), "odd!".encode("utf-16-be"))


@pytest.mark.parametrize(
    ("mode", "name"), [("RGB", "photo.png"), ("P", "photo.png"), ("RGBA", "photo.png"), ("RGB", "photo.jpg")]
)
def test_a_colour_profile_counts_in_every_mode_and_format(tmp_path, mode, name):
    image = Image.new("RGB", (8, 8), (200, 30, 40))
    image = image.quantize(2) if mode == "P" else image.convert(mode)
    pixel = read(image, tmp_path, name, icc_profile=swapped_profile())[4, 4].astype(int)
    assert np.abs(pixel - (30, 200, 40)).max() <= 3


def test_the_transparent_grey_of_16_bits_becomes_white(tmp_path):
    grey = np.full((8, 8), 1000, np.uint16)
    grey[0, 0] = 40000
    image = read(Image.fromarray(grey), tmp_path, transparency=1000)
    assert (image[4, 4] == 255).all()
    assert (image[0, 0] == round(40000 / 257)).all()


def test_a_16_bit_tiff_whose_zero_is_white_is_no_negative(tmp_path):
    image = read(Image.fromarray(np.zeros((8, 8), np.uint16)), tmp_path, "negative.tif", tiffinfo={262: 0})
    assert (image == 255).all()


def test_whole_numbers_have_no_white_below_255(tmp_path):
    image = read(Image.fromarray(np.ones((8, 8), np.int32)), tmp_path, "dark.tif")
    assert (image == 1).all()


def test_a_broken_profile_costs_no_photo(tmp_path):
    image = read(Image.fromarray(QUARTERS), tmp_path, icc_profile=b"no profile at all")
    assert (image == QUARTERS).all()


def test_an_srgb_profile_changes_no_pixel(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert (read(Image.fromarray(QUARTERS), tmp_path, icc_profile=profile) == QUARTERS).all()


def test_the_first_frame_of_an_animation_is_the_photo(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    image = read(frames[0], tmp_path, "a.gif", save_all=True, append_images=frames[1:])
    assert (image[0, 0] == (255, 0, 0)).all()


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "tif", "gif", "avif", "heic", "ppm", "tga"])
def test_common_formats_are_read(tmp_path, ending):
    pytest.importorskip("pillow_heif") if ending == "heic" else None
    photo_utilities.readable_formats()  # registers what is installed, for saving as well
    original = save_photo(tmp_path / f"photo.{ending}")
    assert np.abs(read_photo(tmp_path / f"photo.{ending}").astype(int) - original).mean() < 20


def test_the_contents_count_and_not_the_ending(tmp_path):
    Image.fromarray(QUARTERS).save(tmp_path / "photo.txt", "PNG")
    assert is_image(tmp_path / "photo.txt")
    assert (read_photo(tmp_path / "photo.txt") == QUARTERS).all()


@pytest.mark.parametrize("name", ["notes.txt", "data.json", "Makefile", "clip.mp4"])
def test_a_file_that_is_no_image_and_claims_to_be_none_is_skipped(tmp_path, name):
    (tmp_path / name).write_text("hello")
    assert not is_image(tmp_path / name)
    with pytest.raises(NotAPhotoError):
        read_photo(tmp_path / name)


def damaged(tmp_path, name, change):
    save_photo(tmp_path / name, 300, 200)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(change(data))
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("empty.jpg", lambda _: b"", "the file is empty"),
        ("text.jpg", lambda _: b"hello", "no image that is read here; these are: .*JPEG, TIFF"),
        ("TEXT.JPG", lambda _: b"hello", "no image that is read here; these are: .*JPEG, TIFF"),
        ("cut.jpg", lambda data: data[: len(data) // 2], "can't be read: .*truncated"),
        ("cut.png", lambda data: data[: len(data) // 2], "can't be read"),
        ("header.png", lambda data: data[:20], "can't be read"),
    ],
)
def test_an_unreadable_image_is_a_failure_with_its_reason(tmp_path, name, change, reason):
    with pytest.raises(PhotoError, match=reason) as error:
        read_photo(damaged(tmp_path, name, change))
    assert error.value.stage == "decode"


def save_tiff(path, tags):
    """Saves a TIFF of 2 x 2 grey pixels with further tags of one number each."""
    tags = {256: 2, 257: 2, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 2, 279: 4} | tags
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in sorted(tags.items()))
    path.write_bytes(struct.pack("<2sHI4BH", b"II", 42, 12, 0, 85, 170, 255, len(tags)) + directory + bytes(4))
    return path


@pytest.mark.parametrize("tags", [{50706: 0x0104}, {254: 1}], ids=["DNG", "NEF"])
def test_a_raw_file_is_not_taken_for_its_thumbnail(tmp_path, tags):
    with pytest.raises(PhotoError, match=r"camera raw, .*; export it as JPEG or TIFF"):
        read_photo(save_tiff(tmp_path / "photo.dng", tags))
    assert read_photo(save_tiff(tmp_path / "photo.tif", {254: 2}))[..., 0].tolist() == [[0, 85], [170, 255]]


def test_a_vanished_file_is_a_failure_with_its_reason(tmp_path):
    with pytest.raises(PhotoError, match="No such file"):
        read_photo(tmp_path / "gone.jpg")


def test_a_file_is_not_to_blame_that_too_many_are_open(tmp_path):
    resource = pytest.importorskip("resource")
    save_photo(tmp_path / "a.jpg")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for read in (read_photo, is_image, lambda path: list(find_photos(path.parent))):
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        try:
            with pytest.raises(UserError, match=r"Too many open files: .* lower --batch-size, or raise ulimit -n"):
                read(tmp_path / "a.jpg")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("max_pixels", [9998, 9999])
def test_a_photo_with_more_pixels_than_allowed_is_refused(tmp_path, max_pixels):
    save_photo(tmp_path / "photo.png", 100, 100)
    with pytest.raises(PhotoError, match=f"has 10,000 pixels, more than {max_pixels:,}; raise --max-pixels") as error:
        read_photo(tmp_path / "photo.png", max_pixels=max_pixels)
    assert error.value.stage == "decode"
    assert is_image(tmp_path / "photo.png")
    assert read_photo(tmp_path / "photo.png", max_pixels=10_000).shape == (100, 100, 3)


def test_postscript_is_never_run(tmp_path):
    Image.fromarray(make_image()).save(tmp_path / "program.eps")
    with pytest.raises(PhotoError, match="no image that is read here"):
        read_photo(tmp_path / "program.eps")


@pytest.mark.parametrize("head", [b"\x89HDF\r\n\x1a\n", b"GRIB\0\0\0\1", b"BUFR\0\0\0\4", b"\0\0\1\xb3" + b"\x10" * 20])
def test_a_format_that_pillow_only_recognises_is_no_photo(tmp_path, head):
    (tmp_path / "data.bin").write_bytes(head + bytes(100))
    with pytest.raises(NotAPhotoError):
        read_photo(tmp_path / "data.bin")


def test_heic_without_its_reader_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(photo_utilities, "readable_formats", lambda: ("PNG",))
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(PhotoError, match="pip install pillow-heif"):
        read_photo(tmp_path / "photo.heic")


@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0, "quality": 95},
        {"subsampling": 1, "quality": 80},
        {"subsampling": 2, "quality": 5},
        {"progressive": True},
        {"keep_rgb": True},
        {"restart_marker_blocks": 4},
        {"format": "MPO", "save_all": True, "append_images": [Image.new("RGB", (64, 48), "red")]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_jpeg_is_read_to_the_bit_as_pillow_reads_it(tmp_path, monkeypatch, options):
    path = tmp_path / "photo.jpg"
    Image.fromarray(make_image(201, 133)).save(path, **{"format": "JPEG", **options})
    with Image.open(path) as image:
        pillows = np.array(image.convert("RGB"))
    monkeypatch.setattr(photo_utilities, "_convert", None)  # it is not taken
    assert (read_photo(path) == pillows).all()


def test_a_damaged_jpeg_ends_as_pillow_would_have_it(tmp_path):
    path, rng, failures = tmp_path / "photo.jpg", np.random.default_rng(0), 0
    Image.fromarray(make_image(201, 133)).save(path)
    intact = path.read_bytes()
    for cut in range(400):
        damaged = bytearray(intact if cut % 2 else intact[: rng.integers(200, len(intact))])
        damaged[rng.integers(200, len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            with Image.open(path) as image:
                expected = np.array(image.convert("RGB"))
        except OSError:
            failures += 1
            with pytest.raises(PhotoError):
                read_photo(path)
        else:
            assert (read_photo(path) == expected).all()
    assert 100 < failures < 400
