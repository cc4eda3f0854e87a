"""The picture of the README: photos of a run beside their cut-outs and labels.

python docs/make_contact_sheet.py dataset_cars output docs/before-after.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

COLUMNS, CELL_WH, TEXT_HEIGHT, GAP = 3, (190, 142), 22, 10


def make_contact_sheet(dataset_dir: Path, output: Path, picture: Path, *, most: int = 12) -> None:
    """Writes a PNG of the first photos of a run, each beside its cut-out over its item and probability."""
    lines = (output / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = sorted((json.loads(line) for line in lines), key=lambda row: row["source"])[:most]
    pair_width, height = 2 * CELL_WH[0] + GAP, CELL_WH[1] + TEXT_HEIGHT + GAP
    sheet = Image.new(
        "RGB", (COLUMNS * (pair_width + 2 * GAP), -(-len(rows) // COLUMNS) * height + GAP), (236, 236, 236)
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for index, row in enumerate(rows):
        left = GAP + index % COLUMNS * (pair_width + 2 * GAP)
        top = GAP + index // COLUMNS * height
        for step, path in enumerate((dataset_dir / row["source"], output / row["file_name"])):
            cell = Image.open(path).convert("RGB")
            cell.thumbnail(CELL_WH)
            sheet.paste(cell, (left + step * (CELL_WH[0] + GAP), top))
        caption = f"{row['label']} {row['item_probability']:.0%}, mask {row['mask_score']:.2f}"
        draw.text((left + CELL_WH[0] + GAP, top + CELL_WH[1] + 2), caption, (30, 30, 30), font)
    sheet.save(picture, optimize=True)


if __name__ == "__main__":
    make_contact_sheet(*map(Path, sys.argv[1:4]))
