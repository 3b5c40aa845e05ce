"""A batch as the model sees it, as one picture: references, frames, skeletons, and both laid over
each other."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from animate_jax.pose.render import draw_skeletons

TILE = 208  # pixels of a tile's longer side
GAP, LINE, TEXT = 4, 22, 14  # pixels between tiles, of a line of text, of its letters
PAPER, INK = (250, 250, 250), (40, 40, 40)


def draw_preview(
    batch: dict[str, np.ndarray], names: list[str], *, samples: int = 6, frames: int = 6
) -> Image.Image:
    """The first `samples` rows of a batch, each with at most `frames` frames spread over it.

    names: of the sets. Picture samples are one line of tiles each, clip samples three: frames,
    skeletons, both. Skeletons are drawn on the default device, as in training.
    """
    count = batch["frames"].shape[1]
    shown = np.unique(np.linspace(0, count - 1, min(count, frames)).round().astype(int))
    blocks = [
        _block(batch["reference"][row], batch["frames"][row, shown], batch["keypoints"][row, shown])
        for row in range(min(samples, len(batch["frames"])))
    ]
    if count == 1:
        columns = ["reference", "frame", "skeleton", "both"]
    else:
        columns = ["reference", *(f"frame {number}" for number in shown)]
    height, width = blocks[0].shape[:2]
    step = width // len(columns)
    sheet = Image.new("RGB", (width + GAP, LINE + len(blocks) * (LINE + height)), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for column, text in enumerate(columns):
        draw.text((column * step + GAP, GAP), text, INK, font)
    for row, block in enumerate(blocks):
        number, record, first = batch["record"][row].tolist()
        top = LINE + row * (LINE + height)
        text = f"{names[number]}: record {record}, from its frame {first}"
        draw.text((GAP, top + GAP), text, INK, font)
        sheet.paste(Image.fromarray(block), (GAP, top + LINE))
    return sheet


def _block(reference, frames, keypoints):
    """The tiles of one sample: uint8 (lines * tile, columns * tile, 3)."""
    height, width = reference.shape[:2]
    drawn = np.asarray(draw_skeletons(keypoints, height, width))
    skeletons = np.round(drawn * 255).astype(np.uint8)
    both = np.where(skeletons.any(-1, keepdims=True), skeletons, frames // 3 * 2)
    if len(frames) == 1:
        return _lines([[reference, frames[0], skeletons[0], both[0]]])
    empty = [np.full_like(reference, PAPER)]
    return _lines([[reference, *frames], [*empty, *skeletons], [*empty, *both]])


def _lines(lines):
    tiles = [np.concatenate([_tile(picture) for picture in line], axis=1) for line in lines]
    return np.concatenate(tiles)


def _tile(picture):
    scale = TILE / max(picture.shape[:2])
    height, width = (round(side * scale) for side in picture.shape[:2])
    tile = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
    return np.pad(tile, ((0, GAP), (0, GAP), (0, 0)), constant_values=PAPER[0])
