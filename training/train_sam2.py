"""Trains sam2.1_hiera_micro with SAM's recipe on real photos and generated scenes.

python -m training.train_sam2 --photos photos_with_masks --minutes 45 --size 128 --output micro.pt
python -m training.train_sam2 --photos photos_with_masks --minutes 90 --size 256 --init micro.pt --output micro.pt

The loss is SAM's (Kirillov et al. 2023, section 3 and appendix A): focal and dice loss in the ratio 20 to 1 on the
best of three masks, and the squared error of the predicted IoU. Both passes of the program are trained as it runs
them: one point, then the best mask and three points; in half of the pictures at the centre, in the others somewhere on
an object that may lie off it, and in three of ten steps with a box around it. `--photos` takes a folder of
`masks/<set>/<name>.jpg` with `<name>.png`; without it the scenes are all there is.

Muon (Jordan et al. 2024; torch 2.9 has it) updates the matrices, AdamW the rest: after 400 steps at 128 px from the
same weights the loss was 1.345, against 1.380 with AdamW alone at the same rate. `--precision auto` is bf16 where the
device multiplies it in hardware.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

import device_utilities
import sam_utilities
from mask_utilities import subject_mask
from scenes import make_scene
from training.photos import FIRST_HELD_OUT_SEED, MaskedPhotos, aim, training_pictures

CONFIG = "sam2.1_hiera_micro"
EMA_DECAY = 0.995  # the mean of about the last 200 steps is what is saved
VALIDATION_PICTURES = 96  # scenes, and as many photos
SAVE_EVERY = 180  # seconds
_WEIGHT_DECAY = 0.05
_STEPS_WITH_BOXES = (0, 3, 7)  # of ten
_LEAST_MATRIX = 16  # rows and columns: smaller ones are a few tokens or points, no layers


def main() -> None:
    """Trains for the given minutes and saves the mean weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos with masks")
    parser.add_argument("--output", type=Path, required=True, help="where the checkpoint goes")
    parser.add_argument("--init", type=Path, help="checkpoint to begin from")
    parser.add_argument("--resume", action="store_true", help="go on from <output>.state")
    parser.add_argument("--minutes", type=float, default=60, help="how long; the learning rate falls over this time")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures: 128 is four times as fast")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--real-share", type=float, default=0.4, help="share of real photos")
    parser.add_argument("--workers", type=int, default=1, help="processes that make pictures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    arguments = parser.parse_args()
    if not hasattr(torch.optim, "Muon"):
        parser.exit(2, f"torch {torch.__version__} has no Muon: pip install 'torch>=2.9' to train\n")
    with plain_attention():
        train(arguments)


def train(arguments: argparse.Namespace) -> None:
    """Runs the training loop; what it does is in the log beside the output."""
    torch.manual_seed(0)
    model = build(arguments.size).to(arguments.device)
    if arguments.init:
        model.load_state_dict(torch.load(arguments.init, map_location="cpu", weights_only=True)["model"])
    mean_model = copy.deepcopy(model).eval()
    optimizers = make_optimizers(model, arguments.rate)
    precision = device_utilities.select_precision(arguments.precision, arguments.device)
    state_path = arguments.output.with_suffix(".state")
    step, spent = 0, 0.0
    if arguments.resume:
        state = torch.load(state_path, map_location=arguments.device, weights_only=True)
        model.load_state_dict(state["model"])
        mean_model.load_state_dict(state["mean_model"])
        for optimizer, content in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(content)
        step, spent = state["step"], state["spent"]

    pictures = Pictures(arguments.photos, arguments.size, arguments.real_share, first_seed=1000 * step)
    loader = DataLoader(pictures, arguments.batch, num_workers=arguments.workers, prefetch_factor=4, drop_last=True)
    validation = held_out_pictures(arguments.photos, arguments.size)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    log = arguments.output.with_suffix(".log").open("a", encoding="utf-8")
    began, saved = time.monotonic() - spent, time.monotonic()
    losses: list[float] = []
    for images, masks, points, boxes in loader:
        spent = time.monotonic() - began
        progress = spent / (60 * arguments.minutes)
        if progress >= 1:
            break
        rate = arguments.rate * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * _cosine(progress))
        some = [images, masks, points, boxes] if step % 10 in _STEPS_WITH_BOXES else [images, masks, points]
        loss = two_pass_loss(model, *(each.to(arguments.device) for each in some), precision=precision)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        step += 1
        _update_mean(mean_model, model, min(EMA_DECAY, step / (step + 10)))
        losses.append(loss.item())
        if step % 25 == 0:
            _say(log, f"step {step}, {spent / 60:.1f} min, loss {np.mean(losses[-25:]):.4f}")
        if time.monotonic() - saved > SAVE_EVERY:
            saved = time.monotonic()
            ious = ", ".join(f"{name} {mean_iou(mean_model, *pair):.4f}" for name, pair in validation.items())
            _say(log, f"step {step}, {spent / 60:.1f} min, held-out IoU: {ious}")
            save(mean_model, arguments.output)
            state = {"model": model.state_dict(), "mean_model": mean_model.state_dict(), "step": step, "spent": spent}
            torch.save({**state, "optimizers": [optimizer.state_dict() for optimizer in optimizers]}, state_path)
    ious = ", ".join(f"{name} {mean_iou(mean_model, *pair):.4f}" for name, pair in validation.items())
    _say(log, f"done after {step} steps: held-out IoU: {ious}")
    save(mean_model, arguments.output)


