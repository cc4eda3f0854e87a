"""SAM 2: loading it, and the two passes that cut the central subject out of a batch of photos."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import checkpoint_utilities
from errors import CheckpointError
from mask_utilities import bounding_box, refine_mask

if TYPE_CHECKING:
    from torch import Tensor

CONFIGS_DIR = Path(__file__).resolve().parent / "sam2" / "configs"

# ImageNet's channel statistics, as in sam2.utils.transforms.SAM2Transforms.
_PIXEL_MEAN = (0.485, 0.456, 0.406)
_PIXEL_STD = (0.229, 0.224, 0.225)

_LOGIT_LIMIT = 32.0  # SAM2ImagePredictor clamps the logits that it hands back as a mask prompt


@dataclass(frozen=True)
class Segmentation:
    """The subject of one photo.

    Attributes:
        mask: (H, W) bool at the photo's size, true on the subject.
        score: SAM 2's own prediction of the mask's IoU, about 0 to 1.
        points: (3, 2) int64, the points (x, y) in pixels that pass 2 was given: the centre and two supports.
        box: (x0, y0, x1, y1) around the mask in pixels, x1 and y1 exclusive; None where the mask is empty.
    """

    mask: np.ndarray
    score: float
    points: np.ndarray
    box: tuple[int, int, int, int] | None


def load_sam2(
    model: str,
    config: str | None = None,
    device: str = "cpu",
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    checkpoints_dir: Path = checkpoint_utilities.CHECKPOINTS_DIR,
    show_progress: bool = True,
) -> Any:
    """Returns a SAM 2 model (`sam2.modeling.sam2_base.SAM2Base`) in evaluation mode on a device.

    Args:
        model: A public SAM 2.1 name (downloaded on first use), the name of a .pt under checkpoints/, or a path.
        config: The architecture, such as `sam2.1_hiera_l`, or a path to a .yaml; derived from `model` when None.
        device: As torch names it.
        precision: Of the image encoder, 98% of the work. Prompt encoder and mask decoder stay in fp32: points
            near 1024 px would be rounded to 4-8 px in bf16, and the choice among masks hangs on small differences.
        checkpoints_dir: Where names are looked up and downloads go.
        show_progress: Show a progress bar while downloading.

    Raises:
        CheckpointError: There is no such model or config, or they don't fit each other.
    """
    import torch

    config_path = find_config(config or config_name(model))
    path = checkpoint_utilities.find_checkpoint(
        model,
        checkpoint_utilities.SAM2_CHECKPOINTS,
        flag="--sam-model",
        checkpoints_dir=checkpoints_dir,
        show_progress=show_progress,
    )
    weights = checkpoint_utilities.read_weights(path)
    if not isinstance(weights, dict) or not isinstance(weights.get("model"), dict):
        raise CheckpointError(
            f'{path}: not a SAM 2 checkpoint: its weights must stand under the key "model", as in Meta\'s files'
        )
    sam2_model = build_sam2(config_path)
    checkpoint_utilities.load_matching(
        sam2_model, weights["model"], path=path, architecture=config_path.stem, flag="--sam-config"
    )
    sam2_model.eval().requires_grad_(requires_grad=False).to(device)
    if precision == "bf16":
        sam2_model.image_encoder.to(torch.bfloat16)
    return sam2_model


def config_name(model: str) -> str:
    """Returns the config that the name of a model tells: `sam2.1_hiera_large_v7.pt` tells `sam2.1_hiera_l`.

    Raises:
        CheckpointError: The name tells nothing.
    """
    stem = Path(model).name.removesuffix(".pt")
    names = sorted(available_configs(), key=len, reverse=True)
    letters = {"tiny": "t", "small": "s", "base_plus": "b+", "large": "l"}
    known = re.search(r"(sam2(?:\.1)?_hiera)_(tiny|small|base_plus|large)", stem)
    if known:
        return f"{known[1]}_{letters[known[2]]}"
    for name in names:
        if name in stem:
            return name
    raise CheckpointError(
        f"--sam-model {model}: its name does not tell its architecture; "
        f"add --sam-config with one of: {', '.join(sorted(names))}"
    )


def available_configs() -> dict[str, Path]:
    """Returns the SAM 2 configs by name: this project's own first, then the installed package's."""
    roots = [CONFIGS_DIR]
    spec = find_spec("sam2")
    if spec and spec.submodule_search_locations:
        roots += [Path(location) / "configs" for location in spec.submodule_search_locations]
    configs: dict[str, Path] = {}
    for root in roots:
        for family in ("sam2.1", "sam2"):
            for path in sorted((root / family).glob("*.yaml")):
                configs.setdefault(path.stem, path)
    return configs


def find_config(config: str) -> Path:
    """Returns the .yaml of a config: a path, a name, or hydra's long form `configs/sam2.1/NAME.yaml`.

    Raises:
        CheckpointError: There is none.
    """
    if config.endswith(".yaml") and Path(config).is_file():
        return Path(config)
    configs = available_configs()
    name = config.rsplit("/", 1)[-1].removesuffix(".yaml")
    if name not in configs:
        raise CheckpointError(
            f"--sam-config {config}: no such config; use a path to a .yaml or one of: {', '.join(sorted(configs))}"
        )
    return configs[name]


def build_sam2(config_path: Path) -> Any:
    """Returns the model that a .yaml describes, with random weights.

    Raises:
        CheckpointError: The file describes no SAM 2.
    """
    from omegaconf import OmegaConf

    try:
        return instantiate_sam2(OmegaConf.load(config_path))
    except Exception as error:  # OmegaConf, YAML, hydra and the constructors each have their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"--sam-config {config_path}: describes no SAM 2 model: {reason}") from error


def instantiate_sam2(config: Any) -> Any:
    """Returns the model of a loaded config, an OmegaConf with Meta's keys.

    As `sam2.build_sam.build_sam2` does, but without hydra's search for configs, whose errors name no file.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    # build_sam2's post-processing: a single mask that is not stable gives way to the best of the three.
    extra = "model.sam_mask_decoder_extra_args"
    OmegaConf.update(config, f"{extra}.dynamic_multimask_via_stability", value=True, force_add=True)
    OmegaConf.update(config, f"{extra}.dynamic_multimask_stability_delta", value=0.05, force_add=True)
    OmegaConf.update(config, f"{extra}.dynamic_multimask_stability_thresh", value=0.98, force_add=True)
    OmegaConf.resolve(config)
    return instantiate(config.model, _recursive_=True)


