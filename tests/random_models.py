"""Seeded random weights of the real architectures, saved as the checkpoints that the program loads."""

from __future__ import annotations

from pathlib import Path

import torch
from clip.model import CLIP, convert_weights

import sam_utilities


def save_random_sam2(path: Path, config: str = "sam2.1_hiera_micro", seed: int = 3) -> Path:
    """Saves a SAM 2 whose masks mean nothing but differ from photo to photo."""
    torch.manual_seed(seed)
    model = sam_utilities.build_sam2(sam_utilities.find_config(config))
    torch.save({"model": model.state_dict()}, path)
    return path


def save_random_clip(path: Path, seed: int = 0, *, resnet: bool = False) -> Path:
    """Saves a CLIP of 64 px and few layers as a state dict in half precision, as OpenAI's files are."""
    torch.manual_seed(seed)
    model = CLIP(
        embed_dim=64,
        image_resolution=64,
        vision_layers=(1, 1, 1, 1) if resnet else 2,
        vision_width=8 if resnet else 64,
        vision_patch_size=None if resnet else 16,
        context_length=77,
        vocab_size=49408,
        transformer_width=64,
        transformer_heads=1,
        transformer_layers=2,
    )
    model.logit_scale.data.fill_(4.6052)  # e^4.6052 = 100, where CLIP's training ends
    convert_weights(model)
    torch.save(model.state_dict(), path)
    return path
