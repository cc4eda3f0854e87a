"""By what an output knows how it was made: a run goes on only with the same; and the files that this hangs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from checkpoint_utilities import (
    SAM2_CHECKPOINTS,
    PublicCheckpoint,
    clip_checkpoints,
    file_digest,
    find_checkpoint,
    published_digest,
)
from config_utilities import CAPTION_KEYS, Settings
from detector_utilities import YOLO, find_yolo
from device_utilities import Machine
from focus_utilities import is_points_file
from sam_utilities import config_name, find_config
from storage_utilities import to_place

# They count only where they were asked for: an output made before a flag was invented goes on.
_OPTIONAL = (
    *("focus", "require_focus", "verify_focus"),
    *("clean_mask", "edges", "feather", "min_area", "max_area", "strict"),
    *("crop", "padding", "square", "clip_view"),
    *("min_probability", "min_margin", "min_mask_score", "check"),
)


# Known only when models are loaded, or a device is chosen.
LATE = ("clip_weights", "clip_precision", "sam_weights", "sam_precision", "detector_weights")


def deciding_settings(settings: Settings, machine: Machine, weights: Mapping[str, str]) -> dict[str, Any]:
    """Returns the settings that decide results: a run goes on only with the same. Files count by their contents."""
    deciding = early_settings(settings) | weights | {"clip_precision": machine.clip_precision}
    if not settings.no_sam:
        path = find_checkpoint(settings.sam_model, SAM2_CHECKPOINTS, flag="--sam-model")
        deciding["sam_weights"] = published_digest(path, settings.sam_model, SAM2_CHECKPOINTS, flag="--sam-model")
        deciding["sam_precision"] = machine.precision
    return deciding


def early_settings(settings: Settings) -> dict[str, Any]:
    """Returns those of them that are known before a model is loaded: all but `LATE`."""
    deciding: dict[str, Any] = {
        name: getattr(settings, name) for name in ("decision", "background", "no_sam", "prefixes", "items", "postfixes")
    }
    deciding["dataset_dir"] = str(to_place(settings.dataset_dir, flag="--dataset-dir").resolve())
    clip_path = Path(settings.clip_model)  # for --relabel, from wherever that is started
    deciding["clip_model"] = str(clip_path.resolve()) if clip_path.is_file() else settings.clip_model
    if settings.check:
        deciding["colours"] = settings.colours
    if not settings.no_sam:
        config_path = find_config(settings.sam_config or config_name(settings.sam_model))
        deciding["sam_config"] = file_digest(config_path)
        deciding |= {"margin": settings.margin, "refine": settings.refine}
    deciding |= {
        name: getattr(settings, name) for name in _OPTIONAL if getattr(settings, name) != getattr(Settings, name)
    }
    deciding |= {name: getattr(settings, name) for name in CAPTION_KEYS if name in settings.given}  # for later exports
    if is_points_file(settings.focus):
        deciding["focus"] = file_digest(Path(settings.focus))
    if settings.finds_subjects:
        deciding |= {"focus_labels": settings.focus_labels, "focus_threshold": settings.focus_threshold}
    return deciding


def settled_settings(settings: Settings) -> tuple[str, ...]:
    """Returns those that may differ once `refuse_other_points` has let them pass: a points file may have grown."""
    return ("focus",) if is_points_file(settings.focus) else ()


def find_files(settings: Settings) -> dict[str, tuple[Path, str]]:
    """Returns the files that settings name, for other machines, with their SHA-256.

    Weights are downloaded where they are missing, and under a public name they are the published ones: who knows them
    by a path, as those machines do, can't tell. Torchvision's detectors are no such files: each machine has its own.

    Raises:
        UserError: A file is missing, or not what its name says.
    """

    def find(model: str, public: Mapping[str, PublicCheckpoint], flag: str) -> tuple[Path, str]:
        path = find_checkpoint(model, public, flag=flag, show_progress=not settings.quiet)
        return path, published_digest(path, model, public, flag=flag)

    files = {"clip_model": find(settings.clip_model, clip_checkpoints(), "--clip-model")}
    others = {}
    if not settings.no_sam:
        files["sam_model"] = find(settings.sam_model, SAM2_CHECKPOINTS, "--sam-model")
        others["sam_config"] = find_config(settings.sam_config or config_name(settings.sam_model))
    if is_points_file(settings.focus):
        others["focus"] = Path(settings.focus)
    if settings.finds_subjects and settings.detector.startswith(YOLO):
        others["detector"] = find_yolo(settings.detector)
    return files | {name: (path, file_digest(path)) for name, path in others.items()}


def with_files(settings: Settings, files: Mapping[str, str]) -> Settings:
    """Returns settings that name the files of `find_files` by where they lie on another machine."""
    named = {name: f"{YOLO}{path}" if name == "detector" else path for name, path in files.items()}
    return replace(settings, **named)
