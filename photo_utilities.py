"""One file -> one RGB array, as a viewer would show it."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import math
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError

from errors import NotAPhotoError, PhotoError, UserError
from photo_limit_utilities import (
    MAX_BYTES_PER_PIXEL,
    MAX_HEADER_READS,
    MAX_PIXELS,
    MAX_PROFILE_BYTES,
    MAX_WHOLE_BYTES_PER_PIXEL,
    LimitedReader,
    check_image,
    check_parts,
    check_size,
    limit_tags,
    too_long,
    too_many_pixels,
)
from storage_utilities import Place, RemotePath, TooLongError

# What photos come in. All else is none, on purpose where Pillow 13 reads it:
# - JPEG2000: OpenJPEG takes 1.7 KB a pixel where the file wants its precincts tiny; 124 bytes took 14 GB.
# - ICO, CUR, ICNS: decoded at opening, before their size can be looked at, and hold PNGs that are checked by no one.
# - EPS: a program, which Pillow hands to Ghostscript.
# - FITS: gunzipped whole, whatever comes out. QOI, MSP, FTEX: decoded in Python.
_SIGNED = ("HEIF", "AVIF", "BMP", "PCX", "GIF", "PNG", "JPEG", "TIFF", "PPM", "PSD", "SGI", "WEBP")
_REFUSED = ("JPEG2000", "ICO", "CUR", "ICNS", "EPS", "FITS", "QOI", "MSP", "FTEX")
_FORMATS = (*_SIGNED, "DIB", "TGA")  # the last two have no signature: icons and films would pass for them

_BAND_PIXELS = 1 << 20  # are converted at a time, so that no step needs the whole picture twice

_JPEGS = {"JPEG", "MPO"}  # MPO: with further pictures behind the first, as many phones write
_JPEG_BYTES, _JPEG_BYTES_PER_PIXEL = 64_000_000, 4  # are read at once; of longer files Pillow reads a block at a time

_ORIENTATION = 0x0112  # EXIF's tag
_TURNS: dict[
    int, Callable[[np.ndarray], np.ndarray]
] = {  # OpenCV's copies are quick, and other threads go on meanwhile
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.rotate(cv2.transpose(image), cv2.ROTATE_180),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF's tag, and its value for negatives
_SUBFILE_TYPE, _REDUCED = 254, 1  # TIFF's tag, and its bit for a small version of another picture of the file
_DNG_VERSION = 50706
_WHITE = (255, 255, 255, 255)


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading, and nothing else: no pipe or device, whatever has come to lie in the file's place.

    Raises:
        OSError: It can't be opened, or is no regular file.
    """
    # Without O_NONBLOCK, opening a pipe would wait for someone to write to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is no regular file", os.fspath(path))
    return os.fdopen(descriptor, "rb")


def check_open_files(error: Exception) -> None:
    """Raises UserError where a file is not to blame for an error, but that no more files can be open at once."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        raise UserError(f"{error.strerror}: photos of a batch are open at once; lower --batch-size, or raise ulimit -n")


def read_file(path: Place) -> bytes:
    """Returns the contents of a regular file; see `open_regular`."""
    if isinstance(path, RemotePath):
        return path.read_bytes()
    with open_regular(path) as file:
        return file.read()


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Returns the formats that are recognised: those of photos that Pillow reads, HEIF with pillow-heif installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    Image.init()
    limit_tags()
    # Once, not around each photo: warnings.catch_warnings is no matter for threads. Errors are what counts.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd EXIF and the like
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@functools.cache
def _image_endings() -> frozenset[str]:
    readable_formats()
    heif = {".heic", ".heif", ".hif"}  # a photo even where nothing here can read it
    names = {*_FORMATS, *_REFUSED}
    return frozenset(heif.union(ending for ending, name in Image.registered_extensions().items() if name in names))


def is_image(path: Place) -> bool:
    """Whether the contents of a file are recognised as an image, even one that is refused; its ending is no matter."""
    try:
        with _open(path, MAX_PIXELS):
            return True
    except (PhotoError, Image.DecompressionBombError):
        return True
    except Exception as error:  # Pillow's plugins raise all kinds of errors over bytes that are not theirs
        check_open_files(error)
        return False


def read_photo(path: Place, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Returns the first frame of an image file as (H, W, 3) uint8 RGB; see `OpenedPhoto`."""
    return OpenedPhoto(path, max_pixels=max_pixels).decode()


