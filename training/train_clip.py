"""Trains the bundled micro CLIP on cut-outs of generated scenes and, where there are some, on real photos.

python -m training.train_clip --minutes 20 --photos DIR --output checkpoints/clip_vit_micro.pt

It learns the items of config.json under any prefix and postfix. What it sees are mostly cut-outs by the masks of
`--sam-model`, so that it knows that model's mistakes. DIR holds `colours/<colour>/<name>.jpg`: vehicles near the
centre, whose colour the folder names.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from clip.clip import _tokenizer, _transform
from clip.model import CLIP
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, IterableDataset

import config_utilities
from clip_utilities import tokenize
from config_utilities import MICRO_SAM2
from mask_utilities import paint_background, subject_mask
from prompt_utilities import get_prompts
from sam_utilities import Sam2, load_sam2, predict_sam2
from scenes import COLOURS, make_scene
from training.photos import FIRST_HELD_OUT_SEED, SYNONYMS, colour_photo_paths

RUN_DIR = Path(__file__).parent / "runs" / "clip"
_STATE_PATH = RUN_DIR / "state.pt"

# Width 64 in the text tower, because 49,408 tokens x 64 in half precision are already 6.3 MB of the file.
_ARCHITECTURE = {
    "embed_dim": 64,
    "image_resolution": 64,
    "vision_layers": 3,
    "vision_width": 128,
    "vision_patch_size": 8,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 2,
}

_BATCH = 48
_PEAK_LEARNING_RATE = 1e-3
_WARM_UP_STEPS = 100
_WEIGHT_DECAY = 0.05
_EMA_DECAY = 0.99  # about a minute of steps on two cores
_LABEL_SMOOTHING = 0.05
_MAX_LOGIT_SCALE = math.log(100)  # as in CLIP's paper, section 2.5
_TEMPLATES_PER_STEP = 6
_MINUTES_BETWEEN_CHECKS = 2.5
_HELD_OUT_SCENES = 300

_SCENE_SIDE = 256  # pixels of the shorter side, as a segmenter sees them
_KEPT_SIDE = 128  # of what is kept: the model sees 64
_SCENES_KEPT = 2000  # by each worker
_FRESH_SHARE = 0.12  # of scenes; the others are seen again, cut, cropped and mirrored anew
_VEHICLE_SHARE = 0.7
# Told apart by lightness alone: drawn no more often than others, they were four fifths of all mistakes.
_NEUTRALS = ("white", "silver", "gray", "black")
_NEUTRAL_WEIGHT = 2.0  # against 1 of every other colour of scenes
_DEGRADED_SHARE = 0.3  # of masks
_UNCUT_SHARE = 0.2  # of scenes
_PHOTO_SHARE = 0.27  # of all pictures, where there are photos
_RECOLOURED_SHARE = 0.35  # of photos
_UNCUT_PHOTO_SHARE = 0.4

_OTHER_PREFIXES = (
    *("", "a", "one", "my", "this is a", "look: a"),
    *("an image of a", "a blurry photo of a", "a drawing of a"),
)
_OTHER_POSTFIXES = (
    *("", "bag", "shoe", "chair", "mug", "bus", "motorcycle", "bicycle", "object", "thing", "sofa", "fruit", "toy"),
    *("sedan", "suv", "pickup", "hatchback", "tractor", "dress", "flower", "bird", "car in the street", "paint"),
)

# Most colours have no photos: these make them from others. Source, target, then what the paint's hue in degrees is
# shifted by and its saturation and value are multiplied by. No navy: blue photos are dark enough as they are.
_RECOLOURINGS = (
    ("red", "orange", 22, 1.05, 1.1),
    ("red", "maroon", -4, 1.0, 0.45),
    ("red", "brown", 22, 0.75, 0.45),
    ("red", "pink", -25, 0.55, 1.3),
    ("red", "purple", -82, 0.85, 0.75),
    ("red", "green", 125, 0.9, 0.75),
    ("red", "blue", 215, 0.9, 0.95),
    ("blue", "purple", 62, 0.9, 1.0),
    ("blue", "teal", -34, 1.0, 1.0),
    ("blue", "green", -90, 1.0, 1.0),
    ("yellow", "orange", -25, 1.05, 1.0),
    ("yellow", "gold", -9, 0.7, 0.8),
    ("yellow", "beige", -12, 0.27, 0.93),
    ("yellow", "olive", 18, 0.75, 0.48),
    ("yellow", "brown", -26, 0.75, 0.42),
    ("yellow", "green", 75, 0.9, 0.7),
)
_PAINT_HUES = {"red": 358, "blue": 215, "yellow": 48}


def main() -> None:
    """Reads the flags and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="how long to train in all (default: 20)")
    parser.add_argument("--photos", type=Path, metavar="DIR", help="real photos, mixed in (default: scenes alone)")
    parser.add_argument("--sam-model", default=MICRO_SAM2, help="whose masks it learns with: a name or a checkpoint")
    parser.add_argument("--workers", type=int, default=2, help="processes that make pictures (default: 2)")
    parser.add_argument("--output", type=Path, default=RUN_DIR / "clip_vit_micro.pt", help="the checkpoint to write")
    parser.add_argument("--init", type=Path, help="checkpoint to begin from")
    parser.add_argument("--resume", action="store_true", help="go on from training/runs/clip/state.pt")
    arguments = parser.parse_args()
    train(
        arguments.minutes,
        arguments.output,
        sam_model=arguments.sam_model,
        photos_dir=arguments.photos,
        workers=arguments.workers,
        init=arguments.init,
        resume=arguments.resume,
    )


