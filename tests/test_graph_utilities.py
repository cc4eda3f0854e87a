from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from graph_utilities import record

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def twice_and_sum(x, y):
    return 2 * x, (x + y).sum(dim=1)


def test_on_a_cpu_there_is_nothing_to_record():
    assert record(twice_and_sum, torch.ones(2, 3), torch.ones(2, 3)) is None


@CUDA
def test_a_recording_computes_what_its_function_does_with_any_values():
    recording = record(twice_and_sum, torch.ones(2, 3, device="cuda"), torch.ones(2, 3, device="cuda"))
    for seed in range(3):
        x, y = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(seed))
        found = recording(x.cuda(), y.pin_memory())
        for mine, expected in zip(found, twice_and_sum(x, y), strict=True):
            assert mine.device.type == "cpu"
            assert mine == pytest.approx(expected, abs=1e-6)


@CUDA
def test_threads_get_each_their_own_results():
    recording = record(lambda x: (x.cumsum(dim=1),), torch.ones(64, 4096, device="cuda"))
    inputs = [torch.full((64, 4096), float(number), device="cuda") for number in range(8)] * 8
    with ThreadPoolExecutor(4) as pool:
        for number, [found] in enumerate(pool.map(recording, inputs)):
            assert found[:, -1] == pytest.approx(torch.full((64,), 4096.0 * (number % 8)))


@CUDA
def test_a_recording_fits_only_what_it_was_recorded_with():
    recording = record(twice_and_sum, torch.ones(2, 3, device="cuda"), torch.ones(2, 3, device="cuda"))
    assert recording.fits(torch.ones(2, 3), torch.zeros(2, 3))
    assert not recording.fits(torch.ones(3, 3), torch.ones(3, 3))
    assert not recording.fits(torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int))


@CUDA
def test_what_looks_at_values_is_not_recorded_and_the_device_still_works(caplog):
    caplog.set_level("INFO")
    x = torch.ones(2, 3, device="cuda")
    assert record(lambda x: (x if x.sum().item() > 0 else -x,), x) is None
    assert "no CUDA graph here" in caplog.text
    assert (x + 1).sum().item() == 12
    assert record(twice_and_sum, x, x) is not None
