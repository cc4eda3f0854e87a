"""What a photo's file may ask of this machine: small files can be made that cost minutes, or gigabytes.

Each limit lies far above what photos have, and stands with what it prevents. tests/hostile/test_images.py tries them.
"""

from __future__ import annotations

import io
import math
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin

from config_utilities import Settings
from errors import PhotoError

MAX_PIXELS = Settings.max_pixels  # 200 million: the largest phone sensors have 16320 x 12240
_MAX_SIDE = 1_000_000  # Pillow keeps 8 to 16 bytes for every row beside its pixels
BYTES_PER_PIXEL = 21  # of memory, measured: 21 are HEIF's with alpha and 10 bits, 17 WebP's and AVIF's, 12 all others'
MAX_BYTES_PER_PIXEL = 8  # of a file: 4 bands of 16 bits, uncompressed
MAX_WHOLE_BYTES_PER_PIXEL = 2  # of a file that is read at once, as HEIF, AVIF and WebP are

# What a file may hold; photos stay far below. Beyond, a small file could cost minutes, or gigabytes.
MAX_HEADER_READS = 20_000  # Pillow reads a GIF's comments block by block, 17 times their size in memory
_MAX_JPEG_SEGMENTS = 1000  # Pillow copies the EXIF block anew with each segment that goes on with it
_MAX_JPEG_SCANS = 100  # each passes over the whole picture: at 8 megapixels, 87 KB of 2000 took 19 s, 100 take 1 s
_MAX_PNG_CHUNKS = 1000  # beside pixels; Pillow inflates each text to up to 1 MB, which takes 5 ms
_MAX_PNG_BYTES = 64_000_000  # beside pixels; of an EXIF block, Pillow has four copies
_MIN_PNG_CHUNK = 64  # bytes of pixels; less is no use
_MAX_NUMBER_BYTES = 4_000_000  # in one directory of TIFF or EXIF tags; fractions take 22 times that as objects
_MAX_TAG_BYTES = 16_000_000  # of another tag; larger ones are left out: layers, for other programs
MAX_PROFILE_BYTES = 4_000_000  # of a colour profile; 1 MB of steps for each colour takes 10 s
_MAX_HEIF_BYTES = 500_000_000  # of a file, times its items: pillow-heif copies what they share for each
_MAX_PLANES = 8  # how often the strips and tiles of a file may fill the picture; TIFF has up to 6 planes
_MAX_TILE_PIXELS = 4096 * 4096  # of a compressed TIFF that is smaller itself; libtiff decodes tiles whole
_MAX_SLOW_PIXELS = {  # by Pillow's name of a decoder that is written in Python
    "bmp_rle": 24_000_000,  # 3 s, for no more than a few KB
    "ppm": 24_000_000,  # 45 s, with another maximum than 255
    "ppm_plain": 0,  # numbers as text: 1 MB of comments among them take 10 s
}

_BLOCK_BYTES = 1 << 20
_JPEG_START, _PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")  # none that stands alone or among the pixels
_JPEG_END, _JPEG_SCAN = b"\xd9", b"\xda"
_HEIF_SIZE = re.compile(rb"ispe....(.{8})", re.DOTALL)
# An item, but not one of the tiles that make up a large picture, which are hidden.
_HEIF_ITEM = re.compile(rb"infe(?!\x02..\x01....(?:hvc1|av01)|\x03..\x01......(?:hvc1|av01))", re.DOTALL)

_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # TIFF's tags
_TAGS_OF_BYTES = {1, 2, 6, 7}  # TIFF's types that stay bytes in memory


def limit_tags() -> None:
    """Bounds what Pillow takes from a directory of TIFF or EXIF tags."""
    directory = TiffImagePlugin.ImageFileDirectory_v2
    load = directory.load

    def load_few(self: TiffImagePlugin.ImageFileDirectory_v2, file: BinaryIO) -> None:
        load(self, file)
        sizes = {tag: len(data) for tag, data in getattr(self, "_tagdata", {}).items()}  # Pillow's own
        if sum(size for tag, size in sizes.items() if self.tagtype[tag] not in _TAGS_OF_BYTES) > _MAX_NUMBER_BYTES:
            self.reset()  # some callers go on without them
            raise ValueError(f"more than {_MAX_NUMBER_BYTES:,} bytes of numbers in its tags")
        for tag in (tag for tag, size in sizes.items() if size > _MAX_TAG_BYTES):
            del self[tag]

    directory.load = load_few


