import os
import platform
import subprocess
import sys

import pytest
import torch

import device_utilities
from config_utilities import PROGRAM_DIR
from device_utilities import (
    auto_batch_size,
    available_devices,
    count_cores,
    has_bf16,
    select_compile,
    select_device,
    select_pixels_at_once,
    select_precision,
)
from errors import DeviceError


@pytest.fixture
def machine(monkeypatch):
    """Pretends to be a machine with MPS, with some CUDA devices, or with neither."""

    def pretend(*, mps=False, cuda=0, capability=(9, 0), gibibytes=80):
        properties = type("Properties", (), {"total_memory": gibibytes * 2**30})
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)

    return pretend


@pytest.mark.parametrize(
    ("has", "sam2", "clip"),
    [
        ({"mps": True}, "mps", "cpu"),
        ({"cuda": 2}, "cuda:0", "cuda:0"),
        ({"mps": True, "cuda": 1}, "mps", "cuda:0"),
        ({}, "cpu", "cpu"),
    ],
    ids=["MPS", "CUDA", "both", "neither"],
)
def test_auto_is_mps_then_cuda_then_cpu_for_sam_2_and_never_mps_for_clip(machine, has, sam2, clip):
    machine(**has)
    assert select_device("auto", purpose="SAM 2") == sam2
    assert select_device("auto", purpose="CLIP") == clip


@pytest.mark.parametrize(("named", "device"), [("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")])
def test_a_named_device_is_taken(machine, named, device):
    machine(cuda=2)
    assert select_device(named, purpose="SAM 2") == device


@pytest.mark.parametrize(
    ("named", "purpose", "flag"),
    [("cuda:7", "SAM 2", "--device"), ("mps", "CLIP", "--clip-device"), ("tpu", "SAM 2", "--device")],
)
def test_a_device_that_does_not_exist_is_an_error_that_lists_those_that_do(machine, named, purpose, flag):
    machine(cuda=2)
    with pytest.raises(DeviceError, match=rf"^{flag} {named}: .* it has: cuda:0, cuda:1, cpu, or auto$"):
        select_device(named, purpose=purpose)


def test_the_real_machine_has_a_cpu_last():
    assert available_devices()[-1] == "cpu"


@pytest.mark.parametrize(
    ("device", "capability", "precision"),
    [("cuda:0", (9, 0), "bf16"), ("cuda:0", (8, 0), "bf16"), ("cuda:0", (7, 5), "fp32"), ("mps", None, "fp32")],
)
def test_auto_precision_is_bf16_where_the_hardware_has_it(machine, device, capability, precision):
    machine(cuda=1, capability=capability)
    assert select_precision("auto", device) == precision


@pytest.mark.parametrize("amx", [True, False])
def test_a_cpu_has_bf16_with_amx_or_avx512_bf16(monkeypatch, amx):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert has_bf16("cpu") is amx


