"""By what an output knows how it was made: a run goes on only with the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoint_utilities import SAM2_CHECKPOINTS, file_digest, find_checkpoint, published_digest
from config_utilities import CAPTION_KEYS, Settings
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