def predict_sam2(
    images: Sequence[np.ndarray], sam2_model: Any, mask_threshold: float = 0.05, *, refine: bool = False
) -> list[Segmentation]:
    """Returns the central subject of each photo, cut out in two passes over the whole batch.

    Pass 1 gives SAM 2 the centre of the photo and takes the best of three masks. Pass 2 gives it that mask, the
    centre and two supporting points, to its lower right and left, and takes one mask. Photo by photo
    the same as `SAM2ImagePredictor.predict`, called twice; here both passes and the encoder are one call each.

    Args:
        images: B photos, each (H, W, 3) uint8 RGB; their sizes may differ.
        sam2_model: From `load_sam2`.
        mask_threshold: The margin of pass 2 as a fraction of the photo's shorter side, in [0, 0.5).
        refine: Let the outlines follow the photos' own edges; see `mask_utilities.refine_mask`.
    """
    import torch

    sizes_wh = [(image.shape[1], image.shape[0]) for image in images]
    points = [centre_points(width, height, mask_threshold) for width, height in sizes_wh]
    with torch.inference_mode():
        pixels = torch.stack([to_pixels(image, sam2_model.image_size) for image in images])
        features = encode_pixels(pixels, sam2_model)
        coordinates = _to_model_frame(points, sizes_wh, sam2_model)  # (B, 3, 2)
        mask_logits, iou_predictions = decode_masks(
            sam2_model, features, coordinates[:, :1], mask_prompt=None, multimask_output=True
        )
        best = iou_predictions.argmax(dim=1)
        batch = torch.arange(len(images), device=best.device)
        mask_prompt = mask_logits[batch, best][:, None].clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)  # (B, 1, h, w)
        mask_logits, iou_predictions = decode_masks(
            sam2_model, features, coordinates, mask_prompt=mask_prompt, multimask_output=False
        )
        if refine:
            low_resolution = mask_logits[:, 0].cpu().numpy()
            masks = [refine_mask(image, logits) for image, logits in zip(images, low_resolution, strict=True)]
        else:
            masks = [_full_size_mask(logits, size_wh) for logits, size_wh in zip(mask_logits, sizes_wh, strict=True)]
        scores = iou_predictions[:, 0].tolist()
    return [
        Segmentation(mask=mask, score=score, points=photo_points, box=bounding_box(mask))
        for mask, score, photo_points in zip(masks, scores, points, strict=True)
    ]


