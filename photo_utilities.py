"""One file -> one RGB array, as a viewer would show it."""

from __future__ import annotations

import functools
import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from errors import NotAPhotoError, PhotoError

# PostScript is a program that Pillow hands to Ghostscript; a stranger's photo must not run programs.
_REFUSED_FORMATS = {"EPS"}

_WHITE = (255, 255, 255, 255)


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Returns the formats that are read: all of Pillow's but PostScript; HEIC with pillow-heif installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        pass
    else:
        register_heif_opener()
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _REFUSED_FORMATS)


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
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
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
    except Image.DecompressionBombError as error:
        raise PhotoError(str(error), stage="decode") from None
    # Pillow's plugins raise all of these on damaged files, and MemoryError on absurd sizes.
    except (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, EOFError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PhotoError(f"can't be read: {reason}", stage="decode") from error


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large sizes and odd EXIF; errors are what counts
        return Image.open(path, formats=readable_formats())


def _unreadable_reason(path: Path) -> str:
    if path.stat().st_size == 0:
        return "the file is empty"
    if path.suffix.lower() in (".heic", ".heif", ".hif") and "HEIF" not in readable_formats():
        return "HEIC is read with pillow-heif; install it: pip install pillow-heif"
    return "the contents are no image that Pillow reads"


def _to_rgb(image: Image.Image) -> np.ndarray:
    profile = image.info.get("icc_profile")
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F" or upright.mode.startswith("I"):
        grey = _to_8_bit(np.asarray(upright))
        return np.repeat(grey[..., None], 3, axis=2)
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    if upright.mode in ("RGB", "CMYK", "LAB"):
        upright = _to_srgb(upright, profile)
    return np.array(upright.convert("RGB"))


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
    try:
        if image.mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif profile:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        else:
            return image
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        converted = ImageCms.profileToProfile(image, source, _srgb_profile(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):  # a broken profile costs exact colours, not the photo
        return image
    return image if converted is None else converted


def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
