"""SAM 2: loading it, and the two passes that cut the central subject out of a batch of photos."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import checkpoint_utilities
from errors import CheckpointError
from pipeline_utilities import stage

if TYPE_CHECKING:
    from torch import Tensor

    from hiera_utilities import Features, HieraEncoder

CONFIGS_DIR = Path(__file__).resolve().parent / "sam2" / "configs"

# ImageNet's channel statistics, as in sam2.utils.transforms.SAM2Transforms.
_PIXEL_MEAN = (0.485, 0.456, 0.406)
_PIXEL_STD = (0.229, 0.224, 0.225)

_LOGIT_LIMIT = 32.0  # SAM2ImagePredictor clamps the logits that it hands back as a mask prompt

# Where bf16 alone could turn a choice among masks over: with the micro model logits near 0 came out 0.2% of their
# standard deviation off (0.3% on one photo in ten), IoU predictions less than 0.0026 in 99 of 100. Photos where less
# than this decides, between masks that differ, are done again in fp32; of 1,200 scenes no other mask fell below an
# IoU of 0.99 with that of fp32.
_LOGIT_DOUBT = 0.007  # of the standard deviation
_IOU_DOUBT = 0.004
_SAME_MASK = 0.985  # IoU of the probabilities of two candidates, from which it does not matter which is chosen

# A GPU's antialiasing has a limit (torchvision #7671); photos that shrink by more do so on the CPU.
_MOST_SHRUNK_ON_GPU = 16

_SMALL_PHOTO = 48_000_000  # bytes, up to which a GPU resizes all channels at once


@dataclass(frozen=True)
class Segmentation:
    """What SAM 2 says of one photo's subject; `mask_utilities.subject_mask` makes the mask of it.

    Attributes:
        mask_logits: (h, w) float32 for the whole photo at the network's resolution, positive on the subject.
        score: SAM 2's own prediction of the mask's IoU, about 0 to 1.
        points: (3, 2) int64, the points (x, y) in pixels that pass 2 was given: the centre and two supports.
    """

    mask_logits: np.ndarray
    score: float
    points: np.ndarray


@dataclass(frozen=True)
class Sam2:
    """A SAM 2 model ready for photos.

    Attributes:
        encoder: The image encoder, in the model's precision.
        exact_encoder: The same in fp32, for photos whose mask hangs on bf16's rounding; None where `encoder` is fp32.
        sam_prompt_encoder: Meta's, in fp32.
        sam_mask_decoder: Meta's, in fp32.
        dense_pe: (1, C, s, s) float32, the position encoding that the decoder reads; it never changes.
        image_size: Side of the square frame in pixels.
        device: As torch names it.
    """

    encoder: HieraEncoder
    exact_encoder: HieraEncoder | None
    sam_prompt_encoder: Any
    sam_mask_decoder: Any
    dense_pe: Tensor
    image_size: int
    device: str

    @classmethod
    def from_model(cls, model: Any, precision: Literal["fp32", "bf16"] = "fp32") -> Sam2:
        """Returns a model, a `sam2.modeling.sam2_base.SAM2Base` in evaluation mode, made ready on its device."""
        import torch

        from hiera_utilities import HieraEncoder

        with torch.no_grad():
            exact = HieraEncoder(model)
            return cls(
                encoder=HieraEncoder(model, torch.bfloat16) if precision == "bf16" else exact,
                exact_encoder=exact if precision == "bf16" else None,
                sam_prompt_encoder=model.sam_prompt_encoder,
                sam_mask_decoder=model.sam_mask_decoder,
                dense_pe=model.sam_prompt_encoder.get_dense_pe(),
                image_size=model.image_size,
                device=str(model.device),
            )


def load_sam2(
    model: str,
    config: str | None = None,
    device: str = "cpu",
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    compiled: bool = False,
    checkpoints_dir: Path = checkpoint_utilities.CHECKPOINTS_DIR,
    show_progress: bool = True,
) -> Sam2:
    """Returns a SAM 2 model on a device.

    Args:
        model: A public SAM 2.1 name (downloaded on first use), the name of a .pt under checkpoints/, or a path.
        config: The architecture, such as `sam2.1_hiera_l`, or a path to a .yaml; derived from `model` when None.
        device: As torch names it.
        precision: Of the image encoder's trunk, 97% of the work. Prompt encoder and mask decoder stay in fp32: points
            near 1024 px would be rounded to 4-8 px in bf16, and the choice among masks hangs on small differences.
        compiled: Let torch compile the encoder's blocks at its first call, anew for another size of batch: made for
            any, SAM 2's encoder was found wrong (pytorch #153366).
        checkpoints_dir: Where names are looked up and downloads go.
        show_progress: Show a progress bar while downloading.

    Raises:
        CheckpointError: There is no such model or config, or they don't fit each other.
    """
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
    with _without_random_weights():
        metas_model = build_sam2(config_path)
    checkpoint_utilities.load_matching(
        metas_model, weights["model"], path=path, architecture=config_path.stem, flag="--sam-config"
    )
    metas_model.eval().requires_grad_(requires_grad=False).to(device)
    try:
        sam2_model = Sam2.from_model(metas_model, precision)
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"--sam-config {config_path}: {error}") from None
    if compiled:
        sam2_model.encoder.compile(dynamic=False)
    return sam2_model


def _without_random_weights() -> Any:
    """Returns a context in which modules get shapes instead of random weights, which would take a second 0.9 GB.

    Under torch's own `device("meta")` Hiera's constructor fails: it reads values from `torch.linspace`.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    makers = (torch.empty, torch.zeros, torch.ones, torch.randn)

    class OnMeta(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            chosen = {"device": "meta"} if func in makers else {}
            return func(*args, **{**(kwargs or {}), **chosen})

    return OnMeta()


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


def read_image_size(config_path: Path) -> int:
    """Returns the side of a model's square frame in pixels, from its .yaml; the usual 1024 where that names none."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    with contextlib.suppress(OmegaConfBaseException, YAMLError, ValueError):  # build_sam2 says what is wrong with it
        size = OmegaConf.select(OmegaConf.load(config_path), "model.image_size")
        if isinstance(size, int) and size > 0:
            return size
    return 1024


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
    images: Sequence[np.ndarray],
    sam2_model: Sam2,
    mask_threshold: float = 0.05,
    *,
    pixels: Sequence[Tensor] | None = None,
    fill: int = 0,
) -> list[Segmentation]:
    """Returns the central subject of each photo, found in two passes over the whole batch.

    Pass 1 gives SAM 2 the centre of the photo and takes the best of three masks. Pass 2 gives it that mask, the
    centre and two supporting points, to its lower right and left, and takes one mask. Photo by photo
    the same as `SAM2ImagePredictor.predict`, called twice; here both passes and the encoder are one call each.

    Args:
        images: B photos, each (H, W, 3) uint8 RGB; their sizes may differ.
        sam2_model: From `load_sam2`.
        mask_threshold: The margin of pass 2 as a fraction of the photo's shorter side, in [0, 0.5).
        pixels: The photos as `to_pixels` makes them, where that is done already.
        fill: Repeat the last photo so often inside the models: a batch that is smaller than the others has other
            last digits, and a compiled encoder takes one size.
    """
    import torch

    sizes_wh = [(image.shape[1], image.shape[0]) for image in images]
    points = [centre_points(width, height, mask_threshold) for width, height in sizes_wh]
    with torch.inference_mode():
        if pixels is None:
            pixels = [to_pixels(image, sam2_model.image_size, sam2_model.device) for image in images]
        batch = torch.stack([each.to(sam2_model.device) for each in [*pixels, *pixels[-1:] * fill]])
        coordinates = _to_model_frame([*points, *points[-1:] * fill], [*sizes_wh, *sizes_wh[-1:] * fill], sam2_model)
        mask_logits, scores, doubtful = _two_passes(batch, coordinates, sam2_model, sam2_model.encoder)
        if sam2_model.exact_encoder is not None:
            for index in doubtful[: len(images)].nonzero():  # each alone: rounding depends on the size of a batch
                exact = _two_passes(batch[index], coordinates[index], sam2_model, sam2_model.exact_encoder)
                mask_logits[index], scores[index] = exact[0], exact[1]
        found = len(images)
        results = zip(mask_logits[:found].cpu().numpy(), scores[:found].tolist(), points, strict=True)
    return [Segmentation(logits, score, photo_points) for logits, score, photo_points in results]


def _two_passes(
    pixels: Tensor, coordinates: Tensor, sam2_model: Sam2, encoder: HieraEncoder
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the final mask logits (B, h, w), their IoU predictions (B,), and which choices are doubtful (B,)."""
    import torch

    with stage("encoder again, in fp32" if encoder is sam2_model.exact_encoder else "encoder", synchronize=True):
        features = encode_pixels(pixels, encoder)
    with stage("decoder", synchronize=True):
        mask_logits, iou_predictions = decode_masks(sam2_model, features, coordinates[:, :1], mask_prompt=None)
        rows = torch.arange(len(pixels), device=pixels.device)
        best = 1 + iou_predictions[:, 1:].argmax(dim=1)
        mask_prompt = mask_logits[rows, best][:, None].clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)  # (B, 1, h, w)
        candidates, iou_predictions = decode_masks(sam2_model, features, coordinates, mask_prompt=mask_prompt)
        decoder = sam2_model.sam_mask_decoder
        mask_logits, scores = decoder._dynamic_multimask_via_stability(candidates, iou_predictions)
        return mask_logits[:, 0], scores[:, 0], doubtful_choices(candidates, iou_predictions, decoder)


