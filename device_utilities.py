"""Which device and precision each model runs on."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from errors import DeviceError

Purpose = Literal["SAM 2", "CLIP"]

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}  # as torch names them

_BF16_FROM = 512  # pixels

_COMPILED_FROM = 200_000  # photos

_SWITCH_INTERVAL = 0.0005  # seconds; Python's own is 0.005

# The environment of a process that has threads before it comes to `keep_freed_memory`, such as a worker of Ray's: glibc
# gives them arenas of their own, each too small for large tensors, whose memory goes back after all.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}

_CGROUP = Path("/sys/fs/cgroup")  # of a container; version 2, or 1

_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8  # glibc's malloc.h


@dataclass(frozen=True)
class Machine:
    """Where the models run, and how; how many threads work beside them, and how many pixels may wait at a stage."""

    device: str
    precision: Literal["fp32", "bf16"]
    clip_device: str
    clip_precision: Literal["fp32", "bf16"]
    batch_size: int
    clip_batch_size: int
    compiled: bool
    threads: int
    most_pixels: int

    @property
    def overlaps(self) -> bool:
        """Whether the models are to work beside each other: with CUDA. MPS was not tried."""
        return any(device.startswith("cuda") for device in (self.device, self.clip_device))


def keep_freed_memory() -> None:
    """Lets glibc keep the memory that tensors leave behind instead of handing it back to the kernel.

    It would get the same pages again a moment later, each zeroed and faulted in anew: half of the time of SAM 2's
    large products on a CPU. Other C libraries have no such switch and none of the trouble.
    """
    libc = _find_glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_ARENA_MAX, 1)  # what one thread leaves, the others use, too


def release_freed_memory() -> None:
    """Hands back what `keep_freed_memory` has kept; now and then, or its gaps add up over a long run."""
    libc = _find_glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _find_glibc() -> ctypes.CDLL | None:
    is_it = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
    return ctypes.CDLL(None) if is_it else None


def forbid_tf32() -> None:
    """Lets fp32 mean fp32 on a GPU, where cuDNN's convolutions have 10 bits of mantissa by default."""
    import torch

    torch.backends.cudnn.allow_tf32 = False


def share_cores(devices: Iterable[str]) -> None:
    """Shares the cores out: a model on the CPU has as many as there are, else the threads beside the models have all.

    Without that, each of many threads that enlarge a mask would start a team of as many workers as there are cores. And
    where no model is on the CPU, a thread that wants Python's lock asks for it ten times as soon as usual: the ones
    that hand a GPU its work wait for it thousands of times a second (105 against 112 photos/s on an H200).
    """
    import torch

    if "cpu" in devices:
        torch.set_num_threads(min(torch.get_num_threads(), count_cores()))  # torch knows of no container's share
    else:
        torch.set_num_threads(1)
        sys.setswitchinterval(_SWITCH_INTERVAL)


def select_pixels_at_once() -> int:
    """Returns how many pixels of photos may wait at one stage, or be in one batch, so that memory lasts.

    A pixel takes up to 12 bytes while it is decoded and 16 while its photo is cut; five stages make a third of memory.
    """
    return _memory() // 192


def _memory() -> int:
    """Returns this machine's memory in bytes, or what a container may have of it; 8 GiB where nothing tells."""
    sizes = []
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
            sizes.append(int((_CGROUP / name).read_text("ascii")))
    return min(sizes, default=8 * 2**30)


def available_devices() -> list[str]:
    """Returns the devices of this machine, as torch names them: mps, cuda:0, cuda:1, ..., cpu."""
    import torch

    devices = ["mps"] if torch.backends.mps.is_available() else []
    devices += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [*devices, "cpu"]


