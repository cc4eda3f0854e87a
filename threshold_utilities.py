"""From which probability on the labels of a run keep a promised precision, found from a labelled sample."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from console_utilities import count_of

_CANDIDATES = 50  # thresholds that are tried; 20 or 100 keep as many photos within 1%
_STARTS = 3  # of these, where testing begins; 1 keeps 15% fewer photos, 2 or 5 up to 4% fewer


@dataclass(frozen=True)
class Threshold:
    """The lowest score from which on labels are as precise as promised.

    Args:
        target: The promised precision.
        confidence: The probability with which the promise holds.
        threshold: A score; None where none can promise it.
        kept: Photos at or above it, and as a share of all, `kept_share`.
        labelled: Labelled photos at or above it; without a threshold, of the group of surest photos that came closest.
        right: How many of them are right.
        lower_bound: Of the kept photos' precision, at the level that the threshold was tested at: `target` or more.
        needed: Without a threshold, about how many more labels it takes if they are right as often as those so far;
            None where even the surest photos are not right more often than `target`, or all are labelled.
        labels: All labelled photos.
        photos: All photos.
    """

    target: float
    confidence: float
    threshold: float | None
    kept: int
    kept_share: float
    labelled: int
    right: int
    lower_bound: float | None
    needed: int | None
    labels: int
    photos: int


@dataclass(frozen=True)
class _Candidate:
    score: float
    kept: int
    labelled: int
    right: int


def find_threshold(
    scores: np.ndarray,
    labelled_scores: np.ndarray,
    labelled_right: np.ndarray,
    *,
    target: float,
    confidence: float = 0.95,
    look: int = 1,
) -> Threshold:
    """Returns the lowest threshold above which the labels of this run are, surely enough, as precise as promised.

    Candidates are quantiles of all scores, so that no label had a part in choosing them. Each is tested exactly
    (hypergeometric: the sample is drawn without replacement from the photos of this very run) against "the precision
    from here on is below the target". So that choosing among them costs no confidence, they are tested from the surest
    down in the fallback procedure of Wiens (2003): the error probability, 1 - confidence, is shared out among a few of
    them, and what a rejected one has goes on to the next. It allows all that the fixed sequences with several starts
    of Angelopoulos et al. (2021, arXiv 2110.01052) allow, and more.

    Who looks again with more labels has another chance to be wrong. So the n-th look has 1 / (n (n + 1)) of the error
    probability, which all of them together never exceed.

    Args:
        scores: (N,) `item_probability` of all photos.
        labelled_scores: (n,) of those that people have labelled: a random sample of the same photos.
        labelled_right: (n,) bool, whether the label is right.
        target: The precision to be kept, above 0 and below 1.
        confidence: The probability with which it is to hold, above 0 and below 1, however often one looks.
        look: The how manieth this is, from 1.

    Raises:
        ValueError: `target` or `confidence` is no such number, or the labelled photos are not among the photos.
    """
    if not (0 < target < 1 and 0 < confidence < 1):
        raise ValueError(f"target {target} and confidence {confidence} must lie between 0 and 1")
    alpha, next_alpha = ((1 - confidence) / (each * (each + 1)) for each in (look, look + 1))
    labels, photos = len(labelled_scores), len(scores)
    candidates = _find_candidates(scores, labelled_scores, labelled_right)
    starts = _find_starts([each.kept for each in candidates], labels, photos, target=target, alpha=alpha)
    best, best_level, carried = None, 0.0, 0.0
    for index, each in enumerate(candidates):
        level = carried + (alpha / len(starts) if index in starts else 0.0)
        passed = level and _p_value(each.labelled, each.right, each.kept, target=target) <= level
        carried = level if passed else 0.0
        if passed:
            best, best_level = each, level
    if best is not None:
        bound = precision_bound(best.right, best.labelled, best.kept, level=best_level)
        return Threshold(
            target, confidence, best.score, best.kept, best.kept / photos, best.labelled, best.right, bound, None,
            labels, photos,
        )  # fmt: skip
    closest, needed = _find_closest(candidates, labels, photos, target=target, alpha=next_alpha)
    labelled, right = (closest.labelled, closest.right) if closest else (0, 0)
    return Threshold(target, confidence, None, 0, 0.0, labelled, right, None, needed, labels, photos)


def _find_candidates(scores: np.ndarray, labelled_scores: np.ndarray, labelled_right: np.ndarray) -> list[_Candidate]:
    """Returns thresholds from the highest down; photos with equal scores are kept or left together."""
    ordered = np.sort(np.asarray(scores, float))
    shares = np.arange(1, _CANDIDATES + 1) / _CANDIDATES
    thresholds = np.unique(ordered[len(ordered) - np.ceil(shares * len(ordered)).astype(int)]) if len(ordered) else []
    order = np.argsort(labelled_scores)
    right_below = np.concatenate([[0], np.cumsum(np.asarray(labelled_right, bool)[order])])
    candidates = []
    for score in thresholds[::-1]:
        below = np.searchsorted(labelled_scores[order], score)
        each = _Candidate(
            float(score),
            kept=len(ordered) - int(np.searchsorted(ordered, score)),
            labelled=len(order) - int(below),
            right=int(right_below[-1] - right_below[below]),
        )
        if each.labelled > each.kept:
            raise ValueError(f"{each.labelled} labelled photos from {score} on, but only {each.kept} photos")
        candidates.append(each)
    return candidates


def _find_starts(kept: list[int], labels: int, photos: int, *, target: float, alpha: float) -> set[int]:
    """Returns the places of candidates that testing begins at; no label has a part in it.

    The first is where so many labels are to be expected that one wrong among them does not end it, or where there are
    too few for that anywhere, none; the last is all photos; the others lie between them.
    """
    if labels == photos:  # nothing is left to chance
        return set(range(len(kept)))
    for wrong in (1, 0):
        for count in kept:
            expected = round(labels * count / photos)
            if expected > wrong and _p_value(expected, expected - wrong, count, target=target) <= alpha / _STARTS:
                wanted = np.geomspace(count, photos, _STARTS)
                return {int(np.argmin(np.abs(np.log(kept) - np.log(each)))) for each in wanted}
    return {len(kept) - 1}


def _p_value(labelled: int, right: int, kept: int, *, target: float) -> float:
    """Returns how probable so many right ones are if the precision is below the target by as little as possible."""
    # Rounded, because 0.07 * 100 is a little above 7.
    return tail(labelled, right, kept, math.ceil(round(target * kept, 9)) - 1)


def tail(drawn: int, hits: int, size: int, right: int) -> float:
    """Returns the probability of `hits` or more right ones among `drawn` of `size` photos, `right` of which are right.

    Exact (hypergeometric), up to rounding.
    """
    wrong = size - right
    fewest = max(0, drawn - right)
    if drawn - hits < fewest:
        return 0.0
    # ln of the probability of the fewest wrong ones possible, then of each further one by its ratio to the last.
    begin = _log_choose(wrong, fewest) + _log_choose(right, drawn - fewest) - _log_choose(size, drawn)
    k = np.arange(fewest, min(drawn - hits, wrong))
    ratios = (wrong - k) * (drawn - k) / ((k + 1.0) * (right - drawn + k + 1))
    terms = begin + np.concatenate([[0.0], np.cumsum(np.log(ratios))])
    return min(1.0, float(np.exp(terms).sum()))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def precision_bound(right: int, labelled: int, kept: int, *, level: float) -> float:
    """Returns the lower bound at `level` of the share of right ones among `kept` photos, of which some are labelled.

    The exact one, of Clopper and Pearson (1934) where `kept` is large: the lowest share that the sample is not too
    good for.
    """
    low, high = right, kept - (labelled - right)  # the bound is above the first's predecessor, and at most the second
    while low < high:
        middle = (low + high) // 2
        if tail(labelled, right, kept, middle) > level:
            high = middle
        else:
            low = middle + 1
    return low / kept


def _find_closest(
    candidates: list[_Candidate], labels: int, photos: int, *, target: float, alpha: float
) -> tuple[_Candidate | None, int | None]:
    """Returns the candidate that would need the fewest labels, and how many more that is; else the most precise."""

    def passes(each: _Candidate, total: int) -> bool:
        labelled = round(total * each.kept / photos)
        # One mistake more than none is to be expected, but where few photos are left to label there is no room for it.
        spare = int(total < photos)
        wrong = max(spare, int(labelled * (each.labelled - each.right) / each.labelled)) if each.labelled else spare
        return labelled > 0 and _p_value(labelled, labelled - wrong, each.kept, target=target) <= alpha / _STARTS

    closest, fewest = None, photos
    for each in candidates:
        precise = each.right > target * each.labelled or not labels
        if not precise or not passes(each, fewest):
            continue
        low, high = labels, fewest  # too few, enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if passes(each, middle) else (middle, high)
        closest, fewest = each, high
    if closest is not None and fewest > labels:
        return closest, fewest - labels
    if not labels:
        return None, photos or None
    seen = [each for each in candidates if each.labelled]
    return max(seen, key=lambda each: (each.right / each.labelled, each.labelled)), None


def describe(threshold: Threshold) -> str:
    """Returns what was found, in one or two sentences."""
    target = _percent(threshold.target)
    if threshold.threshold is not None:
        return (
            f"With {_percent(threshold.confidence)} confidence, at least {target} of the photos with item_probability "
            f"{threshold.threshold:.6g} or more have the right label: these are {threshold.kept:,} of "
            f"{threshold.photos:,} ({_percent(threshold.kept_share)}). Of the {threshold.labelled:,} labelled among "
            f"them, {threshold.right:,} are right."
        )
    if not threshold.photos:
        return "There are no photos, so there is nothing to promise."
    if not threshold.labels:
        return f"No photo is labelled yet: promising {target} takes about {threshold.needed:,} labels."
    if threshold.needed is None:
        return (
            f"No threshold can promise that {target} of the labels are right: even among the surest photos it is "
            f"{threshold.right:,} of {threshold.labelled:,} labelled ones."
        )
    return (
        f"{count_of(threshold.labels, 'labelled photo')} can't yet promise that {target} of the labels are right from "
        f"some threshold on. About {threshold.needed:,} more can, if they are right as often as those so far "
        f"({threshold.right:,} of {threshold.labelled:,} among the surest)."
    )


def _percent(share: float) -> str:
    return f"{round(100 * share, 2):g}%"