def centre_points(width: int, height: int, mask_threshold: float) -> np.ndarray:
    """Returns the centre of a photo and its two supporting points as (3, 2) int64 (x, y) in pixels.

    The first is pass 1's only point; all three are pass 2's. They lie inside the photo for margins below 0.5.
    """
    x, y = width // 2, height // 2
    margin = int(min(width, height) * mask_threshold)
    return np.array([[x, y], [x + margin, y + margin], [x - margin, y + margin]])


@dataclass(frozen=True)
class Features:
    """What the mask decoder reads of B photos: strides 16, 4 and 8 of the model's frame."""

    image_embeddings: Tensor  # (B, C, s, s) float32
    high_res_features: list[Tensor]  # [(B, C / 8, 4 s, 4 s), (B, C / 4, 2 s, 2 s)] float32


def to_pixels(image: np.ndarray, image_size: int) -> Tensor:
    """Returns a photo in the model's frame, (3, image_size, image_size) float32, as SAM2Transforms makes it."""
    import torch
    from torchvision.transforms import functional

    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float().div(255)  # HWC -> CHW
    pixels = functional.resize(pixels, [image_size, image_size], antialias=True)
    return functional.normalize(pixels, _PIXEL_MEAN, _PIXEL_STD)


def encode_pixels(pixels: Tensor, sam2_model: Any) -> Features:
    """Runs the image encoder once over a batch, (B, 3, s, s) from `to_pixels`, for any size that the model has.

    As SAM2ImagePredictor.set_image_batch, which knows 1024 px only.
    """
    encoder, decoder = sam2_model.image_encoder, sam2_model.sam_mask_decoder
    dtype = next(encoder.parameters()).dtype
    levels = encoder(pixels.to(sam2_model.device, dtype))["backbone_fpn"]
    fine, middle, coarse = (level.float() for level in levels)
    if sam2_model.directly_add_no_mem_embed:
        coarse = coarse + sam2_model.no_mem_embed.view(1, -1, 1, 1)
    return Features(coarse, [decoder.conv_s0(fine), decoder.conv_s1(middle)])


def _to_model_frame(points: Sequence[np.ndarray], sizes_wh: Sequence[tuple[int, int]], sam2_model: Any) -> Tensor:
    """Returns the points of B photos, (B, N, 2) float32, scaled from pixels to the model's square frame."""
    import torch

    pixels = torch.tensor(np.stack(points), dtype=torch.float32, device=sam2_model.device)
    sizes = torch.tensor(sizes_wh, dtype=torch.float32, device=sam2_model.device)
    return pixels / sizes[:, None] * sam2_model.image_size


def decode_masks(
    sam2_model: Any,
    features: Features,
    coordinates: Tensor,
    *,
    mask_prompt: Tensor | None,
    multimask_output: bool,
) -> tuple[Tensor, Tensor]:
    """Runs one pass of the mask decoder over the batch.

    Returns mask logits (B, M, h, w) and IoU predictions (B, M), float32; M is 3 with `multimask_output`, else 1.
    """
    import torch

    labels = torch.ones(coordinates.shape[:2], dtype=torch.int, device=coordinates.device)  # 1: on the subject
    sparse_embeddings, dense_embeddings = sam2_model.sam_prompt_encoder(
        points=(coordinates, labels), boxes=None, masks=mask_prompt
    )
    mask_logits, iou_predictions, _, _ = sam2_model.sam_mask_decoder(
        image_embeddings=features.image_embeddings,
        image_pe=sam2_model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse_embeddings,
        dense_prompt_embeddings=dense_embeddings,
        multimask_output=multimask_output,
        repeat_image=False,  # the batch holds one prompt set per photo, not many for one
        high_res_features=features.high_res_features,
    )
    return mask_logits, iou_predictions


def _full_size_mask(mask_logits: Tensor, size_wh: tuple[int, int]) -> np.ndarray:
    """Returns (H, W) bool from one photo's low-resolution logits (1, h, w): positive after bilinear upsampling."""
    from torch.nn.functional import interpolate

    width, height = size_wh
    logits = interpolate(mask_logits[None], (height, width), mode="bilinear", align_corners=False)
    return (logits[0, 0] > 0).cpu().numpy()
