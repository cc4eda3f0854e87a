"""Seeded random weights of the real architectures, saved as the checkpoints that the program loads."""

from __future__ import annotations

from pathlib import Path

import torch
from clip.model import CLIP

import sam_utilities


def save_random_sam2(path: Path, config: str = "sam2.1_hiera_micro", seed: int = 3) -> Path:
    """Saves a SAM 2 whose masks mean nothing but differ from photo to photo."""
    torch.manual_seed(seed)
    model = sam_utilities.build_sam2(sam_utilities.find_config(config))
    torch.save({"model": model.state_dict()}, path)
    return path


def save_random_clip(path: Path, seed: int = 0, width: int = 64, layers: int = 2) -> Path:
    """Saves a CLIP of 64 px and two layers a tower as a state dict in half precision, as `clip.load` reads it."""
    torch.manual_seed(seed)
    model = CLIP(
        embed_dim=width,
        image_resolution=64,
        vision_layers=layers,
        vision_width=width,
        vision_patch_size=16,
        context_length=77,
        vocab_size=49408,
        transformer_width=width,
        transformer_heads=1,
        transformer_layers=layers,
    )
    model.logit_scale.data.fill_(4.6052)  # e^4.6052 = 100, where CLIP's training ends
    torch.save(model.state_dict(), path)
    return path
