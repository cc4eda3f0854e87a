"""Photos from strangers: each is read as a viewer shows it, or refused with its reason, in bounded time and memory."""

import gc
import json
import os
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hostile_images
import photo_utilities
from errors import NotAPhotoError, PhotoError
from hostile_images import (
    GIF_DISPOSAL,
    PIXELS,
    QUARTERS,
    SMALL_ROWS,
    bmp,
    exif,
    exif_of_fractions,
    frames,
    gif,
    grey_tags,
    jpeg_of_size,
    jpeg_segment,
    pcx,
    png,
    png_chunk,
    profile_without_description,
    psd,
    saved,
    sgi,
    tga,
    tiff,
    tile_tags,
    tiny_precincts,
    webp_canvas,
    with_scans,
    with_size_property,
)
from photo_limit_utilities import BYTES_PER_PIXEL
from photo_utilities import is_image, open_regular, read_photo

SMALL_GREY = np.arange(96, dtype=np.uint8).reshape(8, 12)
needs_heif = pytest.mark.skipif("HEIF" not in photo_utilities.readable_formats(), reason="needs pillow-heif")


@pytest.fixture
def write(tmp_path):
    """Writes a photo and returns its path."""

    def call(contents, name="photo.png"):
        path = tmp_path / name
        path.write_bytes(contents)
        return path

    return call


@pytest.fixture
def refusal(write):
    """Returns why a photo is refused."""

    def call(contents, name="photo.png", **options):
        with pytest.raises(PhotoError) as error:
            read_photo(write(contents, name), **options)
        assert error.value.stage == "decode"
        return error.value.reason

    return call


# --- what is odd, and a photo all the same


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (30_000, 3), (3, 30_000)], ids=str)
@pytest.mark.parametrize("ending", ["png", "tif", "bmp", "ppm", "tga", "sgi", "pcx"])
def test_a_photo_of_any_shape_is_read_pixel_for_pixel(write, ending, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    kind = Image.registered_extensions()[f".{ending}"]
    assert (read_photo(write(saved(pixels, kind), f"photo.{ending}")) == pixels).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (16_383, 2), (2, 16_383)], ids=str)
@pytest.mark.parametrize(("ending", "options"), [("webp", {"lossless": True}), ("jpg", {"quality": 95}), ("gif", {})])
def test_a_narrow_photo_of_another_format_is_read(write, ending, options, size):
    pixels = np.full((*size, 3), (200, 30, 40), np.uint8)
    contents = saved(pixels, Image.registered_extensions()[f".{ending}"], **options)
    assert np.abs(read_photo(write(contents, f"photo.{ending}")).astype(int) - pixels).max() <= 4


@pytest.mark.parametrize(
    ("ending", "options"),
    [
        ("png", {}),
        ("tif", {}),
        ("tif", {"compression": "tiff_lzw"}),
        ("webp", {"lossless": True}),
    ],
    ids=["PNG", "TIFF", "LZW TIFF", "WebP"],
)
def test_every_orientation_is_turned_upright(write, ending, options):
    stored = {
        1: QUARTERS,
        2: QUARTERS[:, ::-1],
        3: QUARTERS[::-1, ::-1],
        4: QUARTERS[::-1],
        5: QUARTERS.transpose(1, 0, 2),
        6: np.rot90(QUARTERS),
        7: QUARTERS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(QUARTERS, -1),
    }
    for orientation, pixels in stored.items():
        kind = Image.registered_extensions()[f".{ending}"]
        contents = saved(np.ascontiguousarray(pixels), kind, exif=exif(orientation), **options)
        assert (read_photo(write(contents, f"photo.{ending}")) == QUARTERS).all()


