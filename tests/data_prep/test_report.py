"""The report on a clip directory."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from animate_jax.errors import UserError
from animate_jax.pose import skeleton as sk
from animate_jax.pose.keypoints import Keypoints, load_keypoints
from animate_jax.video.writing import write_video
from data_prep import report
from data_prep.__main__ import main
from data_prep.clip_directory import read_clips
from data_prep.measures import measure
from data_prep.puppets.generate import PuppetSet, generate
from data_prep.records import write_records
from data_prep.report import write_report
from data_prep.report_charts import HEIGHT, histogram, label_counts
from data_prep.report_pictures import OVERLAY_HEIGHT, OVERLAY_WIDTH, strips

SCRIPT = "<script>alert('\"&')</script>"
ODD_NAME = '<b>" onload="alert(1)'
DROPS = [
    {"source": SCRIPT, "clip": None, "scene": [0.0, 1.25], "reason": "too short", "detail": "<b>"},
    {"source": "b.mp4", "clip": "b-000", "scene": [3, 8.5], "reason": "no person", "detail": ""},
    {"source": "c.mp4", "clip": None, "scene": None, "reason": "too short", "detail": "0.8 s"},
    {"source": None, "reason": SCRIPT},
]


@pytest.fixture(scope="module")
def puppets(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sets") / "puppets"
    generate(PuppetSet(4, 128, 160, 5, frames=12), directory, progress=False)
    return directory


@pytest.fixture
def build(puppets, tmp_path):
    """With drops, records, and names that a page must not take for its own."""
    directory = shutil.copytree(puppets, tmp_path / "build")
    lines = [json.loads(line) for line in (directory / "metadata.jsonl").open()]
    lines[1] |= {"source": SCRIPT, "licence": SCRIPT}
    odd = f"clips/{ODD_NAME}.mp4"
    (directory / lines[2]["clip"]).rename(directory / odd)
    lines[2] |= {"clip": odd, "licence": "MIT"}
    (directory / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "drops.jsonl").write_text("".join(json.dumps(drop) + "\n" for drop in DROPS))
    write_records(directory, directory / "records", validation=0.3, progress=False)
    with open(directory / "records" / "drops.jsonl", "a") as drops:
        line = {"source": "d", "clip": "d-1", "reason": "near duplicate", "detail": "of d-0"}
        drops.write(json.dumps(line) + "\n")
    return directory


class Page(HTMLParser):
    """Text, tags in order of opening, and attribute values of a page whose tags must match."""

    def __init__(self, path):
        super().__init__()
        self.text, self.tags, self.values, self.open = [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.values += [(tag, name, value) for name, value in attributes]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def pictures(self):
        return [value for tag, name, value in self.values if (tag, name) == ("img", "src")]


def test_one_file_that_needs_nothing_else(build):
    path = write_report(build, progress=False)
    assert path == build / "report.html"
    page, content = Page(path), path.read_text()
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in page.pictures())
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", content)
    assert not re.search(r"https?:|//|@import|url\(", without_pictures)
    assert len(page.pictures()) == 4 + 4
    for uri in page.pictures():
        assert decoded(uri).format == "JPEG"
    assert not [name for _, name, _ in page.values if name.startswith("on")]


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_what_files_say_is_text(build):
    page = Page(write_report(build, progress=False))
    assert page.text.count(SCRIPT) == 4  # a dropped source, its reason, a licence, a source
    assert page.text.count(ODD_NAME) == 2
    assert page.values.count(("img", "alt", ODD_NAME)) == 2
    assert "b" in page.tags and page.tags.count("b") == 7 + 8 + 4 + 1  # tiles, clips, folds


def test_numbers_and_lists(build):
    page = Page(write_report(build, progress=False))
    text = "|".join(part.strip() for part in page.text if part.strip())
    seconds = sum(clip.seconds for clip in read_clips(build))
    assert f"4|clips|{seconds:.1f}|seconds|48|frames|4|sources|" in text
    splits = [json.loads(line) for line in (build / "records" / "splits.jsonl").open()]
    counts = {split: sum(line["split"] == split for line in splits) for split in ("train",)}
    validation = 4 - counts["train"]
    assert 0 < validation < 4
    assert f"|{counts['train']}|train clips, from {counts['train']} source" in text
    assert f"|{validation}|validation clips, from {validation} source" in text
    assert "|5|dropped|" in text
    assert "|too short|2|source|clip or scene|detail|" in text
    assert f"{SCRIPT}|0.0 s to 1.2 s|<b>|c.mp4|0.8 s|" in text
    assert "|no person|1|" in text and "|b.mp4|b-000 3.0 s to 8.5 s|" in text
    assert "|near duplicate|1|" in text and "|d|d-1|of d-0|" in text
    assert "|CC0-1.0|2|1.6 seconds|2|MIT|1|0.8 seconds|1|" in text


def test_puppets_without_drops_and_records(puppets, tmp_path, capsys):
    directory = shutil.copytree(puppets, tmp_path / "set")
    assert main(["report", str(directory)]) == 0
    assert f"wrote {directory / 'report.html'}" in capsys.readouterr().out
    text = Page(directory / "report.html").text
    assert "Nothing was dropped." in text and "train: no records yet" in text
    assert main(["report", str(tmp_path)]) == 2
    assert "should be a clip directory" in capsys.readouterr().err


def test_the_same_directory_gives_the_same_bytes(build, puppets, tmp_path):
    first = write_report(build, progress=False).read_bytes()
    moved = shutil.copytree(build, tmp_path / "elsewhere")
    (moved / "report.html").unlink()
    assert write_report(moved, progress=False).read_bytes() == first
    assert write_report(puppets, progress=False).read_bytes() != first
    (puppets / "report.html").unlink()


def test_large_sets_are_sampled_and_the_doubtful_shown_first(build, monkeypatch):
    monkeypatch.setattr(report, "MOST_OVERLAYS", 1)
    monkeypatch.setattr(report, "MOST_SHEETS", 2)
    monkeypatch.setattr(report, "MOST_LISTED", 1)
    bad = read_clips(build)[3]
    keypoints = load_keypoints(bad.keypoints_path)
    points = keypoints.points.copy()
    points[:, :9, 2] = 0.1
    Keypoints(points, keypoints.fps, 128, 160).save(bad.keypoints_path)
    page = Page(write_report(build, progress=False))
    names = [value for tag, name, value in page.values if (tag, name) == ("img", "alt")]
    assert names == ["000003", "000001", "000001", "000003"]
    marked = [value for tag, name, value in page.values if value == "mark bad"]
    assert len(marked) == 1
    assert "and 1 more" in page.text  # of the two that are too short
    assert "and 3 more" in page.text  # of four sources


def test_an_earlier_report_stays_when_a_clip_is_damaged(build):
    path = write_report(build, progress=False)
    before = path.read_bytes()
    (build / "clips" / "000000.mp4").write_bytes(b"broken")
    with pytest.raises(UserError, match="000000.mp4: not a readable video"):
        write_report(build, progress=False)
    assert path.read_bytes() == before
    (build / "metadata.jsonl").write_text("")
    with pytest.raises(UserError, match="no clips, so nothing to report on"):
        write_report(build, progress=False)


def test_skeletons_lie_where_the_points_are(tmp_path):
    """A grey clip; in its strip the joints have their colours at the places computed by hand."""
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", [np.full((520, 390, 3), 128, np.uint8)] * 3, 10.0)
    points = np.zeros((3, 134, 3), np.float32)
    places = {sk.NOSE: (195, 110), sk.RIGHT_WRIST: (95, 260), sk.LEFT_ANKLE: (275, 410)}
    for joint, place in places.items():
        points[:, joint] = *place, 1
    Keypoints(points, 10.0, 390, 520).save(tmp_path / "a.npz")
    line = {"clip": "clips/a.mp4", "keypoints": "a.npz", "frames": 3, "fps": 10, "width": 390}
    line |= {"height": 520, "source": "a", "licence": "CC0-1.0"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(line))
    (clip,) = read_clips(tmp_path)
    plain, overlay = strips(clip, plain=True, overlay=True)
    assert (plain.width, plain.height) == (4 * 121 - 1, 160)
    picture = np.asarray(decoded(overlay.uri).convert("RGB")).astype(int)
    assert picture.shape == (OVERLAY_HEIGHT, 3 * (OVERLAY_WIDTH + 1) - 1, 3)
    # The box: 300 high and 0.12 of that around it, so 372 x 279 pixels about (185, 260).
    scale = OVERLAY_HEIGHT / 372
    for joint, (x, y) in places.items():
        column = round((x - (185 - 279 / 2)) * scale) + OVERLAY_WIDTH + 1  # of the second frame
        row = round((y - (260 - 372 / 2)) * scale)
        near = picture[row - 1 : row + 2, column - 1 : column + 2]
        assert np.abs(near - sk.BODY_COLOURS[joint]).max(-1).min() < 60, (joint, near)
    assert np.abs(picture[10, 10] - 0.75 * 128).max() < 5


def test_measures():
    """A person 100 pixels high who moves 2 pixels a frame, in half of whose frames nobody is."""
    points = np.zeros((20, 134, 3), np.float32)
    points[5:15, :24, 0] = 50 + 2 * np.arange(10)[:, None]
    points[5:15, :24, 1] = np.linspace(20, 120, 24)
    points[5:15, :24, 2] = 0.9
    points[5:15, 9:18, 2] = 0.2  # half of the body points are not confident
    found = measure(Keypoints(points, 25.0, 200, 400))
    assert found.confident == pytest.approx(0.25)
    assert found.height == pytest.approx(0.25)
    assert found.movement == pytest.approx(2 * 25 / 100)
    nobody = measure(Keypoints(np.zeros((1, 134, 3), np.float32), 25.0, 200, 400))
    assert (nobody.confident, nobody.height, nobody.movement) == (0, 0, 0)


def bars(svg):
    """Titles and heights of a chart's bars."""
    found = re.findall(r'class="bar".*? height="([\d.]+)".*?<title>(.*?)</title>', svg)
    return {title: float(height) for height, title in found}


def test_charts_count():
    svg = histogram([0, 0.4, 1.9, 4.0, 7.5, 9.99], " s")
    heights = bars(svg)
    assert list(heights) == [
        "0 to 0.5 s: 2",
        "1.5 to 2 s: 1",
        "4 to 4.5 s: 1",
        "7.5 to 8 s: 1",
        "9.5 to 10 s: 1",
    ]
    assert heights["0 to 0.5 s: 2"] == 2 * heights["4 to 4.5 s: 1"] < HEIGHT
    assert "median 2.95 s" in svg and ">10 s</text>" in svg
    assert list(bars(histogram([130.0], "%", top=100))) == ["95 to 100%: 1"]
    assert bars(histogram([], "")) == {}
    labels = ["a<b>"] * 3 + ["c"] * 5 + [str(i) for i in range(6)]
    svg = label_counts(labels)
    expected = ["c: 5", "a&lt;b&gt;: 3", "0: 1", "1: 1", "2: 1", "3: 1", "others: 2"]
    assert list(bars(svg)) == expected and "<b>" not in svg