def make_optimizers(model: torch.nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Returns Muon for the matrices of the trained parts, and AdamW for their convolutions, biases and embeddings."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        if not name.startswith(_VIDEO_PARTS):
            is_matrix = parameter.ndim == 2 and min(parameter.shape) >= _LEAST_MATRIX and "embed" not in name
            (matrices if is_matrix else others).append(parameter)
    return [
        # Scaled so that its updates are as large as AdamW's at the same rate.
        torch.optim.Muon(matrices, lr=rate, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, weight_decay=_WEIGHT_DECAY, betas=(0.9, 0.98)),
    ]


_VIDEO_PARTS = ("memory_", "maskmem", "no_obj", "obj_ptr", "mask_downsample", "no_mem_pos")  # not run on photos


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Writes attention out in bf16 on the CPU, where torch's own kernel takes 2 to 11 times as long to train with."""

    def attention(query: Tensor, key: Tensor, value: Tensor, **options: object) -> Tensor:
        if query.device.type != "cpu" or query.dtype != torch.bfloat16:
            return original(query, key, value, **options)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        return scores.softmax(dim=-1) @ value

    original = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


def build(size: int) -> torch.nn.Module:
    """Returns the micro architecture for square pictures of another size; its weights fit all sizes."""
    config = OmegaConf.load(sam_utilities.find_config(CONFIG))
    config.model.image_size = size
    # A window of the third stage may not be larger than its feature map: padding would cost as much as pixels.
    config.model.image_encoder.trunk.window_spec = [8, 4, min(16, size // 16), min(8, size // 32)]
    return sam_utilities.instantiate_sam2(config)


def two_pass_loss(
    model: torch.nn.Module,
    images: Tensor,
    masks: Tensor,
    points: Tensor,
    boxes: Tensor | None = None,
    *,
    precision: str = "fp32",
) -> Tensor:
    """Returns the loss of both passes over a batch.

    Args:
        model: From `build`.
        images: (B, 3, s, s) float32, normalised as SAM 2 expects.
        masks: (B, s, s) float32, 1 on the object.
        points: (B, 2) float32 (x, y) on the objects in pixels.
        boxes: (B, 4) float32 (x0, y0, x1, y1) around them, or None.
        precision: "bf16" or "fp32", of the image encoder; the decoder is fp32, as in the program.
    """
    size = images.shape[-1]
    sam2_model = _trainable(model)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
        features = sam_utilities.encode_pixels(images, sam2_model.encoder)
    margin = 0.05 * size
    offsets = torch.tensor([[0, 0], [margin, margin], [-margin, margin]], device=images.device)
    points = (points[:, None] + offsets).clamp(0, size - 1)  # (B, 3, 2)
    corners = [] if boxes is None else [boxes.view(-1, 2, 2)]

    def decode(points: Tensor, mask_prompt: Tensor | None) -> tuple[Tensor, Tensor]:
        labels = [1] * points.shape[1] if boxes is None else [*sam_utilities.BOX_LABELS, *[1] * points.shape[1]]
        coordinates = torch.cat([*corners, points], dim=1)
        return sam_utilities.decode_masks(sam2_model, features, coordinates, mask_prompt=mask_prompt, labels=labels)

    logits, ious = decode(points[:, :1], None)
    logits, ious = logits[:, 1:], ious[:, 1:]  # the three that stand for different readings of one point
    losses, true_ious = mask_losses(logits, masks)
    best = losses.argmin(dim=1)
    rows = torch.arange(len(images), device=images.device)
    total = losses[rows, best].mean() + functional.mse_loss(ious, true_ious)

    chosen = ious.argmax(dim=1)  # as the program chooses, which is not always the best
    prompt = logits[rows, chosen][:, None].detach().clamp(-32, 32)
    logits, ious = decode(points, prompt)
    logits, ious = logits[:, :1], ious[:, :1]
    losses, true_ious = mask_losses(logits, masks)
    return total + 1.5 * (losses.mean() + functional.mse_loss(ious, true_ious))


def _trainable(model: torch.nn.Module) -> sam_utilities.Sam2:
    """Returns a model as the program's functions take it, with Meta's own encoder, which has gradients."""
    decoder = model.sam_mask_decoder

    def encode(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fine, middle, coarse = (level.float() for level in model.image_encoder(pixels)["backbone_fpn"])
        return coarse + model.no_mem_embed.view(1, -1, 1, 1), decoder.conv_s0(fine), decoder.conv_s1(middle)

    return sam_utilities.Sam2(
        encoder=encode,
        exact_encoder=None,
        sam_prompt_encoder=model.sam_prompt_encoder,
        sam_mask_decoder=decoder,
        dense_pe=model.sam_prompt_encoder.get_dense_pe(),
        image_size=model.image_size,
        device=str(model.device),
    )


def mask_losses(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Returns 20 x focal + dice of each mask and its IoU, both (B, M), at twice the resolution of the logits.

    Args:
        logits: (B, M, h, w).
        masks: (B, s, s) float32; s is a multiple of 2 h.
    """
    logits = functional.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
    target = functional.adaptive_avg_pool2d(masks[:, None], logits.shape[-2:]).expand_as(logits)
    probability = logits.sigmoid()
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    alpha = 0.25 * target + 0.75 * (1 - target)
    focal = (alpha * entropy * (probability - target).abs() ** 2).mean(dim=(2, 3))
    overlap = (probability * target).sum(dim=(2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum(dim=(2, 3)) + target.sum(dim=(2, 3)) + 1)
    with torch.no_grad():
        ious = _iou(logits > 0, target > 0.5)
    return 20 * focal + dice, ious


def _iou(one: Tensor, other: Tensor) -> Tensor:
    return (one & other).sum(dim=(-2, -1)) / (one | other).sum(dim=(-2, -1)).clamp(min=1)


def mean_iou(model: torch.nn.Module, images: Tensor, masks: Tensor) -> float:
    """Returns the mean IoU of the program's final masks at the pictures' own size."""
    sam2_model = sam_utilities.Sam2.from_model(model.eval())
    ious = []
    for image, mask in zip(images, masks, strict=True):
        picture = np.clip(image.permute(1, 2, 0).numpy(), 0, 255).astype(np.uint8)
        [segmentation] = sam_utilities.predict_sam2([picture], sam2_model)
        found = subject_mask(picture, segmentation.mask_logits)
        ious.append(_iou(torch.from_numpy(found), mask > 0.5).item())
    return float(np.mean(ious))


class Pictures(IterableDataset):
    """Endless training pictures.

    Each is (3, s, s) float32 normalised, with its object's (s, s) float32 mask, 1 on the object, a point on it, (2,)
    float32 (x, y), and a box around it, (4,) float32 (x0, y0, x1, y1), in pixels.
    """

    def __init__(self, folder: Path | None, size: int, real_share: float, *, first_seed: int) -> None:
        self._folder, self._size, self._real_share, self._first_seed = folder, size, real_share, first_seed

    def __iter__(self):
        """Yields pictures of this worker's own seed."""
        cv2.setNumThreads(0)
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        photos = MaskedPhotos(self._folder, held_out=False) if self._folder else None
        seed = self._first_seed + (worker.id if worker else 0)
        rng = np.random.default_rng([seed, 1])
        for drawn in training_pictures(seed, self._size, photos, real_share=self._real_share):
            picture, mask, point, box = aim(*drawn, rng)
            yield sam_utilities.to_pixels(picture, self._size), mask.astype(np.float32), point, box


def held_out_pictures(folder: Path | None, size: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns validation pictures by name: (B, 3, s, s) in [0, 255] and (B, s, s) masks; photos are squeezed square."""
    seeds = range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + VALIDATION_PICTURES)
    pairs = {"scenes": [(scene.image, scene.mask) for scene in (make_scene(seed, (size, size)) for seed in seeds)]}
    if folder:
        photos = MaskedPhotos(folder, held_out=True)
        indices = np.linspace(0, len(photos) - 1, VALIDATION_PICTURES).astype(int)
        pairs["photos"] = [photos.read(int(index)) for index in indices]
    stacked = {}
    for name, some in pairs.items():
        images = [cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image, _ in some]
        masks = [cv2.resize(mask.astype(np.uint8), (size, size), interpolation=cv2.INTER_AREA) for _, mask in some]
        stacked[name] = (
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float(),
            torch.from_numpy(np.stack(masks)).float(),
        )
    return stacked


def save(model: torch.nn.Module, path: Path) -> None:
    """Saves a checkpoint as Meta's are: the weights under "model"; in half precision, which is precise enough."""
    torch.save({"model": {key: value.half() for key, value in model.state_dict().items()}}, path)


def _update_mean(mean_model: torch.nn.Module, model: torch.nn.Module, decay: float) -> None:
    with torch.no_grad():
        for mean, value in zip(mean_model.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def _say(log, line: str) -> None:
    print(line, flush=True)
    print(line, file=log, flush=True)


if __name__ == "__main__":
    main()
