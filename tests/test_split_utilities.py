from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import ConfigError
from split_utilities import SPLIT_NAMES, Split, assign_splits, parse_split, read_splits, write_splits

SPLIT = Split(0.8, 0.1, 0.1)
shares = st.integers(0, 20).flatmap(lambda train: st.tuples(st.just(train), st.integers(0, 20 - train)))
splits = shares.map(lambda each: Split(each[0] / 20, each[1] / 20, (20 - sum(each)) / 20))
datasets = st.dictionaries(st.text(max_size=4), st.sampled_from(["red", "blue", "dark red"]), max_size=80)


def photos(count, item="red", start=0):
    return {f"{item}/{number}.jpg": item for number in range(start, start + count)}


@pytest.mark.parametrize(
    ("text", "split"),
    [("0.8,0.1,0.1", SPLIT), ("0.8, 0.2, 0", Split(0.8, 0.2, 0)), ("1,0,0", Split(1, 0, 0))],
    ids=["three", "no test", "train only"],
)
def test_shares_are_read(text, split):
    assert parse_split(text) == split


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "must be three numbers from 0 to 1"),
        ("0.8,0.2", "must be three numbers from 0 to 1"),
        ("80,10,10", "must be three numbers from 0 to 1"),
        ("0.8,nan,0.2", "must be three numbers from 0 to 1"),
        ("1.5,-0.5,0", "must be three numbers from 0 to 1"),
        ("0.8,0.1,0.2", "add up to 1.1, not 1"),
    ],
    ids=["empty", "two", "per cent", "nan", "negative", "too much"],
)
def test_other_shares_are_refused(text, problem):
    with pytest.raises(ConfigError) as caught:
        parse_split(text)
    assert str(caught.value) == (
        f"--split {text!r}: {problem}; give the shares of train, validation, test, such as 0.8,0.1,0.1"
    )


def test_each_item_has_its_shares_in_each_split():
    items = photos(100) | photos(30, "blue") | photos(10, "green")
    assigned = assign_splits(items, SPLIT, seed=3, previous={})
    counts = Counter((items[source], name) for source, name in assigned.items())
    assert [counts["red", name] for name in SPLIT_NAMES] == [80, 10, 10]
    assert [counts["blue", name] for name in SPLIT_NAMES] == [24, 3, 3]
    assert [counts["green", name] for name in SPLIT_NAMES] == [8, 1, 1]


def test_many_rare_items_fill_all_splits_together():
    items = {f"{item}/{number}": f"{item}" for item in range(200) for number in range(3)}
    counts = Counter(assign_splits(items, SPLIT, seed=3, previous={}).values())
    assert counts == {"train": 480, "validation": 60, "test": 60}


def test_a_single_photo_is_trained_on():
    assert assign_splits(photos(1), Split(0.1, 0.1, 0.8), seed=3, previous={}) == {"red/0.jpg": "train"}
    assert assign_splits(photos(1), Split(0, 0.2, 0.8), seed=3, previous={}) == {"red/0.jpg": "test"}


@given(datasets, splits, st.integers(0, 9))
def test_a_first_assignment_is_exact_to_within_one_photo_of_each_item(items, split, seed):
    assigned = assign_splits(items, split, seed=seed, previous={})
    assert assigned.keys() == items.keys()
    totals, counts = Counter(items.values()), Counter((items[source], name) for source, name in assigned.items())
    for item, total in totals.items():
        for name, share in split.shares.items():
            assert abs(counts[item, name] - share * total) < 1
            assert share or not counts[item, name]


@given(datasets, datasets, splits)
def test_photos_keep_their_split_when_others_come_or_go_or_labels_change(before, after, split):
    first = assign_splits(before, split, seed=3, previous={})
    second = assign_splits(after, split, seed=3, previous=first)
    assert {source: second[source] for source in before.keys() & after} == {
        source: first[source] for source in before.keys() & after
    }


def test_new_photos_go_where_they_are_missed():
    first = assign_splits(photos(10), SPLIT, seed=3, previous={})
    both = assign_splits(photos(100), SPLIT, seed=3, previous=first)
    assert Counter(both.values()) == {"train": 80, "validation": 10, "test": 10}


def test_the_order_of_the_photos_does_not_matter_and_the_seed_does():
    items = photos(50)
    backwards = dict(reversed(items.items()))
    assert assign_splits(items, SPLIT, seed=3, previous={}) == assign_splits(backwards, SPLIT, seed=3, previous={})
    assert assign_splits(items, SPLIT, seed=3, previous={}) != assign_splits(items, SPLIT, seed=4, previous={})
    rare = {f"{number}.jpg": f"item {number // 3}" for number in range(120)}
    backwards = dict(reversed(rare.items()))
    assert assign_splits(rare, SPLIT, seed=3, previous={}) == assign_splits(backwards, SPLIT, seed=3, previous={})


def test_what_an_item_misses_whole_comes_before_what_all_items_miss_together():
    crowded = dict.fromkeys(photos(5, "blue"), "validation")
    assigned = assign_splits(photos(5), Split(0.5, 0.2, 0.3), seed=3, previous=crowded)
    assert Counter(assigned.values())["validation"] == 1


def test_photos_of_before_count_among_all():
    previous = {source: "train" for number in range(20) for source in photos(1, f"item {number}")}
    items = {source: source.partition("/")[0] for source in previous} | photos(2)
    assigned = assign_splits(items, SPLIT, seed=3, previous=previous)
    assert sorted(assigned[source] for source in photos(2)) == ["train", "validation"]


def test_a_share_that_is_reached_asks_for_no_more_whatever_its_last_digits():
    assert 0.07 * 100 > 7
    previous = dict.fromkeys(photos(10, "blue"), "train")
    items = photos(10, "blue") | photos(100)
    assigned = assign_splits(items, Split(0.58, 0.07, 0.35), seed=3, previous=previous)
    assert Counter(assigned[source] for source in photos(100)) == {"train": 58, "validation": 7, "test": 35}


def test_the_file_is_the_same_whatever_the_order_of_the_photos(tmp_path):
    assigned = {"b.jpg": "test", "a.jpg": "train"}
    write_splits(tmp_path / "one.csv", assigned)
    write_splits(tmp_path / "other.csv", dict(reversed(assigned.items())))
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "other.csv").read_bytes()


def test_assignments_come_back_from_their_file(tmp_path):
    assigned = {'=1+1"\n.jpg': "train", "a,b.jpg": "test", "grün/x.jpg": "validation"}
    write_splits(tmp_path / "splits.csv", assigned)
    assert read_splits(tmp_path / "splits.csv") == assigned


@pytest.mark.parametrize("content", ["source,split\na.jpg,tset\n", "file,split\na.jpg,test\n"], ids=["name", "column"])
def test_a_file_that_somebody_has_spoilt_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "splits.csv").write_text(content)
    with pytest.raises(ConfigError, match=r"a line says .*; each has a source and .*; mend or delete it") as caught:
        read_splits(tmp_path / "splits.csv")
    assert "\n" not in str(caught.value)
