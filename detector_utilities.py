"""What finds things of known kinds in photos, and which of the things it finds is the subject."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

import checkpoint_utilities
from checkpoint_utilities import PublicCheckpoint
from errors import CheckpointError, ConfigError
from focus_utilities import Box, Focus, pixel_at
from pipeline_utilities import stage
from storage_utilities import is_file

if TYPE_CHECKING:
    from torch import Tensor

YOLO = "yolo:"  # before the file of a detector that ultralytics reads

# Detections whose prominence is at least this much of the best one's count as equal; their confidence decides.
_EQUAL_PROMINENCE = 0.9

_DETECTOR_SIDE = 640  # pixels of the longer side that detectors see; COCO, which they learnt, is of 640 px photos
_YOLO_GREY = 114  # what YOLO models saw around their photos in training
# As low as torchvision's; ultralytics' own 0.25 would decide before the user's threshold does.
_LEAST_YOLO_CONFIDENCE = 0.05
_YOLO_BOX_TASKS = ("detect", "segment", "pose")  # the others give labels without boxes, or turned boxes


@dataclass(frozen=True)
class Detection:
    """One thing that a detector found in a photo.

    Attributes:
        box: (x0, y0, x1, y1) in pixels of the photo.
        label: The detector's word for it.
        confidence: 0 to 1.
    """

    box: Box
    label: str
    confidence: float


def choose_detection(
    detections: Iterable[Detection], width: int, height: int, *, labels: Collection[str] | None, threshold: float
) -> Detection | None:
    """Returns the photo's subject, its box clipped to the photo, whatever the order of the detections; or None.

    Prominence is the square root of the box's fraction of the photo, times closeness: 1 less the distance of the box's
    centre from the photo's in units of half the diagonal. Of those within 10% of the most prominent the most confident
    is the subject; of equally confident ones the more prominent.

    Args:
        detections: Of one photo; boxes with nothing inside the photo are ignored.
        width: Of the photo in pixels.
        height: Of the photo in pixels.
        labels: Those that may be a subject; None for any.
        threshold: The least confidence.
    """
    accepted = [
        replace(each, box=_clip_box(each.box, width, height))
        for each in detections
        if (labels is None or each.label in labels) and each.confidence >= threshold
    ]
    prominences = [(_prominence(each.box, width, height), each) for each in accepted if _has_area(each.box)]
    least = _EQUAL_PROMINENCE * max((prominence for prominence, _ in prominences), default=0.0)
    equal = [(prominence, each) for prominence, each in prominences if prominence >= least]
    # Box and label only make equals among equals the same in any order.
    best = max(equal, key=lambda pair: (pair[1].confidence, pair[0], pair[1].box, pair[1].label), default=None)
    return best and best[1]


def _clip_box(box: Box, width: float, height: float) -> Box:
    x0, y0, x1, y1 = box
    return min(max(x0, 0.0), width), min(max(y0, 0.0), height), min(max(x1, 0.0), width), min(max(y1, 0.0), height)


def _has_area(box: Box) -> bool:
    return box[0] < box[2] and box[1] < box[3]


def _prominence(box: Box, width: int, height: int) -> float:
    x0, y0, x1, y1 = box
    distance = math.hypot((x0 + x1 - width) / 2, (y0 + y1 - height) / 2)
    closeness = 1 - distance / (math.hypot(width, height) / 2)
    return math.sqrt((x1 - x0) * (y1 - y0) / (width * height)) * closeness


def detection_focus(detection: Detection, width: int, height: int) -> Focus:
    """Returns the place of a detection, one of `choose_detection`, in a photo of some size in pixels."""
    x0, y0, x1, y1 = detection.box
    point = pixel_at((x0 + x1) / 2, (y0 + y1) / 2, width, height)
    return Focus("detector", point, detection.box, detection.label, detection.confidence)


class Detector(Protocol):
    """A model that finds things of known kinds in photos."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The words that it has for them."""

    @property
    def digest(self) -> str:
        """The SHA-256 of its file, hexadecimal."""

    def detect(self, images: Sequence[np.ndarray], *, fill: int = 0) -> list[list[Detection]]:
        """Returns what it finds in each photo, which does not depend on the other photos.

        Args:
            images: B photos, each (H, W, 3) uint8 RGB; their sizes may differ.
            fill: Repeat the last photo so often inside the model, so that all batches are of one size: another size
                of batch has other last digits.
        """


