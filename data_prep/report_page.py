"""The pieces of the report's page. Whatever comes from files passes through `escape`."""

from collections.abc import Sequence
from html import escape

from data_prep.report_pictures import Strip

STYLE = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --text: #1c2430; --quiet: #5d6879;
  --line: #dfe3e9; --accent: #3f74d6; --second: #d9822b; --bad: #c0392b; --shade: #eef1f6; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1d222a; --text: #e4e8ee;
  --quiet: #98a3b3; --line: #313945; --accent: #78a5f4; --second: #f0a65a; --bad: #f0796b;
  --shade: #262d37; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 20px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 40px 0 4px; }
h2 + p { margin: 0 0 14px; color: var(--quiet); max-width: 75ch; }
h3 { font-size: 14px; margin: 0 0 8px; font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 14px 16px; }
.tile b { display: block; font-size: 26px; line-height: 1.2; font-weight: 650;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--quiet); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 12px; }
.card { padding: 14px 16px; }
svg { display: block; width: 100%; height: auto; font-size: 11px; }
svg text { fill: var(--quiet); font-variant-numeric: tabular-nums; }
.bar { fill: var(--accent); }
.axis { stroke: var(--line); }
.median { stroke: var(--second); stroke-width: 1.5; stroke-dasharray: 3 3; }
.strips { display: flex; flex-wrap: wrap; gap: 12px; }
.strips.even { display: grid;
  grid-template-columns: repeat(auto-fill, minmax(min(500px, 100%), 1fr)); }
.strips::after { content: ""; flex: 100000 1 0; }
.strips.even::after { display: none; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  overflow: hidden; max-width: 100%; }
figure img { display: block; width: 100%; height: auto; }
figcaption { padding: 6px 10px 8px; font-size: 12.5px; line-height: 1.4; color: var(--quiet);
  contain: inline-size; overflow-wrap: anywhere; }
figcaption b { color: var(--text); font-weight: 600; }
.mark { border-radius: 4px; padding: 0 5px; background: var(--shade); white-space: nowrap; }
.bad { color: var(--bad); font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 7px 10px; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th { font-size: 12.5px; font-weight: 600; color: var(--quiet); }
tr:last-child td { border-bottom: 0; }
th.number, td.number { text-align: right; white-space: nowrap; }
details { border-bottom: 1px solid var(--line); }
details:last-child { border-bottom: 0; }
summary { cursor: pointer; padding: 9px 10px; }
summary b { float: right; font-variant-numeric: tabular-nums; }
details table { font-size: 13px; margin: 0 0 10px; }
.tables { padding: 4px 6px; }
"""


def page(title: str, body: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, text: str, content: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n{content}\n</section>"


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Large numbers, each with what it counts."""
    items = (
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for value, name in values
    )
    return f'<div class="tiles">{"".join(items)}</div>'


def charts(values: Sequence[tuple[str, str]]) -> str:
    """Titles with SVG."""
    cards = (f'<div class="card"><h3>{escape(title)}</h3>{svg}</div>' for title, svg in values)
    return f'<div class="charts">{"".join(cards)}</div>'


def figure(strip: Strip, name: str, notes: Sequence[str], bad: str | None = None) -> str:
    """A strip with the clip's name, notes about it, and what is wrong with it."""
    marks = "".join(f' <span class="mark">{escape(note)}</span>' for note in notes)
    if bad:
        marks += f' <span class="mark bad">{escape(bad)}</span>'
    # Growing by their widths, the strips of a row fill it and are of one height.
    return (
        f'<figure style="flex: {strip.width} 1 {0.85 * strip.width:.0f}px">'
        f'<img loading="lazy" src="{strip.uri}" width="{strip.width}" height="{strip.height}"'
        f' alt="{escape(name)}">'
        f"<figcaption><b>{escape(name)}</b>{marks}</figcaption></figure>"
    )


def figures(items: Sequence[str], *, even: bool = False) -> str:
    """Rows of figures; `even` where all have one size."""
    kind = "strips even" if even else "strips"
    return f'<div class="{kind}">\n' + "\n".join(items) + "\n</div>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """`numbers` are the columns that hold some."""

    def cells(kind, row):
        kinds = [f'{kind} class="number"' if i in numbers else kind for i in range(len(row))]
        return "".join(
            f"<{opening}>{escape(cell)}</{kind}>" for opening, cell in zip(kinds, row, strict=True)
        )

    lines = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>\n{lines}</tbody></table>"


def fold(title: str, count: int, content: str) -> str:
    """A line with a count that opens."""
    return f"<details><summary>{escape(title)}<b>{count:,}</b></summary>{content}</details>"


def card(content: str) -> str:
    return f'<div class="card tables">{content}</div>'
