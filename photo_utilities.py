"""One file -> one RGB array, as a viewer would show it."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageCms, UnidentifiedImageError

from errors import NotAPhotoError, PhotoError

# What Pillow recognises and is no photo here. PostScript is a program that it would hand to Ghostscript: a stranger's
# file must not run programs. For the others it has no decoder, or, as for IM, takes plain text for them.
_NO_PHOTOS = {"EPS", "BUFR", "GRIB", "HDF5", "IM", "MPEG", "WMF"}

MAX_PIXELS = 300_000_000  # 0.9 GB decoded; the largest phone sensors have 200 million
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns there, and refuses at twice that

_JPEGS = {"JPEG", "MPO"}  # MPO: with further pictures behind the first, as many phones write

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

_WHITE = (255, 255, 255, 255)


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Returns the formats that are recognised: Pillow's, and HEIC with pillow-heif installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    Image.init()
    # Once, not around each photo: warnings.catch_warnings is no matter for threads. Errors are what counts.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd EXIF and the like
    return tuple(Image.OPEN)


@functools.cache
def _image_endings() -> frozenset[str]:
    readable_formats()
    heif = {".heic", ".heif", ".hif"}  # a photo even where nothing here can read it
    return frozenset(heif.union(ending for ending in Image.registered_extensions()))


def is_image(path: Path) -> bool:
    """Whether Pillow recognises the contents of a file as an image; its ending does not matter."""
    try:
        with _open(path):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # Pillow's plugins raise all kinds of errors over bytes that are not theirs
        return False


def read_photo(path: Path) -> np.ndarray:
    """Returns the first frame of an image file as (H, W, 3) uint8 RGB, upright, transparent parts on white.

    EXIF orientation is applied. An embedded colour profile other than sRGB is converted to sRGB.
    16-bit and floating-point greys keep their range.

    Raises:
        NotAPhotoError: The file holds no image, and its ending does not say that it should.
        PhotoError: The image can't be read.
    """
    try:
        with _open(path) as image:
            return _to_rgb(image)
    except UnidentifiedImageError:
        if path.suffix.lower() not in _image_endings():
            raise NotAPhotoError(path.name) from None
        raise PhotoError(_unreadable_reason(path), stage="decode") from None
    except Image.DecompressionBombError:
        raise PhotoError(f"has more than {MAX_PIXELS:,} pixels; make it smaller", stage="decode") from None
    except Exception as error:  # as in is_image: a fuzzer found nine kinds, struct.error and RuntimeError among them
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PhotoError(f"can't be read: {reason}", stage="decode") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Image.Image]:
    # By its contents, not its path: Pillow maps uncompressed TIFFs that it opens by path, and with an orientation
    # that swaps the sides some modes then come out scrambled (Pillow 13.0).
    with path.open("rb") as file, Image.open(file, formats=readable_formats()) as image:
        if image.format in _NO_PHOTOS:
            raise UnidentifiedImageError(f"{image.format} holds no photo")
        yield image


def _unreadable_reason(path: Path) -> str:
    if path.stat().st_size == 0:
        return "the file is empty"
    if path.suffix.lower() in (".heic", ".heif", ".hif") and "HEIF" not in readable_formats():
        return "HEIC is read with pillow-heif; install it: pip install pillow-heif"
    return "the contents are no image that Pillow reads"


def _to_rgb(image: Image.Image) -> np.ndarray:
    profile = image.info.get("icc_profile")
    usual = image.format in _JPEGS and image.mode == "RGB" and _is_srgb(profile)
    rgb = _decode_jpeg(image) if usual else None
    if rgb is None:
        image.load()
        rgb = _convert(image, profile)
    turn = _TURNS.get(_orientation(image))
    return rgb if turn is None else turn(rgb)


def _decode_jpeg(image: Image.Image) -> np.ndarray | None:
    """Returns a JPEG that Pillow has opened, to the bit as Pillow reads it, as an (H, W, 3) uint8 array.

    It takes a third of the time, and holds up no other thread, as Pillow does while it hands an array over. Where the
    file is damaged in any way the result is None, and Pillow says what is wrong, or makes something of it.
    """
    image.fp.seek(0)
    try:
        return simplejpeg.decode_jpeg(image.fp.read(), "RGB")
    except ValueError:
        return None


def _convert(image: Image.Image, profile: bytes | None) -> np.ndarray:
    """Returns an image that Pillow has loaded, of any mode, as an (H, W, 3) uint8 RGB array."""
    if image.mode == "F" or image.mode.startswith("I"):
        return np.repeat(_deep_grey(image)[..., None], 3, axis=2)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    if image.mode == "P":
        image = image.convert("RGB")
    if image.mode in ("RGB", "L", "CMYK", "LAB"):
        image = _to_srgb(image, profile)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _orientation(image: Image.Image) -> int | None:
    """Returns how EXIF says that the image is to be seen.

    `ImageOps.exif_transpose` would also write the EXIF block anew, and fails where the camera wrote it wrongly.
    """
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # damaged EXIF costs the orientation, not the photo
        return None


def _deep_grey(image: Image.Image) -> np.ndarray:
    """Returns a grey image of more than 8 bits as (H, W) uint8, its transparent grey (PNG) white."""
    values = np.asarray(image)
    grey = _to_8_bit(values)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    return grey


def _to_8_bit(grey: np.ndarray) -> np.ndarray:
    """Returns a deep grey image as uint8: white is 1.0 for floats up to 1, else 255, 65535 or the type's own range."""
    finite = np.nan_to_num(grey.astype(np.float64), posinf=0, neginf=0)
    peak = finite.max(initial=0)
    if grey.dtype == np.uint16:
        white = 65535.0
    else:
        floats = grey.dtype.kind == "f"
        white = next((limit for limit in (1.0 if floats else 255.0, 255.0, 65535.0) if peak <= limit), 2.0**32 - 1)
    return np.clip(np.rint(finite * (255 / white)), 0, 255).astype(np.uint8)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Returns an image in sRGB; one without a usable profile as it is (RGB) or converted plainly (CMYK)."""
    if image.mode != "LAB" and _is_srgb(profile):
        return image
    try:
        if image.mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, source, _srgb_profile(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):  # a broken profile costs exact colours, not the photo
        return image
    return image if converted is None else converted


def _is_srgb(profile: bytes | None) -> bool:
    """Whether a profile is sRGB's, or there is none."""
    if not profile:
        return True
    try:
        return ImageCms.getProfileDescription(io.BytesIO(profile)).startswith("sRGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return False


def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
