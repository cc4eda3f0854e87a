"""What is drawn of a photo that has been through all stages: its cut-out, thumbnails, and inspection picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from flow_utilities import Photo
from inspection_utilities import draw_inspection, encode_jpeg
from mask_utilities import background_rgba, crop, cut_out
from pipeline_utilities import stage
from thumbnail_utilities import save_thumbnails


def draw_cut_out(photo: Photo, background: str, report_dir: Path | None = None) -> np.ndarray:
    """Returns what is written of a photo, (h, w, 4) uint8 RGBA.

    Args:
        photo: Cut out, or to stay uncut.
        background: See `mask_utilities.cut_out`.
        report_dir: Where the page's thumbnails go, which are made here, while the pixels are at hand; None for none.
    """
    if report_dir is not None:
        alpha = photo.alpha
        if alpha is None and photo.mask is not None:
            alpha = photo.mask.view("uint8") * 255
        with stage("thumbnails"):
            save_thumbnails(report_dir, photo.file.source, photo.image, alpha=alpha, crop=photo.crop)
    with stage("PNG"):
        picture = _draw_whole(photo, background)
        return picture if photo.crop is None else crop(picture, photo.crop, background_rgba(background))


def inspection_jpeg(photo: Photo, background: str, caption: str) -> bytes:
    """Returns the JPEG in which a photo's mask, points, cut-out and top items can be looked at side by side."""
    segmentation = photo.segmentation
    return encode_jpeg(
        draw_inspection(
            photo.image,
            _draw_whole(photo, background),
            mask=photo.mask,
            points=None if segmentation is None else segmentation.points,
            focus_box=None if segmentation is None else segmentation.focus.box,
            crop_box=photo.crop,
            top_items=photo.label.top_items,
            caption=caption,
        )
    )


def _draw_whole(photo: Photo, background: str) -> np.ndarray:
    return cut_out(photo.image, photo.mask, background, alpha=photo.alpha)
