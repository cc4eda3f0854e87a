"""Where the encoders' time goes on a CPU, and what each way of computing a layer costs, at the default models' shapes.

python -m benchmarks.layers                 products, attention, and both encoders by operation
python -m benchmarks.layers --default-malloc   the same with memory handed back to the kernel and faulted in again

Random weights; the choices that `layer_utilities` makes are compared with the ones it did not make, so that they can be
checked on another processor. The least of several runs is printed.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from clip_tower_utilities import ImageTower
from device_utilities import keep_freed_memory
from hiera_utilities import HieraEncoder
from layer_utilities import Linear, attention
from sam_utilities import build_sam2, find_config

_RUNS = 5

# Rows, inputs, outputs of the products with GELU in each stage of SAM 2.1 large, and of CLIP ViT-L/14@336.
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


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--default-malloc", action="store_true")
    if not parser.parse_args().default_malloc:
        keep_freed_memory()
    warnings.simplefilter("ignore")
    console = Console()
    with torch.inference_mode():
        console.print(products())
        console.print(attentions())
        for name, module, side in encoders():
            console.print(operations(name, module, torch.randn(1, 3, side, side)))


def products() -> Table:
    """Returns the milliseconds of bf16 products with GELU, one operation after the other and as the program does it."""
    table = Table("product with GELU", "GFLOP", "torch ms", "here ms", "here TFLOP/s")
    for rows, inputs, outputs in PRODUCTS:
        x, weight, bias = (torch.randn(shape).bfloat16() for shape in ((rows, inputs), (outputs, inputs), (outputs,)))
        layer = Linear(weight, bias, "gelu")
        flops = 2 * rows * inputs * outputs
        plain = least(lambda: functional.gelu(functional.linear(x, weight, bias)))  # noqa: B023 (called at once)
        here = least(lambda: layer(x))  # noqa: B023
        shape = f"{rows} x {inputs} x {outputs}"
        table.add_row(
            shape, f"{flops / 1e9:.1f}", f"{1e3 * plain:.1f}", f"{1e3 * here:.1f}", f"{flops / here / 1e12:.2f}"
        )
    return table


def attentions() -> Table:
    """Returns the milliseconds of bf16 attention by torch's kernel and as the program does it."""
    table = Table("attention: windows, heads, queries, keys, width", "torch ms", "here ms")
    for windows, heads, queries, keys, width in ATTENTIONS:
        q = torch.randn(windows, queries, heads, width).bfloat16().transpose(1, 2)
        k, v = (torch.randn(windows, keys, heads, width).bfloat16().transpose(1, 2) for _ in "kv")
        own = least(lambda: functional.scaled_dot_product_attention(q, k, v))  # noqa: B023
        here = least(lambda: attention(q, k, v))  # noqa: B023
        table.add_row(f"{windows} {heads} {queries} {keys} {width}", f"{1e3 * own:.1f}", f"{1e3 * here:.1f}")
    return table


def encoders() -> list[tuple[str, Any, int]]:
    """Returns both image encoders in bf16 with random weights, and the sides of their frames."""
    from clip.model import VisionTransformer

    visual = VisionTransformer(336, 14, 1024, 24, 16, 768).requires_grad_(requires_grad=False)
    model = build_sam2(find_config("sam2.1_hiera_l")).requires_grad_(requires_grad=False)
    return [
        ("SAM 2.1 large", HieraEncoder(model, torch.bfloat16), model.image_size),
        ("CLIP ViT-L/14@336", ImageTower(visual, torch.bfloat16), 336),
    ]


def operations(name: str, module: Any, pixels: Tensor) -> Table:
    """Returns an encoder's milliseconds by operation, those of less than a hundredth together."""
    from torch.profiler import ProfilerActivity, profile

    whole = least(lambda: module(pixels), runs=3)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        module(pixels)
    times = sorted(((event.self_cpu_time_total / 1e3, event.key) for event in profiler.key_averages()), reverse=True)
    total = sum(milliseconds for milliseconds, _ in times)
    table = Table(f"{name}, {1e3 * whole:.0f} ms", "ms", "share")
    shown = [(milliseconds, key) for milliseconds, key in times if milliseconds >= total / 100]
    for milliseconds, key in [*shown, (total - sum(each for each, _ in shown), "all others")]:
        table.add_row(key, f"{milliseconds:.0f}", f"{milliseconds / total:.0%}")
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
