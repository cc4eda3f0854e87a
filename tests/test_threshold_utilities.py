import math

import numpy as np
import pytest

from threshold_utilities import _tail, describe, find_threshold, lower_bound

PHOTOS, DRAWS = 4000, 1000


def population(seed, a, b):
    return np.random.default_rng(seed).beta(a, b, PHOTOS)


POPULATIONS = {
    # name -> scores, the chance that a label of such a score is right, target, labels
    "calibrated": (population(1, 30, 1), lambda score: score, 0.98, 800),
    "just below the target": (population(2, 6, 2), lambda score: np.where(score > 0.9, 0.97, 0.94), 0.95, 800),
    "never as good": (population(3, 4, 0.3), lambda score: np.full_like(score, 0.975), 0.98, 600),
    "over-confident": (population(4, 6, 0.4), lambda score: 0.8 + 0.198 * score**8, 0.95, 500),
}


def draw(name, draws):
    """Yields, per draw of labels, what is chosen and which precision that truly has."""
    scores, chance, target, labels = POPULATIONS[name]
    rng = np.random.default_rng(7)
    for _ in range(draws):
        right = rng.random(PHOTOS) < chance(scores)
        sample = rng.choice(PHOTOS, labels, replace=False)
        found = find_threshold(scores, scores[sample], right[sample], target=target)
        yield found, None if found.threshold is None else right[scores >= found.threshold].mean()


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_promise_holds_at_least_as_often_as_promised(name):
    target = POPULATIONS[name][2]
    broken = sum(precision is not None and precision < target for _, precision in draw(name, DRAWS))
    assert broken <= 0.05 * DRAWS


def test_the_promise_is_of_use():
    found = [each for each, _ in draw("over-confident", 100)]
    kept = [each.kept / PHOTOS if each.threshold is not None else 0 for each in found]
    assert np.mean(kept) > 0.5
    assert sum(each.threshold is None for each in draw_found("never as good")) > 90


def draw_found(name):
    return [each for each, _ in draw(name, 100)]


def test_all_labels_right_keep_all_photos():
    scores = np.linspace(0.1, 1, 1000)
    found = find_threshold(scores, scores, np.ones(1000, bool), target=0.99)
    assert (found.threshold, found.kept, found.total) == (0.1, 1000, 1000)
    assert (found.labelled, found.right, found.needed) == (1000, 1000, None)
    assert 0.99 < found.lower_bound < 1
    assert describe(found) == (
        "From a probability of 0.1 on, labels are right in at least 0.99 of photos, with 95% confidence (1000 of 1000 "
        "labels right). That keeps 1000 of 1000 photos."
    )


def test_where_only_the_surest_are_right_the_rest_is_left_out():
    scores = np.linspace(0, 1, 2001)
    found = find_threshold(scores, scores, scores > 0.5, target=0.95)
    assert 0.47 <= found.threshold <= 0.52
    assert (scores > 0.5)[scores >= found.threshold].mean() >= 0.95


def test_too_few_labels_say_how_many_more():
    scores = np.linspace(0, 1, 1000)
    found = find_threshold(scores, scores[::10], np.ones(100, bool), target=0.99)
    assert found.threshold is None
    # Of all photos, at the level of one of three sequences; a strict threshold would need as many above it.
    assert found.needed == math.ceil(math.log(0.05 / 3) / math.log(0.99)) - 100
    assert "about 308 more will do: label a random sample" in describe(found)


def test_so_many_more_labels_do():
    scores = np.linspace(0, 1, 1000)
    sample = np.random.default_rng(0).choice(scores, 410)
    assert find_threshold(scores, sample, np.ones(410, bool), target=0.99).threshold is not None


def test_more_labels_do_not_help_where_labels_are_bad():
    scores = np.linspace(0, 1, 1000)
    found = find_threshold(scores, scores, np.arange(1000) % 10 > 0, target=0.99)
    assert (found.threshold, found.needed) == (None, None)
    assert describe(found).startswith("No probability is high enough for a precision of 0.99")


def test_photos_of_one_score_stay_together():
    scores = np.repeat([0.2, 0.9], 1000)
    found = find_threshold(scores, scores, scores > 0.5, target=0.95)
    assert (found.threshold, found.kept) == (0.9, 1000)


@pytest.mark.parametrize("labels", [0, 1])
def test_next_to_no_labels_are_no_error(labels):
    found = find_threshold(np.array([0.5, 0.6]), np.full(labels, 0.5), np.ones(labels, bool), target=0.9)
    assert found.threshold is None
    assert found.needed > 0


@pytest.mark.parametrize(("wrong", "count", "target"), [(0, 10, 0.9), (2, 30, 0.95), (5, 40, 0.8), (3, 3, 0.5)])
def test_the_tail_is_the_binomial_one(wrong, count, target):
    exact = sum(math.comb(count, k) * (1 - target) ** k * target ** (count - k) for k in range(wrong + 1))
    assert _tail(wrong, count, target) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(
    ("hits", "count", "expected"),
    [(10, 10, 0.05 ** (1 / 10)), (8, 10, 0.493099), (299, 299, 0.05 ** (1 / 299)), (0, 10, 0.0), (0, 0, 0.0)],
)
def test_the_bound_is_clopper_and_pearsons(hits, count, expected):
    assert lower_bound(hits, count, 0.05) == pytest.approx(expected, abs=1e-6)
