"""The same job as a script would do it, photo after photo with Meta's predictor and OpenAI's CLIP: two yardsticks.

`documents` is the way of the documents that the program was made from: all prompts go through CLIP for every photo.
`careful` computes the prompts' features once. Both are fp32, decode and write in between, and leave Pillow's PNG level
as it is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import clip
import numpy as np
import torch
from clip.model import build_model
from PIL import Image
from sam2.sam2_image_predictor import SAM2ImagePredictor

from sam_utilities import build_sam2, config_name, find_config

_SAMPLED_PROMPTS = 8  # of one photo, where all would take minutes: each costs the same


class Script:
    """Both models as their authors load them.

    Args:
        sam_path: A SAM 2 checkpoint whose name tells its config.
        clip_path: A CLIP state dict.
        device: As torch names it.
    """

    def __init__(self, sam_path: Path, clip_path: Path, device: str) -> None:
        self._device = device
        model = build_sam2(find_config(config_name(str(sam_path)))).to(device).eval()
        weights = torch.load(sam_path, map_location="cpu", weights_only=True)
        model.load_state_dict(weights["model"])
        self._predictor = SAM2ImagePredictor(model)
        side = model.image_size
        self._predictor._bb_feat_sizes = [(side // stride, side // stride) for stride in (4, 8, 16)]
        weights = torch.load(clip_path, map_location="cpu", weights_only=True)
        self._clip = build_model(dict(weights)).float().to(device).eval()
        self._transform = clip.clip._transform(self._clip.visual.input_resolution)
        self.seconds: Counter[str] = Counter()

    def sample_prompts(self, prompts: Sequence[str]) -> float:
        """Returns the seconds that all prompts cost a photo, at CLIP's 77 tokens, scaled up from a few of them."""
        tokens = clip.tokenize(list(prompts[:_SAMPLED_PROMPTS])).to(self._device)
        with torch.inference_mode():
            self._clip.encode_text(tokens)
            began = time.perf_counter()
            self._clip.encode_text(tokens)
            self._wait()
        return (time.perf_counter() - began) * len(prompts) / len(tokens)

    def careful(self, paths: Sequence[Path], output: Path, text_features: Any) -> float:
        """Does the photos one by one with text features, (P, D), and returns the seconds."""
        began = time.perf_counter()
        with torch.inference_mode():
            for path in paths:
                self._do(path, output, text_features)
        return time.perf_counter() - began

    def random_text_features(self, count: int) -> Any:
        """Returns features that cost as much to compare as real ones, (P, D)."""
        features = torch.randn(count, self._clip.text_projection.shape[1], device=self._device)
        return features / features.norm(dim=-1, keepdim=True)

    def _do(self, path: Path, output: Path, text_features: Any) -> None:
        image = np.array(Image.open(path).convert("RGB"))
        height, width = image.shape[:2]
        x, y, m = width // 2, height // 2, int(min(width, height) * 0.05)
        began = time.perf_counter()
        self._predictor.set_image(image)
        self._wait()
        self.seconds["encoder"] += time.perf_counter() - began
        began = time.perf_counter()
        _, scores, logits = self._predictor.predict(np.array([[x, y]]), np.array([1]), multimask_output=True)
        masks, _, _ = self._predictor.predict(
            np.array([[x, y], [x + m, y + m], [x - m, y + m]]),
            np.array([1, 1, 1]),
            mask_input=logits[scores.argmax()][None],
            multimask_output=False,
        )
        self.seconds["decoder"] += time.perf_counter() - began
        image[masks[0] == 0] = 255
        began = time.perf_counter()
        pixels = self._transform(Image.fromarray(image))[None].to(self._device)
        features = self._clip.encode_image(pixels)
        features /= features.norm(dim=-1, keepdim=True)
        best = (100 * features @ text_features.T).softmax(dim=-1).argmax().item()
        self.seconds["CLIP"] += time.perf_counter() - began
        began = time.perf_counter()
        rgba = np.dstack([image, np.full((height, width), 255, np.uint8)])
        Image.fromarray(rgba, "RGBA").save(output / f"{best}-{path.stem}.png")
        self.seconds["PNG"] += time.perf_counter() - began

    def _wait(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize()
        elif self._device == "mps":
            torch.mps.synchronize()