class OpenedPhoto:
    """An image file that was opened and looked at; what it needs of memory is known, and not yet taken.

    Args:
        path: Of the file.
        max_pixels: An image with more is refused. Threads that read at the same time have to agree on it.

    Attributes:
        pixels: How many it has.

    Raises:
        NotAPhotoError: The file holds no image, and its ending does not say that it should.
        PhotoError: The image can't be read, or is refused.
        UserError: Too many files are open.
    """

    def __init__(self, path: Place, *, max_pixels: int = MAX_PIXELS) -> None:
        self._path, self._max_pixels = path, max_pixels
        # Pillow refuses at twice its own limit. Some of its plugins ask for memory before the size is checked here.
        Image.MAX_IMAGE_PIXELS = -(-max_pixels // 2)
        try:
            with contextlib.ExitStack() as stack:
                self._image = stack.enter_context(_open(path, max_pixels))
                check_image(self._image, max_pixels)
                _refuse_raw(self._image)
                self.pixels = math.prod(self._image.size)
                self._close = stack.pop_all().close
            return
        except Exception as error:  # as in is_image: a fuzzer found nine kinds, struct.error among them
            failure = _failure(path, error, max_pixels)
        raise failure

    def decode(self) -> np.ndarray:
        """Returns its first frame as (H, W, 3) uint8 RGB, upright, transparent parts on white, and closes the file.

        EXIF orientation is applied. An embedded colour profile other than sRGB is converted to sRGB.
        16-bit and floating-point greys keep their range.

        It takes at most `BYTES_PER_PIXEL` of memory for each pixel, 600 MB (most of it for what a colour profile may
        ask for), and twice the file's size; five times that of HEIF, AVIF and WebP, which may have 2 bytes a pixel of
        `max_pixels`. An AVIF that lies about its size takes what libavif's own limit of 16384 x 16384 pixels does.

        Raises:
            PhotoError: The image can't be read.
        """
        try:
            with contextlib.closing(self):
                rgb, orientation = _decode(self._image, self._max_pixels)
            turn = _TURNS.get(orientation)  # by now Pillow's picture is out of memory
            return rgb if turn is None else turn(rgb)
        except Exception as error:
            failure = _failure(self._path, error, self._max_pixels)
        raise failure  # out here: with the error's traceback, it would keep the picture for as long as it lives

    def close(self) -> None:
        """Closes the file, and lets go of what was read of it."""
        self._close()
        self._image = None


def _failure(path: Place, error: Exception, max_pixels: int) -> PhotoError | NotAPhotoError:
    """Returns what read_photo raises over an error."""
    check_open_files(error)
    if isinstance(error, PhotoError):
        return error.with_traceback(None)
    if isinstance(error, FileNotFoundError) and isinstance(path, Path):
        with contextlib.suppress(OSError):  # it is no link
            return PhotoError(f"the link leads nowhere: {path.readlink()}", stage="decode")
    if isinstance(error, UnidentifiedImageError):
        claims_to_be_one = path.suffix.lower() in _image_endings()
        return PhotoError(str(error), stage="decode") if claims_to_be_one else NotAPhotoError(path.name)
    if isinstance(error, Image.DecompressionBombError):
        [pixels, *_] = re.findall(r"\d+", str(error))
        return too_many_pixels(int(pixels), max_pixels)
    reason = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0] or type(error).__name__
    return PhotoError(f"can't be read: {reason}", stage="decode")