def doubtful_choices(candidates: Tensor, iou_predictions: Tensor, mask_decoder: Any) -> Tensor:
    """Returns for which photos rounding may have chosen among SAM 2's candidates, (B,) bool.

    SAM 2 takes candidate 0 where it is stable: where its areas at the thresholds +delta and -delta are nearly the same;
    else that of 1 to 3 whose predicted IoU is highest. Doubtful is a choice that logits a little higher or lower, or
    IoU predictions a little different, turn over, if that leads to another mask.

    Args:
        candidates: (B, 4, h, w) float32 mask logits.
        iou_predictions: (B, 4) float32.
        mask_decoder: Knows delta and the stability that it asks for.
    """
    import torch

    delta, least = mask_decoder.dynamic_multimask_stability_delta, mask_decoder.dynamic_multimask_stability_thresh
    single = candidates[:, 0].flatten(1)
    doubt = (_LOGIT_DOUBT * single.std(dim=1)).clamp(max=0.9 * delta)

    def stable(delta: Tensor) -> Tensor:
        inner, outer = (single > delta[:, None]).sum(dim=1), (single > -delta[:, None]).sum(dim=1)
        return inner >= least * outer

    masks = candidates.flatten(2).sigmoid()  # (B, 4, h w): probabilities see where between positions an outline runs
    rows = torch.arange(len(masks), device=masks.device)
    best_score, best = iou_predictions[:, 1:].max(dim=1)
    chosen = masks[rows, 1 + best][:, None]
    intersection, union = torch.minimum(masks, chosen).sum(dim=2), torch.maximum(masks, chosen).sum(dim=2)
    other = intersection < _SAME_MASK * union  # (B, 4): another mask than the best of 1 to 3
    unsure_stability = (stable(delta + doubt) != stable(delta - doubt)) & other[:, 0]
    rivals = (best_score[:, None] - iou_predictions[:, 1:] < _IOU_DOUBT) & other[:, 1:]
    return unsure_stability | (~stable(delta + doubt) & rivals.any(dim=1))


