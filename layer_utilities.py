"""The layers of both models' encoders, with the fewest passes over memory that torch offers.

At these models' sizes a CPU spends as long on copies, activations, additions and fresh memory as on products. So
GELU and the residual addition run inside the product before them, and weights lie packed as oneDNN reads them. A GPU
spends as long, too: there GELU runs inside the product, the addition inside the normalisation after it, and small
windows attend together. Some of that is private in torch or needs Triton: where it is missing, public operations give
the same to rounding.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from device_utilities import has_amx, has_bf16

_LOGGER = logging.getLogger("sam2vit")

Activation = Literal["gelu", "silu"]

_ONEDNN_NAMES: dict[Activation | None, str] = {None: "none", "gelu": "gelu", "silu": "swish"}
_ACTIVATIONS: dict[Activation | None, Callable[[Tensor], Tensor]] = {  # in place: the memory is at hand
    None: lambda x: x,
    "gelu": getattr(torch.ops.aten, "gelu_", functional.gelu),
    "silu": functools.partial(functional.silu, inplace=True),
}

_ROWS = 1024  # rows of x that oneDNN packs for; it takes any other number, too

# Scores that one attention product holds at once, 64 MiB in bf16; smaller parts cost speed, larger ones only memory.
_SCORES_AT_ONCE = 1 << 25

_SMALL_WINDOW = 16  # keys, up to which windows attend together on a GPU
_TOGETHER = 8  # windows

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
        on_gpu = weight.is_cuda and weight.dtype == torch.bfloat16
        self._has_gelu_inside = activation == "gelu" and on_gpu and has_gelu_product()
        self.register_buffer("_weight", None if self._packed is not None else weight.detach())
        self.register_buffer("_bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Returns (..., N) from (..., K)."""
        if self._packed is not None:
            name = _ONEDNN_NAMES[self._activation]
            return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, name, [], "none")
        if self._has_gelu_inside:
            return _linear_gelu(x, self._weight, self._bias)
        return _ACTIVATIONS[self._activation](functional.linear(x, self._weight, self._bias))

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Returns residual + x W^T + b, in one pass where that is possible."""
        if self._packed is not None and residual.dtype == x.dtype:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self._packed, self._bias, "add")
        product = self(x)
        return product.add_(residual) if residual.dtype == product.dtype else residual + product


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


@torch.library.custom_op("sam2vit::linear_gelu", mutates_args=())  # one whole, also for torch.compile
def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns GELU(x W^T + b) from one product of cuBLAS, whose GELU is the usual approximation by a tanh.

    It moves SAM 2's features by at most a tenth of what bf16 itself does (benchmarks/README.md).
    """
    return torch._addmm_activation(bias, x.flatten(0, -2), weight.T, use_gelu=True).unflatten(0, x.shape[:-1])


@_linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:  # noqa: ARG001 (torch asks for the same arguments)
    return x.new_empty(*x.shape[:-1], len(bias))


@functools.cache
def has_gelu_product() -> bool:
    """Whether torch's private product with GELU is there; tried on one that can be checked."""
    try:
        x = torch.eye(16, dtype=torch.bfloat16, device="cuda")
        product = torch._addmm_activation(x[0], x, 2 * x, use_gelu=True)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(product, functional.gelu(2 * x + x[0]), atol=0.02)


@functools.cache
def has_norm_kernel() -> bool:
    """Whether Triton is there, finds a compiler, and normalises as torch does; tried on something small."""
    try:
        from triton_utilities import add_norm

        x = torch.arange(96.0, device="cuda").view(2, 48)
        total, normalised = add_norm(x, x, x[0], x[0], eps=1e-6, dtype=torch.float32)
        expected = functional.layer_norm(2 * x, (48,), x[0], x[0], 1e-6)
    except Exception as error:  # no Triton, no C compiler, a driver it does not know: each has its own
        _LOGGER.info("Triton is of no use here, layers run a little slower: %s", error)
        return False
    return torch.equal(total, 2 * x) and torch.allclose(normalised, expected, rtol=1e-4, atol=1e-3)


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
        self._has_kernel = norm.weight.is_cuda and has_norm_kernel()

    def forward(self, x: Tensor) -> Tensor:
        """Returns x normalised over its last axis; the statistics are fp32 in any precision."""
        if self._uses_kernel():
            return self._add_norm(x, None)[1]
        return functional.layer_norm(x, self._shape, self._weight, self._bias, self._eps).to(self._result)

    def of_sum(self, residual: Tensor, linear: Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns residual + linear(x), and that normalised."""
        if self._uses_kernel():
            return self._add_norm(linear(x), residual)
        total = linear.added_to(residual, x)
        return total, self(total)

    def _uses_kernel(self) -> bool:
        return self._has_kernel and not torch.compiler.is_compiling()  # torch.compile makes kernels of its own

    def _add_norm(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        from triton_utilities import add_norm

        return add_norm(x, residual, self._weight, self._bias, eps=self._eps, dtype=self._result)


def row_by_row(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns function(x), (B, N), on a CPU computed for each row of (B, K) alone.

    MKL's fp32 products of few rows differ in the last digit with a row's place among them; so a photo's result would
    depend on its neighbours in the batch, and a resumed run differ from one that was never stopped.
    """
    if x.device.type != "cpu":
        return function(x)
    return torch.cat([function(row) for row in x.split(1)])


def attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Returns softmax(q k^T / sqrt(D)) v, (B, H, Nq, D), of (B, H, Nq, D) queries and (B, H, Nk, D) keys and values.

    In bf16 on a CPU with AVX-512 BF16 it is written out: torch's own kernel takes up to twice as long there at both
    models' shapes. With AMX, and without any bf16 in hardware, it takes as little as half (benchmarks/README.md).
    """
    if queries.device.type == "cpu" and queries.dtype == torch.bfloat16 and _writes_attention_out():
        return written_out_attention(queries, keys, values)
    if queries.is_cuda and keys.shape[2] <= _SMALL_WINDOW:
        return _attention_together(queries, keys, values)
    return _torchs_attention(queries, keys, values)


def _writes_attention_out() -> bool:
    return has_bf16("cpu") and not has_amx()


def _torchs_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    if queries.is_cuda and len(queries) > _CUDA_GRID:
        parts = zip(queries.split(_CUDA_GRID), keys.split(_CUDA_GRID), values.split(_CUDA_GRID), strict=True)
        return torch.cat([functional.scaled_dot_product_attention(*part, attn_mask=mask) for part in parts])
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)


def _attention_together(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Returns the attention of small windows, several of them as one with a mask between them.

    A GPU kernel spends on 16 positions what it spends on 64 or more.
    """
    count = math.gcd(len(keys), _TOGETHER)
    windows = torch.arange(count, device=keys.device)
    own = windows.repeat_interleave(queries.shape[2])[:, None] == windows.repeat_interleave(keys.shape[2])
    together = (
        each.transpose(1, 2).unflatten(0, (-1, count)).flatten(1, 2).transpose(1, 2) for each in (queries, keys, values)
    )
    attended = _torchs_attention(*together, mask=own)  # (B / count, H, count Nq, D)
    return attended.transpose(1, 2).unflatten(1, (count, -1)).flatten(0, 1).transpose(1, 2)


def written_out_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Returns attention as `attention` does, from products and a softmax, so many scores at once."""
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
