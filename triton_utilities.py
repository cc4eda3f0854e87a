"""GPU kernels in Triton, which comes with torch for CUDA on Linux; `layer_utilities` has what stands in elsewhere."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_ELEMENTS = 4096  # of a program: several rows, where they are short


def add_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Returns x + residual, or x, and its layer normalisation, from one pass over memory.

    torch's kernel gives every row a block of threads, and at the widths of SAM 2's first stages, 144 to 576, most of
    them have nothing to do: it reads and writes 0.65 TB/s on an H200, this one several times as much.

    Args:
        x: (..., N), any floating-point type.
        residual: As x, perhaps of another type, or None.
        weight: (N,).
        bias: (N,).
        eps: Added to the variance.
        dtype: Of the normalised.
    """
    x = x.contiguous()
    normalised = torch.empty_like(x, dtype=dtype)
    width = x.shape[-1]
    rows = x.numel() // width
    if residual is None:
        total = residual = x
    else:
        residual = residual.contiguous()
        total = torch.empty_like(x, dtype=torch.promote_types(x.dtype, residual.dtype))
    block = triton.next_power_of_2(width)
    block_rows = max(1, _ELEMENTS // block)
    with torch.cuda.device_of(x):
        _add_norm[(triton.cdiv(rows, block_rows),)](
            x, residual, total, normalised, weight, bias, rows, eps, width, total is not x, block_rows, block
        )
    return total, normalised


@triton.jit
def _add_norm(  # noqa: PLR0917 (a kernel has no keywords)
    x,
    residual,
    total,
    normalised,
    weight,
    bias,
    rows,
    eps,
    width: tl.constexpr,
    adds: tl.constexpr,
    block_rows: tl.constexpr,
    block: tl.constexpr,
):
    row = (tl.program_id(0) * block_rows + tl.arange(0, block_rows)).to(tl.int64)[:, None]
    column = tl.arange(0, block)[None, :]
    inside = column < width
    there = inside & (row < rows)
    place = row * width + column
    value = tl.load(x + place, there, other=0.0).to(tl.float32)
    if adds:
        value += tl.load(residual + place, there, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)  # what is normalised is what the next layers see
        tl.store(total + place, rounded, there)
        value = rounded.to(tl.float32)
    mean = tl.sum(value, 1)[:, None] / width
    centred = tl.where(there, value - mean, 0.0)
    variance = tl.sum(centred * centred, 1)[:, None] / width
    scale = tl.load(weight + column, inside, other=0.0).to(tl.float32)
    offset = tl.load(bias + column, inside, other=0.0).to(tl.float32)
    result = centred * tl.rsqrt(variance + eps) * scale + offset
    tl.store(normalised + place, result.to(normalised.dtype.element_ty), there)