@contextlib.contextmanager
def _open(path: Place, max_pixels: int) -> Iterator[Image.Image]:
    # By its contents, not its path: Pillow maps uncompressed TIFFs that it opens by path, and with an orientation
    # that swaps the sides some modes then come out scrambled (Pillow 13.0).
    with _open_limited(path, MAX_BYTES_PER_PIXEL * max_pixels) as file:
        size = file.length
        file.most_bytes = MAX_WHOLE_BYTES_PER_PIXEL * max_pixels
        check_parts(file, max_pixels)
        file.reads_left = MAX_HEADER_READS
        try:
            image = Image.open(file, formats=_formats_of(path))
        except UnidentifiedImageError:
            raise UnidentifiedImageError(_unreadable_reason(path, size)) from None
        file.reads_left = math.inf
        with image:
            yield image


def _refuse_raw(image: Image.Image) -> None:
    """Raises PhotoError over a camera's raw file: DNG, NEF and others are TIFFs whose first picture is a thumbnail."""
    if image.format == "TIFF":
        kind = image.tag_v2.get(_SUBFILE_TYPE)
        if _DNG_VERSION in image.tag_v2 or (isinstance(kind, int) and kind & _REDUCED):
            raise PhotoError(
                "camera raw, of which only the thumbnail is read; export it as JPEG or TIFF", stage="decode"
            )


def _open_limited(path: Place, most: int) -> LimitedReader:
    """Opens a file of at most so many bytes; a longer one is left unread, and is an image if its ending says so."""
    if isinstance(path, RemotePath):
        try:
            contents = path.read_limited(most)
        except TooLongError as error:
            raise UnidentifiedImageError(too_long(error.length, most).reason) from None
        return LimitedReader(io.BytesIO(contents), len(contents))
    raw = open_regular(path).detach()
    length = os.fstat(raw.fileno()).st_size
    if length > most:
        raw.close()
        raise UnidentifiedImageError(too_long(length, most).reason)
    return LimitedReader(raw, length)


def _unreadable_reason(path: Place, size: int) -> str:
    if size == 0:
        return "the file is empty"
    if path.suffix.lower() in (".heic", ".heif", ".hif") and "HEIF" not in readable_formats():
        return "HEIC is read with pillow-heif; install it: pip install pillow-heif"
    return f"the contents are no image that is read here; these are: {', '.join(readable_formats())}"


def _formats_of(path: Place) -> tuple[str, ...]:
    """Returns the formats that a file may have: of those without a signature, the one that its ending says."""
    said = Image.registered_extensions().get(path.suffix.lower())
    return tuple(name for name in readable_formats() if name in _SIGNED or name == said)


def _decode(image: Image.Image, max_pixels: int) -> tuple[np.ndarray, int | None]:
    """Returns an image that Pillow has opened as (H, W, 3) uint8 RGB, as it is stored, and its EXIF orientation."""
    profile = _profile(image)
    usual = image.format in _JPEGS and image.mode == "RGB" and _is_srgb(profile)
    rgb = _decode_jpeg(image) if usual else None
    if rgb is None:
        image.load()
        check_size(image.size, max_pixels)  # that of HEIF may turn out to be another
        rgb = _convert(image, profile)
    return rgb, _orientation(image)


def _profile(image: Image.Image) -> bytes | None:
    profile = image.info.get("icc_profile")
    return profile if isinstance(profile, bytes) and len(profile) <= MAX_PROFILE_BYTES else None


def _decode_jpeg(image: Image.Image) -> np.ndarray | None:
    """Returns a JPEG that Pillow has opened, to the bit as Pillow reads it, as an (H, W, 3) uint8 array.

    It takes a third of the time, and holds up no other thread, as Pillow does while it hands an array over. Where the
    file is damaged in any way the result is None, and Pillow says what is wrong, or makes something of it.
    """
    image.fp.seek(0)
    contents = image.fp.read(_JPEG_BYTES_PER_PIXEL * math.prod(image.size) + _JPEG_BYTES)
    try:
        if simplejpeg.decode_jpeg_header(contents)[1::-1] != image.size:
            return None
        return simplejpeg.decode_jpeg(contents, "RGB")
    except ValueError:
        return None