class LimitedReader(io.BufferedReader):
    """A file for Pillow's plugins that can't be read on and on, for a header without end.

    Args:
        raw: The file.
        length: Its bytes.

    Attributes:
        length: As above.
        reads_left: How often it may still be read.
        most_bytes: How long it may be to be read at once.
    """

    reads_left: float = math.inf
    most_bytes: float = math.inf

    def __init__(self, raw: Any, length: int) -> None:
        super().__init__(raw)
        self.length = length

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads as other files do, or raises PhotoError."""
        self.reads_left -= 1
        if self.reads_left < 0:
            raise _too_many(MAX_HEADER_READS, "parts before its pixels")
        if (size is None or size < 0) and self.length > self.most_bytes:
            raise too_long(self.length, self.most_bytes)
        return super().read(size)


def check_parts(file: BinaryIO, max_pixels: int) -> None:
    """Raises PhotoError over a file that is made up of more parts than photos are."""
    start = file.read(16)
    if start.startswith(_JPEG_START):
        _check_jpeg(file)
    elif start.startswith(_PNG_START):
        _check_png(file)
    elif "HEIF" in Image.OPEN and Image.OPEN["HEIF"][1](start):
        _check_heif(file, max_pixels)


def _check_jpeg(file: BinaryIO) -> None:
    """Raises PhotoError over a JPEG file whose first picture has more segments or scans than photos have."""
    scans = 0
    for count, marker in enumerate(_jpeg_markers(file), 1):
        scans += marker == _JPEG_SCAN
        if scans > _MAX_JPEG_SCANS:
            raise _too_many(_MAX_JPEG_SCANS, "scans")
        if count > _MAX_JPEG_SEGMENTS:
            raise _too_many(_MAX_JPEG_SEGMENTS, "segments")


def _jpeg_markers(file: BinaryIO) -> Iterator[bytes]:
    """Yields the markers of the first picture's segments, as libjpeg comes by them; a film may lie behind it."""
    file.seek(2)
    block, position = b"", 0
    while True:
        marker = _JPEG_MARKER.search(block, position)
        if marker and marker[1] == _JPEG_END:
            return
        if marker is None or marker.end() + 2 > len(block):
            rest = block[marker.start() if marker else max(position, len(block) - 1) :]
            more = file.read(_BLOCK_BYTES)
            if not more:
                return
            block, position = rest + more, 0
            continue
        yield marker[1]
        length = int.from_bytes(block[marker.end() : marker.end() + 2], "big")
        position = marker.end() + max(2, length)
        if position > len(block):
            file.seek(position - len(block), io.SEEK_CUR)
            block, position = b"", 0


def _check_png(file: BinaryIO) -> None:
    """Raises PhotoError over a PNG file that has more chunks beside those of pixels than photos have."""
    file.seek(len(_PNG_START))
    others = other_bytes = 0
    while len(head := file.read(8)) == 8 and (kind := head[4:]) != b"IEND":
        length = int.from_bytes(head[:4], "big")
        if kind not in (b"IDAT", b"fdAT", b"fcTL") or length < _MIN_PNG_CHUNK:
            others, other_bytes = others + 1, other_bytes + length
        if others > _MAX_PNG_CHUNKS:
            raise _too_many(_MAX_PNG_CHUNKS, "chunks beside its pixels")
        if other_bytes > _MAX_PNG_BYTES:
            raise _too_many(_MAX_PNG_BYTES, "bytes beside its pixels")
        file.seek(length + 4, io.SEEK_CUR)


def _check_heif(file: BinaryIO, max_pixels: int) -> None:
    """Raises PhotoError over a HEIF file whose pictures, uncropped, or items are more than fit into memory."""
    file.seek(0)
    contents = file.read()
    for size in _HEIF_SIZE.finditer(contents):
        check_size(struct.unpack(">II", size[1]), max_pixels)
    items = sum(1 for _ in _HEIF_ITEM.finditer(contents))
    if items * len(contents) > _MAX_HEIF_BYTES:
        raise _too_many(_MAX_HEIF_BYTES // len(contents), f"items in {len(contents):,} bytes")


def check_image(image: Image.Image, max_pixels: int) -> None:
    """Raises PhotoError over an image that Pillow has opened, and that costs too much to load."""
    check_size(image.size, max_pixels)
    pixels, filled = math.prod(image.size), 0
    for decoder, extents, *_ in image.tile:
        if pixels > _MAX_SLOW_PIXELS.get(decoder, pixels):
            raise PhotoError(f"{image.format} of this kind is read too slowly; save it as PNG", stage="decode")
        left, top, right, bottom = extents
        filled += abs((right - left) * (bottom - top))
    if filled > _MAX_PLANES * pixels:
        raise _too_many(_MAX_PLANES, "layers of strips or tiles")
    if image.format == "TIFF":
        tile = image.tag_v2.get(_TILE_WIDTH, 0) * image.tag_v2.get(_TILE_HEIGHT, 0)
        if tile > max(_MAX_TILE_PIXELS, pixels):
            raise _too_many(_MAX_TILE_PIXELS, "pixels in a tile")


def check_size(size_wh: tuple[int, int], max_pixels: int) -> None:
    """Raises PhotoError over an image of too many pixels, or of none."""
    width, height = size_wh
    if width * height > max_pixels:
        raise too_many_pixels(width * height, max_pixels)
    if max(size_wh) > _MAX_SIDE:
        raise PhotoError(f"has {width:,} x {height:,} pixels, a side over {_MAX_SIDE:,}; cut it", stage="decode")
    if width * height == 0:
        raise PhotoError(f"has no pixels: {width} x {height}", stage="decode")


def too_many_pixels(pixels: int, max_pixels: int) -> PhotoError:
    """Returns what is wrong with an image of more pixels than the limit."""
    reason = f"has {pixels:,} pixels, more than {max_pixels:,}; raise --max-pixels, or make it smaller"
    return PhotoError(reason, stage="decode")


def too_long(size: int, most_bytes: int) -> PhotoError:
    """Returns what is wrong with a file of more bytes than the limit."""
    return PhotoError(f"the file has {size:,} bytes, more than {most_bytes:,}; raise --max-pixels", stage="decode")


def _too_many(limit: int, what: str) -> PhotoError:
    return PhotoError(f"has more than {limit:,} {what}, which no photo needs; save it anew", stage="decode")