def centre_points(width: int, height: int, mask_threshold: float) -> np.ndarray:
    """Returns the centre of a photo and its two supporting points as (3, 2) int64 (x, y) in pixels.

    The first is pass 1's only point; all three are pass 2's. They lie inside the photo for margins below 0.5.
    """
    x, y = width // 2, height // 2
    margin = int(min(width, height) * mask_threshold)
    return np.array([[x, y], [x + margin, y + margin], [x - margin, y + margin]])


def to_pixels(image: np.ndarray, image_size: int, device: str = "cpu") -> Tensor:
    """Returns a photo in the model's frame, (3, image_size, image_size) float32, as SAM2Transforms makes it.

    A CUDA device receives the photo's bytes and does the rest. Elsewhere the result is on the CPU.
    """
    import torch
    from torch.nn.functional import interpolate

    photo = torch.from_numpy(np.ascontiguousarray(image))
    at_once = 1  # channel: a float copy of 12 megapixels, and the one that resizing makes of it, take 290 MB
    if device.startswith("cuda") and max(image.shape) <= _MOST_SHRUNK_ON_GPU * image_size:
        photo = photo.pin_memory().to(device, non_blocking=True)
        at_once = 3 if photo.numel() <= _SMALL_PHOTO else 1
    channels = [
        interpolate(
            some.permute(2, 0, 1)[None].float().div_(255),  # HWC -> NCHW
            (image_size, image_size),
            mode="bilinear",
            antialias=True,
        )[0]
        for some in photo.split(at_once, dim=2)
    ]
    mean, std = _channel_statistics(str(photo.device))
    return torch.cat(channels).sub_(mean).div_(std)


