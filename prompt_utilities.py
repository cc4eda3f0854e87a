"""The prompts that CLIP chooses among, and how their probabilities become one item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np

DecisionRule = Literal["top-prompt", "item-sum", "ensemble"]

MOST_PROMPTS = 100_000  # CLIP's text tower encodes some 500 a second on two cores

TOP_ITEMS = 5  # items kept per photo for people to look at


@dataclass(frozen=True)
class Label:
    """What CLIP says of one photo.

    Attributes:
        item: The chosen item.
        prompt: The best prompt of that item.
        probability: Softmax over all prompts, at `prompt`, in [0, 1].
        item_probability: Probability of `item`, in [0, 1]: the sum over its prompts, or with the
            `ensemble` rule the softmax over the items' mean text features.
        runner_up: The most probable of the other items; None where there is only one item.
        margin: `item_probability` minus the runner-up's. Negative where the best prompt belongs to
            an item whose prompts together are not the most probable: a reason for doubt.
        top_items: Up to 5 (item, item_probability) pairs, most probable first.
    """

    item: str
    prompt: str
    probability: float
    item_probability: float
    runner_up: str | None
    margin: float
    top_items: tuple[tuple[str, float], ...]


def get_prompts(prefixes: Sequence[str], items: Sequence[str], postfixes: Sequence[str]) -> list[str]:
    """Returns prefix x item x postfix, item-major: all prompts of the first item, then of the second.

    Parts are joined with single spaces whatever spaces they carry, so "a " + "red" + " car" and
    "a" + "red" + "car" are the same prompt. Prompt i belongs to item i // (prefixes x postfixes).
    """
    return [
        " ".join(f"{prefix} {item} {postfix}".split()) for item in items for prefix in prefixes for postfix in postfixes
    ]


def replace_item(prompt: str, item: str, other: str, *, prefixes: Sequence[str], postfixes: Sequence[str]) -> str:
    """Returns a prompt of an item with another item in its place; as it is where it is none of these prompts.

    Not by searching its words: "a red car on red sand" has the item once.
    """
    parts = [(prefix, postfix) for prefix in prefixes for postfix in postfixes]
    index = {each: place for place, each in enumerate(get_prompts(prefixes, [item], postfixes))}.get(prompt)
    if index is None:
        return prompt
    prefix, postfix = parts[index]
    return get_prompts([prefix], [other], [postfix])[0]


def decide(
    prompt_probabilities: np.ndarray,
    prompts: Sequence[str],
    items: Sequence[str],
    *,
    rule: DecisionRule = "top-prompt",
    ensemble_probabilities: np.ndarray | None = None,
) -> Label:
    """Chooses the item of one photo.

    Args:
        prompt_probabilities: (P,) float, softmax over all prompts, item-major as in `get_prompts`.
        prompts: The P prompts.
        items: The I items; P is a multiple of I.
        rule: `top-prompt`: the item of the best prompt. `item-sum`: the item whose prompts are most
            probable together. `ensemble`: the item whose mean text feature is closest, as in CLIP's
            paper (section 3.1.4, arXiv 2103.00020).
        ensemble_probabilities: (I,) float, softmax over the items' mean features; for `ensemble`.
    """
    per_item = prompt_probabilities.reshape(len(items), -1)  # (I, P / I)
    item_probabilities = per_item.sum(axis=1)
    if rule == "top-prompt":
        chosen = int(prompt_probabilities.argmax()) // per_item.shape[1]
    elif rule == "item-sum":
        chosen = int(item_probabilities.argmax())
    else:
        if ensemble_probabilities is None:
            raise ValueError("the ensemble rule needs ensemble_probabilities")
        item_probabilities = ensemble_probabilities
        chosen = int(item_probabilities.argmax())
    best_prompt = chosen * per_item.shape[1] + int(per_item[chosen].argmax())

    ranking = (-item_probabilities).argsort(kind="stable")
    others = [int(index) for index in ranking if index != chosen]
    runner_up = others[0] if others else None
    item_probability = float(item_probabilities[chosen])
    return Label(
        item=items[chosen],
        prompt=prompts[best_prompt],
        probability=float(prompt_probabilities[best_prompt]),
        item_probability=item_probability,
        runner_up=None if runner_up is None else items[runner_up],
        margin=item_probability - (0.0 if runner_up is None else float(item_probabilities[runner_up])),
        top_items=tuple((items[index], float(item_probabilities[index])) for index in ranking[:TOP_ITEMS]),
    )
