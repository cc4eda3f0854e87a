"""The layers of both models' encoders, with the fewest passes over memory that torch offers.

At these models' sizes a CPU spends as long on copies, activations, additions and fresh memory as on products. So
GELU and the residual addition run inside the product before them, and weights lie packed as oneDNN reads them. That
is private in torch: where it is missing, public operations give the same to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Literal["gelu", "silu"]

_ONEDNN_NAMES: dict[Activation | None, str] = {None: "none", "gelu": "gelu", "silu": "swish"}
_ACTIVATIONS: dict[Activation | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "gelu": functional.gelu,
    "silu": functional.silu,
}

_ROWS = 1024  # rows of x that oneDNN packs for; it takes any other number, too

# Scores that one attention product holds at once, 64 MiB in bf16; smaller parts cost speed, larger ones only memory.
_SCORES_AT_ONCE = 1 << 25

_KINDS_OF_BLOCKS = 64  # times the sizes of batches that torch compiles for; it would give up after 8

_CUDA_GRID = 65_535  # attention problems that one CUDA kernel call takes (pytorch #142228)


class Linear(nn.Module):
    """activation(x W^T + b), with the weights packed once where that is faster.

    Args:
        weight: (N, K), in the precision to compute in.
        bias: (N,) in the same precision, or None.
        activation: Applied to the product.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, activation: Activation | None = None) -> None:
        super().__init__()
        self._activation = activation
        self._packed = _packed(weight)
        self.register_buffer("_weight", None if self._packed is not None else weight.detach())
        self.register_buffer("_bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., N) from (..., K)."""
        if self._packed is not None:
            name = _ONEDNN_NAMES[self._activation]
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, name, [], "none")
        return _ACTIVATIONS[self._activation](functional.linear(x, self._weight, self._bias))

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Returns residual + x W^T + b, in one pass where that is possible."""
        if self._packed is not None and residual.dtype == x.dtype:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._packed, self._bias, "add")
        return residual + self(x)


def _packed(weight: Tensor) -> Tensor | None:
    """Returns the weights as oneDNN packs them; None where its fused layer does not serve them."""
    if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or not has_fused_linear():
        return None
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)


@functools.cache
def has_fused_linear() -> bool:
    """Whether torch's private oneDNN layer is there and multiplies bf16; tried on products that can be checked."""
    try:
        x = torch.eye(16, dtype=torch.bfloat16)
        twice = torch.ops.mkldnn._reorder_linear_weight(2 * x, _ROWS)
        products = (
            torch.ops.mkldnn._linear_pointwise(x, twice, None, "none", [], "none"),
            torch.ops.mkldnn._linear_pointwise.binary(x, x, twice, None, "add"),
        )
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(products[0], 2 * x) and torch.equal(products[1], 3 * x)


class LayerNorm(nn.Module):
    """Layer normalisation.

    Args:
        norm: Its weights.
        dtype: Of what comes in.
        result: Of what comes out.
    """

    def __init__(self, norm: nn.LayerNorm, dtype: torch.dtype, result: torch.dtype | None = None) -> None:
        super().__init__()
        self._shape, self._eps, self._result = norm.normalized_shape, norm.eps, result or dtype
        self.register_buffer("_weight", norm.weight.detach().to(dtype))
        self.register_buffer("_bias", norm.bias.detach().to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Returns x normalised over its last axis; the statistics are fp32 in any precision."""
        return functional.layer_norm(x, self._shape, self._weight, self._bias, self._eps).to(self._result)


def compile_blocks(blocks: Iterable[nn.Module], **options: Any) -> None:
    """Lets torch compile blocks of one class at their first calls, each kind of them once.

    A tower's blocks are alike but for a few sizes: one by one they compile in a fraction of the time that the tower
    takes as a whole, and run as fast but for the additions between them.

    Args:
        blocks: They call their compiled forward from then on.
        options: Of `torch.compile`.
    """
    torch._dynamo.config.recompile_limit = _KINDS_OF_BLOCKS
    for block in blocks:
        block.compile(**options)


def row_by_row(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns function(x), (B, N), computed for each row of (B, K) alone.

    MKL's fp32 products of few rows differ in the last digit with a row's place among them; so a photo's result would
    depend on its neighbours in the batch, and a resumed run differ from one that was never stopped.
    """
    return torch.cat([function(row) for row in x.split(1)])


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(D)) v, (B, H, Nq, D), of (B, H, Nq, D) queries and (B, H, Nk, D) keys and values.

    In bf16 on the CPU it is written out: torch's own kernel takes up to twice as long there at both models' shapes
    (benchmarks/README.md).
    """
    if queries.device.type == "cpu" and queries.dtype == torch.bfloat16:
        return _plain_attention(queries, keys, values)
    if queries.is_cuda and len(queries) > _CUDA_GRID:
        parts = zip(queries.split(_CUDA_GRID), keys.split(_CUDA_GRID), values.split(_CUDA_GRID), strict=True)
        return torch.cat([functional.scaled_dot_product_attention(*part) for part in parts])
    return functional.scaled_dot_product_attention(queries, keys, values)


def _plain_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    batch, heads, count, width = queries.shape
    queries, keys, values = (each.reshape(batch * heads, -1, width) for each in (queries, keys, values))
    transposed = keys.transpose(1, 2)
    at_once = max(1, _SCORES_AT_ONCE // (batch * heads * keys.shape[1]))
    parts = []
    for some in queries.split(at_once, dim=1):
        nothing = some.new_zeros(()).expand(*some.shape[:2], keys.shape[1])
        scores = torch.baddbmm(nothing, some, transposed, beta=0, alpha=width**-0.5)
        parts.append(torch.bmm(scores.softmax(dim=-1), values))
    attended = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    return attended.view(batch, heads, count, width)