def _convert(image: Image.Image, profile: bytes | None) -> np.ndarray:
    """Returns an image that Pillow has loaded, of any mode, as an (H, W, 3) uint8 RGB array."""
    if image.mode == "F" or image.mode.startswith("I"):
        negative = image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
        to_rgb = functools.partial(_deep_to_rgb, white=_white_value(image), negative=negative)
    else:
        to_rgb = functools.partial(_to_rgb, transform=functools.cache(functools.partial(_srgb_transform, profile)))
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    for rows, band in _bands(image):
        rgb[rows] = to_rgb(band)
    return rgb


def _bands(image: Image.Image) -> Iterator[tuple[slice, Image.Image]]:
    """Yields an image in bands of rows, from the top, each with where it lies."""
    height = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, height):
        bottom = min(top + height, image.height)
        yield slice(top, bottom), image.crop((0, top, image.width, bottom))


def _to_rgb(band: Image.Image, *, transform: Callable[[str], ImageCms.ImageCmsTransform | None]) -> np.ndarray:
    """Returns an image of at most 8 bits a channel as (H, W, 3) uint8 RGB.

    Args:
        band: Of any mode but the deep greys.
        transform: Mode -> what converts it to sRGB, or None where that is not needed or impossible.
    """
    if band.has_transparency_data:
        layer = band.convert("RGBA")
        band = Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    if band.mode == "P":
        band = band.convert("RGB")
    to_srgb = transform(band.mode)
    if to_srgb is not None:
        band = ImageCms.applyTransform(band, to_srgb)
    return np.asarray(band if band.mode == "RGB" else band.convert("RGB"))


def _orientation(image: Image.Image) -> int | None:
    """Returns how EXIF says that the image is to be seen.

    `ImageOps.exif_transpose` would also write the EXIF block anew, and fails where the camera wrote it wrongly.
    """
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF costs the orientation, not the photo
        return None


def _deep_to_rgb(band: Image.Image, *, white: float, negative: bool) -> np.ndarray:
    """Returns a grey image of more than 8 bits as (H, W, 1) uint8, its transparent grey (PNG) white."""
    values = np.asarray(band)
    grey = np.clip(np.rint(_finite(values) * (255 / white)), 0, 255).astype(np.uint8)
    transparent = band.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return (255 - grey if negative else grey)[..., None]


def _white_value(image: Image.Image) -> float:
    """Returns which value of a deep grey image is white: 1.0 for floats up to 1, else 255, 65535 or the type's own."""
    peak = 0.0
    for _, band in _bands(image):
        values = np.asarray(band)
        if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # in either byte order
            return 65535.0
        peak = max(peak, _finite(values).max())
    limits = (1.0 if image.mode == "F" else 255.0, 255.0, 65535.0)
    return next((limit for limit in limits if peak <= limit), 2.0**32 - 1)


def _finite(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)


def _srgb_transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns what converts an image of a mode to sRGB; None without a usable profile, and where it is sRGB."""
    if mode not in ("RGB", "L", "CMYK", "LAB") or (mode != "LAB" and _is_srgb(profile)):
        return None
    try:
        contents = ImageCms.createProfile("LAB") if mode == "LAB" else io.BytesIO(profile)
        source, srgb = (ImageCms.ImageCmsProfile(each) for each in (contents, ImageCms.createProfile("sRGB")))
        return ImageCms.buildTransform(source, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):  # a broken profile costs exact colours, not the photo
        return None


def _is_srgb(profile: bytes | None) -> bool:
    """Whether a profile is sRGB's, or there is none."""
    if not profile:
        return True
    try:
        return ImageCms.getProfileDescription(io.BytesIO(profile)).startswith("sRGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False