RED, GREEN = (255, 0, 0), (0, 255, 0)


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (b"\0\xff\x12\x00\x34\x00\x56", {"bits": 16}, [[255, 0, 0]]),
        (b"\0\x80\xff\x20\x00\x40\x00\xff\xff", {"bits": 16, "colour": 6}, [[128, 32, 64]]),
        (b"\0\x80\x00\xff\xff", {"bits": 16, "colour": 4}, [[128, 128, 128]]),
        (b"\0\xa0", {"bits": 1, "colour": 0, "width": 3}, [[255] * 3, [0] * 3, [255] * 3]),
        (b"\0\x1b", {"bits": 2, "colour": 0, "width": 4}, [[0] * 3, [85] * 3, [170] * 3, [255] * 3]),
    ],
    ids=["16-bit RGB", "16-bit RGBA", "16-bit grey and alpha", "1-bit", "2-bit"],
)
def test_a_png_of_any_depth_keeps_its_colours(write, rows, options, expected):
    width = {"width": 1, **options}["width"]
    contents = png(width, 1, rows, **{key: value for key, value in options.items() if key != "width"})
    assert (read_photo(write(contents)) == np.array([expected])).all()


def test_each_colour_of_a_palette_has_its_own_transparency(write):
    palette = png_chunk(b"PLTE", bytes([200, 0, 0, 0, 200, 0, 0, 0, 200])) + png_chunk(b"tRNS", bytes([0, 51, 255]))
    image = read_photo(write(png(3, 1, b"\0\0\1\2", colour=3, before=palette)))
    assert image.tolist() == [[[255, 255, 255], [204, 244, 204], [0, 0, 200]]]


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF", "MPO", "WEBP", "AVIF", pytest.param("HEIF", marks=needs_heif)])
def test_of_several_pictures_in_a_file_the_first_is_the_photo(write, kind):
    contents = saved(Image.new("RGB", (12, 8), RED), kind, **frames("blue", "lime"))
    image = read_photo(write(contents, "photo.dat")).astype(int)
    assert image.shape == (8, 12, 3)
    assert np.abs(image - RED).max() <= 12


def test_a_tiff_whose_pages_go_round_in_circles_shows_its_first(write):
    contents = tiff(grey_tags(12, 8), SMALL_GREY.tobytes(), next_page=8)
    assert (read_photo(write(contents, "photo.tif"))[..., 0] == SMALL_GREY).all()


@pytest.mark.parametrize("name", ["photo.jpg", "photo.heic", "photo.tga", "photo.txt", "photo"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "GIF"])
def test_an_ending_that_lies_is_no_matter(write, kind, name):
    path = write(saved(Image.new("RGB", (8, 8), RED), kind, **({"lossless": True} if kind == "WEBP" else {})), name)
    assert is_image(path)
    assert (read_photo(path) == RED).all()


@pytest.mark.parametrize("ending", ["tga", "dib"])
def test_a_format_without_a_signature_needs_its_ending(write, ending):
    contents = saved(QUARTERS, ending.upper())
    assert (read_photo(write(contents, f"photo.{ending}")) == QUARTERS).all()
    with pytest.raises(NotAPhotoError):
        read_photo(write(contents, "photo.dat"))


def test_a_film_behind_the_picture_counts_for_nothing(write):
    film = bytes.fromhex("ffda0008") * 5000
    for options in ({}, {"progressive": True}):
        contents = saved(QUARTERS, "JPEG", quality=95, subsampling=0, **options)
        assert np.abs(read_photo(write(contents + film, "motion.jpg")).astype(int) - QUARTERS).mean() < 3


@pytest.mark.parametrize(
    "contents",
    [
        png(8, 8, SMALL_ROWS, before=png_chunk(b"eXIf", exif_of_fractions(0x0112, 600_000))),
        saved(np.zeros((8, 8, 3), np.uint8), "WEBP", lossless=True, exif=exif_of_fractions(0x0112, 600_000)),
        png(8, 8, SMALL_ROWS, before=png_chunk(b"eXIf", b"Exif\0\0MM")),
        saved(np.zeros((8, 8, 3), np.uint8), "PNG", icc_profile=bytes(100_000)),
        saved(np.zeros((8, 8, 3), np.uint8), "WEBP", lossless=True, icc_profile=profile_without_description(65_000)),
        tiff({**grey_tags(8, 8), 34675: (3, [1, 2, 3])}, bytes(64)),
        tiff({**grey_tags(8, 8), 37724: (7, bytes(17_000_000))}, bytes(64)),
    ],
    ids=[
        "EXIF with 600,000 orientations in PNG",
        "and in WebP",
        "EXIF cut short",
        "a profile of zeros",
        "a profile of 65,000 steps",
        "a profile of numbers",
        "a tag of 17 MB",
    ],
)
def test_blocks_that_do_harm_cost_no_photo(write, contents):
    assert (read_photo(write(contents, "photo.dat")) == np.zeros((8, 8, 3))).all()