def train(
    minutes: float,
    output: Path,
    *,
    sam_model: str,
    photos_dir: Path | None = None,
    workers: int = 1,
    init: Path | None = None,
    resume: bool = False,
) -> None:
    """Trains for some minutes, those before a resumption included, and writes a checkpoint that `clip.load` reads.

    Args:
        minutes: The learning rate has fallen to zero by then.
        output: The averaged weights as a plain state dict in half precision.
        sam_model: Name or checkpoint of a model with the micro configuration.
        photos_dir: See the module; None trains on scenes alone.
        workers: Processes that make pictures.
        init: Checkpoint to begin from; None begins at random.
        resume: Continues the run whose state is in `RUN_DIR`.
    """
    torch.manual_seed(0)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)  # the other cores make the pictures
    RUN_DIR.mkdir(parents=True, exist_ok=True)
    config = config_utilities.read_config(config_utilities.find_config(None))
    items: Sequence[str] = config["items"]

    model = CLIP(**_ARCHITECTURE)
    if init is not None:
        weights = torch.load(init, map_location="cpu", weights_only=True)
        model.load_state_dict({name: weights[name].float() for name in model.state_dict()})
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(_EMA_DECAY))
    optimizer = _make_optimizer(model)
    step, seconds_before = _load_state(model, average, optimizer) if resume else (0, 0.0)

    segment = functools.partial(predict_mask, sam2_model=load_sam2(sam_model, MICRO_SAM2))
    checks = make_checks(items, photos_dir, segment)
    prompts = get_prompts(config["prefixes"], items, config["postfixes"])
    photos = [] if photos_dir is None else read_photos(photos_dir, items, segment, held_out=False)
    batches = _load_pictures(TrainingPictures(items, photos, segment, seed=step), workers)
    rng = np.random.default_rng(step)
    began = time.monotonic() - seconds_before
    log(f"{'resumed' if resume else 'started'} at step {step}: {minutes:g} minutes, {len(photos)} photos to train on")

    checked, recent = seconds_before, []
    while (seconds := time.monotonic() - began) < 60 * minutes:
        rate = learning_rate(step, seconds / (60 * minutes))
        for group in optimizer.param_groups:
            group["lr"] = rate
        tokens = tokenize(draw_prompts(config["prefixes"], items, config["postfixes"], rng))
        loss = prompt_loss(model, *next(batches), tokens, item_count=len(items))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.logit_scale.data.clamp_(max=_MAX_LOGIT_SCALE)
        average.update_parameters(model)
        step += 1
        recent.append(loss.item())
        if step % 50 == 0:
            log(f"{seconds / 60:5.1f} min  step {step:5d}  loss {np.mean(recent):.3f}  learning rate {rate:.1e}")
            recent.clear()
        if seconds - checked > 60 * _MINUTES_BETWEEN_CHECKS:
            checked = seconds
            _save_state(model, average, optimizer, step=step, seconds=seconds)
            log(f"{seconds / 60:5.1f} min  step {step:5d}  {describe_accuracy(average.module, checks, prompts, items)}")

    _save_state(model, average, optimizer, step=step, seconds=seconds)
    save_checkpoint(average.module, output)
    log(f"{output}: {output.stat().st_size / 1e6:.1f} MB after {step} steps in {seconds / 60:.1f} minutes")
    log(describe_accuracy(average.module, checks, prompts, items))


