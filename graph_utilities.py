"""CUDA graphs: a GPU gets everything that a model does with a batch in one call, not each kernel in one of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_LOGGER = logging.getLogger("sam2vit")

_WARM_UPS = 2  # calls, in which kernels are chosen and compiled


def record(function: Callable[..., Sequence[Tensor]], *inputs: Tensor) -> Recording | None:
    """Returns a recording of a function; None where there can be none, so that it is to be called as it is.

    Args:
        function: Takes tensors and returns tensors; it neither looks at their values nor waits for the device.
        inputs: Examples, on the device that it is to run on.
    """
    if not inputs[0].is_cuda:
        return None
    try:
        return Recording(function, inputs)
    except RuntimeError as error:  # what can't be recorded, and too little memory, alike
        _LOGGER.info("no CUDA graph here, models run a little slower: %s", str(error).partition("\n")[0])
        return None


class Recording:
    """What a function does on a GPU, recorded once and done again with other values of the same shapes.

    A batch is some 1,500 kernels. Handed over one by one, each call gives Python's lock away, and waits to get it back
    from the threads that decode and write; meanwhile the GPU has nothing to do. See torch.cuda.CUDAGraph.

    Args:
        function: See `record`.
        inputs: Examples; their memory is kept and written over.

    Raises:
        RuntimeError: It can't be recorded.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> None:
        self._inputs, self._lock = inputs, threading.Lock()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(inputs[0].device), torch.inference_mode():
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UPS):
                    function(*inputs)
            torch.cuda.current_stream().wait_stream(aside)
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._outputs = function(*inputs)

    def fits(self, *inputs: Tensor) -> bool:
        """Whether it was recorded with tensors like these."""
        return [(each.shape, each.dtype) for each in inputs] == [(each.shape, each.dtype) for each in self._inputs]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Returns what the function makes of inputs that fit, on the CPU.

        Threads may call it at once: what one hands over waits on the GPU behind what another has, not here.
        """
        with torch.cuda.device(self._inputs[0].device), torch.inference_mode():
            done = torch.cuda.Event(blocking=True)
            with self._lock:
                for kept, given in zip(self._inputs, inputs, strict=True):
                    kept.copy_(given, non_blocking=True)
                self._graph.replay()
                results = [
                    torch.empty_like(each, device="cpu", pin_memory=True).copy_(each, non_blocking=True)
                    for each in self._outputs
                ]
                done.record()
            done.synchronize()
        return results