def test_a_profile_with_steps_is_applied_where_it_is_short(write):
    contents = saved(QUARTERS, "PNG", icc_profile=profile_without_description(3))
    assert (read_photo(write(contents)) != QUARTERS).any()


# --- what is too large


LARGE = {
    "PNG": (png(20_000, 20_000), "png"),
    "JPEG": (jpeg_of_size(saved(QUARTERS, "JPEG"), 60_000, 50_000), "jpg"),
    "progressive JPEG": (jpeg_of_size(saved(QUARTERS, "JPEG", progressive=True), 60_000, 50_000), "jpg"),
    "GIF": (gif(65_535, 65_535), "gif"),
    "GIF with a large frame": (gif(8, 8, frame=(60_000, 60_000)), "gif"),
    "GIF with a background": (gif(60_000, 60_000, before=GIF_DISPOSAL), "gif"),
    "BMP": (bmp(100_000, 100_000, b""), "bmp"),
    "BMP upside down": (bmp(100_000, -16_000_000, b""), "bmp"),
    "TIFF": (tiff(grey_tags(100_000, 100_000)), "tif"),
    "compressed TIFF": (tiff({**grey_tags(100_000, 100_000), 259: (3, 5)}), "tif"),
    "PSD": (psd(300_000, 300_000, b""), "psd"),
    "PCX": (pcx(60_000, 60_000), "pcx"),
    "PPM": (b"P6 20000 20000 255\n", "ppm"),
    "SGI": (sgi(60_000, 60_000), "sgi"),
    "TGA": (tga(60_000, 60_000), "tga"),
    "WebP": (webp_canvas(16_383, 16_383), "webp"),
    "AVIF": (with_size_property(saved(QUARTERS, "AVIF"), 16_383, 16_383), "avif"),
}


@pytest.mark.parametrize(("contents", "ending"), LARGE.values(), ids=LARGE)
def test_a_decompression_bomb_is_refused_by_its_header(write, refusal, contents, ending):
    reason = refusal(contents, f"bomb.{ending}")
    assert "pixels, more than 200,000,000; raise --max-pixels, or make it smaller" in reason
    assert is_image(write(contents, f"bomb.{ending}"))


@needs_heif
def test_a_heic_that_lies_about_its_size_is_refused(refusal):
    contents = saved(Image.new("RGB", (64, 64)), "HEIF")
    assert "has 400,000,000 pixels" in refusal(with_size_property(contents, 20_000, 20_000), "photo.heic")
    assert "can't be read" in refusal(with_size_property(contents, 80, 40), "photo.heic")


@needs_heif
def test_a_heic_counts_with_what_its_frame_crops(write, refusal):
    contents = saved(QUARTERS, "HEIF")  # its pixels are 64 x 64, of which it shows 60 x 40
    assert "has 4,096 pixels, more than 4,000" in refusal(contents, "photo.heic", max_pixels=4000)
    assert read_photo(write(contents, "photo.heic"), max_pixels=4096).shape == (40, 60, 3)


@pytest.mark.parametrize(("width", "height"), [(6000, 4000), (60, 24), (8, 8)])
def test_a_jpeg_is_as_large_as_its_header_says(write, width, height):
    contents = jpeg_of_size(saved(QUARTERS, "JPEG"), width, height)
    assert read_photo(write(contents, "photo.jpg")).shape == (height, width, 3)


def test_the_limit_is_that_of_the_call_and_not_of_an_earlier_one(write, refusal):
    for kind in ("PNG", "WEBP", "GIF"):
        contents = saved(QUARTERS, kind)
        assert "has 2,400 pixels, more than 2,399" in refusal(contents, max_pixels=2399)
        assert read_photo(write(contents), max_pixels=2400).shape == (40, 60, 3)
        assert "has 2,400 pixels, more than 1,000" in refusal(contents, max_pixels=1000)


