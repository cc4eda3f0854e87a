import threading

import pytest

import pipeline_utilities
from pipeline_utilities import call_in_parts, in_batches, map_ahead, measure_devices, stage


def test_results_come_in_order_though_threads_finish_out_of_order():
    first_may_end = threading.Event()

    def double(number):
        if number == 0:
            first_may_end.wait(10)
        if number == 3:
            first_may_end.set()
        return 2 * number

    assert list(map_ahead(double, range(20), threads=4, ahead=8)) == [2 * number for number in range(20)]


def test_no_more_than_ahead_items_are_taken_before_the_caller_takes_a_result():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    results = map_ahead(lambda number: number, items(), threads=2, ahead=5)
    assert next(results) == 0
    assert len(taken) == 5
    results.close()
    assert len(taken) == 5


def test_an_exception_of_a_thread_reaches_the_caller_and_hangs_nothing():
    def fail_at_three(number):
        if number == 3:
            raise ValueError("three")
        return number

    results = map_ahead(fail_at_three, range(10), threads=2, ahead=4)
    assert [next(results), next(results), next(results)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


def test_what_weighs_too_much_together_waits_for_what_came_before():
    running, heaviest = [], []

    def work(weight):
        running.append(weight)
        heaviest.append(sum(running))
        running.remove(weight)
        return weight

    weights = [3, 3, 3, 20, 1, 2, 3, 4, 9, 9, 1]
    results = map_ahead(work, weights, threads=8, ahead=8, weigh=lambda weight: weight, most=10)
    assert list(results) == weights
    assert max(heaviest) == 20  # which is alone, and nothing else above 10
    assert sorted(heaviest)[-2] <= 10


def test_nothing_hangs_where_each_is_too_heavy():
    assert list(map_ahead(str, [5, 6, 7], threads=2, ahead=4, weigh=float, most=1)) == ["5", "6", "7"]


@pytest.mark.parametrize(
    ("weights", "batches"),
    [
        ([1, 1, 1, 1, 1], [[1, 1, 1, 1], [1]]),
        ([5, 5, 5], [[5, 5], [5]]),
        ([20, 1, 20], [[20], [1], [20]]),
        ([], []),
    ],
    ids=["light", "heavy", "too heavy", "none"],
)
def test_a_batch_ends_where_it_would_weigh_too_much(weights, batches):
    assert list(in_batches(weights, 4, weigh=float, most=10)) == batches


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (3, [3]), (4, [4]), (9, [4, 4, 1])])
def test_batches_are_full_but_for_the_last(count, sizes):
    batches = list(in_batches(range(count), 4))
    assert [len(batch) for batch in batches] == sizes
    assert [item for batch in batches for item in batch] == list(range(count))


def test_an_item_that_raises_takes_no_neighbour_with_it():
    def double(batch):
        if 5 in batch:
            raise ValueError("five")
        return [2 * item for item in batch]

    results = call_in_parts(double, list(range(8)), lambda item, error: f"{item}: {error}")
    assert results == [0, 2, 4, 6, 8, "5: five", 12, 14]


def test_a_batch_that_is_too_large_is_halved_until_it_fits():
    sizes = []

    def fits_two(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise MemoryError
        return list(batch)

    assert call_in_parts(fits_two, list(range(8)), lambda *_: None) == list(range(8))
    assert sizes == [8, 4, 2, 2, 4, 2, 2]


def test_an_interrupt_is_no_failure_of_a_photo():
    def interrupted(_batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call_in_parts(interrupted, [1, 2], lambda *_: None)


def test_a_stage_adds_up_over_threads():
    pipeline_utilities.stage_seconds.clear()

    def work():
        with stage("work"):
            threading.Event().wait(0.01)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pipeline_utilities.stage_seconds["work"] >= 0.04


def test_a_stage_of_a_device_waits_for_it_where_that_is_measured(monkeypatch):
    waited = []
    monkeypatch.setattr(pipeline_utilities, "_wait_for_devices", None)
    for measured in (False, True):
        if measured:
            measure_devices(lambda: waited.append("waited"))
        with stage("encoder", synchronize=True):
            pass
        with stage("decode"):
            pass
    assert waited == ["waited"]
