"""CLIP: loading it, the text features of the prompts, and the label of each photo."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

import checkpoint_utilities
import prompt_utilities
from device_utilities import DTYPES
from errors import CheckpointError, PromptError
from pipeline_utilities import stage
from prompt_utilities import DecisionRule, Label
from record_utilities import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

_LOGGER = logging.getLogger("sam2vit")

CONTEXT_LENGTH = 77  # tokens that CLIP was trained on, start and end included

# CLIP's transform enlarges a strip whole before it cuts out the central square: 1 x 30,000 px would take 10 GB.
# What is longer than this is cut first; all else goes through the transform as it is.
_MAX_ASPECT_RATIO = 100

# The largest of OpenAI's sees 448 x 448 px, another 24 x 24 patches: beyond these a photo would take gigabytes.
_LARGEST_RESOLUTION = 1024  # pixels a side
_MOST_POSITIONS = 64 * 64 + 1

_VOCABULARY = 49408  # tokens that `clip.tokenize` knows

_UNIT_TOLERANCE = 1e-3  # within which kept text features must have the length 1; rounding leaves 1e-6
_STALE = 3600.0  # seconds, after which what another run has not finished writing is left over


class ClipModel:
    """CLIP with the text features of its prompts: what remains per photo is the image tower.

    Args:
        model: A name of `clip.available_models()` (downloaded on first use), the name of a .pt under
            checkpoints/, or a path to a .pt (a state dict, or a TorchScript archive like OpenAI's).
        device: As torch names it.
        items: The I items.
        prompts: The P prompts, item-major as `prompt_utilities.get_prompts` returns them.
        decision: How the item is chosen; see `prompt_utilities.decide`.
        precision: Of both towers, but a ResNet is fp32; see `clip_tower_utilities.image_tower`. Normalisation, the
            product of the features and the softmax stay in fp32: bf16 logits near 25 are 0.125 apart, and near-synonyms
            would tie.
        text_features: (P, D) float32, the `text_features` of the same model elsewhere; None to compute them.
        checkpoints_dir: Where names are looked up, downloads go and text features are kept.
        show_progress: Show a progress bar while downloading.

    Raises:
        CheckpointError: There is no such model, or it is no CLIP that works.
        PromptError: A prompt is longer than CLIP's 77 tokens.
    """

    def __init__(
        self,
        model: str,
        device: str = "cpu",
        *,
        items: Sequence[str],
        prompts: Sequence[str],
        decision: DecisionRule = "top-prompt",
        precision: Literal["fp32", "bf16"] = "fp32",
        text_features: np.ndarray | None = None,
        checkpoints_dir: Path = checkpoint_utilities.CHECKPOINTS_DIR,
        show_progress: bool = True,
    ) -> None:
        import torch

        from clip_tower_utilities import image_tower

        tokens = tokenize(prompts, items)  # first: prompts that won't do should not wait for the weights
        public, flag = checkpoint_utilities.clip_checkpoints(), "--clip-model"
        path = checkpoint_utilities.find_checkpoint(
            model, public, flag=flag, checkpoints_dir=checkpoints_dir, show_progress=show_progress
        )
        self.items, self.prompts, self.decision = tuple(items), tuple(prompts), decision
        self.device = device
        self._path, self.digest = path, checkpoint_utilities.published_digest(path, model, public, flag=flag)
        model = _load_clip(path).to(device)
        with _without_warnings():
            from clip.clip import _transform
        *self._crop, _, _, normalise = _transform(model.visual.input_resolution).transforms
        self._mean, self._std = (
            torch.tensor(each, device=device)[:, None, None] for each in (normalise.mean, normalise.std)
        )
        # Kept from the fp32 weights: in bf16 a scale of 100 would be rounded to 0.5%.
        self._logit_scale = model.logit_scale.float().exp().item()
        if not math.isfinite(self._logit_scale):
            raise CheckpointError(f"{path}: its logit_scale overflows; fetch it again, or name another --clip-model")
        cache = checkpoints_dir / "text_features" / f"{_cache_key(self.digest, self.prompts, precision)}.npy"
        with stage("prompts", synchronize=True):
            if text_features is None:
                text_features = self._get_text_features(tokens, model, precision, cache)
        self._text_features = torch.tensor(text_features, device=device)  # (P, D) float32, unit length
        self._item_features = _mean_features(self._text_features, len(self.items))  # (I, D) float32, unit length
        self._image_tower = image_tower(model.visual, getattr(torch, DTYPES[precision]))

    @property
    def text_features(self) -> np.ndarray:
        """What CLIP makes of the prompts, (P, D) float32 of unit length."""
        return self._text_features.cpu().numpy()

    def process(
        self, images: Sequence[np.ndarray] = (), *, pixels: Sequence[Tensor] = (), fill: int = 0
    ) -> list[Label]:
        """Returns the label of each photo, from one call of the image tower; see `encode` for the arguments."""
        return self.decide(self.encode(images, pixels=pixels, fill=fill))

    def encode(self, images: Sequence[np.ndarray] = (), *, pixels: Sequence[Tensor] = (), fill: int = 0) -> Tensor:
        """Returns the features of photos, (B, D) float32 of unit length on the model's device.

        Args:
            images: B photos or cut-outs on white, each (H, W, 3) uint8 RGB; their sizes may differ.
            pixels: In their place, what `to_pixels` made of them.
            fill: Repeat the last photo so often inside the model; see `sam_utilities.predict_sam2`.

        Raises:
            ValueError: The model makes NaN of a photo.
        """
        import torch

        pixels = pixels or [self.to_pixels(image) for image in images]
        if not pixels:
            return torch.empty((0, self.dimension), device=self.device)
        with torch.inference_mode(), stage("CLIP", synchronize=True):
            batch = torch.stack([*pixels, *pixels[-1:] * fill]).to(self.device)
            batch = (batch.permute(0, 3, 1, 2).float() / 255 - self._mean) / self._std  # NHWC -> NCHW
            features = self._image_tower(batch)[: len(pixels)]
            lengths = features.norm(dim=-1, keepdim=True)
            features /= lengths
        if not (lengths.isfinite() & (lengths > 0)).all():
            raise ValueError("CLIP makes NaN of it")
        return features

    def decide(self, features: Tensor) -> list[Label]:
        """Returns the label of each photo whose features `encode` has returned."""
        import torch

        with torch.inference_mode(), stage("CLIP", synchronize=True):
            prompt_probabilities = self._softmax(features, self._text_features)  # (B, P)
            ensemble_probabilities = self._softmax(features, self._item_features)  # (B, I)
        return [
            prompt_utilities.decide(
                by_prompt, self.prompts, self.items, rule=self.decision, ensemble_probabilities=by_item
            )
            for by_prompt, by_item in zip(prompt_probabilities, ensemble_probabilities, strict=True)
        ]

    def decide_stored(self, features: np.ndarray) -> list[Label]:
        """Returns the label of each photo from its features as a run keeps them, (B, D) float16."""
        import torch

        kept = torch.from_numpy(features.astype(np.float32)).to(self.device)
        return self.decide(kept / kept.norm(dim=-1, keepdim=True))  # halves have not quite the length 1

    @property
    def dimension(self) -> int:
        """D, of the features."""
        return self._text_features.shape[1]

    def to_pixels(self, image: np.ndarray) -> Tensor:
        """Returns a photo's central square as CLIP's own transform cuts it out, (n, n, 3) uint8."""
        import torch

        height, width = image.shape[:2]
        longest = _MAX_ASPECT_RATIO * min(height, width)
        top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
        centre = image[top : height - top, left : width - left]
        picture = Image.fromarray(centre)
        for step in self._crop:
            picture = step(picture)
        return torch.from_numpy(np.array(picture))

    def _softmax(self, image_features: Tensor, text_features: Tensor) -> np.ndarray:
        from layer_utilities import row_by_row

        logits = row_by_row(lambda row: row @ text_features.T, self._logit_scale * image_features)
        return logits.softmax(dim=-1).cpu().numpy()

    def _get_text_features(self, tokens: Tensor, model: Any, precision: str, cache: Path) -> np.ndarray:
        """Returns the prompts' features, (P, D) float32 of unit length, from the cache or the text tower."""
        import torch

        from clip_tower_utilities import TextTower

        known = _read_array(cache, (len(tokens), model.text_projection.shape[1]))
        if known is not None:
            return known
        with torch.inference_mode():
            features = TextTower(model, getattr(torch, DTYPES[precision]))(tokens.numpy()).float()
            features = (features / features.norm(dim=-1, keepdim=True)).cpu().numpy()
        if not _has_unit_length(features):
            raise CheckpointError(
                f"{self._path}: makes no features of the prompts, only NaN; name another --clip-model"
            )
        try:
            _save_array(features, cache)
        except OSError as error:
            _LOGGER.info("text features are not kept for the next run: %s", error)
        return features


def tokenize(prompts: Sequence[str], items: Sequence[str] = ("",)) -> Tensor:
    """Returns the prompts' tokens, (P, L) int64, at the shortest context L that holds the longest prompt.

    CLIP's text tower is causal and reads its feature at the end token, so what would follow changes nothing:
    a prompt of 10 tokens costs an eighth of one padded to 77.

    Args:
        prompts: P of them, as many for each item.
        items: What they are about.

    Raises:
        PromptError: A prompt has more than 77 tokens, start and end included; or two items share one, which the first
            of them would always win.
    """
    import torch

    # One by one: `clip.tokenize` encodes all that it is given before it looks at a length.
    tokens = torch.cat([_tokenize_prompt(prompt) for prompt in prompts])
    owners: dict[bytes, int] = {}
    for index, row in enumerate(tokens.numpy()):
        item = index * len(items) // len(prompts)
        other = owners.setdefault(row.tobytes(), item)
        if other != item:
            raise PromptError(
                f"'items': {items[other]!r} and {items[item]!r}: both have the prompt {_shorten(prompts[index])!r}, as "
                "CLIP reads it; change one of them, or the prefixes and postfixes around them"
            )
    # The end token has the highest id; argmax is how CLIP itself finds it. 0 is no padding mark: it is "!".
    return tokens[:, : int(tokens.argmax(dim=-1).max()) + 1]


def _tokenize_prompt(prompt: str) -> Tensor:
    with _without_warnings():
        import clip

    try:
        return clip.tokenize(prompt, context_length=CONTEXT_LENGTH)
    except RuntimeError:
        raise PromptError(
            f"'prefixes', 'items' and 'postfixes' make the prompt {_shorten(prompt)!r} of {_count_tokens(prompt)} "
            f"tokens; CLIP reads at most {CONTEXT_LENGTH}, start and end included: shorten it"
        ) from None


def _shorten(prompt: str, limit: int = 80) -> str:
    return prompt if len(prompt) <= limit else f"{prompt[: limit - 3]}..."


def _count_tokens(prompt: str) -> int:
    with _without_warnings():
        from clip.clip import _tokenizer

    return len(_tokenizer.encode(prompt)) + 2


def _load_clip(path: Path) -> Any:
    """Returns a `clip.model.CLIP` in evaluation mode, its layers in half precision as OpenAI's files have them.

    As `clip.load`, which leaves it to the installed torch whether a pickle may run code.
    """
    import torch

    with _without_warnings():
        from clip.model import build_model

    weights = checkpoint_utilities.read_weights(path, kind="a CLIP model", flag="--clip-model")
    if "text_projection" not in weights:
        raise CheckpointError(
            f"{path}: not a CLIP model: none of CLIP's names, such as 'text_projection'; name another with --clip-model"
        )
    try:
        with torch.device("meta"), _without_warnings():  # only the shapes: 1.7 GB of random weights less
            model = build_model(dict(weights))
    except Exception as error:  # it derives the architecture from names and shapes, whatever those are
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path}: not a CLIP model: {type(error).__name__}: {reason}; name another with --clip-model"
        ) from None
    problem = _size_problem(model)
    if problem:
        raise CheckpointError(f"{path}: a CLIP that is of no use here: {problem}; name another with --clip-model")
    # As copying would: `build_model` holds the layers in half precision, whatever the file does.
    own = model.state_dict()
    model.load_state_dict(
        checkpoint_utilities.cast_weights({key: weights[key] for key in own}, own, path=path), assign=True
    )
    return model.requires_grad_(requires_grad=False)


