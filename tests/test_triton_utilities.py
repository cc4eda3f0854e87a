"""The kernels, by Triton's interpreter: without a GPU, and in a process of its own, since it replaces the compiler."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from config_utilities import PROGRAM_DIR

_SCRIPT = """
import torch
from torch.nn import functional
from triton_utilities import add_norm

for shape in ((5, 7, 144), (3, 288), (2, 3, 1024), (1, 64)):
    for types in ((torch.float32,) * 3, (torch.bfloat16,) * 3, (torch.bfloat16, torch.float32, torch.bfloat16)):
        x, residual = (3 * torch.randn(shape).to(dtype) for dtype in types[:2])
        weight, bias = torch.randn(shape[-1]), torch.randn(shape[-1])
        for added in (None, residual):
            total, normalised = add_norm(x, added, weight, bias, eps=1e-6, dtype=types[2])
            expected = x if added is None else x + added
            assert (total.dtype, normalised.dtype) == (expected.dtype, types[2])
            torch.testing.assert_close(total, expected, rtol=0.01, atol=0.01)
            expected = functional.layer_norm(total.float(), shape[-1:], weight, bias, 1e-6)
            torch.testing.assert_close(normalised.float(), expected, rtol=0.01, atol=1e-5)
            if types[0] == torch.float32:
                torch.testing.assert_close(normalised, expected, rtol=1e-5, atol=1e-5)
print("agree")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton on this system")
def test_a_sum_and_its_normalisation_are_torchs():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", _SCRIPT]
    process = subprocess.run(command, check=False, cwd=PROGRAM_DIR, env=environment, capture_output=True, text=True)
    assert process.stdout == "agree\n", process.stderr
