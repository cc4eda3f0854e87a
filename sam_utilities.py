"""SAM 2: loading it, and the two passes that cut the central subject out of a batch of photos."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import checkpoint_utilities
from errors import CheckpointError
from pipeline_utilities import stage
from storage_utilities import is_file

if TYPE_CHECKING:
    from torch import Tensor

    from focus_utilities import Focus
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
_FOCUS_DOUBT = 0.01  # of the score of a focus
_SAME_MASK = 0.985  # IoU of the probabilities of two candidates, from which it does not matter which is chosen

BOX_LABELS = (2, 3)  # SAM's prompt encoder: upper left corner, lower right corner

# A GPU's antialiasing has a limit (torchvision #7671); photos that shrink by more do so on the CPU.
_MOST_SHRUNK_ON_GPU = 16

_SMALL_PHOTO = 48_000_000  # bytes, up to which a GPU resizes all channels at once


@dataclass(frozen=True)
class Segmentation:
    """What SAM 2 says of one photo's subject; `mask_utilities.subject_mask` makes the mask of it.

    Attributes:
        mask_logits: (h, w) float32 for the whole photo at the network's resolution, positive on the subject.
        score: SAM 2's own prediction of the mask's IoU, about 0 to 1.
        points: (3, 2) int64, the points (x, y) in pixels that pass 2 was given: the focus and two supports.
        focus: Where SAM 2 was pointed.
    """

    mask_logits: np.ndarray
    score: float
    points: np.ndarray
    focus: Focus


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
    weights = checkpoint_utilities.read_weights(path, kind="a SAM 2 checkpoint", flag="--sam-model", under="model")
    with _without_random_weights():
        metas_model = build_sam2(config_path)
    checkpoint_utilities.load_matching(
        metas_model, weights, path=path, architecture=config_path.stem, flag="--sam-config"
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
    if config.endswith(".yaml") and is_file(Path(config)):
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

    with contextlib.suppress(CheckpointError):  # build_sam2 says what is wrong with it
        size = OmegaConf.select(_read_config(config_path), "model.image_size")
        if isinstance(size, int) and size > 0:
            return size
    return 1024


def build_sam2(config_path: Path) -> Any:
    """Returns the model that a .yaml describes, with random weights.

    Raises:
        CheckpointError: The file describes no SAM 2.
    """
    from sam2.modeling.sam2_base import SAM2Base

    config = _read_config(config_path)
    try:
        model = instantiate_sam2(config)
        if not isinstance(model, SAM2Base):
            raise TypeError(f"its model is a {type(model).__name__}")
        return model
    except Exception as error:  # hydra and the constructors each have their own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"--sam-config {config_path}: describes no SAM 2 model: {reason}") from error


def _read_config(config_path: Path) -> Any:
    """Returns a config, an OmegaConf; its values stand where the configs that come with SAM 2 have theirs.

    hydra would import and call whatever stands under `_target_`: in a stranger's file that could be anything. So each
    has to be what a shipped config has in that place.

    Raises:
        CheckpointError: The file can't be read, or holds anything else.
    """
    from omegaconf import OmegaConf

    try:
        with config_path.open("rb") as file:
            content = file.read(_LONGEST_CONFIG + 1)
        if len(content) > _LONGEST_CONFIG:
            raise ValueError(f"it has more than {_LONGEST_CONFIG} bytes")
        text = content.decode("utf-8-sig")
        if config_path in available_configs().values():
            return OmegaConf.create(text)
        _refuse_references(text)
        config = OmegaConf.create(text)
        for path, value in _leaves(OmegaConf.to_container(config)):
            known = _shipped_leaves().get(path, set())
            if not known or (path.endswith("_target_") and value not in known):
                raise ValueError(f"{path[:100]}: {str(value)[:100]!r} stands there in no config of SAM 2")
        return config
    except Exception as error:  # OmegaConf and YAML each have their own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(f"--sam-config {config_path}: describes no SAM 2 model: {reason}") from None


# Of a config from anywhere; those that come with SAM 2 have 4 kB and 5 levels.
_LONGEST_CONFIG = 1 << 14  # bytes
_DEEPEST_CONFIG = 10


def _refuse_references(text: str) -> None:
    """Refuses what can multiply a .yaml, reach outside it, or take minutes to read, before anything follows it."""
    import yaml

    starts = (
        *(yaml.BlockMappingStartToken, yaml.BlockSequenceStartToken),
        *(yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken),
    )
    ends = yaml.BlockEndToken, yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken
    depth = 0
    for token in yaml.scan(text):
        line = token.start_mark.line + 1
        depth += isinstance(token, starts) - isinstance(token, ends)
        if depth > _DEEPEST_CONFIG:
            raise ValueError(f"line {line}: nested deeper than {_DEEPEST_CONFIG}")
        refers = isinstance(token, (yaml.AnchorToken, yaml.AliasToken))
        if refers or (isinstance(token, yaml.ScalarToken) and "${" in token.value):
            raise ValueError(f"line {line} refers to {token.value[:100]!r}; write it out")


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the values of a config with their dotted paths; those of a list have the same one."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _leaves(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for child in value:
            yield from _leaves(child, path)
    else:
        yield path, value


@functools.cache
def _shipped_leaves() -> dict[str, set[Any]]:
    """Returns the values that stand at each path in the configs that come with SAM 2."""
    from omegaconf import OmegaConf

    leaves: dict[str, set[Any]] = {}
    for config_path in available_configs().values():
        for path, value in _leaves(OmegaConf.to_container(OmegaConf.load(config_path))):
            leaves.setdefault(path, set()).add(value)
    return leaves


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
    focuses: Sequence[Focus] | None = None,
    grid: bool = False,
    pixels: Sequence[Tensor] | None = None,
    fill: int = 0,
) -> list[Segmentation]:
    """Returns the subject of each photo, found in two passes over the whole batch.

    Pass 1 gives SAM 2 the focus, usually the centre of the photo, and takes the best of three masks. Pass 2 gives it
    that mask, the focus and two supporting points, to its lower right and left, and takes one mask. Photo by photo the
    same as `SAM2ImagePredictor.predict`, called twice; here both passes and the encoder are one call each.

    Args:
        images: B photos, each (H, W, 3) uint8 RGB; their sizes may differ.
        sam2_model: From `load_sam2`.
        mask_threshold: The margin of pass 2 as a fraction of the photo's shorter side, in [0, 0.5).
        focuses: Where SAM 2 is pointed, one for each photo; the centres where None. A box is given in both passes.
        grid: Try nine points of each photo instead, and go on with the one whose mask `mask_scores` likes best.
        pixels: The photos as `to_pixels` makes them, each (3, s, s) float32, where that is done already.
        fill: Repeat the last photo so often inside the models: a batch that is smaller than the others has other
            last digits, and a compiled encoder takes one size.

    Raises:
        ValueError: The model makes NaN of a photo.
    """
    import torch

    from focus_utilities import Focus, centre_focus, grid_points

    if not images:
        return []

    sizes_wh = [(image.shape[1], image.shape[0]) for image in images]
    if grid:
        tried = [[Focus("grid", (int(x), int(y))) for x, y in grid_points(*size_wh)] for size_wh in sizes_wh]
    else:
        tried = [[focus] for focus in focuses or [centre_focus(*size_wh) for size_wh in sizes_wh]]
    points = [
        np.stack([focus_points(focus.point, size_wh, mask_threshold) for focus in some])
        for some, size_wh in zip(tried, sizes_wh, strict=True)
    ]
    with torch.inference_mode():
        if pixels is None:
            pixels = [to_pixels(image, sam2_model.image_size, sam2_model.device) for image in images]
        rows = [*range(len(images)), *[len(images) - 1] * fill]
        batch = torch.stack([pixels[row].to(sam2_model.device) for row in rows])
        boxes = [some[0].box for some in tried]
        prompts = _to_model_frame(points, boxes, sizes_wh, sam2_model).of(rows)
        found = _two_passes(batch, prompts, sam2_model, sam2_model.encoder)
        if sam2_model.exact_encoder is not None:
            for row in found.doubtful[: len(images)].nonzero()[:, 0].tolist():
                # Each alone: rounding depends on the size of a batch.
                exact = _two_passes(batch[row : row + 1], prompts.of([row]), sam2_model, sam2_model.exact_encoder)
                found.replace(row, exact)
        all_logits, scores = found.mask_logits.cpu().numpy(), found.scores.tolist()
        chosen, confidences = found.chosen.tolist(), found.confidences.tolist()
    if not np.isfinite(scores).all():
        raise ValueError("SAM 2 makes NaN of it")
    results = []
    for row, some in enumerate(tried):
        focus = some[chosen[row]]
        if grid:
            focus = replace(focus, confidence=confidences[row])
        results.append(Segmentation(all_logits[row], scores[row], points[row][chosen[row]], focus))
    return results


@dataclass(frozen=True)
class _Prompts:
    """What SAM 2 is told of B photos, in the model's frame.

    Attributes:
        points: (B, G, 3, 2) float32, for each of the G foci to choose from the focus and its two supports.
        boxes: (B, 2, 2) float32, upper left and lower right corner; 0 where there is none.
        boxed: Which photos have a box.
    """

    points: Tensor
    boxes: Tensor
    boxed: tuple[bool, ...]

    def of(self, rows: Sequence[int]) -> _Prompts:
        """Returns the prompts of some photos."""
        return _Prompts(self.points[rows], self.boxes[rows], tuple(self.boxed[row] for row in rows))


@dataclass(frozen=True)
class _Found:
    """What two passes find in B photos."""

    mask_logits: Tensor  # (B, h, w) float32
    scores: Tensor  # (B,) float32, predicted IoU
    chosen: Tensor  # (B,) int64, which focus
    confidences: Tensor  # (B,) float32, in that focus
    doubtful: Tensor  # (B,) bool: whether rounding may have chosen

    def replace(self, row: int, other: _Found) -> None:
        """Puts the only photo of another result into a row of this one."""
        for mine, others in (
            (self.mask_logits, other.mask_logits),
            (self.scores, other.scores),
            (self.chosen, other.chosen),
            (self.confidences, other.confidences),
        ):
            mine[row] = others[0]


def _two_passes(pixels: Tensor, prompts: _Prompts, sam2_model: Sam2, encoder: HieraEncoder) -> _Found:
    import torch

    with stage("encoder again, in fp32" if encoder is sam2_model.exact_encoder else "encoder", synchronize=True):
        features = encode_pixels(pixels, encoder)
    with stage("decoder", synchronize=True):
        rows = torch.arange(len(pixels), device=pixels.device)
        if prompts.points.shape[1] == 1:
            mask_logits, iou_predictions = _decode(sam2_model, features, prompts, prompts.points[:, 0, :1])
            best = 1 + iou_predictions[:, 1:].argmax(dim=1)
            first, chosen, confidences = mask_logits[rows, best], torch.zeros_like(rows), iou_predictions[rows, best]
            unsure = torch.zeros_like(rows, dtype=torch.bool)
        else:
            first, chosen, confidences, unsure = _choose_focus(sam2_model, features, prompts.points[:, :, :1])
        mask_prompt = first[:, None].clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)  # (B, 1, h, w)
        points = prompts.points[rows, chosen]
        candidates, iou_predictions = _decode(sam2_model, features, prompts, points, mask_prompt)
        decoder = sam2_model.sam_mask_decoder
        mask_logits, scores = decoder._dynamic_multimask_via_stability(candidates, iou_predictions)
        doubtful = unsure | doubtful_choices(candidates, iou_predictions, decoder)
        return _Found(mask_logits[:, 0], scores[:, 0], chosen, confidences, doubtful)


def _decode(
    sam2_model: Sam2, features: Features, prompts: _Prompts, points: Tensor, mask_prompt: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Runs one pass with points (B, N, 2), and with the boxes of the photos that have one; see `decode_masks`.

    Photos with and without a box differ in the number of prompts: where a batch has both, it is decoded both ways, so
    that a photo's last digits do not depend on its neighbours. The decoder is a hundredth of the encoder.
    """
    import torch

    results = []
    if not all(prompts.boxed):
        results.append(decode_masks(sam2_model, features, points, mask_prompt=mask_prompt))
    if any(prompts.boxed):
        with_box = torch.cat([prompts.boxes, points], dim=1)
        labels = BOX_LABELS + (1,) * points.shape[1]
        results.append(decode_masks(sam2_model, features, with_box, mask_prompt=mask_prompt, labels=labels))
    if len(results) == 1:
        return results[0]
    boxed = torch.tensor(prompts.boxed, device=points.device)
    (plain_logits, plain_ious), (box_logits, box_ious) = results
    return torch.where(boxed[:, None, None, None], box_logits, plain_logits), torch.where(
        boxed[:, None], box_ious, plain_ious
    )


