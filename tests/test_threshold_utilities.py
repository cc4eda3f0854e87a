from itertools import combinations

import numpy as np
import pytest

from threshold_utilities import Threshold, describe, find_threshold, precision_bound, tail

DRAWS = 1000


@pytest.mark.parametrize("right", range(7))
@pytest.mark.parametrize("hits", range(5))
def test_the_tail_is_that_of_all_samples(right, hits):
    samples = list(combinations([True] * right + [False] * (6 - right), 4))
    assert tail(4, hits, 6, right) == pytest.approx(np.mean([sum(sample) >= hits for sample in samples]), abs=1e-12)


@pytest.mark.parametrize(
    ("right", "labelled", "level", "bound"),
    [
        (8, 10, 0.025, 0.4439),  # the lower ends of Clopper and Pearson's intervals
        (10, 10, 0.025, 0.6915),
        (95, 100, 0.025, 0.8872),
        (10, 10, 0.05, 0.7411),  # 0.05 ** 0.1
        (0, 10, 0.05, 0.0),
    ],
)
def test_the_bound_of_a_large_run_is_that_of_clopper_and_pearson(right, labelled, level, bound):
    assert precision_bound(right, labelled, 10_000_000, level=level) == pytest.approx(bound, abs=5e-5)


def test_the_bound_of_a_run_that_is_labelled_whole_is_its_precision():
    assert precision_bound(18, 20, 20, level=0.05) == 18 / 20


def test_the_bound_of_a_small_run_counted_by_hand():
    # Of 4 photos, 2 are labelled and right: with 3 right ones half of all pairs are, with 2 a sixth, with 1 none.
    assert precision_bound(2, 2, 4, level=0.4) == 3 / 4
    assert precision_bound(2, 2, 4, level=0.1) == 2 / 4


def test_a_run_that_is_labelled_whole_keeps_all_that_it_may():
    right = np.arange(100) >= 10
    found = find_threshold(np.arange(100) / 100, np.arange(100) / 100, right, target=0.95)
    assert (found.threshold, found.kept, found.kept_share) == (0.06, 94, 0.94)  # 90 of 94; a step lower, 90 of 96
    assert (found.labelled, found.right, found.lower_bound) == (94, 90, 90 / 94)


@pytest.mark.parametrize("right", [7, 14, 28, 29, 55, 56, 57, 95])  # 100 times some of these shares is a little above
def test_a_precision_that_is_just_the_target_keeps_the_promise(right):
    scores = np.full(100, 0.5)
    assert find_threshold(scores, scores, np.arange(100) < right, target=right / 100).threshold == 0.5
    assert find_threshold(scores, scores, np.arange(100) < right - 1, target=right / 100).threshold is None


def test_of_a_run_that_is_labelled_whole_even_a_few_sure_photos_are_kept():
    scores = np.repeat([0.9, 0.8, 0.7, 0.6], [8, 19, 11, 51])
    right = np.concatenate([np.arange(count) < hits for count, hits in ((8, 8), (19, 8), (11, 11), (51, 38))])
    found = find_threshold(scores, scores, right, target=0.9)
    assert (found.threshold, found.kept, found.right) == (0.9, 8, 8)


def test_photos_of_equal_score_are_kept_or_left_together():
    scores = np.repeat([0.5, 0.9], [400, 600])
    found = find_threshold(scores, scores, scores > 0.6, target=0.99)
    assert (found.threshold, found.kept, found.labelled, found.right) == (0.9, 600, 600, 600)


def test_a_failed_test_hands_no_error_probability_on():
    scores = np.repeat([0.9, 0.8, 0.7], [600, 200, 1200])  # 600 of 600 are right, 600 of 800, 1800 of 2000
    found = find_threshold(scores, scores[::2], scores[::2] != 0.8, target=0.8)
    assert (found.threshold, found.labelled, found.right) == (0.7, 1000, 900)
    assert found.lower_bound == precision_bound(900, 1000, 2000, level=0.05 / 2 / 3)  # of three tests, each its own


def calibrated(scores):
    return scores


def just_below(scores):  # 98.5% where 98% is promised, but from the middle on 97.9%
    return np.where(scores > np.median(scores), 0.985, 0.973)


def hopeless(scores):
    return np.full(len(scores), 0.979)


def over_confident(scores):
    return 0.8 + 0.198 * scores**8


POPULATIONS = {
    "calibrated": ((30, 1), calibrated, 0.95),
    "just below the target at low thresholds": ((6, 0.4), just_below, 0.98),
    "no threshold reaches the target": ((6, 0.4), hopeless, 0.98),
    "over-confident": ((6, 0.4), over_confident, 0.95),
}


def draw(name, draws, labels=1000, photos=10_000):
    """Yields what is found for a population, and the true precision from the threshold on."""
    (a, b), precision, target = POPULATIONS[name]
    generator = np.random.default_rng(1)
    scores = generator.beta(a, b, photos).round(6)
    for _ in range(draws):
        right = generator.random(photos) < precision(scores)
        some = generator.choice(photos, labels, replace=False, shuffle=False)
        found = find_threshold(scores, scores[some], right[some], target=target)
        yield found, 1.0 if found.threshold is None else right[scores >= found.threshold].mean()