def load_detector(
    name: str,
    device: str = "cpu",
    *,
    checkpoints_dir: Path = checkpoint_utilities.CHECKPOINTS_DIR,
    show_progress: bool = True,
) -> Detector:
    """Returns a detector on a device.

    Args:
        name: A detection model of torchvision (downloaded on first use), or `yolo:FILE.pt` for a file that the package
            ultralytics reads, which runs any code that the file holds: only for files that you trust.
        device: As torch names it.
        checkpoints_dir: Where files are looked up and downloads go.
        show_progress: Show a progress bar while downloading.

    Raises:
        CheckpointError: There is no such detector, or its file can't be downloaded or used.
    """
    check_detector(name, checkpoints_dir)
    if name.startswith(YOLO):
        return _load_yolo(name, device, checkpoints_dir)
    path = checkpoint_utilities.find_checkpoint(
        name, detector_checkpoints(), flag="--detector", checkpoints_dir=checkpoints_dir, show_progress=show_progress
    )
    state_dict = checkpoint_utilities.read_weights(path, kind=f"the weights of {name}", flag="--detector")
    model, names = _build_torchvision(name, state_dict, path)
    model.eval().requires_grad_(requires_grad=False).to(device)
    return _TorchvisionDetector(model, names, device, checkpoint_utilities.file_digest(path))


