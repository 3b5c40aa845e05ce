"""Bar charts as inline SVG, without scripts: histograms of numbers and counts of labels."""

from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT = 320, 150
BOTTOM, TOP, LEFT = 22, 18, 76  # room for what is written there
BINS, MOST_LABELS = 20, 6


def histogram(values: Sequence[float], unit: str, *, top: float | None = None) -> str:
    """Counts of numbers >= 0 in 20 bins from 0 to `top` (default: a round number above all)."""
    values = np.asarray(values, float)
    top = top or _round_up(float(values.max(initial=0)))
    counts, edges = np.histogram(np.minimum(values, top), bins=BINS, range=(0, top))
    floor, step = HEIGHT - BOTTOM, WIDTH / BINS
    content = f'<line class="axis" x1="0" x2="{WIDTH}" y1="{floor}" y2="{floor}"/>'
    for i, count in enumerate(counts):
        height = _length(count, counts, floor - TOP)
        name = f"{edges[i]:.3g} to {edges[i + 1]:.3g}{unit}"
        content += _bar(i * step + 0.75, floor - height, step - 1.5, height, name, count)
    for share, anchor in ((0, "start"), (0.5, "middle"), (1, "end")):
        content += _text(WIDTH * share, HEIGHT - 5, f"{top * share:.3g}{unit}", anchor)
    median = float(np.median(values)) if len(values) else 0.0
    x = WIDTH * min(median / top, 1)
    content += f'<line class="median" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 4}" y2="{floor}"/>'
    anchor, side = ("start", 4) if x < WIDTH / 2 else ("end", -4)
    content += _text(x + side, 11, f"median {median:.3g}{unit}", anchor)
    return _svg(content)


def label_counts(labels: Sequence[str]) -> str:
    """How often each label occurs: the six most frequent ones, and the others together."""
    ranked = sorted(Counter(labels).items(), key=lambda item: (-item[1], item[0]))
    shown = ranked[:MOST_LABELS]
    if others := sum(count for _, count in ranked[MOST_LABELS:]):
        shown.append(("others", others))
    counts = [count for _, count in shown]
    step, content = HEIGHT / (MOST_LABELS + 1), ""
    for i, (label, count) in enumerate(shown):
        width, y = _length(count, counts, WIDTH - LEFT - 36), i * step
        content += _text(LEFT - 6, y + step / 2 + 4, label, "end")
        content += _bar(LEFT, y + 2, width, step - 5, label, count)
        content += _text(LEFT + width + 5, y + step / 2 + 4, f"{count:,}", "start")
    return _svg(content)


def _length(count, counts, most):
    return max(most * count / max(counts), 1.5) if count else 0.0


def _bar(x, y, width, height, name, count):
    if not count:
        return ""
    return (
        f'<rect class="bar" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        f' rx="1.5"><title>{escape(name)}: {count:,}</title></rect>'
    )


def _text(x, y, text, anchor):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(content):
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{content}</svg>'


def _round_up(value):
    """1, 2, 2.5 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(n * power for n in (1, 2, 2.5, 5, 10) if n * power >= value * (1 - 1e-9)))
