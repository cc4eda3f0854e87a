"""SAM 2's image encoder: the Hiera trunk and its feature pyramid, without the work that no photo needs.

The weights and the arithmetic are those of `sam2.modeling.backbones`, but:

- Windows stay windows. Between two blocks with the same windows every operation acts on single positions, so taking
  the map apart and putting it together again cancels out; attention over the whole map does not mind their order,
  and pooling turns windows of 8 into the windows of 4 that come next. SAM 2.1 large changes its layout once instead
  of 90 times.
- The position embedding, bicubic at every forward, is computed once; the neck's sine encodings, which only video
  reads, never.
- The neck's product of each fine level and the mask decoder's after it are one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from layer_utilities import LayerNorm, Linear, attention

_KINDS_OF_BLOCKS = 64  # times the sizes of batches that torch compiles for; it would give up after 8


@dataclass(frozen=True)
class Features:
    """What the mask decoder reads of B photos: strides 16, 4 and 8 of the model's frame, C channels."""

    image_embeddings: Tensor  # (B, C, s, s) float32
    high_res_features: list[Tensor]  # [(B, C / 8, 4 s, 4 s), (B, C / 4, 2 s, 2 s)] float32

    def of(self, row: int) -> Features:
        """Returns those of one photo, as a batch of one."""
        rows = slice(row, row + 1)
        return Features(self.image_embeddings[rows], [level[rows] for level in self.high_res_features])