def select_device(device: str, *, purpose: Purpose) -> str:
    """Returns the device for a model: the named one, or the best of this machine for `auto`.

    SAM 2 takes MPS, else CUDA, else the CPU. CLIP takes CUDA, else the CPU.

    Raises:
        DeviceError: The named device is not in this machine.
    """
    available = available_devices()
    if device == "auto":
        fit = [name for name in available if purpose == "SAM 2" or name != "mps"]
        return fit[0]
    named = f"{device}:0" if device == "cuda" else device
    if named not in available:
        flag = "--device" if purpose == "SAM 2" else "--clip-device"
        raise DeviceError(f"{flag} {device}: not a device of this machine; it has: {', '.join(available)}, or auto")
    return named


def select_precision(precision: str, device: str, image_size: int = 1024) -> Literal["fp32", "bf16"]:
    """Returns the precision for a model on a device.

    Args:
        precision: `fp32`, `bf16`, or `auto`: bf16 where the hardware multiplies it and the model has something to gain.
        device: As torch names it.
        image_size: Side of the model's frame in pixels; at 256 px SAM 2's products are so small that fp32 is as fast.
    """
    if precision == "auto":
        return "bf16" if has_bf16(device) and image_size >= _BF16_FROM else "fp32"
    return "bf16" if precision == "bf16" else "fp32"


def has_bf16(device: str) -> bool:
    """Whether the device multiplies bf16 in hardware.

    Without it bf16 is emulated: on an AVX2 CPU its matrix product was measured 250 times slower than fp32's.
    MPS counts as without: its bf16 depends on the version of macOS, and its causal attention was found wrong
    in 16-bit formats (pytorch #195910).
    """
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_capability(device) >= (8, 0)  # Ampere
    has_avx512_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", bool)  # private: absent means no
    return device == "cpu" and (has_amx() or has_avx512_bf16())


def has_amx() -> bool:
    """Whether this CPU has AMX, units that multiply whole matrices in bf16."""
    import torch

    return getattr(torch.cpu, "_is_amx_tile_supported", bool)()  # private: absent means no


def auto_batch_size(device: str, image_size: int = 1024, *, share: float = 1) -> int:
    """Returns how many photos go through the models in one call.

    On CUDA by memory: 32 from 64 GiB, 16 from 30 GiB, 8 from 14 GiB, else 4, for SAM 2.1 large at 1024 px. Elsewhere 1:
    the products of one 1024 px photo already fill a CPU or an M-series GPU; 8 of the micro model's 256 px.

    Args:
        device: As torch names it.
        image_size: Side of SAM 2's square frame in pixels.
        share: How much of a GPU this process has.
    """
    if not device.startswith("cuda"):
        return max(1, 1024 * 1024 // (2 * image_size * image_size))
    import torch

    gibibytes = torch.cuda.get_device_properties(device).total_memory * share / 2**30
    return next((size for least, size in ((64, 32), (30, 16), (14, 8)) if gibibytes >= least), 4)


def check_device(device: str) -> None:
    """Checks that a GPU still answers: after some errors it does not, and every further photo would fail on it.

    Raises:
        DeviceError: It does not.
    """
    import torch

    if device.startswith("cuda"):
        try:
            torch.zeros(1, device=device).add(1).item()
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            raise DeviceError(f"{device}: no longer answers ({reason}); the same command goes on from there") from None


def select_compile(compile_models: str, device: str, photos: int) -> bool:
    """Returns whether torch compiles SAM 2's encoder first: on CUDA, for `on`, or for `auto` and very many photos.

    On an H200 it took 26 seconds and gained 0.13 ms a photo, since what costs most is fused already; with
    CLIP it gained nothing. On a CPU it took minutes and gained nothing, and weights that oneDNN has packed can't be
    compiled.
    """
    if not device.startswith("cuda") or compile_models == "off":
        return False
    return compile_models == "on" or photos >= _COMPILED_FROM


def count_threads() -> int:
    """Returns how many threads decode, cut, and write, each: more than 16 outrun any one device."""
    return min(16, count_cores())


def count_cores() -> int:
    """Returns how many cores this process may use, of those that the machine has: some, or a container's share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # so many microseconds in so many
        with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit
            quota, period = (int(part) for name in names for part in (_CGROUP / name).read_text("ascii").split())
            if quota > 0:
                cores = min(cores, math.ceil(quota / period))
    return cores
