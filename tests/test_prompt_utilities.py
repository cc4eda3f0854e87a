from itertools import product

import numpy as np
import pytest

from prompt_utilities import decide, get_prompts, replace_item

ITEMS = ("red", "dark red", "blue")
PROMPTS = get_prompts(["a", "the"], ITEMS, ["car"])


def test_prompts_are_the_cartesian_product_with_items_outermost():
    assert get_prompts(["a", "the"], ["red", "blue"], ["car", "van"]) == [
        "a red car",
        "a red van",
        "the red car",
        "the red van",
        "a blue car",
        "a blue van",
        "the blue car",
        "the blue van",
    ]


@pytest.mark.parametrize(
    "parts",
    [(["a "], ["red"], [" car"]), (["a"], ["red"], ["car"]), ([" a  "], ["\tred "], ["car\n"])],
    ids=["spaces in the parts", "no spaces", "all kinds of white space"],
)
def test_parts_are_joined_with_single_spaces_whatever_spaces_they_carry(parts):
    assert get_prompts(*parts) == ["a red car"]


def test_an_empty_prefix_or_postfix_leaves_no_space_behind():
    assert get_prompts([""], ["red"], [""]) == ["red"]


def test_the_shipped_lists_make_972_different_prompts(prompts):
    assert len(prompts) == len(set(prompts)) == 9 * 18 * 6


def test_the_item_comes_from_the_index_of_the_prompt_not_from_its_words():
    probabilities = np.array([0.1, 0.1, 0.1, 0.5, 0.1, 0.1])  # "the dark red car", which holds the word "red", too
    label = decide(probabilities, PROMPTS, ITEMS)
    assert (label.item, label.prompt, label.probability) == ("dark red", "the dark red car", 0.5)


@pytest.mark.parametrize(
    ("rule", "item", "prompt", "item_probability", "runner_up", "margin"),
    [
        ("top-prompt", "red", "a red car", 0.40, "dark red", -0.02),
        ("item-sum", "dark red", "the dark red car", 0.42, "red", 0.02),
        ("ensemble", "blue", "a blue car", 0.50, "dark red", 0.20),
    ],
)
def test_each_decision_rule_chooses_by_its_own_measure(rule, item, prompt, item_probability, runner_up, margin):
    probabilities = np.array([0.36, 0.04, 0.20, 0.22, 0.10, 0.08])
    label = decide(probabilities, PROMPTS, ITEMS, rule=rule, ensemble_probabilities=np.array([0.2, 0.3, 0.5]))
    assert (label.item, label.prompt, label.runner_up) == (item, prompt, runner_up)
    assert label.item_probability == pytest.approx(item_probability)
    assert label.margin == pytest.approx(margin)


def test_the_probability_is_that_of_the_named_prompt():
    label = decide(np.array([0.36, 0.04, 0.20, 0.22, 0.10, 0.08]), PROMPTS, ITEMS, rule="item-sum")
    assert label.probability == pytest.approx(0.22)


def test_a_single_item_has_no_runner_up_and_its_whole_probability_as_margin():
    label = decide(np.array([0.3, 0.7]), ["a red car", "the red car"], ["red"])
    assert (label.runner_up, label.margin) == (None, pytest.approx(1.0))


def test_the_top_items_are_five_at_most_and_begin_with_the_most_probable():
    items = [f"item {index}" for index in range(7)]
    probabilities = np.array([0.05, 0.1, 0.3, 0.2, 0.15, 0.12, 0.08])
    top = decide(probabilities, items, items).top_items
    assert [item for item, _ in top] == ["item 2", "item 3", "item 4", "item 5", "item 1"]
    assert [probability for _, probability in top] == pytest.approx([0.3, 0.2, 0.15, 0.12, 0.1])


def test_items_that_are_equally_probable_keep_their_order():
    items = [f"item {index}" for index in range(200)]
    probabilities = np.zeros(200, np.float32)  # as for all but a few items, where the logits are far apart
    probabilities[100] = 1
    label = decide(probabilities, items, items)
    assert [item for item, _ in label.top_items] == ["item 100", "item 0", "item 1", "item 2", "item 3"]
    assert label.runner_up == "item 0"


@pytest.mark.parametrize("other", ["blue", "dark red"])
def test_another_item_comes_into_its_place_and_all_else_stays(other):
    prefixes, postfixes = ["a", "the", "red and"], ["car", "on red"]
    for prefix, postfix in product(prefixes, postfixes):
        replaced = replace_item(f"{prefix} red {postfix}", "red", other, prefixes=prefixes, postfixes=postfixes)
        assert replaced == f"{prefix} {other} {postfix}"


def test_a_prompt_of_other_templates_stays_as_it_is():
    assert replace_item("my red car", "red", "blue", prefixes=["a"], postfixes=["car"]) == "my red car"


def test_the_ensemble_rule_without_its_probabilities_is_an_error():
    with pytest.raises(ValueError, match="ensemble_probabilities"):
        decide(np.full(6, 1 / 6), PROMPTS, ITEMS, rule="ensemble")