@functools.cache  # brought to a GPU once: each time would wait for everything that the GPU has still to do
def _channel_statistics(device: str) -> tuple[Tensor, Tensor]:
    import torch

    mean, std = (torch.tensor(each, device=device)[:, None, None] for each in (_PIXEL_MEAN, _PIXEL_STD))
    return mean, std


def encode_pixels(pixels: Tensor, encoder: HieraEncoder) -> Features:
    """Runs the image encoder once over a batch, (B, 3, s, s) from `to_pixels`, for any size that the model has.

    As SAM2ImagePredictor.set_image_batch, which knows 1024 px only.
    """
    from hiera_utilities import Features

    coarse, fine, middle = encoder(pixels)
    return Features(coarse, [fine, middle])


def _to_model_frame(points: Sequence[np.ndarray], sizes_wh: Sequence[tuple[int, int]], sam2_model: Sam2) -> Tensor:
    """Returns the points of B photos, (B, N, 2) float32, scaled from pixels to the model's square frame."""
    import torch

    pixels = torch.tensor(np.stack(points), dtype=torch.float32, device=sam2_model.device)
    sizes = torch.tensor(sizes_wh, dtype=torch.float32, device=sam2_model.device)
    return pixels / sizes[:, None] * sam2_model.image_size


def decode_masks(
    sam2_model: Sam2, features: Features, coordinates: Tensor, *, mask_prompt: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Runs one pass of the mask decoder over the batch.

    Returns the mask logits (B, 4, h, w) and IoU predictions (B, 4), float32, of all candidates: the single mask first,
    then the three that `multimask_output` means.

    Args:
        sam2_model: Its prompt encoder, mask decoder and position encoding are used.
        features: From `encode_pixels`.
        coordinates: (B, N, 2) float32 points on the subject in the model's frame.
        mask_prompt: (B, 1, h, w) float32 logits, or None.
    """
    import torch

    labels = torch.ones(coordinates.shape[:2], dtype=torch.int, device=coordinates.device)  # 1: on the subject
    sparse_embeddings, dense_embeddings = sam2_model.sam_prompt_encoder(
        points=(coordinates, labels), boxes=None, masks=mask_prompt
    )
    mask_logits, iou_predictions, _, _ = sam2_model.sam_mask_decoder.predict_masks(
        image_embeddings=features.image_embeddings,
        image_pe=sam2_model.dense_pe,
        sparse_prompt_embeddings=sparse_embeddings,
        dense_prompt_embeddings=dense_embeddings,
        repeat_image=False,  # the batch holds one prompt set per photo, not many for one
        high_res_features=features.high_res_features,
    )
    return mask_logits, iou_predictions