@pytest.mark.parametrize("size", [(1, 1_000_001), (1_000_001, 1)], ids=str)
def test_a_side_has_at_most_a_million_pixels(refusal, size):
    assert "a side over 1,000,000" in refusal(png(*size, colour=0))


@pytest.mark.parametrize(
    ("contents", "ending"),
    [
        (png(0, 8), "png"),
        (png(8, 0), "png"),
        (jpeg_of_size(saved(QUARTERS, "JPEG"), 0, 40), "jpg"),
        (jpeg_of_size(saved(QUARTERS, "JPEG"), 60, 0), "jpg"),
        (gif(0, 0), "gif"),
        (bmp(0, 8, b""), "bmp"),
        (tiff(grey_tags(0, 8)), "tif"),
        (b"P6 0 8 255\n", "ppm"),
        (psd(8, 0, b""), "psd"),
        (sgi(0, 8), "sgi"),
        (tga(8, 0), "tga"),
        (with_size_property(saved(QUARTERS, "AVIF"), 0, 40), "avif"),
        pytest.param(b"heic", "heic", marks=needs_heif),
    ],
    ids=str,
)
def test_a_photo_without_pixels_is_refused(refusal, contents, ending):
    if ending == "heic":
        contents = with_size_property(saved(QUARTERS, "HEIF"), 60, 0)
    assert refusal(contents, f"photo.{ending}")


def test_a_file_that_is_too_long_is_refused_unread(write, refusal):
    contents = saved(QUARTERS, "PNG")
    assert read_photo(write(contents.ljust(19_200, b"\0")), max_pixels=2400).shape == (40, 60, 3)
    assert "has 19,201 bytes, more than 19,200; raise --max-pixels" in refusal(
        contents.ljust(19_201, b"\0"), max_pixels=2400
    )
    with pytest.raises(NotAPhotoError):  # it was not read: a film, as far as anyone knows
        read_photo(write(contents.ljust(19_201, b"\0"), "film.mkv"), max_pixels=2400)


@pytest.mark.parametrize("kind", ["WEBP", "AVIF", pytest.param("HEIF", marks=needs_heif)])
def test_a_file_that_is_read_at_once_may_have_two_bytes_a_pixel(write, refusal, kind):
    contents = saved(Image.new("RGB", (64, 64)), kind)
    assert read_photo(write(contents.ljust(8192, b"\0"), "a.dat"), max_pixels=4096).shape == (64, 64, 3)
    assert "has 8,193 bytes, more than 8,192" in refusal(contents.ljust(8193, b"\0"), "a.dat", max_pixels=4096)


# --- what would take for ever, or the whole memory, of few bytes


