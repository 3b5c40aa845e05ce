"""A report on a clip directory or a build: one HTML file that needs nothing else.

It shows frames of clips spread evenly over the set, so its size does not grow with the set.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from animate_jax.errors import UserError
from animate_jax.files import replacing
from animate_jax.pose.keypoints import load_keypoints
from data_prep import report_page as page
from data_prep.clip_directory import Clip, read_clips, read_json_lines
from data_prep.measures import Measures, measure
from data_prep.records import DROPS_FILE, SPLITS_FILE
from data_prep.report_charts import histogram, label_counts
from data_prep.report_pictures import strips
from data_prep.split import TRAIN, VALIDATION

REPORT = "report.html"
MOST_SHEETS, MOST_OVERLAYS = 60, 12  # strips; as many overlays again of the least confident clips
MOST_LISTED = 200  # lines of a list
DOUBTFUL = 0.7  # share of confident body points below which a clip is marked


@dataclass(frozen=True)
class Contents:
    """A directory as the report sees it: clips with their measures, what was dropped (source, clip,
    scene, reason, detail), and of the records (name, source, split), None where there are none."""

    clips: list[Clip]
    measures: list[Measures]
    drops: list[dict]
    records: list[dict] | None


def write_report(directory: str | os.PathLike, *, progress: bool = True) -> Path:
    """Writes report.html into a clip directory or a build; returns its path.

    drops.jsonl and records/ are reported on where they are there. Raises UserError where the
    directory is no clip directory or a file in it cannot be read.
    """
    directory = Path(directory)
    contents = _read(directory, progress)
    if not contents.clips:
        raise UserError(f"{directory}: no clips, so nothing to report on")
    body = [_headline(contents), _charts(contents), *_strip_sections(contents, progress)]
    body += [_drops(contents.drops), _licences(contents.clips), _sources(contents)]
    path = directory / REPORT
    try:
        with replacing(path) as temporary:
            temporary.write_text(page.page("Training clips", body), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


def _read(directory, progress):
    clips = read_clips(directory)
    bar = tqdm(clips, desc="keypoints", unit="clip", disable=not progress)
    measures = [measure(load_keypoints(clip.keypoints_path)) for clip in bar]
    places = directory / DROPS_FILE, directory / "records" / DROPS_FILE
    drops = [drop for path in places if path.is_file() for drop in read_json_lines(path)]
    records = directory / "records" / SPLITS_FILE
    return Contents(clips, measures, drops, read_json_lines(records) if records.is_file() else None)


def _headline(contents):
    clips = contents.clips
    values = [
        (f"{len(clips):,}", "clips"),
        _length(sum(clip.seconds for clip in clips)),
        (f"{sum(clip.frames for clip in clips):,}", "frames"),
        (f"{len({clip.source for clip in clips}):,}", "sources"),
    ]
    for split in (TRAIN, VALIDATION):
        if contents.records is None:
            values.append(("–", f"{split}: no records yet"))
            continue
        lines = [line for line in contents.records if line.get("split") == split]
        sources = len({line.get("source") for line in lines})
        values.append((f"{len(lines):,}", f"{split} clips, from {_count(sources, 'source')}"))
    values.append((f"{len(contents.drops):,}", "dropped"))
    return page.tiles(values)


def _strip_sections(contents, progress):
    """Skeletons over frames, then plain frames."""
    clips, measures = contents.clips, contents.measures
    ranked = sorted(range(len(clips)), key=lambda i: measures[i].confident)
    worst = ranked[:MOST_OVERLAYS] if len(clips) > 2 * MOST_OVERLAYS else []
    rest = sorted(set(range(len(clips))) - set(worst))
    overlaid = [*worst, *_evenly(rest, MOST_OVERLAYS if worst else 2 * MOST_OVERLAYS)]
    plain = _evenly(range(len(clips)), MOST_SHEETS)
    splits = {line.get("name"): line.get("split") for line in contents.records or ()}
    sheets, overlays = {}, {}
    chosen = sorted({*plain, *overlaid})
    for i in tqdm(chosen, desc="pictures", unit="clip", disable=not progress):
        clip, sure = clips[i], measures[i].confident
        first, second = strips(clip, plain=i in plain, overlay=i in overlaid)
        if first:
            notes = [f"{clip.seconds:.1f} s", f"{clip.width}×{clip.height}", f"{clip.fps:.4g} fps"]
            split = splits.get(clip.name)
            sheets[i] = page.figure(first, clip.name, notes + ([str(split)] if split else []))
        if second:
            note = f"{sure:.0%} confident"
            doubtful = sure < DOUBTFUL
            overlays[i] = page.figure(
                second, clip.name, [] if doubtful else [note], note if doubtful else None
            )
    shown = listed = "each clip"
    if worst:
        shown = f"the {len(worst)} least confident clips, then of others evenly over the set"
    if len(plain) < len(clips):
        listed = f"{len(plain):,} clips, evenly over the set"
    return [
        page.section(
            "Poses",
            f"Skeletons over three frames of {shown}.",
            page.figures([overlays[i] for i in overlaid], even=True),
        ),
        page.section(
            "Clips",
            f"Four frames of {listed}.",
            page.figures([sheets[i] for i in plain]),
        ),
    ]


def _charts(contents):
    clips, measures = contents.clips, contents.measures
    values = [
        ("Length", histogram([clip.seconds for clip in clips], " s")),
        ("Size", label_counts([f"{clip.width}×{clip.height}" for clip in clips])),
        ("Frames per second", label_counts([f"{clip.fps:.4g}" for clip in clips])),
        (
            "Confident body points",
            histogram([100 * m.confident for m in measures], "%", top=100),
        ),
        (
            "Height of the person in the picture",
            histogram([100 * m.height for m in measures], "%", top=100),
        ),
        ("Movement, heights per second", histogram([m.movement for m in measures], "")),
    ]
    text = "Number of clips. Points are confident where their score is above 0.3."
    return page.section("Numbers", text, page.charts(values))


def _drops(drops):
    reasons = Counter(str(drop.get("reason", "unknown")) for drop in drops)
    if not reasons:
        return page.section("Dropped", "Nothing was dropped.", "")
    folds = []
    for reason, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
        which = [drop for drop in drops if str(drop.get("reason", "unknown")) == reason]
        rows = [
            [_text(drop.get("source")), _part(drop), _text(drop.get("detail"))]
            for drop in which[:MOST_LISTED]
        ]
        folds.append(
            page.fold(reason, count, _listed(["source", "clip or scene", "detail"], rows, count))
        )
    text = "Videos, scenes and clips that were left out, by reason; a line opens."
    return page.section("Dropped", text, page.card("".join(folds)))


def _part(drop):
    """The clip, and where a scene lies in its video."""
    parts = [_text(drop.get("clip"))]
    scene = drop.get("scene")
    if isinstance(scene, list) and all(isinstance(end, int | float) for end in scene):
        parts.append(" to ".join(f"{end:.1f} s" for end in scene))
    elif scene is not None:
        parts.append(str(scene))
    return " ".join(filter(None, parts))


def _licences(clips):
    rows = []
    for licence, count in sorted(Counter(clip.licence for clip in clips).items()):
        these = [clip for clip in clips if clip.licence == licence]
        length = " ".join(_length(sum(clip.seconds for clip in these)))
        rows.append([licence, f"{count:,}", length, f"{len({c.source for c in these}):,}"])
    content = page.table(["licence", "clips", "length", "sources"], rows, numbers=(1, 2, 3))
    return page.section("Licences", "As the metadata gives them.", page.card(content))


def _sources(contents):
    splits = {line.get("source"): line.get("split") for line in contents.records or ()}
    clips: dict[str, list[Clip]] = {}
    for clip in contents.clips:
        clips.setdefault(clip.source, []).append(clip)
    rows = [
        [
            source,
            _text(splits.get(source)),
            f"{len(of):,}",
            f"{sum(clip.seconds for clip in of):.1f}",
        ]
        for source, of in list(clips.items())[:MOST_LISTED]
    ]
    content = _listed(["source", "split", "clips", "seconds"], rows, len(clips), numbers=(2, 3))
    text = "No source is in both training and validation." if splits else "No records yet."
    return page.section("Sources", text, page.card(page.fold("sources", len(clips), content)))


def _listed(head, rows, count, numbers=()):
    more = f"<p>and {count - len(rows):,} more</p>" if count > len(rows) else ""
    return page.table(head, rows, numbers) + more


def _evenly(items, most):
    """At most `most` of a sequence, spread over it."""
    items = list(items)
    count = min(len(items), most)
    return [items[int((i + 0.5) / count * len(items))] for i in range(count)]


def _length(seconds):
    """(number, unit) with the unit that suits."""
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f}", unit
    return f"{seconds:.1f}", "seconds"


def _count(number, noun):
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _text(value):
    return "" if value is None else str(value)