@pytest.mark.parametrize(
    ("allowed", "quota", "cores"),
    [
        ({0, 5, 6}, None, 3),  # taskset
        (set(range(64)), "none", 64),
        (set(range(64)), 200_000, 2),
        (set(range(64)), 150_000, 2),
        (set(range(64)), 5_000, 1),
        ({3}, 200_000, 1),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_cores_are_those_that_the_process_may_use(monkeypatch, tmp_path, allowed, quota, cores, version):
    monkeypatch.setattr(device_utilities, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
    if quota is not None and version == 2:
        (tmp_path / "cpu.max").write_text(f"{'max' if quota == 'none' else quota} 100000\n")
    elif quota is not None:
        (tmp_path / "cpu").mkdir()
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{-1 if quota == 'none' else quota}\n")
        (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert count_cores() == cores


@pytest.mark.parametrize(
    ("machine_has", "limit", "gibibytes"),
    [
        (64, None, 64),
        (64, "none", 64),
        (64, 4 * 2**30, 4),
        (2, 4 * 2**30, 2),  # a limit above what there is
        (None, None, 8),  # Windows
        (None, 4 * 2**30, 4),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_what_a_container_may_have_of_the_machines(
    monkeypatch, tmp_path, machine_has, limit, gibibytes, version
):
    def sysconf(name):
        if machine_has is None:
            raise ValueError(name)
        return {"SC_PHYS_PAGES": machine_has * 2**18, "SC_PAGE_SIZE": 4096}[name]

    monkeypatch.setattr(device_utilities, "_CGROUP", tmp_path)
    monkeypatch.setattr(os, "sysconf", sysconf, raising=False)
    if limit is not None and version == 2:
        (tmp_path / "memory.max").write_text(f"{'max' if limit == 'none' else limit}\n")
    elif limit is not None:
        (tmp_path / "memory").mkdir()
        number = 2**63 - 4096 if limit == "none" else limit  # which is what version 1 has for none
        (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{number}\n")
    assert select_pixels_at_once() == gibibytes * 2**30 // 192


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_named_precision_is_taken(precision):
    assert select_precision(precision, "cpu") == precision


@pytest.mark.parametrize(("gibibytes", "size"), [(141, 32), (80, 32), (40, 16), (16, 8), (8, 4)])
def test_the_batch_follows_the_memory_of_the_gpu(machine, gibibytes, size):
    machine(cuda=1, gibibytes=gibibytes)
    assert auto_batch_size("cuda:0", 1024) == size


def test_who_has_half_a_gpu_has_half_its_memory(machine):
    machine(cuda=1, gibibytes=80)
    assert auto_batch_size("cuda:0", 1024, share=0.5) == 16


@pytest.mark.parametrize(("image_size", "size"), [(1024, 1), (512, 2), (256, 8), (4096, 1)])
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_elsewhere_photos_go_one_by_one_unless_they_are_small(device, image_size, size):
    assert auto_batch_size(device, image_size) == size


@pytest.mark.parametrize(
    ("precision", "image_size", "chosen"),
    [("auto", 1024, "bf16"), ("auto", 256, "fp32"), ("bf16", 256, "bf16"), ("fp32", 1024, "fp32")],
)
def test_a_small_frame_gains_nothing_by_bf16(machine, precision, image_size, chosen):
    machine(cuda=1)
    assert select_precision(precision, "cuda:0", image_size) == chosen


@pytest.mark.parametrize(
    ("wanted", "device", "photos", "compiled"),
    [
        ("auto", "cuda:0", 200_000, True),
        ("auto", "cuda:0", 199_999, False),
        ("on", "cuda:0", 1, True),
        ("off", "cuda:0", 10**9, False),
        ("auto", "cpu", 10**9, False),
        ("on", "cpu", 10**9, False),
    ],
)
def test_models_are_compiled_for_many_photos_on_a_gpu(wanted, device, photos, compiled):
    assert select_compile(wanted, device, photos) == compiled


FAULTS = """
import resource, sys, torch
from device_utilities import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def touch():
    torch.ones(16, 1024, 1024)
for _ in range(10):  # until the heap has its size
    touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's switch")
def test_freed_memory_is_used_again_without_new_pages():
    faults = {}
    for mode in ("kept", "handed back"):
        result = subprocess.run(
            [sys.executable, "-c", FAULTS, mode], cwd=PROGRAM_DIR, capture_output=True, text=True, check=True
        )
        faults[mode] = int(result.stdout)
    assert faults["kept"] < 0.05 * faults["handed back"]


GAPS = """
import os, numpy as np
from device_utilities import keep_freed_memory, release_freed_memory
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
keep_freed_memory()
arrays = [np.ones(1_000_000, np.uint8) for _ in range(400)]
del arrays[::2]  # what is left pins the heap
kept = resident()
release_freed_memory()
print(kept - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's switch")
def test_gaps_in_the_heap_go_back_where_asked():
    command = [sys.executable, "-c", GAPS]
    result = subprocess.run(command, cwd=PROGRAM_DIR, capture_output=True, text=True, check=True)
    assert float(result.stdout) > 150  # MB, of 200


@pytest.mark.parametrize(
    ("devices", "cores", "threads", "interval"),
    [(["cuda:0", "cuda:0"], 2, 1, 0.0005), (["mps", "cpu"], 2, 2, 0.005), (["cpu", "cpu"], 1, 1, 0.005)],
    ids=["GPU", "CPU", "a container's share of a CPU"],
)
def test_the_cores_are_left_to_threads_where_no_model_runs_on_the_cpu(devices, cores, threads, interval):
    code = (
        f"import sys, torch, device_utilities as d; d.count_cores = lambda: {cores}; "
        f"torch.set_num_threads(2); d.share_cores({devices})"
    )
    result = subprocess.run(
        [sys.executable, "-c", f"{code}; print(torch.get_num_threads(), sys.getswitchinterval())"],
        cwd=PROGRAM_DIR,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == [str(threads), str(interval)]
