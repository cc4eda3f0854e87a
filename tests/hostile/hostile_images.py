"""Photos that are made to do harm, byte by byte; as a program, it reads damaged or large ones and says what they cost.

python tests/hostile/hostile_images.py damaged FOLDER FIRST COUNT   prints the number of each, then what came of them
python tests/hostile/hostile_images.py large FILE SMALL_FILE        prints the memory for the one, after the other
"""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image, ImageCms

from errors import NotAPhotoError, PhotoError
from photo_utilities import read_photo, readable_formats

# A picture of four quarters: which corner is which shows its orientation, which colour its conversion.
QUARTERS = np.zeros((40, 60, 3), np.uint8)
QUARTERS[:20, :30], QUARTERS[:20, 30:] = (200, 30, 40), (40, 180, 60)
QUARTERS[20:, :30], QUARTERS[20:, 30:] = (50, 60, 190), (230, 220, 90)

DAMAGED_PIXELS = 1_000_000  # the limit for damaged photos, of which none has a hundredth of it intact


def saved(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    """Returns what Pillow writes of an image."""
    readable_formats()  # registers what is installed
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def frames(*colours: str, size: tuple[int, int] = (12, 8)) -> dict[str, object]:
    """Returns what makes Pillow write pictures behind the first."""
    return {"save_all": True, "append_images": [Image.new("RGB", size, colour) for colour in colours]}


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def exif_of_fractions(tag: int, count: int) -> bytes:
    """Returns an EXIF block whose one tag is a list of sixes."""
    return struct.pack(">2sHIHHHII", b"MM", 42, 8, 1, tag, 5, count, 26) + bytes(4) + struct.pack(">II", 6, 1) * count


def profile_without_description(steps: int = 0) -> bytes:
    """Returns sRGB's profile under no name; with steps, a conversion of so many that change nothing."""
    contents = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    contents = contents.replace("sRGB".encode("utf-16-be"), "odd!".encode("utf-16-be"))
    if not steps:
        return contents
    step = b"matf" + struct.pack(">IHH12f", 0, 3, 3, *np.eye(3).ravel(), 0, 0, 0)
    table = b"".join(struct.pack(">II", 16 + 8 * steps + index * len(step), len(step)) for index in range(steps))
    conversion = b"mpet" + struct.pack(">IHHI", 0, 3, 3, steps) + table + step * steps
    count = int.from_bytes(contents[128:132], "big")
    moved = b"".join(
        name + struct.pack(">II", offset + 12, size)
        for name, offset, size in struct.iter_unpack(">4sII", contents[132 : 132 + 12 * count])
    )
    moved += b"D2B0" + struct.pack(">II", len(contents) + 12, len(conversion))
    body = contents[132 + 12 * count :] + conversion
    length = 132 + len(moved) + len(body)
    return struct.pack(">I", length) + contents[4:128] + struct.pack(">I", count + 1) + moved + body


def png_chunk(kind: bytes, contents: bytes = b"") -> bytes:
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", zlib.crc32(kind + contents))


def png(
    width: int,
    height: int,
    rows: bytes = b"",
    *,
    bits: int = 8,
    colour: int = 2,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """Returns a PNG of rows, each behind its filter byte, with chunks around its pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + png_chunk(b"IEND")


SMALL_ROWS = bytes((1 + 3 * 8) * 8)  # of a black PNG of 8 x 8

_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 5: "Q", 7: "B", 9: "i"}
PIXELS, LENGTH = -1, -2  # become the offset of the pixels, and how many bytes they take


def tiff(tags: dict[int, tuple[int, object]], pixels: bytes = b"", *, next_page: int = 0) -> bytes:
    """Returns a little-endian TIFF.

    Args:
        tags: Tag -> its type, and a number, a list of numbers or bytes.
        pixels: What lies behind the tags.
        next_page: Where the tags of the next page are; 8 are its own.
    """
    values_at = 8 + 2 + 12 * len(tags) + 4
    entries = {}
    for tag, (kind, value) in sorted(tags.items()):
        numbers = value if isinstance(value, bytes) else value if isinstance(value, list) else [value]
        entries[tag] = (kind, numbers, len(numbers) * struct.calcsize(_TIFF_TYPES[kind]))
    pixels_at = values_at + sum(size for _, _, size in entries.values() if size > 4)
    directory, values = struct.pack("<H", len(tags)), b""
    for tag, (kind, numbers, size) in entries.items():
        known = [{PIXELS: pixels_at, LENGTH: len(pixels)}.get(number, number) for number in numbers]
        contents = struct.pack(f"<{len(known)}{_TIFF_TYPES[kind]}", *known)
        field = contents.ljust(4, b"\0") if size <= 4 else struct.pack("<I", values_at + len(values))
        values += contents if size > 4 else b""
        directory += struct.pack("<HHI", tag, kind, len(numbers)) + field
    return struct.pack("<2sHI", b"II", 42, 8) + directory + struct.pack("<I", next_page) + values + pixels


def grey_tags(width: int, height: int) -> dict[int, tuple[int, object]]:
    """Returns the tags of a TIFF with one strip of bytes."""
    size = {256: (4, width), 257: (4, height), 258: (3, 8), 259: (3, 1), 262: (3, 1), 277: (3, 1)}
    return {**size, 273: (4, PIXELS), 278: (4, height), 279: (4, LENGTH)}


def tile_tags(width: int, height: int, tile: int) -> dict[int, tuple[int, object]]:
    """Returns the tags of a TIFF with one deflated tile."""
    tags = {tag: value for tag, value in grey_tags(width, height).items() if tag not in (273, 278, 279)}
    return {**tags, 259: (3, 8), 322: (4, tile), 323: (4, tile), 324: (4, PIXELS), 325: (4, LENGTH)}


def deep_tags(width: int, height: int) -> dict[int, tuple[int, object]]:
    """Returns the tags of a TIFF with one deflated strip of 16-bit RGBA."""
    bands = {258: (3, [16] * 4), 259: (3, 8), 262: (3, 2), 277: (3, 4), 338: (3, 2)}
    return {**grey_tags(width, height), **bands}


def gif(width: int, height: int, *, frame: tuple[int, int] | None = None, before: bytes = b"") -> bytes:
    """Returns a GIF of one black pixel on a screen, its frame as large as said, with blocks before it."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return screen + before + b"," + struct.pack("<HHHHB", 0, 0, *(frame or (width, height)), 0) + b"\2\2\x44\1\0;"


GIF_DISPOSAL = b"!\xf9\4\x08\0\0\0\0"  # "restore to background": Pillow makes a picture for it


def bmp(width: int, height: int, pixels: bytes, *, bits: int = 8, compression: int = 0) -> bytes:
    """Returns a BMP with a palette of greens."""
    palette = b"".join(bytes((0, index, 0, 0)) for index in range(256))
    sizes = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(pixels), 0, 0, 1078) + sizes + palette + pixels


def psd(width: int, height: int, pixels: bytes, *, compression: int = 0, resources: bytes = b"") -> bytes:
    """Returns a Photoshop picture in RGB."""
    header = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHHI", 3, height, width, 8, 3, 0)
    return header + struct.pack(">I", len(resources)) + resources + struct.pack(">IH", 0, compression) + pixels


def sgi(width: int, height: int, row: bytes = b"") -> bytes:
    """Returns an SGI picture all of whose run-length rows are one and the same."""
    header = struct.pack(">HBBHHHH", 474, 1, 1, 3, width, height, 3).ljust(512, b"\0")
    rows = 3 * height if row else 0
    return header + struct.pack(">I", 512 + 8 * rows) * rows + struct.pack(">I", len(row)) * rows + row


def tga(width: int, height: int, pixels: bytes = b"") -> bytes:
    """Returns a Targa of greys, from its upper left corner on."""
    return struct.pack("<BBBHHBHHHHBB", 0, 0, 3, 0, 0, 0, 0, 0, width, height, 8, 0x20) + pixels


def pcx(width: int, height: int, pixels: bytes = b"") -> bytes:
    header = struct.pack("<BBBBHHHH", 10, 5, 1, 8, 0, 0, width - 1, height - 1).ljust(65, b"\0")
    return (header + struct.pack("<BH", 3, width)).ljust(128, b"\0") + pixels


def webp_canvas(width: int, height: int) -> bytes:
    """Returns a WebP whose extended header says that its picture of 8 x 8 lies on a large canvas."""
    picture = saved(np.zeros((8, 8, 3), np.uint8), "WEBP")[12:]
    sides = b"".join((side - 1).to_bytes(3, "little") for side in (width, height))
    canvas = b"VP8X" + struct.pack("<II", 10, 0) + sides
    return b"RIFF" + struct.pack("<I", 4 + len(canvas) + len(picture)) + b"WEBP" + canvas + picture


def with_size_property(contents: bytes, width: int, height: int) -> bytes:
    """Returns a HEIF or AVIF file that says that its picture has another size."""
    at = contents.index(b"ispe") + 8
    return contents[:at] + struct.pack(">II", width, height) + contents[at + 8 :]


def jpeg_of_size(contents: bytes, width: int, height: int) -> bytes:
    """Returns a JPEG whose frame header says that its picture has another size."""
    at = next(at for start in (b"\xff\xc0", b"\xff\xc2") if (at := contents.find(start)) > 0) + 5
    return contents[:at] + struct.pack(">HH", height, width) + contents[at + 4 :]


def with_scans(contents: bytes, count: int, *, between: bytes = b"") -> bytes:
    """Returns a progressive JPEG with its last scan so many times again, each time behind what is to be between."""
    scan = between + contents[contents.rindex(b"\xff\xda") : -2]
    return contents[:-2] + scan * count + b"\xff\xd9"


def jpeg_segment(marker: int, contents: bytes = b"") -> bytes:
    return struct.pack(">BBH", 0xFF, marker, 2 + len(contents)) + contents


def tiny_precincts(width: int, height: int) -> bytes:
    """Returns a JPEG 2000 codestream of 124 bytes that has OpenJPEG keep a record of each 2 x 2 pixels, six times."""
    sizes = struct.pack(">HHIIIIIIIIH", 47, 0, width, height, 0, 0, width, height, 0, 0, 3) + b"\7\1\1" * 3
    style = struct.pack(">HBBHBBBBBB", 18, 1, 0, 1, 0, 5, 4, 4, 0, 1) + b"\x11" * 6
    steps = struct.pack(">HB", 19, 0x40) + b"\x48" * 16
    tile = struct.pack(">HHIBB", 10, 0, 30, 0, 1) + b"\xff\x93" + bytes(16)
    return b"\xff\x4f\xff\x51" + sizes + b"\xff\x52" + style + b"\xff\x5c" + steps + b"\xff\x90" + tile + b"\xff\xd9"


def _photo() -> Image.Image:
    """Returns a small picture with edges, colours and noise."""
    noise = np.random.default_rng(0).integers(0, 12, QUARTERS.shape, dtype=np.uint8)
    return Image.fromarray(QUARTERS + noise)


def intact_photos() -> dict[str, tuple[str, bytes]]:
    """Returns a name -> an ending and the contents, for each decoder, container and block that photos have."""
    photo = _photo()
    alpha = photo.copy()
    alpha.putalpha(photo.getchannel("R"))
    deep = np.asarray(photo.convert("L")).astype(np.uint16) * 257
    blocks = {"exif": exif(6), "icc_profile": profile_without_description()}
    two = {"save_all": True, "append_images": [photo.rotate(180)]}
    grey = photo.convert("L").tobytes()
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(b"text" * 99)) + png_chunk(b"iTXt", b"k\0\0\0\0\0text")
    photos = {
        "JPEG": ("jpg", saved(photo.copy(), "JPEG", **blocks)),
        "progressive JPEG": ("jpg", saved(photo.copy(), "JPEG", progressive=True, exif=exif(3))),
        "restarting JPEG": ("jpg", saved(photo.copy(), "JPEG", restart_marker_blocks=3)),
        "grey JPEG": ("jpg", saved(photo.convert("L"), "JPEG")),
        "CMYK JPEG": ("jpg", saved(photo.convert("CMYK"), "JPEG")),
        "MPO": ("jpg", saved(photo.copy(), "MPO", save_all=True, append_images=[photo.copy()])),
        "PNG": ("png", saved(alpha, "PNG", **blocks)),
        "PNG with texts": ("png", png(60, 40, bytes(181 * 40), before=text, after=text)),
        "palette PNG": ("png", saved(alpha.quantize(40), "PNG")),
        "deep PNG": ("png", saved(deep, "PNG", transparency=1000)),
        "bilevel PNG": ("png", saved(photo.convert("1"), "PNG")),
        "APNG": ("png", saved(photo, "PNG", **two)),
        "GIF": ("gif", saved(photo.quantize(40), "GIF", transparency=3, comment=b"hello")),
        "animated GIF": ("gif", saved(photo, "GIF", disposal=2, **two)),
        "TIFF": ("tif", saved(photo, "TIFF", **blocks)),
        "LZW TIFF": ("tif", saved(photo, "TIFF", compression="tiff_lzw", exif=exif(8))),
        "deflated TIFF": ("tif", saved(photo, "TIFF", compression="tiff_adobe_deflate")),
        "packed TIFF": ("tif", saved(alpha, "TIFF", compression="packbits")),
        "JPEG in TIFF": ("tif", saved(photo, "TIFF", compression="jpeg")),
        "fax TIFF": ("tif", saved(photo.convert("1"), "TIFF", compression="group4")),
        "float TIFF": ("tif", saved((deep / 65535).astype(np.float32), "TIFF")),
        "deep TIFF": ("tif", tiff(deep_tags(60, 40), zlib.compress(bytes(range(240)) * 80))),
        "tiled TIFF": ("tif", tiff(tile_tags(60, 40, 64), zlib.compress(bytes(64 * 64)))),
        "CMYK TIFF": ("tif", saved(photo.convert("CMYK"), "TIFF")),
        "LAB TIFF": ("tif", saved(Image.merge("LAB", photo.split()), "TIFF")),
        "BigTIFF": ("tif", saved(photo, "TIFF", big_tiff=True)),
        "TIFF of two pages": ("tif", saved(photo, "TIFF", **two)),
        "WebP": ("webp", saved(photo, "WEBP", **blocks)),
        "lossless WebP": ("webp", saved(alpha, "WEBP", lossless=True)),
        "animated WebP": ("webp", saved(photo, "WEBP", **two)),
        "BMP": ("bmp", saved(photo, "BMP")),
        "run-length BMP": ("bmp", bmp(60, 40, b"\x1e\5\x1e\7\0\0" * 40 + b"\0\1", compression=1)),
        "DIB": ("dib", saved(photo, "DIB")),
        "PCX": ("pcx", saved(photo, "PCX")),
        "PPM": ("ppm", saved(photo, "PPM")),
        "deep PGM": ("pgm", b"P5 60 40 999\n" + bytes(60 * 40 * 2)),
        "PSD": ("psd", psd(60, 40, grey * 3)),
        "packed PSD": ("psd", psd(60, 40, b"\0\4" * 120 + b"\xe3\5\xe3\7" * 120, compression=1)),
        "SGI": ("sgi", saved(photo, "SGI")),
        "run-length SGI": ("sgi", sgi(60, 40, b"\x3c\x77\0")),
        "TGA": ("tga", saved(alpha, "TGA")),
        "run-length TGA": ("tga", saved(photo, "TGA", compression="tga_rle")),
        "AVIF": ("avif", saved(alpha, "AVIF", speed=10, exif=exif(6))),
        "animated AVIF": ("avif", saved(photo, "AVIF", speed=10, **two)),
        "ICO": ("ico", saved(photo, "ICO")),
        "JPEG 2000": ("jp2", saved(photo, "JPEG2000")),
    }
    if "HEIF" in readable_formats():
        photos["HEIC"] = ("heic", saved(alpha, "HEIF", exif=exif(6)))
        photos["HEIC burst"] = ("heic", saved(photo, "HEIF", **two))
    return photos


