"""From drawn clips over records to the picture that `animate-jax data-preview` writes."""

import numpy as np
import pytest
from PIL import Image

from animate_jax.cli import main
from animate_jax.data.config import DataConfig, SetConfig
from animate_jax.data.input import training_batches
from animate_jax.data.preview import GAP, LINE, TILE
from animate_jax.pose.render import draw_skeletons
from data_prep.puppets.generate import PuppetSet, generate
from data_prep.records import write_records

CONFIG = """
from configs import base

def get_config():
    config = base.get_config()
    config.data.update(path="{path}", height=64, width=48, batch_size=2, workers=0)
    return config
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preview")
    puppets = PuppetSet(clips=2, width=64, height=64, seed=0, frames=12)
    generate(puppets, folder / "puppets", progress=False)
    write_records(folder / "puppets", folder / "records", validation=0, progress=False)
    return folder / "records"


@pytest.fixture
def config(records, tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG.format(path=records))
    return str(path)


def tile(sheet, line, column, top, width):
    """The tile in a line below `top`, without its gaps."""
    x, y = GAP + column * (width + GAP), top + line * (TILE + GAP)
    return sheet[y : y + TILE, x : x + width].astype(int)


def enlarged(picture, width):
    return np.asarray(Image.fromarray(picture).resize((width, TILE), 1)).astype(int)


def test_pictures(records, config, tmp_path, capsys):
    out = tmp_path / "out.png"
    assert main(["data-preview", config, str(out)]) == 0
    assert f"wrote {out}: the first batch, 2 samples of 48x64 pixels" in capsys.readouterr().out
    sheet = np.asarray(Image.open(out))
    width = 48 * TILE // 64
    assert sheet.shape == (LINE + 2 * (LINE + TILE + GAP), GAP + 4 * (width + GAP), 3)
    sets = (SetConfig(str(records)),)
    settings = DataConfig(sets=sets, height=64, width=48, batch_size=2, workers=0)
    batch = next(training_batches(settings))
    for row in range(2):
        top = LINE + row * (LINE + TILE + GAP) + LINE
        reference, frame, skeleton, both = (tile(sheet, 0, c, top, width) for c in range(4))
        np.testing.assert_array_equal(reference, enlarged(batch["reference"][row], width))
        np.testing.assert_array_equal(frame, enlarged(batch["frames"][row, 0], width))
        drawn = np.asarray(draw_skeletons(batch["keypoints"][row, 0], 64, 48))
        assert drawn.max() > 0.5
        np.testing.assert_allclose(
            skeleton, enlarged((drawn * 255).round().astype(np.uint8), width), atol=1
        )
        # A person's skeleton lies on the person: where it is drawn, the picture shows it, dimmed.
        assert np.abs(both - skeleton)[skeleton.sum(-1) > 500].mean() < 40
        assert abs(both.mean() - frame.mean() * 2 / 3) < 20


def test_clips_and_overrides(config, tmp_path):
    out = tmp_path / "out.png"
    changes = ["--config.data.frames=8", "--config.data.stride=1", "--config.data.batch_size=1"]
    assert main(["data-preview", config, str(out), *changes]) == 0
    sheet = np.asarray(Image.open(out))
    width = 48 * TILE // 64
    assert sheet.shape == (2 * LINE + 3 * (TILE + GAP), GAP + 7 * (width + GAP), 3)
    frames = [tile(sheet, 0, column, 2 * LINE, width) for column in range(1, 7)]
    assert all((one != other).any() for one, other in zip(frames, frames[1:]))


def error_of(capsys, code):
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert code == 2 and len(lines) == 1, lines
    return lines[0]


def test_bad_requests(config, tmp_path, capsys):
    def fails(out, *changes, name=config):
        return error_of(capsys, main(["data-preview", name, str(tmp_path / out), *changes]))

    assert "end the name in .png" in fails("out.jpg")
    assert "there is no such config file" in fails("out.png", name=str(tmp_path / "none.py"))
    assert "frames is 0" in fails("out.png", "--config.data.frames=0")
    assert "framez" in fails("out.png", "--config.data.framez=1")
    (tmp_path / "there.png").write_text("mine")
    assert "exists" in fails("there.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.py", "there.png"]
    with pytest.raises(SystemExit, match="2"):
        main(["data-preview", config, "out.png", "--frames=1"])
    with pytest.raises(SystemExit, match="2"):  # commands without a config take none
        main(["inspect", "model", "--config.data.seed=1"])
