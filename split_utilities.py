"""Which photo is for training, validation or testing: by item, at random, and steady when photos are added."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from csv_utilities import format_csv, read_csv
from errors import ConfigError
from record_utilities import write_atomically

SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """The shares of the photos that are trained on, validated on and tested on; together 1."""

    train: float
    validation: float
    test: float

    @property
    def shares(self) -> dict[str, float]:
        """The shares by the names of the splits."""
        return dict(zip(SPLIT_NAMES, (self.train, self.validation, self.test), strict=True))


def parse_split(text: str) -> Split:
    """Returns the shares that `--split` names, such as 0.8,0.1,0.1.

    Raises:
        ConfigError: They are not three numbers from 0 to 1 that add up to 1.
    """
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != len(SPLIT_NAMES) or not all(0 <= share <= 1 for share in shares):
        problem = "must be three numbers from 0 to 1"
    elif not math.isclose(sum(shares), 1, abs_tol=1e-6):
        problem = f"add up to {sum(shares):g}, not 1"
    else:
        return Split(*(share / math.fsum(shares) for share in shares))
    raise ConfigError(f"--split {text!r}: {problem}; give the shares of {', '.join(SPLIT_NAMES)}, such as 0.8,0.1,0.1")


def assign_splits(items: Mapping[str, str], split: Split, *, seed: int, previous: Mapping[str, str]) -> dict[str, str]:
    """Returns the split of each photo: random, by item, and steady when photos are added.

    What was assigned stays, even where a photo has another item now. The others go, item by item, where they are
    missed, so that of a first assignment each item has its share in each split to within one photo. An item's first
    photo is trained on. Whoever else could go to several splits goes to the one that is furthest behind its share of
    all photos: so hundreds of items of five photos each still give a tenth to the tests.

    Args:
        items: The item of each photo, by source.
        split: The shares.
        seed: Of the order in which the photos of an item are assigned.
        previous: Splits of earlier assignments, by source; of other photos, too.
    """
    shares = split.shares
    assigned = {source: previous[source] for source in items if source in previous}
    by_item: dict[str, list[str]] = {}
    counts: dict[str, Counter[str]] = {}
    for source, item in items.items():
        by_item.setdefault(item, []).append(source)
        if source in assigned:
            counts.setdefault(item, Counter())[assigned[source]] += 1
    overall = Counter(assigned.values())
    for item in sorted(by_item):
        count = counts.setdefault(item, Counter())
        targets = {name: share * len(by_item[item]) for name, share in shares.items()}
        new = (source for source in by_item[item] if source not in assigned)
        for source in sorted(new, key=lambda source: (digest(f"{seed}", source), source)):
            name = _most_missed(targets, count, shares, overall)
            assigned[source] = name
            count[name] += 1
            overall[name] += 1
    return assigned


def read_splits(path: Path) -> dict[str, str]:
    """Returns the splits that `write_splits` has written, by source.

    Raises:
        ConfigError: Somebody has made something else of the file.
    """
    rows = read_csv(path, flag="--split")
    strange = next((row for row in rows if row.get("split") not in SPLIT_NAMES or "source" not in row), None)
    if strange is not None:
        raise ConfigError(
            f"--split {path}: a line says {strange}; each has a source and {', '.join(SPLIT_NAMES)}; mend or delete it"
        )
    return {row["source"]: row["split"] for row in rows}


def write_splits(path: Path, splits: Mapping[str, str]) -> None:
    """Writes the split of each photo, by source, as a CSV file."""
    write_atomically(path, format_csv(("source", "split"), sorted(splits.items())))


def digest(salt: str, source: str) -> str:
    """Returns 64 hexadecimal digits that depend on both texts, and on nothing else."""
    return hashlib.sha256(f"{salt}\0{source}".encode(errors="surrogatepass")).hexdigest()


def _most_missed(
    targets: Mapping[str, float], count: Mapping[str, int], shares: Mapping[str, float], overall: Mapping[str, int]
) -> str:
    if targets["train"] and not count["train"]:
        return "train"
    # Rounded, or 0.07 * 100 is a little more than 7, and asks for an eighth.
    behind = {name: round(target - count[name], 9) for name, target in targets.items()}
    whole = [name for name, missing in behind.items() if missing >= 1]
    if whole:
        return max(whole, key=behind.__getitem__)
    total = sum(overall.values()) + 1
    return max(
        (name for name, missing in behind.items() if missing > 0), key=lambda name: shares[name] * total - overall[name]
    )
