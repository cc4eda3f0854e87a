"""Where the encoders' time goes on a CPU, and what each way of computing a layer costs, at the default models' shapes.

python -m benchmarks.layers                    products, attention, and both encoders, also by operation
python -m benchmarks.layers --precision bf16   in bf16, where the program takes fp32 because bf16 is emulated
python -m benchmarks.layers --default-malloc   with memory handed back to the kernel and faulted in again

Random weights; the choices that `layer_utilities` makes are compared with the ones it did not make, so that they can be
checked on another processor. The least of several runs is printed.
"""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

import clip_tower_utilities
import hiera_utilities
import layer_utilities
from clip_tower_utilities import ImageTower
from device_utilities import DTYPES, keep_freed_memory, select_precision
from hiera_utilities import HieraEncoder
from layer_utilities import Linear
from sam_utilities import build_sam2, find_config

_RUNS = 5
_PHOTOS = (1, 2, 4)

# Rows, inputs, outputs of the products with GELU in each stage of SAM 2.1 large, and of CLIP ViT-L/14@336; the product
# after each of them is its transpose, and adds.
PRODUCTS = ((65536, 144, 576), (16384, 288, 1152), (4096, 576, 2304), (1024, 1152, 4608), (577, 1024, 4096))
# Windows, heads, queries, keys, width of a head: SAM 2.1 large's stages, its attention over the whole map, and CLIP.
ATTENTIONS = (
    (1024, 2, 64, 64, 72),
    (1024, 4, 16, 16, 72),
    (16, 8, 256, 256, 72),
    (16, 16, 64, 64, 72),
    (1, 8, 4096, 4096, 72),
    (1, 16, 577, 577, 64),
)

ATTENDS = {"torch's": functional.scaled_dot_product_attention, "written out": layer_utilities.written_out_attention}


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--default-malloc", action="store_true")
    arguments = parser.parse_args()
    if not arguments.default_malloc:
        keep_freed_memory()
    dtype = getattr(torch, DTYPES[select_precision(arguments.precision, "cpu")])
    warnings.simplefilter("ignore")
    console = Console()
    with torch.inference_mode():
        console.print(products(dtype))
        console.print(attentions(dtype))
        both = encoders(dtype)
        console.print(attentions_in_encoders(both))
        console.print(batches(both))
        for name, module, side in both:
            console.print(operations(name, module, torch.randn(1, 3, side, side)))


def products(dtype: torch.dtype) -> Table:
    """Returns the milliseconds of products, one operation after the other and as the program does it."""
    table = Table("product", "with", "GFLOP", "torch ms", "here ms", "here TFLOP/s")
    for rows, inner, outer in PRODUCTS:
        for inputs, outputs, extra in ((inner, outer, "GELU"), (outer, inner, "sum")):
            shapes = ((rows, inputs), (rows, outputs), (outputs, inputs), (outputs,))
            x, residual, weight, bias = (torch.randn(shape).to(dtype) for shape in shapes)
            plain, here = (least(call) for call in _ways(x, residual, weight, bias, gelu=extra == "GELU"))
            flops = 2 * rows * inputs * outputs
            table.add_row(
                *(f"{rows} x {inputs} x {outputs}", extra, f"{flops / 1e9:.1f}"),
                *(f"{1e3 * plain:.1f}", f"{1e3 * here:.1f}", f"{flops / here / 1e12:.2f}"),
            )
    return table


def _ways(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool) -> tuple[Callable[[], Tensor], ...]:
    if gelu:
        layer = Linear(weight, bias, "gelu")
        return lambda: functional.gelu(functional.linear(x, weight, bias)), lambda: layer(x)
    layer = Linear(weight, bias)
    return lambda: residual + functional.linear(x, weight, bias), lambda: layer.added_to(residual, x)


def attentions(dtype: torch.dtype) -> Table:
    """Returns the milliseconds of attention by torch's kernel and written out."""
    table = Table("attention: windows, heads, queries, keys, width", "torch ms", "written out ms")
    for windows, heads, queries, keys, width in ATTENTIONS:
        q, k, v = (
            torch.randn(windows, positions, heads, width).to(dtype).transpose(1, 2)
            for positions in (queries, keys, keys)
        )
        times = [least(functools.partial(attend, q, k, v)) for attend in ATTENDS.values()]
        table.add_row(f"{windows} {heads} {queries} {keys} {width}", *(f"{1e3 * seconds:.1f}" for seconds in times))
    return table


def attentions_in_encoders(both: Sequence[tuple[str, Any, int]]) -> Table:
    """Returns the milliseconds of the encoders with either attention, measured in turn."""
    usual = layer_utilities.attention
    table = Table("encoder, with attention", *ATTENDS)
    for name, module, side in both:
        pixels = torch.randn(1, 3, side, side)
        times: dict[str, list[float]] = {each: [] for each in ATTENDS}
        for _ in range(_RUNS):
            for each, attend in ATTENDS.items():
                hiera_utilities.attention = clip_tower_utilities.attention = attend
                times[each].append(least(lambda: module(pixels), runs=1))  # noqa: B023 (called at once)
        hiera_utilities.attention = clip_tower_utilities.attention = usual
        table.add_row(name, *(f"{1e3 * min(seconds):.0f}" for seconds in times.values()))
    return table


def batches(both: Sequence[tuple[str, Any, int]]) -> Table:
    """Returns the milliseconds a photo of the encoders with several photos in a call."""
    table = Table("encoder, photos a call", *map(str, _PHOTOS))
    for name, module, side in both:
        times = (least(functools.partial(module, torch.randn(photos, 3, side, side)), runs=3) for photos in _PHOTOS)
        table.add_row(name, *(f"{1e3 * each / photos:.0f}" for each, photos in zip(times, _PHOTOS, strict=True)))
    return table


def encoders(dtype: torch.dtype) -> list[tuple[str, Any, int]]:
    """Returns both image encoders with random weights, and the sides of their frames."""
    from clip.model import VisionTransformer

    visual = VisionTransformer(336, 14, 1024, 24, 16, 768).requires_grad_(requires_grad=False)
    model = build_sam2(find_config("sam2.1_hiera_l")).requires_grad_(requires_grad=False)
    return [
        ("SAM 2.1 large", HieraEncoder(model, dtype), model.image_size),
        ("CLIP ViT-L/14@336", ImageTower(visual, dtype), 336),
    ]


def operations(name: str, module: Any, pixels: Tensor) -> Table:
    """Returns an encoder's milliseconds by operation, those of less than a thousandth together."""
    from torch.profiler import ProfilerActivity, profile

    whole = least(lambda: module(pixels), runs=3)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        module(pixels)
    times = sorted(((event.self_cpu_time_total / 1e3, event.key) for event in profiler.key_averages()), reverse=True)
    total = sum(milliseconds for milliseconds, _ in times)
    table = Table(f"{name}, {1e3 * whole:.0f} ms", "ms", "share")
    shown = [(milliseconds, key) for milliseconds, key in times if milliseconds >= total / 1000]
    for milliseconds, key in [*shown, (total - sum(each for each, _ in shown), "all others")]:
        table.add_row(key, f"{milliseconds:.0f}", f"{milliseconds / total:.1%}")
    return table


def least(function: Callable[[], Any], runs: int = _RUNS) -> float:
    """Returns the least seconds of several calls after a first one."""
    function()
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
