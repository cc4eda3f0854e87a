"""PNG files, written ten times as fast as image libraries do.

Those try every filter on every row and look long for repetitions: a 1800 x 1200 cut-out takes Pillow 60 ms at its
quickest level, and a machine that cuts out a hundred photos a second would need six cores for nothing else. Here every
row has the same filter, and Intel's ISA-L compresses; the files are as large as Pillow's of that level.

A cut-out carries its mask, exact to the pixel of the whole photo, in a chunk of its own that viewers pass over.
Wherever the file is moved, its mask goes with it, and exports have it: they would find no outline of a white car on
white.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from isal import isal_zlib

from storage_utilities import Place, RemotePath

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR_TYPES = {3: 2, 4: 6}  # RGB, RGBA
_UP = 2  # the filter: the difference from the row above. On large cut-outs a quarter smaller than that from the left
_LEVEL = 1  # of 0 to 3: 0 saves no time and gives larger files, 3 takes twice as long and gives no smaller ones
_PRIMER = 8  # bytes that `_compressed` flushes alone first: at least 4, less than 16
_AT_ONCE = 1 << 22  # bytes of filtered rows: smaller parts gain nothing, and between them threads wait for each other

# Of the PNG standard's four letters: ancillary, private, and of no use to whoever has changed the pixels.
_MASK = b"maSK"
_SIZE = struct.Struct(">II")  # width, height
_CHUNK = struct.Struct(">I4s")  # length, kind
_MASK_WITHIN = 1 << 18  # bytes from the beginning of a file in an object store; a longer one is left out
_LARGEST_MASK = 2_000_000_000  # pixels: as many as --max-pixels can allow


def encode_png(image: np.ndarray, mask: np.ndarray | None = None) -> bytes:
    """Returns an (H, W, 3) RGB or (H, W, 4) RGBA uint8 array as a PNG file (ISO/IEC 15948).

    Args:
        image: The pixels.
        mask: (h, w) bool of any size, the photo's where the image is a part of it; kept beside the pixels.
    """
    height, width, channels = image.shape
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels], 0, 0, 0)
    return b"".join(
        [
            *(_SIGNATURE, *_chunk(b"IHDR", header)),
            *(() if mask is None else _chunk(_MASK, _compress_mask(mask))),
            *(*_chunk(b"IDAT", _compressed(_filtered_rows(image))), *_chunk(b"IEND", b"")),
        ]
    )


def read_mask(path: Place | str) -> np.ndarray | None:
    """Returns the mask that `encode_png` has put into a PNG file, (h, w) bool; None where it holds none.

    Raises:
        OSError: The file can't be read.
        ValueError: It is no PNG, or its mask is damaged.
    """
    path = Path(path) if isinstance(path, str) else path
    remote = isinstance(path, RemotePath)
    with io.BytesIO(path.read_head(_MASK_WITHIN)) if remote else path.open("rb") as file:
        if file.read(len(_SIGNATURE)) != _SIGNATURE:
            raise ValueError("no PNG")
        while len(head := file.read(_CHUNK.size)) == _CHUNK.size:
            length, kind = _CHUNK.unpack(head)
            if kind == _MASK:
                return _expand_mask(file.read(length), file.read(4))
            if kind == b"IDAT":  # the mask stands before the pixels
                return None
            file.seek(length + 4, 1)
    raise ValueError("a PNG without pixels")


def _compress_mask(mask: np.ndarray) -> bytes:
    bits = np.packbits(mask, axis=1)
    bits[1:] ^= bits[:-1]  # rows are like the one above: what is left is the outline
    return _SIZE.pack(mask.shape[1], mask.shape[0]) + _compressed([bits.reshape(-1)])


def _expand_mask(data: bytes, checksum: bytes) -> np.ndarray:
    if struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(_MASK))) != checksum or len(data) < _SIZE.size:
        raise ValueError("its mask is damaged")
    width, height = _SIZE.unpack_from(data)
    row = -(-width // 8)
    if not 0 < width * height <= _LARGEST_MASK:
        raise ValueError(f"its mask has {width} x {height} pixels")
    try:
        expanded = isal_zlib.decompressobj().decompress(data[_SIZE.size :], max_length=row * height)
    except isal_zlib.error:
        raise ValueError("its mask is damaged") from None
    if len(expanded) != row * height:
        raise ValueError("its mask is damaged")
    bits = np.bitwise_xor.accumulate(np.frombuffer(expanded, np.uint8).reshape(height, row), axis=0)
    return np.unpackbits(bits, axis=1, count=width).astype(bool)


def _filtered_rows(image: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the rows of a PNG's pixels some at a time, (N,) uint8, in memory that the next ones take."""
    height = len(image)
    rows = image.reshape(height, -1)
    at_once = max(1, _AT_ONCE // (rows.shape[1] + 1))
    filtered = np.empty((min(height, at_once), rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    above = np.zeros_like(rows[:1])  # above the first row
    for top in range(0, height, at_once):
        some = rows[top : top + at_once]
        np.subtract(some[:1], above, out=filtered[:1, 1:])
        np.subtract(some[1:], some[:-1], out=filtered[1 : len(some), 1:])
        above = some[-1:]
        yield filtered[: len(some)].reshape(-1)


def _compressed(parts: Iterable[np.ndarray]) -> bytes:
    """Returns (N,) uint8 arrays, one after the other, as a zlib stream: always the same bytes for the same.

    ISA-L 2.32 takes one of its first hashes from the address of its own state (igzip_icf_body_h1_gr_bt.asm, at
    `write_first_byte`), and where a match is found may hang on it. A beginning that is flushed alone, and so short that
    another of its routines takes it, keeps it from there; that costs some twenty bytes.
    """
    compressor = isal_zlib.compressobj(_LEVEL)
    parts = iter(parts)
    first = next(parts)
    compressed = [compressor.compress(first[:_PRIMER]), compressor.flush(isal_zlib.Z_SYNC_FLUSH)]
    compressed.append(compressor.compress(first[_PRIMER:]))
    compressed += [compressor.compress(part) for part in parts]
    return b"".join([*compressed, compressor.flush()])


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, ...]:
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)