@pytest.mark.parametrize("between", [b"", jpeg_segment(0xFE, b"\xff\xd9" * 9), b"\xff" * 9], ids=["", "end", "filled"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGB with a profile"])
def test_a_progressive_jpeg_may_have_a_hundred_scans(write, refusal, mode, between):
    profile = {"icc_profile": profile_without_description()} if mode.endswith("profile") else {}
    contents = saved(Image.new(mode[:4].strip(), (60, 40)), "JPEG", progressive=True, **profile)
    scans = contents.count(b"\xff\xda")
    assert read_photo(write(with_scans(contents, 100 - scans, between=between), "photo.jpg")).shape == (40, 60, 3)
    assert "has more than 100 scans" in refusal(with_scans(contents, 101 - scans, between=between), "photo.jpg")


def test_the_scans_of_a_jpeg_in_a_tiff_are_counted_too(refusal):
    scans = with_scans(saved(Image.new("L", (64, 64)), "JPEG", progressive=True), 200)
    assert "can't be read" in refusal(tiff({**grey_tags(64, 64), 259: (3, 7)}, scans), "photo.tif")


def after_start(contents, segments):
    return contents[:2] + segments + contents[2:]


def strips_again_and_again():
    """A picture of two strips, of which the first has all but a row, so often that each pixel is filled 500 times."""
    return tiff({**grey_tags(64, 64), 273: (4, [PIXELS] * 1000), 278: (4, 63)}, bytes(64 * 64))


def directory_of_fractions():
    """A picture whose EXIF directory has eight lists of 100,000 fractions each."""
    lists = b"".join(struct.pack("<HHII", 37_000 + tag, 5, 100_000, 300) for tag in range(8))
    return tiff({**grey_tags(8, 8), 34665: (4, PIXELS)}, struct.pack("<H", 8) + lists + bytes(4) + bytes(6_400_000))


TEXT = png_chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"\xff" * 100_000))
RESOURCE = b"8BIM\x03\xe8\0\0" + bytes(4)
ENDLESS = {
    "GIF of comments": (gif(8, 8, before=b"!\xfe" + b"\2ab" * 20_000 + b"\0"), "gif", "parts before its pixels"),
    "PPM of comments": (b"P6 #" + b"x" * 30_000 + b"\n8 8 255\n" + bytes(192), "ppm", "parts before its pixels"),
    "PPM of blanks": (b"P6" + b" " * 30_000 + b"8 8 255\n" + bytes(192), "ppm", "parts before its pixels"),
    "PSD of resources": (psd(8, 8, bytes(192), resources=RESOURCE * 5000), "psd", "parts before its pixels"),
    "JPEG of junk": (after_start(saved(QUARTERS, "JPEG"), b"\xff\xfe\0\2" + bytes(30_000)), "jpg", "parts before"),
    "JPEG of EXIF": (after_start(saved(QUARTERS, "JPEG"), jpeg_segment(0xE1, b"Exif\0\0") * 1001), "jpg", "segments"),
    "PNG of texts": (png(8, 8, SMALL_ROWS, before=TEXT * 1001), "png", "1,000 chunks beside its pixels"),
    "PNG of texts behind": (png(8, 8, SMALL_ROWS, after=TEXT * 1001), "png", "1,000 chunks beside its pixels"),
    "PNG of nothing": (png(8, 8, SMALL_ROWS, before=png_chunk(b"IDAT") * 1001), "png", "chunks beside its pixels"),
    "PNG of a large block": (
        png(8, 8, SMALL_ROWS, after=png_chunk(b"prVt", bytes(64_000_001))),
        "png",
        "64,000,000 bytes",
    ),
    "PNG of a large profile": (
        png(8, 8, SMALL_ROWS, before=png_chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(30_000_000)))),
        "png",
        "too large",
    ),
    "TIFF of strips": (strips_again_and_again(), "tif", "8 layers of strips or tiles"),
    "TIFF of offsets": (
        tiff({**grey_tags(8, 8), 273: (4, [PIXELS] * 1_000_001)}, bytes(64)),
        "tif",
        "numbers in its tags",
    ),
    "TIFF of fractions": (directory_of_fractions(), "tif", "numbers in its tags"),
    "TIFF of a large tile": (tiff(tile_tags(8, 8, 30_000), zlib.compress(bytes(999))), "tif", "pixels in a tile"),
    "BMP of lines": (bmp(30_000, 1000, b"\1\1\0\0" * 1000, compression=1), "bmp", "read too slowly; save it as PNG"),
    "PPM of text": (b"P3 8 8 255\n" + b"#\n" * 5000 + b"1 2 3 " * 64, "ppm", "read too slowly; save it as PNG"),
    "PPM of another white": (b"P6 5000 5000 1000\n", "ppm", "read too slowly; save it as PNG"),
}


@pytest.mark.parametrize(("contents", "ending", "reason"), ENDLESS.values(), ids=ENDLESS)
def test_more_parts_than_photos_have_are_refused(refusal, contents, ending, reason):
    assert reason in refusal(contents, f"photo.{ending}")


@needs_heif
def test_a_heic_of_many_pictures_that_share_a_profile_is_refused(refusal):
    options = frames(*["blue"] * 30, size=(64, 64))
    for image in options["append_images"]:
        image.info["icc_profile"] = bytes(17_000_000)
    contents = saved(Image.new("RGB", (64, 64)), "HEIF", icc_profile=bytes(17_000_000), **options)
    assert "items in 17,00" in refusal(contents, "photo.heic")