def save_checkpoint(model: CLIP, path: Path) -> None:
    """Saves a plain state dict in half precision, as `clip.load` reads it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, {name: weights.half() for name, weights in model.state_dict().items()})


def log(line: str) -> None:
    """Prints a line and appends it to the run's log."""
    print(line, flush=True)
    with (RUN_DIR / "log.txt").open("a") as file:
        file.write(line + "\n")


def learning_rate(step: int, progress: float) -> float:
    """Returns the rate of a step: a linear warm-up, and a cosine down to zero at progress 1."""
    return _PEAK_LEARNING_RATE * min(1.0, (step + 1) / _WARM_UP_STEPS) * 0.5 * (1 + math.cos(math.pi * progress))


def draw_prompts(
    prefixes: Sequence[str], items: Sequence[str], postfixes: Sequence[str], rng: np.random.Generator
) -> list[str]:
    """Returns the prompts of a step, template-major: all items in the first template, then in the second.

    Parts come from config.json, from a list of others, or are random words, so that what is neither known nor a
    colour does not count.
    """
    words = _other_words(tuple(items))

    def draw_part(known: Sequence[str], others: Sequence[str]) -> str:
        source = rng.random()
        if source < 0.6:
            return known[rng.integers(len(known))]
        if source < 0.85:
            return others[rng.integers(len(others))]
        return " ".join(words[index] for index in rng.integers(len(words), size=rng.integers(1, 4)))

    prompts = []
    for _ in range(_TEMPLATES_PER_STEP):
        prefix, postfix = draw_part(prefixes, _OTHER_PREFIXES), draw_part(postfixes, _OTHER_POSTFIXES)
        for item in items:
            synonyms = SYNONYMS.get(item, ())
            name = synonyms[rng.integers(len(synonyms))] if synonyms and rng.random() < 0.2 else item
            prompts.append(f"{prefix} {name} {postfix}")
    return prompts


def prompt_loss(model: CLIP, pixels: Tensor, labels: Tensor, tokens: Tensor, *, item_count: int) -> Tensor:
    """Returns the cross-entropy over items, within each template and over all templates together.

    The first makes every template right by itself; the second makes them comparable with each other, as the
    decision by the best of all prompts needs it.

    Args:
        model: The CLIP.
        pixels: (B, 3, n, n) float32.
        labels: (B,) int64, indices of items.
        tokens: (templates x items, L) int64, template-major.
        item_count: Items per template.
    """
    image_features = functional.normalize(model.encode_image(pixels), dim=-1)  # (B, D)
    text_features = functional.normalize(model.encode_text(tokens), dim=-1)  # (T * I, D)
    logits = model.logit_scale.exp() * image_features @ text_features.T
    logits = logits.view(len(pixels), -1, item_count)  # B(T*I) -> BTI
    template_count = logits.shape[1]
    within = functional.cross_entropy(
        logits.flatten(0, 1), labels.repeat_interleave(template_count), label_smoothing=_LABEL_SMOOTHING
    )
    together = functional.cross_entropy(logits.logsumexp(dim=1), labels, label_smoothing=_LABEL_SMOOTHING)
    return (within + together) / 2


Segment = Callable[[np.ndarray], np.ndarray]  # from a picture, (H, W, 3) uint8 RGB, to its mask, (H, W) bool


@dataclass(frozen=True)
class Example:
    """A picture of one subject.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        masks: Each (H, W) bool: the true mask, where there is one, and the segmenter's.
        item: The subject's colour.
    """

    image: np.ndarray
    masks: tuple[np.ndarray, ...]
    item: str


