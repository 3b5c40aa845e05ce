"""What `animate-jax train` makes ready before a stage: puppets, and the stages it comes after."""

import pytest
from etils import epath

from animate_jax.cli import main
from animate_jax.commands import train as command
from animate_jax.data.records import open_records
from animate_jax.errors import UserError
from animate_jax.training.config import load_config


@pytest.fixture
def trained(monkeypatch):
    """The config of every stage that is trained, by the name of its workdir; only names a model."""
    configs = {}

    def train(config, workdir):
        configs[workdir.name] = config
        (workdir / "model").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(command, "run_training", train)
    return configs


@pytest.mark.parametrize(
    "step, finished, again",
    [
        (5, None, True),  # --write-model wrote its model
        (10, None, True),  # and it ended before it wrote its own
        (12, 10, True),  # it was told to take more steps
        (10, 10, False),
        (None, None, False),  # its checkpoints were removed
    ],
)
def test_an_earlier_stage_is_trained_to_its_end(trained, tmp_path, step, finished, again):
    earlier = tmp_path / "w" / "tiny_autoencoder"
    (earlier / "model").mkdir(parents=True)
    (earlier / "model" / "config.json").write_text("")
    if step:
        (earlier / "checkpoints" / str(step)).mkdir(parents=True)
    if finished:
        (earlier / "finished_step").write_text(f"{finished}\n")
    arguments = ["--config", "configs/tiny_stage1.py", "--config.data.path=here"]
    assert main(["train", "--workdir", str(tmp_path / "w"), *arguments]) == 0
    assert list(trained) == ["tiny_autoencoder", "w"][not again :]
    assert trained["w"].init_from == str(earlier)


def test_earlier_stages_take_the_same_data(trained, tmp_path):
    data = ["--config.data.sets=({'path': 'a'}, {'path': 'b'})", "--config.validation.path=v"]
    config = ["--config", "configs/tiny_stage2.py"]
    assert main(["train", "--workdir", str(tmp_path / "w"), *config, *data]) == 0
    assert list(trained) == ["tiny_autoencoder", "tiny_stage1", "w"]
    for stage in trained.values():
        assert [one["path"] for one in stage.data.sets] == ["a", "b"] and not stage.data.path
        assert stage.validation.path == "v"


@pytest.mark.parametrize("told, found", [("split=train", ("train", 500)), ("every=0", (None, 0))])
def test_earlier_stages_are_validated_likewise(trained, tmp_path, told, found):
    config = ["--config", "configs/tiny_stage1.py", "--config.data.path=here"]
    config.append(f"--config.validation.{told}")
    assert main(["train", "--workdir", str(tmp_path / "w"), *config]) == 0
    assert list(trained) == ["tiny_autoencoder", "w"]
    for stage in trained.values():
        assert stage.validation.split == (found[0] or "validation")
        assert stage.validation.every == found[1]


@pytest.mark.parametrize("option", ["--workdir", "--compiled"])
def test_a_file_where_a_directory_goes(tmp_path, capsys, option):
    (tmp_path / "file").touch()
    places = {"--workdir": tmp_path / "w"} | {option: tmp_path / "file"}
    arguments = [str(text) for pair in places.items() for text in pair]
    assert main(["train", "--config", "configs/tiny_autoencoder.py", *arguments]) == 2
    told = capsys.readouterr().err
    assert "file: no directory" in told and "File exists" in told and told.count("\n") == 1


def test_puppets_are_drawn_into_a_bucket_too(buckets, tmp_path, monkeypatch):
    monkeypatch.setenv("ANIMATE_JAX_CACHE", str(tmp_path / "cache"))
    puppets = load_config("configs/tiny_stage1.py", ["puppets.clips=3", "puppets.size=64"]).puppets
    puppets.frames, puppets.validation = 4, 0.0
    workdir = epath.Path("gs://bucket/run")
    records = command.puppet_records(puppets, workdir)
    assert len(open_records(records, "train")) == 3
    before = [path.stat().st_mtime_ns for path in buckets.rglob("*") if path.is_file()]
    command.puppet_records(puppets, workdir)
    assert [path.stat().st_mtime_ns for path in buckets.rglob("*") if path.is_file()] == before
    puppets.seed = 5
    with pytest.raises(UserError, match="records: was drawn .*seed was 0, now 5"):
        command.puppet_records(puppets, workdir)