@pytest.mark.parametrize(
    ("contents", "name"),
    [
        (tiny_precincts(1000, 1000), "photo.jp2"),
        (saved(QUARTERS, "JPEG2000"), "photo.jp2"),
        (saved(QUARTERS, "ICO"), "photo.ico"),
        (b"qoif" + struct.pack(">IIBB", 8, 8, 3, 0) + bytes(99), "photo.qoi"),
        (b"SIMPLE  =                    T".ljust(2880), "photo.fits"),
    ],
    ids=["a JPEG 2000 of tiny precincts", "JPEG 2000", "ICO", "QOI", "FITS"],
)
def test_a_format_that_does_harm_is_no_photo(write, refusal, contents, name):
    assert "no image that is read here; these are: " in refusal(contents, name)
    assert not is_image(write(contents, name))
    with pytest.raises(NotAPhotoError):
        read_photo(write(contents, "photo.dat"))


def pipe(path):
    os.mkfifo(path)


def listening(path):
    socket.socket(socket.AF_UNIX).bind(str(path))


def zeros(path):
    path.symlink_to("/dev/zero")


@pytest.mark.skipif(sys.platform == "win32", reason="no such files")
@pytest.mark.parametrize("make", [pipe, listening, zeros, Path.mkdir], ids=["pipe", "socket", "device", "folder"])
def test_nothing_but_a_regular_file_is_opened(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    path = Path("photo.jpg")
    make(path)
    assert not is_image(path)
    with pytest.raises(PhotoError, match=r"can't be read: (is no regular file|No such device)"):
        read_photo(path)
    with pytest.raises(OSError, match=r"photo\.jpg"):
        open_regular(path)


def test_the_error_of_a_photo_does_not_keep_its_pixels(write):
    path = write(saved(np.zeros((123, 77, 3), np.uint8), "PNG")[:-40])
    with pytest.raises(PhotoError) as error:
        read_photo(path)
    gc.collect()
    alive = [each for each in gc.get_objects() if issubclass(type(each), Image.Image) and each.size == (77, 123)]
    assert not alive
    assert error.value.__context__ is None


# --- what is damaged, and what it all costs


def child(tmp_path, *arguments, timeout):
    """Runs hostile_images.py and returns what it found; its output is a file, so that the last line outlives it."""
    output = tmp_path / "output"
    with output.open("w") as file:
        command = [sys.executable, hostile_images.__file__, *map(str, arguments)]
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=timeout, check=False).returncode
    lines = output.read_text(errors="replace").splitlines()
    assert code == 0, "\n".join(lines[-30:])
    return json.loads(next(line for line in reversed(lines) if line.startswith("{")))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux does")
def test_damaged_photos_are_read_or_refused(tmp_path, soak, figure):
    count, first = (100_000, 2000) if soak else (2000, 0)
    found = child(tmp_path, "damaged", tmp_path, first, count, timeout=7200 if soak else 600)
    assert found.get("read", 0) + found.get("refused", 0) + found.get("no photo", 0) == count
    assert found["intact: refused"] == 2  # ICO, JPEG 2000
    assert min(found["read"], found["refused"]) > count / 5
    assert found["memory"] < BYTES_PER_PIXEL * hostile_images.DAMAGED_PIXELS + 600_000_000
    figure("damaged photos tried", count)
    figure("of them read", found["read"])
    figure("of them refused", found["refused"] + found.get("no photo", 0))
    figure("memory for the largest of them, MB", round(found["memory"] / 1e6))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux does")
@pytest.mark.parametrize("kind", hostile_images.large_photos())
def test_a_photo_takes_no_more_memory_than_is_said(tmp_path, kind, soak, figure):
    if kind == "HEIC":
        pytest.importorskip("pillow_heif")
    ending, bytes_per_pixel, make = hostile_images.large_photos()[kind]
    width, height = ((8000, 6000) if kind == "HEIC" else (16_000, 12_500)) if soak else (4000, 3000)
    large, small = tmp_path / f"large.{ending}", tmp_path / f"small.{ending}"
    large.write_bytes(make(width, height))
    small.write_bytes(make(64, 48))
    found = child(tmp_path, "large", large, small, timeout=600)
    assert found["pixels"] == width * height
    assert bytes_per_pixel <= BYTES_PER_PIXEL
    assert found["memory"] < bytes_per_pixel * width * height + large.stat().st_size + 16_000_000
    figure(f"memory for {kind}, bytes a pixel", round(found["memory"] / found["pixels"], 1))