@pytest.mark.parametrize("name", POPULATIONS)
def test_the_promise_is_broken_at_most_as_often_as_it_says(name):
    target = POPULATIONS[name][2]
    assert sum(precision < target for _, precision in draw(name, DRAWS)) <= 50


def test_the_promise_holds_however_often_one_looks():
    """Labels are added, 100 at a time, until a threshold is found: without a precise one, that is by chance."""
    generator = np.random.default_rng(1)
    scores, broken = np.linspace(0, 1, 20_000), 0
    for _ in range(200):
        order, right = generator.permutation(len(scores))[:1200], generator.random(len(scores)) < 0.895
        for look, count in enumerate(range(100, 1300, 100), 1):
            some = order[:count]
            found = find_threshold(scores, scores[some], right[some], target=0.9, look=look).threshold
            if found is not None:
                broken += right[scores >= found].mean() < 0.9
                break
    assert broken <= 10


@pytest.mark.parametrize(("name", "share"), [("calibrated", 0.9), ("over-confident", 0.7)])
def test_most_photos_are_kept_where_the_labels_are_good(name, share):
    assert np.median([found.kept_share for found, _ in draw(name, 100)]) > share


def test_without_enough_labels_it_says_how_many_more_would_do():
    scores = np.linspace(0, 1, 10_000)
    few, many = scores[::100], scores[::100][:0]
    found = find_threshold(scores, few, np.ones(100, bool), target=0.98)
    assert (found.threshold, found.kept, found.lower_bound, found.labelled, found.right) == (None, 0, None, 100, 100)
    enough = scores[:: 10_000 // (100 + found.needed)]
    assert find_threshold(scores, enough, np.ones(len(enough), bool), target=0.98).threshold == 0
    assert find_threshold(scores, enough, np.arange(len(enough)) != 99, target=0.98).threshold == 0  # or all but one
    assert find_threshold(scores, many, np.ones(0, bool), target=0.98).needed == 100 + found.needed


def test_where_the_surest_are_not_precise_no_number_of_labels_is_named():
    scores = np.linspace(0, 1, 1000)
    found = find_threshold(scores, scores[::2], np.arange(500) % 2 == 0, target=0.9)
    assert (found.threshold, found.needed, found.labelled) == (None, None, found.right * 2)


def test_where_the_surest_are_just_as_precise_as_the_target_no_number_of_labels_is_named():
    scores = np.linspace(0, 1, 1000)
    found = find_threshold(scores, scores[::2], np.arange(500) % 5 != 0, target=0.8)
    assert (found.threshold, found.needed) == (None, None)


def test_where_all_are_labelled_no_number_of_labels_is_named():
    scores = np.repeat([0.6, 0.7, 0.8, 0.9], [51, 11, 19, 8])
    right = np.concatenate([np.arange(size) < hits for size, hits in ((51, 38), (11, 11), (19, 8), (8, 8))])
    assert find_threshold(scores, scores, right, target=0.9).needed is None


@pytest.mark.parametrize(("target", "confidence"), [(0, 0.95), (1, 0.95), (float("nan"), 0.95), (0.9, 1)])
def test_nothing_is_promised_that_can_not_be(target, confidence):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        find_threshold(np.ones(1), np.ones(1), np.ones(1, bool), target=target, confidence=confidence)


def test_labelled_photos_must_be_among_the_photos():
    with pytest.raises(ValueError, match=r"2 labelled photos from 0\.9 on, but only 1 photos"):
        find_threshold(np.array([0.9, 0.1]), np.array([0.9, 0.9]), np.ones(2, bool), target=0.9)


def found(**changes):
    facts = {"target": 0.99, "confidence": 0.95, "threshold": None, "kept": 0, "kept_share": 0.0, "labelled": 0}
    facts |= {"right": 0, "lower_bound": None, "needed": None, "labels": 0, "photos": 10_000}
    return Threshold(**facts | changes)


@pytest.mark.parametrize(
    ("threshold", "sentence"),
    [
        (
            found(threshold=0.873412, kept=8412, kept_share=0.8412, labelled=412, right=411, labels=500),
            (
                "With 95% confidence, at least 99% of the photos with item_probability 0.873412 or more have the right "
                "label: these are 8,412 of 10,000 (84.12%). Of the 412 labelled among them, 411 are right."
            ),
        ),
        (
            found(needed=1149, labelled=113, right=113, labels=300),
            (
                "300 labelled photos can't yet promise that 99% of the labels are right from some threshold on. About "
                "1,149 more can, if they are right as often as those so far (113 of 113 among the surest)."
            ),
        ),
        (
            found(labelled=20, right=12, labels=300),
            (
                "No threshold can promise that 99% of the labels are right: even among the surest photos it is 12 of "
                "20 labelled ones."
            ),
        ),
        (found(needed=582), "No photo is labelled yet: promising 99% takes about 582 labels."),
        (found(photos=0), "There are no photos, so there is nothing to promise."),
    ],
    ids=["found", "too few", "not precise", "no labels", "no photos"],
)
def test_a_threshold_is_told_in_plain_sentences(threshold, sentence):
    assert describe(threshold) == sentence


def test_what_can_not_be_found_can_be_told():
    nothing = np.ones(0)
    for photos in (0, 1, 10, 1000):
        threshold = find_threshold(np.linspace(0, 1, photos), nothing, nothing.astype(bool), target=0.9)
        assert threshold.threshold is None
        assert "None" not in describe(threshold)