def check_detector(name: str, checkpoints_dir: Path = checkpoint_utilities.CHECKPOINTS_DIR) -> None:
    """Says before anything is downloaded what `load_detector` would say of a detector that there is not.

    Raises:
        CheckpointError: There is no such detector.
    """
    if name.startswith(YOLO):
        find_yolo(name, checkpoints_dir)
        return
    public = detector_checkpoints()
    if name not in public:
        near = difflib.get_close_matches(name, public, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise CheckpointError(
            f"--detector {name}: no such detector; {hint}use one of: {', '.join(public)}; or {YOLO}FILE.pt"
        )


def find_yolo(name: str, checkpoints_dir: Path = checkpoint_utilities.CHECKPOINTS_DIR) -> Path:
    """Returns the file of `yolo:FILE.pt`; FILE is a path, or a name under `checkpoints_dir`.

    Raises:
        CheckpointError: There is none.
    """
    file = name.removeprefix(YOLO)
    for path in (Path(file), checkpoints_dir / file):
        if path.suffix == ".pt" and is_file(path):
            return path
    raise CheckpointError(
        f"--detector {name}: no such .pt, neither here nor in {checkpoints_dir}; name the .pt of a YOLO model"
    )


@functools.cache
def detector_checkpoints() -> dict[str, PublicCheckpoint]:
    """Returns the files behind torchvision's detection models that were trained on COCO.

    Their names end in the first digits of their SHA-256. `keypointrcnn_resnet50_fpn` knows persons only.
    """
    from torchvision.models import detection, get_model_weights, list_models

    urls = {name: get_model_weights(name).DEFAULT.url for name in list_models(module=detection)}
    digits = {name: re.search(r"-([0-9a-f]{8,64})\.pth$", url) for name, url in urls.items()}
    return {name: PublicCheckpoint(urls[name], found[1]) for name, found in digits.items() if found}


def _build_torchvision(name: str, state_dict: dict[str, Tensor], path: Path) -> tuple[Any, tuple[str | None, ...]]:
    """Returns a detection model of torchvision with the weights of a file, and its labels by index."""
    from torchvision.models import get_model, get_model_weights

    weights = get_model_weights(name).DEFAULT
    # Only torchvision's own builder knows which batch norms of a model are frozen, and with which epsilon: weights that
    # are loaded afterwards miss tensors or give other boxes (vision #8502). So it gets these where it would download.
    weights.get_state_dict = lambda **_: state_dict
    try:
        model = get_model(name, weights=weights, weights_backbone=None, progress=False)
    except RuntimeError as error:  # from load_state_dict; the first line is a headline
        difference = " ".join(str(error).partition("\n")[2].split()) or str(error)
        shortened = difference if len(difference) <= 120 else f"{difference[:117]}..."
        raise CheckpointError(
            f"{path}: does not fit the architecture {name}: {shortened}; delete it to download it again"
        ) from None
    finally:
        del weights.get_state_dict
    # COCO's numbers have gaps, "N/A", after the background: what falls there has no name.
    categories = enumerate(weights.meta["categories"])
    return model, tuple(None if index == 0 or category == "N/A" else category for index, category in categories)


@dataclass(frozen=True)
class _TorchvisionDetector:
    """A detection model of torchvision; `names` are its labels by index, None where it has none."""

    model: Any
    names: tuple[str | None, ...]
    device: str
    digest: str

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(filter(None, self.names))

    def detect(self, images: Sequence[np.ndarray], *, fill: int = 0) -> list[list[Detection]]:
        import torch

        with stage("detector", synchronize=True), torch.inference_mode():
            # SSDs squeeze every photo into one size. The others pad a batch to its largest photo: each photo gets a
            # canvas of its own, or its neighbours would decide what it is padded to.
            squeezes = self.model.transform.fixed_size is not None
            seen = [_resize(image, enlarge=not squeezes) for image in images]
            pixels = [self._to_pixels(photo, letterbox=not squeezes) for photo in seen]
            outputs = self.model([*pixels, *pixels[-1:] * fill])[: len(images)]
            found = [[output[key].tolist() for key in ("boxes", "labels", "scores")] for output in outputs]
        return [
            _to_detections(boxes, [self.names[index] for index in labels], confidences, *shapes)
            for (boxes, labels, confidences), *shapes in zip(found, seen, images, strict=True)
        ]

    def _to_pixels(self, photo: np.ndarray, *, letterbox: bool) -> Tensor:
        """Returns a photo as (3, h, w) float32 from 0 to 1."""
        import torch

        pixels = torch.from_numpy(np.ascontiguousarray(photo)).to(self.device).permute(2, 0, 1) / 255  # HWC -> CHW
        if not letterbox:
            return pixels
        # ImageNet's mean, which becomes 0 when the model normalises it: what the model itself pads with.
        mean = torch.tensor(self.model.transform.image_mean, device=self.device)
        canvas = mean[:, None, None].repeat(1, _DETECTOR_SIDE, _DETECTOR_SIDE)
        canvas[:, : photo.shape[0], : photo.shape[1]] = pixels
        return canvas


def _resize(image: np.ndarray, *, enlarge: bool) -> np.ndarray:
    """Returns a photo with a longer side of 640 pixels; a smaller one as it is, unless it is to be enlarged."""
    import cv2

    height, width = image.shape[:2]
    scale = _DETECTOR_SIDE / max(height, width)
    if scale == 1 or (scale > 1 and not enlarge):
        return image
    size_wh = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size_wh, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _to_detections(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[str | None],
    confidences: Sequence[float],
    seen: np.ndarray,
    image: np.ndarray,
) -> list[Detection]:
    """Returns detections in a photo as the detector saw it, (h, w, 3), as such of the photo itself, (H, W, 3).

    What has no label is left out, as is what lies in the padding.
    """
    (seen_height, seen_width), (height, width) = seen.shape[:2], image.shape[:2]
    scale_x, scale_y = width / seen_width, height / seen_height
    detections = []
    for box, label, confidence in zip(boxes, labels, confidences, strict=True):
        x0, y0, x1, y1 = _clip_box(cast(Box, box), seen_width, seen_height)
        scaled = (x0 * scale_x, y0 * scale_y, x1 * scale_x, y1 * scale_y)
        if label and _has_area(scaled):
            detections.append(Detection(scaled, label, confidence))
    return detections


def _load_yolo(name: str, device: str, checkpoints_dir: Path) -> Detector:
    path = find_yolo(name, checkpoints_dir)
    try:
        from ultralytics import YOLO
    except ImportError as error:
        raise CheckpointError(
            f"--detector {name}: needs the package ultralytics ({error}); pip install ultralytics "
            "(its licence is AGPL-3.0), or use a detector of torchvision"
        ) from None
    try:
        model = YOLO(str(path))
    except Exception as error:  # it unpickles whatever the file holds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path}: ultralytics can't read it: {reason}; name the .pt of a YOLO model") from error
    if model.task not in _YOLO_BOX_TASKS:
        raise CheckpointError(
            f"{path}: a model for {model.task!r} gives no boxes; use one for {', '.join(_YOLO_BOX_TASKS)}"
        )
    return _YoloDetector(model, device, checkpoint_utilities.file_digest(path))


@dataclass(frozen=True)
class _YoloDetector:
    """An `ultralytics.YOLO`."""

    model: Any
    device: str
    digest: str

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.model.names.values())

    def detect(self, images: Sequence[np.ndarray], *, fill: int = 0) -> list[list[Detection]]:
        with stage("detector", synchronize=True):
            seen = [_resize(image, enlarge=True) for image in images]
            # Squares: ultralytics pads photos of one shape less than photos of several.
            canvases = [_yolo_canvas(photo) for photo in seen]
            results = self.model.predict(
                [*canvases, *canvases[-1:] * fill], conf=_LEAST_YOLO_CONFIDENCE, device=self.device, verbose=False
            )
            found = [
                [each.tolist() for each in (result.boxes.xyxy, result.boxes.cls, result.boxes.conf)]
                for result in results[: len(images)]
            ]
        return [
            _to_detections(boxes, [self.model.names[int(number)] for number in classes], confidences, *shapes)
            for (boxes, classes, confidences), *shapes in zip(found, seen, images, strict=True)
        ]


def _yolo_canvas(photo: np.ndarray) -> np.ndarray:
    """Returns a photo in the upper left of a grey square, in OpenCV's channel order, which ultralytics expects."""
    canvas = np.full((_DETECTOR_SIDE, _DETECTOR_SIDE, 3), _YOLO_GREY, np.uint8)
    canvas[: photo.shape[0], : photo.shape[1]] = photo[:, :, ::-1]  # RGB -> BGR
    return canvas


def check_labels(detector: Detector, labels: Iterable[str], *, flag: str = "--focus-labels") -> None:
    """Checks that a detector knows these labels.

    Raises:
        ConfigError: It doesn't know one of them; names the flag that gave it and what comes near.
    """
    for label in labels:
        if label in detector.labels:
            continue
        near = difflib.get_close_matches(label.lower(), detector.labels, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it knows: {', '.join(detector.labels)}"
        raise ConfigError(f"{flag} {label!r}: the detector knows no such label; {hint}")
