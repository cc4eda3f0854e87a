"""CLIP's two transformers, without the work that its features do not need.

The weights and the arithmetic are those of `clip.model`, but:

- QuickGELU, x sigmoid(1.702 x), is SiLU(1.702 x) / 1.702: with both factors in the weights around it, it is one
  operation that the product before it does on its way.
- The image feature is read at the class token, so the last block computes no other position beyond its keys and
  values.
- The text tower is causal: what it computes at a token depends on the tokens before it alone. Prompts that begin with
  the same words share those positions, so that each distinct beginning is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from layer_utilities import LayerNorm, Linear, attention, row_by_row

_QUICK_GELU = 1.702

# Prompts that share one tree of beginnings: it bounds the memory, and a set of usual size lies in one.
_PROMPTS_AT_ONCE = 2048

_TREE_ROWS = 256  # beginnings that attend at once: their keys and values stay in the cache


def image_tower(visual: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Returns the image tower of any of CLIP's models, a transformer in one precision.

    A ResNet runs as `clip` has it, in fp32 whatever the precision: its batch norms and the sum that runs through its
    blocks would be rounded, too, and its features be 14 times as far off as a transformer's in bf16.
    """
    return ImageTower(visual, dtype) if hasattr(visual, "class_embedding") else visual.float()