def _size_problem(model: Any) -> str | None:
    """Says which size of a CLIP, built from weights from anywhere, is out of bounds; None where none is."""
    positions = next(tensor for key, tensor in model.visual.state_dict().items() if "positional_embedding" in key)
    problems = {
        f"it reads fewer than {CONTEXT_LENGTH} tokens": model.context_length < CONTEXT_LENGTH,
        f"it knows fewer than {_VOCABULARY} tokens": model.vocab_size < _VOCABULARY,
        f"it sees more than {_LARGEST_RESOLUTION} px": model.visual.input_resolution > _LARGEST_RESOLUTION,
        f"it sees more than {_MOST_POSITIONS} patches": len(positions) > _MOST_POSITIONS,
    }
    return next((problem for problem, holds in problems.items() if holds), None)


def _mean_features(text_features: Tensor, item_count: int) -> Tensor:
    """Returns the mean of each item's features, (I, D) of unit length: the prompt ensemble of CLIP's paper."""
    means = text_features.view(item_count, -1, text_features.shape[-1]).mean(dim=1)
    return means / means.norm(dim=-1, keepdim=True)


def _cache_key(digest: str, prompts: Sequence[str], precision: str) -> str:
    text = "\n".join([digest, precision, *prompts])  # prompts hold no newline: their spaces are single
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_array(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Returns (N, D) float32 of unit length as `_save_array` keeps them, None where they are missing or damaged."""
    if not path.is_file():
        return None
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # takes no memory, whatever shape a damaged file states
    except Exception as error:  # its header is parsed as Python; damage makes that raise whatever it makes it
        _LOGGER.info("%s: damaged, computed again: %s", path, error)
        return None
    if (array.shape, array.dtype) != (shape, np.float32):
        return None
    return np.array(array) if _has_unit_length(array) else None


def _has_unit_length(array: np.ndarray) -> bool:
    """Whether all rows of (N, D) have the length 1; not where there is a NaN."""
    return bool((np.abs(np.linalg.norm(array, axis=1) - 1) < _UNIT_TOLERANCE).all())


def _save_array(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for temporary in path.parent.glob(".tmp-*"):
        with contextlib.suppress(OSError):  # another run may clear it away, too
            if time.time() - temporary.stat().st_mtime > _STALE:
                temporary.unlink()
    content = io.BytesIO()
    np.save(content, array)
    write_atomically(path, content.getvalue())


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Silences what importing clip and reading its archives prints at every start (pkg_resources, torch.jit)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
