"""The dataset cards of an output, by which readers load exactly the recorded photos."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping

from record_utilities import CARD, FAILURES, METADATA, RUN, Places, write_atomically
from storage_utilities import Place


def write_cards(places: Places, counts: Mapping[str, int], in_review: Mapping[str, int]) -> None:
    """Writes the dataset cards of the output and, where there is one, of the review folder.

    Args:
        places: The folders.
        counts: Photos per item in the output.
        in_review: Photos per item in the review folder.
    """
    made = describe_pictures(places.output)
    write_atomically(places.output / CARD, _dataset_card(counts, f"# Pictures by item\n\n{made} {_ABOUT}").encode())
    if in_review or (places.review / CARD).exists():
        about = f"# Pictures to be reviewed\n\n{made} {_ABOUT_REVIEW}"
        write_atomically(places.review / CARD, _dataset_card(in_review, about).encode())


def describe_pictures(output: Place) -> str:
    """Returns a sentence on what the pictures of an output are, by its `.run.json`."""
    settings = None
    with contextlib.suppress(OSError, ValueError, RecursionError):  # whoever reads it for more says what is wrong
        settings = json.loads((output / RUN).read_text(encoding="utf-8"))
    if isinstance(settings, dict) and settings.get("no_sam"):
        return "Made by sam2vit: whole photos, labelled by CLIP."
    return "Made by sam2vit: the central subject of each photo, cut out with SAM 2 and labelled by CLIP."


def _as_markdown(text: str) -> str:
    """Returns a text so that Markdown and the HTML made of it show it as it is."""
    return re.sub(r"([\\`*_\[\]<>&|~])", r"\\\1", text)


_ABOUT = f"""One folder per item; `{METADATA}` says of
each picture where it comes from and how sure the models were, `{FAILURES}` lists the photos that could not be done."""

_ABOUT_REVIEW = f"""They are too doubtful for the
output beside this folder: `flags` in `{METADATA}` says why."""


def _dataset_card(counts: Mapping[str, int], about: str) -> str:
    """Returns the README.md that makes Hugging Face `datasets` load exactly the recorded photos.

    Without explicit `configs` its loader guesses splits from names: a class called `train` or a file called
    IMG_test-1.png would become the whole dataset.
    """
    rows: Iterable[str] = (f"| {_as_markdown(item)} | {count} |" for item, count in sorted(counts.items()))
    table = "\n".join(rows)
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path:
    - {METADATA}
    - "**/*.png"
task_categories:
- image-classification
---
{about}

| item | photos |
| --- | --- |
{table}
"""