class ImageTower(nn.Module):
    """CLIP's vision transformer.

    Args:
        visual: A `clip.model.VisionTransformer`; it is read, not changed.
        dtype: Of the blocks' products. The patches, the sum that runs through the blocks and the projection at the end,
            together 1% of the work, are fp32: white rounded to bf16 alone moves probabilities by 0.02.
    """

    def __init__(self, visual: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self._stride = visual.conv1.stride
        for name, tensor in (
            ("_patch_weight", visual.conv1.weight),
            ("_class_embedding", visual.class_embedding),
            ("_positions", visual.positional_embedding),
        ):
            self.register_buffer(name, tensor.detach().float())
        self._norm_before, self._norm_after = (
            LayerNorm(norm, torch.float32) for norm in (visual.ln_pre, visual.ln_post)
        )
        self._blocks = nn.ModuleList(_Block(block, dtype) for block in visual.transformer.resblocks)
        self._project = Linear(visual.proj.T.float())

    def forward(self, pixels: Tensor) -> Tensor:
        """Returns the features, (B, D) float32 of any length, of (B, 3, n, n) float32 pixels."""
        x = functional.conv2d(pixels, self._patch_weight, stride=self._stride)
        x = x.flatten(2).transpose(1, 2)  # (B, positions, width)
        x = torch.cat([self._class_embedding.expand(len(x), 1, -1), x], dim=1) + self._positions
        x = self._norm_before(x)
        *blocks, last = self._blocks
        for block in blocks:
            x = block(x, x)
        x = last(x[:, :1], x)
        return row_by_row(self._project, self._norm_after(x[:, 0]))


class TextTower(nn.Module):
    """CLIP's text transformer, over a tree of beginnings.

    Args:
        model: A `clip.model.CLIP`; it is read, not changed.
        dtype: Of the blocks' products; all else is fp32.
    """

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("_tokens", model.token_embedding.weight.detach())
        self.register_buffer("_positions", model.positional_embedding.detach())
        self._blocks = nn.ModuleList(_Block(block, dtype) for block in model.transformer.resblocks)
        self._norm_after = LayerNorm(model.ln_final, torch.float32)
        self._project = Linear(model.text_projection.T.float())

    def forward(self, tokens: np.ndarray) -> Tensor:
        """Returns the features, (P, D) float32 of any length, of (P, L) int64 tokens."""
        order = np.lexsort(tokens.T[::-1])  # prompts with the same beginning side by side
        parts = [
            self._encode(tokens[rows])
            for rows in np.split(order, range(_PROMPTS_AT_ONCE, len(order), _PROMPTS_AT_ONCE))
        ]
        features = torch.cat(parts)
        return features[torch.from_numpy(np.argsort(order)).to(features.device)]

    def _encode(self, tokens: np.ndarray) -> Tensor:
        tree = beginnings(tokens)
        device = self._positions.device
        depths, ancestors = (torch.from_numpy(each).to(device) for each in (tree.depths, tree.ancestors))
        known = torch.arange(ancestors.shape[1], device=device) <= depths[:, None]  # (N, L)
        x = self._tokens[torch.from_numpy(tree.tokens).to(device)].float() + self._positions[depths].float()
        for block in self._blocks:
            x = block.forward_tree(x, ancestors, known)
        x = x[torch.from_numpy(tree.ends).to(device)]
        return self._project(self._norm_after(x))


@dataclass(frozen=True)
class Beginnings:
    """The N distinct beginnings of P prompts, shorter ones first.

    Attributes:
        tokens: (N,) int64, the last token of each.
        depths: (N,) int64, how many tokens come before that.
        ancestors: (N, L) int64, at j the beginning of length j + 1 of the same prompt, up to its own; then zeros.
        ends: (P,) int64, each prompt up to its end token, where CLIP reads the feature.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ancestors: np.ndarray
    ends: np.ndarray


def beginnings(tokens: np.ndarray) -> Beginnings:
    """Returns the tree of (P, L) int64 tokens; what follows an end token, the highest of its prompt, is left out."""
    prompts, length = tokens.shape
    last = tokens.argmax(axis=1)
    path = np.zeros((prompts, length), np.int64)  # the beginning of each prompt at each position
    found_tokens, found_paths, found_depths = [], [], []
    count = 0
    for depth in range(length):
        alive = np.flatnonzero(last >= depth)
        parents = path[alive, depth - 1] if depth else np.zeros(len(alive), np.int64)
        keys = np.stack([parents, tokens[alive, depth]], axis=1)
        distinct, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        path[alive, depth] = count + inverse.reshape(-1)  # numpy 2.0.0 gives it another shape
        count += len(distinct)
        found_tokens.append(distinct[:, 1])
        found_depths.append(np.full(len(distinct), depth))
        found_paths.append(np.where(np.arange(length) <= depth, path[alive[first]], 0))
    return Beginnings(
        np.concatenate(found_tokens),
        np.concatenate(found_depths),
        np.concatenate(found_paths),
        path[np.arange(prompts), last],
    )


class _Block(nn.Module):
    """One `clip.model.ResidualAttentionBlock`."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self._heads = block.attn.num_heads
        self._norm1, self._norm2 = (LayerNorm(norm, torch.float32, dtype) for norm in (block.ln_1, block.ln_2))
        weight, bias = block.attn.in_proj_weight.to(dtype), block.attn.in_proj_bias.to(dtype)
        width = weight.shape[1]
        self._queries = Linear(weight[:width], bias[:width])
        self._keys_values = Linear(weight[width:], bias[width:])
        self._project = Linear(block.attn.out_proj.weight.to(dtype), block.attn.out_proj.bias.to(dtype))
        first, second = block.mlp.c_fc, block.mlp.c_proj
        self._mlp_in = Linear(
            (_QUICK_GELU * first.weight.float()).to(dtype), (_QUICK_GELU * first.bias.float()).to(dtype), "silu"
        )
        self._mlp_out = Linear((second.weight.float() / _QUICK_GELU).to(dtype), second.bias.to(dtype))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Returns the block's output at x, (B, N, width), the first N positions of the context, (B, M, width)."""
        normalised = self._norm1(context)
        queries = self._queries(normalised[:, : x.shape[1]])
        keys, values = self._keys_values(normalised).chunk(2, dim=-1)
        heads = (each.unflatten(-1, (self._heads, -1)).transpose(1, 2) for each in (queries, keys, values))
        attended = attention(*heads).transpose(1, 2).flatten(2)  # (B, N, width)
        return self._finish(x, attended)

    def forward_tree(self, x: Tensor, ancestors: Tensor, known: Tensor) -> Tensor:
        """Returns the output at N beginnings, (N, width), each of which attends to its ancestors and itself.

        Args:
            x: (N, width).
            ancestors: (N, L) int64, rows of x.
            known: (N, L) bool, which of them are there.
        """
        normalised = self._norm1(x)
        queries = self._queries(normalised).float().unflatten(-1, (self._heads, -1))  # (N, heads, width / heads)
        keys, values = self._keys_values(normalised).float().chunk(2, dim=-1)
        attended = []
        for some, rows, there in zip(*(each.split(_TREE_ROWS) for each in (queries, ancestors, known)), strict=True):
            k, v = (each[rows].unflatten(-1, (self._heads, -1)) for each in (keys, values))  # (n, L, heads, _)
            scores = (some[:, None] * k).sum(dim=-1) * some.shape[-1] ** -0.5
            weights = scores.masked_fill(~there[..., None], -torch.inf).softmax(dim=1)  # (n, L, heads)
            attended.append((weights[..., None] * v).sum(dim=1).flatten(1))
        return self._finish(x, torch.cat(attended).to(normalised.dtype))

    def _finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x, normalised = self._norm2.of_sum(x, self._project, attended)
        return self._mlp_out.added_to(x, self._mlp_in(normalised))
