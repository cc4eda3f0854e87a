"""What the benchmark of Ray reads out of the times at which PNGs were written."""

import pytest

from benchmarks.cluster import steady_rate

BLOCKS = [40 + 21 * (place // 3) + (0, 7, 8)[place % 3] for place in range(12)]  # three at a time, as they come


@pytest.mark.parametrize(
    ("times", "seconds", "rate"),
    [
        ([3.0 + 0.5 * place for place in range(40)], 25, 2.0),
        (BLOCKS, 120, 11 / (BLOCKS[-1] - BLOCKS[0])),
        ([74.0 + 0.01 * place for place in range(16)], 137, None),
        ([74.0] * 8 + [130.0] * 8, 137, None),
    ],
    ids=["even", "in blocks", "all at the end", "in two batches"],
)
def test_a_rate_is_told_only_of_a_steady_state(times, seconds, rate):
    assert steady_rate(times, seconds) == (None if rate is None else pytest.approx(rate))