def _choose_focus(sam2_model: Sam2, features: Features, foci: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns pass 1 from the best of G foci, (B, G, 1, 2), each photo's in one call of the decoder.

    The mask of a focus is the best of its three; `focus_utilities.mask_scores` compares the foci.

    Returns:
        That mask's logits, (B, h, w), which focus it is, (B,), its score, (B,), and whether rounding may have chosen.
    """
    import torch

    from focus_utilities import mask_scores

    results = []
    for row, points in enumerate(foci):
        mask_logits, iou_predictions = decode_masks(sam2_model, features.of(row), points, mask_prompt=None)
        best = 1 + iou_predictions[:, 1:].argmax(dim=1)
        numbers = torch.arange(len(points), device=points.device)
        mask_logits = mask_logits[numbers, best]  # (G, h, w)
        scores = mask_scores(mask_logits, iou_predictions[numbers, best])
        score, chosen = scores.max(dim=0)
        masks = mask_logits.flatten(1).sigmoid()
        union = torch.maximum(masks, masks[chosen]).sum(dim=1)
        others = torch.minimum(masks, masks[chosen]).sum(dim=1) < _SAME_MASK * union
        results.append((mask_logits[chosen], chosen, score, (others & (scores > score - _FOCUS_DOUBT)).any()))
    mask_logits, chosen, scores, unsure = map(torch.stack, zip(*results, strict=True))
    return mask_logits, chosen, scores, unsure


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


def focus_points(focus: tuple[int, int], size_wh: tuple[int, int], mask_threshold: float) -> np.ndarray:
    """Returns a focus and its two supporting points as (3, 2) int64 (x, y) in pixels, all inside the photo.

    The first is pass 1's only point; all three are pass 2's.
    """
    (x, y), (width, height) = focus, size_wh
    margin = int(min(width, height) * mask_threshold)
    points = np.array([[x, y], [x + margin, y + margin], [x - margin, y + margin]])
    return points.clip(0, (width - 1, height - 1))


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


def _to_model_frame(
    points: Sequence[np.ndarray],
    boxes: Sequence[tuple[float, float, float, float] | None],
    sizes_wh: Sequence[tuple[int, int]],
    sam2_model: Sam2,
) -> _Prompts:
    """Returns the prompts of B photos, scaled from pixels to the model's square frame.

    Args:
        points: (G, 3, 2) of each photo.
        boxes: (x0, y0, x1, y1) of each photo, or None.
        sizes_wh: Of the photos in pixels.
        sam2_model: Whose frame.
    """
    import torch

    def scaled(pixels: np.ndarray) -> Tensor:
        return torch.tensor(pixels, dtype=torch.float32, device=sam2_model.device) / sizes * sam2_model.image_size

    sizes = torch.tensor(sizes_wh, dtype=torch.float32, device=sam2_model.device)[:, None]
    corners = np.array([(0.0,) * 4 if box is None else box for box in boxes]).reshape(-1, 2, 2)
    scaled_points = scaled(np.stack(points).reshape(len(points), -1, 2)).unflatten(1, (-1, 3))
    return _Prompts(scaled_points, scaled(corners), tuple(box is not None for box in boxes))


def decode_masks(
    sam2_model: Sam2,
    features: Features,
    coordinates: Tensor,
    *,
    mask_prompt: Tensor | None,
    labels: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs one pass of the mask decoder, over a batch of photos or over many prompts for one.

    Returns the mask logits (B, 4, h, w) and IoU predictions (B, 4), float32, of all candidates: the single mask first,
    then the three that `multimask_output` means.

    Args:
        sam2_model: Its prompt encoder, mask decoder and position encoding are used.
        features: From `encode_pixels`, of B photos or of one.
        coordinates: (B, N, 2) float32 points in the model's frame.
        mask_prompt: (B, 1, h, w) float32 logits, or None.
        labels: What each of the N points is: 1 on the subject (all, where None), 2 and 3 a box's corners.
    """
    import torch

    kinds = torch.ones(coordinates.shape[1], dtype=torch.int, device=coordinates.device)
    for index, label in enumerate(labels or ()):  # one by one: to copy a list, a GPU would first finish all else
        kinds[index] = label
    sparse_embeddings, dense_embeddings = sam2_model.sam_prompt_encoder(
        points=(coordinates, kinds.expand(len(coordinates), -1)), boxes=None, masks=mask_prompt
    )
    mask_logits, iou_predictions, _, _ = sam2_model.sam_mask_decoder.predict_masks(
        image_embeddings=features.image_embeddings,
        image_pe=sam2_model.dense_pe,
        sparse_prompt_embeddings=sparse_embeddings,
        dense_prompt_embeddings=dense_embeddings,
        repeat_image=len(features.image_embeddings) < len(coordinates),
        high_res_features=features.high_res_features,
    )
    return mask_logits, iou_predictions