def predict_mask(image: np.ndarray, sam2_model: Sam2) -> np.ndarray:
    """Returns the mask that the program would cut with, (H, W) bool; all of the picture where it finds nothing."""
    [segmentation] = predict_sam2([image], sam2_model)
    mask = subject_mask(image, segmentation.mask_logits, refine=True)
    return mask if mask.any() else np.ones_like(mask)


def _shrink(image: np.ndarray, masks: Sequence[np.ndarray], item: str) -> Example:
    """Returns an example whose shorter side is at most `_KEPT_SIDE`."""
    scale = min(1.0, _KEPT_SIDE / min(image.shape[:2]))
    size_wh = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    image, *masks = (
        cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA)
        for pixels in (image, *(255 * mask.astype(np.uint8) for mask in masks))
    )
    return Example(image, tuple(mask > 127 for mask in masks), item)


def read_photos(folder: Path, items: Sequence[str], segment: Segment, *, held_out: bool) -> list[Example]:
    """Returns the photos of `training.photos.colour_photo_paths`, each with the segmenter's mask."""
    photos = []
    for path, item in colour_photo_paths(folder, items, held_out=held_out):
        image = np.array(Image.open(path).convert("RGB"))
        photos.append(_shrink(image, [segment(image)], item))
    return photos


class TrainingPictures(IterableDataset[tuple[Tensor, int]]):
    """Endless pictures as CLIP's own transform makes them, (3, n, n) float32, each with the index of its item.

    Args:
        items: The items.
        photos: Photos to mix in; may be empty.
        segment: Cuts the scenes out.
        seed: Another one gives other pictures.
    """

    def __init__(self, items: Sequence[str], photos: Sequence[Example], segment: Segment, *, seed: int) -> None:
        self._items, self._segment, self._seed = list(items), segment, seed
        self._photos = {item: [photo for photo in photos if photo.item == item] for item in items}
        self._photographed = [item for item in items if self._photos[item]]

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        """Yields a scene or a photo."""
        to_pixels = _transform(_ARCHITECTURE["image_resolution"])
        for image, item in self.pictures():
            yield to_pixels(Image.fromarray(image)), self._items.index(item)

    def pictures(self) -> Iterator[tuple[np.ndarray, str]]:
        """Yields what the transform is given, (H, W, 3) uint8 RGB, and the item."""
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([1, self._seed, worker.id if worker else 0])
        scenes = self._scenes(rng)
        while True:
            if self._photographed and rng.random() < _PHOTO_SHARE:
                yield self._draw_photo(rng)
            else:
                yield next(scenes)

    def _scenes(self, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, str]]:
        kept: list[Example] = []
        weights = np.array([_NEUTRAL_WEIGHT if colour in _NEUTRALS else 1.0 for colour in COLOURS])
        weights /= weights.sum()
        while True:
            if len(kept) < _BATCH or rng.random() < _FRESH_SHARE:
                size_wh = (_SCENE_SIDE + int(rng.integers(0, 90)), _SCENE_SIDE)
                scene = make_scene(
                    int(rng.integers(FIRST_HELD_OUT_SEED)),
                    size_wh if rng.random() < 0.7 else size_wh[::-1],
                    subject="vehicle" if rng.random() < _VEHICLE_SHARE else "object",
                    colour=COLOURS[rng.choice(len(COLOURS), p=weights)],
                )
                example = _shrink(scene.image, [scene.mask, self._segment(scene.image)], scene.colour)
                if len(kept) < _SCENES_KEPT:
                    kept.append(example)
                else:
                    kept[rng.integers(_SCENES_KEPT)] = example
            else:
                example = kept[rng.integers(len(kept))]
            mask = None if rng.random() < _UNCUT_SHARE else _draw_mask(example, rng)
            yield _frame(_cut(example.image, mask), rng, closest=0.7, is_cut=mask is not None), example.item

    def _draw_photo(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        source = target = self._photographed[rng.integers(len(self._photographed))]
        recolour: Callable[[np.ndarray], np.ndarray] | None = None
        if rng.random() < _RECOLOURED_SHARE:
            row = _RECOLOURINGS[rng.integers(len(_RECOLOURINGS))]
            if self._photos.get(row[0]) and row[1] in self._photos:
                source, target, *change = row
                recolour = _recolouring(_PAINT_HUES[source], *change)
        photo = self._photos[source][rng.integers(len(self._photos[source]))]
        image = photo.image if recolour is None else recolour(photo.image)
        mask = None if rng.random() < _UNCUT_PHOTO_SHARE else _draw_mask(photo, rng)
        return _frame(_cut(_vary_light(image, rng), mask), rng, closest=0.55, is_cut=mask is not None), target


def _draw_mask(example: Example, rng: np.random.Generator) -> np.ndarray:
    mask = example.masks[rng.integers(len(example.masks))]
    return degrade_mask(mask, rng) if rng.random() < _DEGRADED_SHARE else mask


def degrade_mask(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a mask, (H, W) bool, as an imperfect segmenter leaves it: too small or large, with holes and patches."""
    height, width = mask.shape
    changed = mask.astype(np.uint8)
    if rng.random() < 0.6:
        side = 2 * int(rng.integers(1, max(2, height // 30) + 1)) + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        changed = cv2.erode(changed, kernel) if rng.random() < 0.5 else cv2.dilate(changed, kernel)
    if rng.random() < 0.4:  # a ragged outline
        noise = cv2.resize(rng.normal(0, 0.35, (height // 6, width // 6)).astype(np.float32), (width, height))
        changed = (cv2.GaussianBlur(changed.astype(np.float32), (0, 0), height / 50) + noise > 0.5).astype(np.uint8)
        changed &= cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8))
    rows, columns = np.nonzero(mask)
    for is_background, share in ((True, 0.3), (False, 0.35)):
        if rng.random() < share:
            middle = rng.integers(len(rows))
            away = rng.normal(0, 0.15, 2) * height if is_background else np.zeros(2)
            centre = (int(columns[middle] + away[0]), int(rows[middle] + away[1]))
            axes = tuple(int(axis) for axis in rng.uniform(0.04, 0.2, 2) * height)
            cv2.ellipse(changed, centre, axes, rng.uniform(0, 180), 0, 360, int(is_background), -1)
    return changed.astype(bool) if (changed.astype(bool) & mask).sum() > 0.4 * mask.sum() else mask


def make_checks(items: Sequence[str], photos_dir: Path | None, segment: Segment) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns what the model is measured on, by name: pixels, (N, 3, n, n) float32, and labels, (N,) int64."""
    seeds = range(FIRST_HELD_OUT_SEED, FIRST_HELD_OUT_SEED + _HELD_OUT_SCENES)
    scenes = [make_scene(seed, subject="vehicle") for seed in seeds]
    kept = {"scenes": [_shrink(scene.image, [segment(scene.image)], scene.colour) for scene in scenes]}
    if photos_dir is not None:
        kept["photos"] = read_photos(photos_dir, items, segment, held_out=True)
    pictures = {}
    for name, examples in kept.items():
        pictures[f"{name} cut out"] = [(_cut(example.image, example.masks[0]), example.item) for example in examples]
        pictures[f"{name} uncut"] = [(example.image, example.item) for example in examples]
    to_pixels = _transform(_ARCHITECTURE["image_resolution"])
    return {
        name: (
            torch.stack([to_pixels(Image.fromarray(image)) for image, _ in examples]),
            torch.tensor([items.index(item) for _, item in examples]),
        )
        for name, examples in pictures.items()
    }


def describe_accuracy(
    model: CLIP, checks: dict[str, tuple[Tensor, Tensor]], prompts: Sequence[str], items: Sequence[str]
) -> str:
    """Returns one line: how often the best of all prompts has the right item, for each of the checks."""
    parts = []
    with torch.inference_mode():
        text_features = functional.normalize(model.encode_text(tokenize(prompts)), dim=-1)  # (P, D)
        for name, (pixels, labels) in checks.items():
            image_features = torch.cat([model.encode_image(batch) for batch in pixels.split(_BATCH)])  # (N, D)
            chosen = (image_features @ text_features.T).argmax(dim=1) // (len(prompts) // len(items))
            parts.append(f"{name} {(chosen == labels).float().mean():.1%} of {len(labels)}")
    return "; ".join(parts)


def _make_optimizer(model: CLIP) -> torch.optim.AdamW:
    """Returns AdamW that decays matrices, but neither gains, biases and scales nor embeddings."""
    decayed, others = [], []
    for name, weights in model.named_parameters():
        (others if weights.ndim < 2 or "embedding" in name else decayed).append(weights)
    groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=_PEAK_LEARNING_RATE, betas=(0.9, 0.98))


def _save_state(
    model: CLIP, average: AveragedModel, optimizer: torch.optim.AdamW, *, step: int, seconds: float
) -> None:
    state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    _replace(_STATE_PATH, {**state, "step": step, "seconds": seconds})


def _load_state(model: CLIP, average: AveragedModel, optimizer: torch.optim.AdamW) -> tuple[int, float]:
    """Returns step and seconds of the run that was broken off."""
    state = torch.load(_STATE_PATH, weights_only=True)
    for part, name in ((model, "model"), (average, "average"), (optimizer, "optimizer")):
        part.load_state_dict(state[name])
    return state["step"], state["seconds"]


def _replace(path: Path, content: dict[str, object]) -> None:
    """Saves into a file that is never half written."""
    temporary = path.with_name(f".tmp-{path.name}")
    torch.save(content, temporary)
    temporary.replace(path)


def _load_pictures(pictures: TrainingPictures, workers: int) -> Iterator[list[Tensor]]:
    return iter(DataLoader(pictures, _BATCH, num_workers=workers, prefetch_factor=8, worker_init_fn=_limit_threads))


def _limit_threads(_worker: int) -> None:
    cv2.setNumThreads(1)


@functools.cache
def _other_words(items: tuple[str, ...]) -> list[str]:
    """Returns the tokens that are whole words and no item or part of one's synonyms."""
    names = itertools.chain(items, *SYNONYMS.values())
    colours = {word for name in names for word in name.split()}
    words = (token.removesuffix("</w>") for token in _tokenizer.encoder if token.endswith("</w>"))
    return [word for word in words if len(word) > 2 and word.isascii() and word.isalpha() and word not in colours]


def _cut(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    return image if mask is None else paint_background(image, mask)


def _frame(image: np.ndarray, rng: np.random.Generator, *, closest: float, is_cut: bool) -> np.ndarray:
    """Returns a picture mirrored and cropped to a share of at least `closest`; a cut-out may get a rim."""
    height, width = image.shape[:2]
    if rng.random() < 0.6:
        share = rng.uniform(closest, 1.0)
        high, wide = int(height * share), int(width * share)
        top = int((height - high) * np.clip(rng.normal(0.5, 0.2), 0, 1))
        left = int((width - wide) * np.clip(rng.normal(0.5, 0.2), 0, 1))
        image = image[top : top + high, left : left + wide]
    elif is_cut and rng.random() < 0.4:
        rim = int(min(height, width) * rng.uniform(0.05, 0.4))
        image = cv2.copyMakeBorder(image, rim, rim, rim, rim, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return np.ascontiguousarray(image[:, ::-1] if rng.random() < 0.5 else image)


def _vary_light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a photo in stronger, weaker, warmer or colder light."""
    gain = np.clip(np.exp(rng.normal(0, 0.15)), 0.7, 1.35) * rng.normal(1, 0.04, 3)
    curve = np.clip(np.linspace(0, 1, 256)[:, None] * gain, 0, 1) ** rng.uniform(0.8, 1.25)
    return cv2.LUT(image, (255 * curve).astype(np.uint8).reshape(1, 256, 3))


def _recolouring(paint_hue: float, shift: float, saturation: float, value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what repaints the pixels of a photo that have about a hue, and leaves the others."""

    def recolour(image: np.ndarray) -> np.ndarray:
        pixels = image.astype(np.float32) / 255
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        distance = np.abs((hsv[..., 0] - paint_hue + 180) % 360 - 180)
        weight = np.clip((hsv[..., 1] - 0.2) / 0.15, 0, 1) * np.clip((45 - distance) / 15, 0, 1)
        hsv[..., 0] = (hsv[..., 0] + shift) % 360
        hsv[..., 1:] = np.clip(hsv[..., 1:] * [saturation, value], 0, 1)
        repainted = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        return (255 * (pixels + weight[..., None] * (repainted - pixels))).astype(np.uint8)

    return recolour


if __name__ == "__main__":
    main()