def damage(contents: bytes, rng: np.random.Generator) -> bytes:
    """Returns a file as it comes back from a dying disk, or from someone who looks for a hole."""
    length, kind = len(contents), rng.integers(7)
    at = int(rng.integers(length if rng.random() < 0.5 else min(length, 300)))  # headers are where it hurts
    run = int(rng.integers(1, 65))
    changed = bytearray(contents)
    if kind == 0:
        return contents[:at]
    if kind == 1:
        for bit in rng.integers(8 * length, size=rng.integers(1, 9)):
            changed[bit // 8] ^= 1 << (bit % 8)
    elif kind == 2:
        changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
    elif kind == 3:
        number = int(rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF]))
        changed[at : at + 4] = number.to_bytes(4, "big" if rng.random() < 0.5 else "little")
    elif kind == 4:
        changed[at:at] = rng.bytes(run)
    elif kind == 5:
        del changed[at : at + run]
    else:
        elsewhere = int(rng.integers(length))
        changed[at : at + run] = contents[elsewhere : elsewhere + run]
    return bytes(changed)


def read_damaged(folder: Path, first: int, count: int) -> dict[str, int]:
    """Reads so many damaged photos and returns how they ended; the one at hand lies in the folder."""
    photos = intact_photos()
    names = list(photos)
    outcomes: Counter[str] = Counter()
    for name, (ending, contents) in photos.items():
        outcomes[f"intact: {_outcome(folder / f'{name}.{ending}', contents)}"] += 1
    before = _memory("VmRSS")
    for number in range(first, first + count):
        name = names[number % len(names)]
        print(number, name, flush=True)
        ending, contents = photos[name]
        outcomes[_outcome(folder / f"damaged.{ending}", damage(contents, np.random.default_rng(number)))] += 1
    return {**outcomes, "memory": _memory("VmHWM") - before}