class HieraEncoder(nn.Module):
    """The image encoder of a SAM 2 model, in one precision.

    Maps of positions are (B, g, g, w, w, C): g x g windows of w x w positions. A whole map is one window.

    Args:
        sam2_model: A `sam2.modeling.sam2_base.SAM2Base`; its image encoder is read, not changed.
        dtype: Of the trunk's blocks. The patches and the neck, 1% of the work, stay in fp32.
    """

    def __init__(self, sam2_model: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        trunk, neck = sam2_model.image_encoder.trunk, sam2_model.image_encoder.neck
        _check_neck(sam2_model.image_encoder)
        self.dtype = dtype
        patches = trunk.patch_embed.proj
        self._stride, self._padding = patches.stride, patches.padding
        self.register_buffer("_patch_weight", patches.weight.detach())
        self.register_buffer("_patch_bias", patches.bias.detach())
        side = sam2_model.image_size // patches.stride[0]
        with torch.no_grad():
            self.register_buffer("_positions", trunk._get_pos_embed((side, side)).contiguous())
        self._blocks = nn.ModuleList(_Block(block, dtype) for block in trunk.blocks)
        self._stage_ends = frozenset(trunk.stage_ends)

        decoder = sam2_model.sam_mask_decoder
        coarsest, coarse, middle, fine = (level.conv for level in neck.convs)
        self._fine = _composed(fine, decoder.conv_s0)
        self._middle = _composed(middle, decoder.conv_s1)
        self._coarse = Linear(_matrix(coarse), coarse.bias)
        self._coarsest = Linear(_matrix(coarsest), coarsest.bias)
        no_memory = sam2_model.no_mem_embed.detach().view(-1) if sam2_model.directly_add_no_mem_embed else None
        self.register_buffer("_no_memory", no_memory)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the tensors of `Features`, coarse, fine and middle, from (B, 3, S, S) normalised pixels."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        x = functional.conv2d(pixels, self._patch_weight, self._patch_bias, self._stride, self._padding)
        x = (x.permute(0, 2, 3, 1) + self._positions).to(self.dtype)  # NCHW -> NHWC
        x = x[:, None, None]  # one window
        levels = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self._stage_ends:
                levels.append(x.float())
        fine, middle, coarse, coarsest = levels
        fine = _whole_map(self._fine(fine)).permute(0, 3, 1, 2)  # NHWC -> NCHW
        middle = _whole_map(self._middle(middle)).permute(0, 3, 1, 2)
        coarse, coarsest = _whole_map(self._coarse(coarse)), _whole_map(self._coarsest(coarsest))
        coarse = coarse.unflatten(1, (-1, 2)).unflatten(3, (-1, 2)) + coarsest[:, :, None, :, None]  # nearest, doubled
        coarse = coarse.flatten(3, 4).flatten(1, 2)
        if self._no_memory is not None:
            coarse = coarse + self._no_memory
        return coarse.permute(0, 3, 1, 2), fine, middle

    def compile(self, **options: Any) -> None:
        """Lets torch compile the blocks at their first calls, in place of `nn.Module.compile`, which takes the whole.

        They are alike but for a few sizes: each kind is compiled once, in a fraction of the time that the whole takes,
        and runs as fast but for the additions between them.

        Args:
            options: Of `torch.compile`.
        """
        torch._dynamo.config.recompile_limit = _KINDS_OF_BLOCKS
        for block in self._blocks:
            block.compile(**options)


class _Block(nn.Module):
    """One `sam2.modeling.backbones.hieradet.MultiScaleBlock` (Hiera, Ryali et al. 2023)."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self._window, self._heads, self._pools = block.window_size, block.attn.num_heads, bool(block.q_stride)
        self._norm1, self._norm2 = LayerNorm(block.norm1, dtype), LayerNorm(block.norm2, dtype)
        self._qkv, self._project = _linear(block.attn.qkv, dtype), _linear(block.attn.proj, dtype)
        first, second = block.mlp.layers
        self._mlp_in = Linear(first.weight.to(dtype), first.bias.to(dtype), "gelu")
        self._mlp_out = _linear(second, dtype)
        self._shortcut = _linear(block.proj, dtype) if hasattr(block, "proj") else None

    def forward(self, x: Tensor) -> Tensor:
        side = x.shape[1] * x.shape[3]
        padded = bool(self._window) and side % self._window != 0
        if self._window:
            x = _in_windows(x, side if padded else self._window)
        normalised = self._norm1(x)
        if self._shortcut is not None:
            x = self._shortcut(normalised)
            x = _pool(x) if self._pools else x
        attended = self._attend_padded(normalised) if padded else self._attend(normalised)
        x, normalised = self._norm2.of_sum(x, self._project, attended)
        return self._mlp_out.added_to(x, self._mlp_in(normalised))

    def _attend(self, x: Tensor) -> Tensor:
        """Returns attention inside each window of (B, g, g, w, w, C), or over all of them for a block without."""
        batch, grid, _, window, _, _ = x.shape
        groups = batch * grid * grid if self._window else batch
        queries, keys, values = self._qkv(x).chunk(3, dim=-1)
        if self._pools:
            queries, window = _pool(queries), window // 2
        heads = [
            each.reshape(groups, -1, self._heads, each.shape[-1] // self._heads) for each in (queries, keys, values)
        ]
        attended = attention(*(each.transpose(1, 2) for each in heads))  # (groups, heads, positions, C / heads)
        return attended.transpose(1, 2).reshape(batch, grid, grid, window, window, -1)

    def _attend_padded(self, x: Tensor) -> Tensor:
        """Returns the same where windows do not divide the map, (B, 1, 1, s, s, C): zeros fill it up, as Meta does."""
        side = x.shape[3]
        missing = -side % self._window
        x = functional.pad(x, (0, 0, 0, missing, 0, missing))
        attended = _whole_map(self._attend(_in_windows(x, self._window)))
        kept = side // 2 if self._pools else side
        return attended[:, None, None, :kept, :kept]


def _in_windows(x: Tensor, window: int) -> Tensor:
    """Returns a map (B, g, g, v, v, C) as (B, h, h, w, w, C)."""
    if x.shape[3] == window:
        return x
    x = _whole_map(x)
    grid = x.shape[1] // window
    return x.unflatten(2, (grid, window)).unflatten(1, (grid, window)).transpose(2, 3).contiguous()


def _whole_map(x: Tensor) -> Tensor:
    """Returns a map (B, g, g, w, w, C) as (B, g w, g w, C)."""
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _pool(x: Tensor) -> Tensor:
    """Returns the maxima of 2 x 2 positions of (..., w, w, C)."""
    x = torch.maximum(x[..., 0::2, :, :], x[..., 1::2, :, :])
    return torch.maximum(x[..., 0::2, :], x[..., 1::2, :])


def _linear(linear: nn.Linear, dtype: torch.dtype) -> Linear:
    return Linear(linear.weight.to(dtype), linear.bias.to(dtype))


def _matrix(convolution: nn.Conv2d) -> Tensor:
    """Returns the weights of a 1x1 convolution as (N, K)."""
    return convolution.weight.detach().flatten(1)


def _composed(first: nn.Conv2d, second: nn.Conv2d) -> Linear:
    """Returns two 1x1 convolutions, one after the other, as one product."""
    weight = _matrix(second) @ _matrix(first)
    return Linear(weight, _matrix(second) @ first.bias.detach() + second.bias.detach())


def _check_neck(image_encoder: Any) -> None:
    """Refuses a feature pyramid other than that of every published SAM 2."""
    neck = image_encoder.neck
    built = (
        len(neck.convs),
        image_encoder.scalp,
        list(neck.fpn_top_down_levels),
        neck.fuse_type,
        neck.fpn_interp_model,
    )
    if built != (4, 1, [2, 3], "sum", "nearest") or neck.convs[0].conv.kernel_size != (1, 1):
        raise ValueError(
            "its image encoder's neck is none of SAM 2's: 4 levels, scalp 1, top-down levels 2 and 3, nearest"
        )