def _outcome(path: Path, contents: bytes) -> str:
    path.write_bytes(contents)
    try:
        image = read_photo(path, max_pixels=DAMAGED_PIXELS)
    except PhotoError:
        return "refused"
    except NotAPhotoError:
        return "no photo"
    height, width, channels = image.shape
    assert channels == 3
    assert 0 < height * width <= DAMAGED_PIXELS
    assert image.dtype == np.uint8
    return "read"


def large_photos() -> dict[str, tuple[str, int, Callable[[int, int], bytes]]]:
    """Returns a name -> an ending, the bytes of memory for a pixel, and what makes one of a width and a height."""

    def rgb(width: int, height: int) -> Image.Image:
        slope = np.add.outer(np.arange(height, dtype=np.uint16), np.arange(width, dtype=np.uint16)) >> 4
        return Image.fromarray(np.dstack([slope, slope >> 1, slope >> 2]).astype(np.uint8))

    def rgba(width: int, height: int) -> Image.Image:
        image = rgb(width, height)
        image.putalpha(image.getchannel("R"))
        return image

    def grey(width: int, height: int) -> np.ndarray:
        return np.asarray(rgb(width, height).convert("L"))

    def palette(width: int, height: int) -> Image.Image:
        image = Image.fromarray(grey(width, height))
        image.putpalette(bytes(range(256)) * 3)
        return image

    def heic(width: int, height: int) -> bytes:
        import pillow_heif

        pixels, file = np.asarray(rgba(width, height)).astype(np.uint16) * 257, io.BytesIO()
        pillow_heif.encode(
            "RGBA;16", (width, height), pixels.tobytes(), file, chroma=444, enc_params={"preset": "ultrafast"}
        )
        return file.getvalue()

    odd = {"icc_profile": profile_without_description()}
    return {
        "JPEG": ("jpg", 12, lambda w, h: saved(rgb(w, h), "JPEG", exif=exif(6))),
        "progressive JPEG": ("jpg", 12, lambda w, h: saved(rgb(w, h), "JPEG", progressive=True, subsampling=0)),
        "JPEG with a profile": ("jpg", 12, lambda w, h: saved(rgb(w, h), "JPEG", exif=exif(6), **odd)),
        "CMYK JPEG": ("jpg", 12, lambda w, h: saved(rgb(w, h).convert("CMYK"), "JPEG", progressive=True)),
        "RGBA PNG": ("png", 12, lambda w, h: saved(rgba(w, h), "PNG", compress_level=1, **odd)),
        "palette PNG": ("png", 12, lambda w, h: saved(palette(w, h), "PNG", compress_level=1, transparency=3)),
        "deep PNG": ("png", 12, lambda w, h: saved(grey(w, h).astype(np.uint16) * 257, "PNG", compress_level=1)),
        "GIF": ("gif", 12, lambda w, h: saved(palette(w, h), "GIF", transparency=3, disposal=2)),
        "float TIFF": ("tif", 12, lambda w, h: saved(grey(w, h).astype(np.float32), "TIFF")),
        "LAB TIFF": ("tif", 12, lambda w, h: saved(Image.merge("LAB", rgb(w, h).split()), "TIFF")),
        "turned TIFF": ("tif", 12, lambda w, h: saved(rgb(w, h), "TIFF", compression="packbits", exif=exif(6))),
        "deep TIFF": ("tif", 12, lambda w, h: tiff(deep_tags(w, h), zlib.compress(bytes(8 * w * h), 1))),
        "TGA": ("tga", 12, lambda w, h: saved(rgba(w, h), "TGA", compression="tga_rle")),
        "WebP": ("webp", 17, lambda w, h: saved(rgba(w, h), "WEBP", method=0)),
        "AVIF": ("avif", 17, lambda w, h: saved(rgba(w, h), "AVIF", speed=10, subsampling="4:4:4")),
        "HEIC": ("heic", 21, heic),
    }


def read_large(path: Path, small: Path) -> dict[str, int]:
    """Returns the pixels of a photo, and by how many bytes the memory grows for it, after another of its kind."""
    read_photo(small)
    before = _memory("VmRSS")
    height, width, _ = read_photo(path).shape
    return {"pixels": height * width, "memory": _memory("VmHWM") - before}


def _memory(kind: str) -> int:
    """Returns the resident memory in bytes: `VmRSS`, or `VmHWM`, its peak so far (Linux).

    getrusage's peak is no help: a child starts with that of its parent.
    """
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[kind].removesuffix("kB"))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["damaged", folder, first, count]:
            print(json.dumps(read_damaged(Path(folder), int(first), int(count))))
        case ["large", path, small]:
            print(json.dumps(read_large(Path(path), Path(small))))
        case _:
            sys.exit(__doc__)
