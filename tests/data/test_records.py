"""Records as training reads them."""

import json
import pickle
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from animate_jax.data.records import _copy_of, open_records
from animate_jax.errors import UnavailableError, UserError
from data_prep.shards import Record, write_shards


def example(number: int) -> dict:
    rng = np.random.default_rng(number)
    frames = 3 + number
    return {
        "name": f"clip-{number:02d}-é",
        "clip": rng.bytes(5000) + bytes(number),  # zeros at the end must survive
        "keypoints": rng.random((frames, 134, 3), np.float32),
        "frames": frames,
        "width": 64,
        "height": 96,
        "fps": 12.5,
        "source": "videos/<é>.mp4",
        "licence": "CC0-1.0",
    }


def write(directory, train=9, validation=2, **options):
    def records(numbers):
        return [Record(f"{i}", 15000, lambda i=i: example(i)) for i in numbers]

    numbers = range(train + validation)
    splits = {"train": records(numbers[:train]), "validation": records(numbers[train:])}
    write_shards(directory, splits, shard_bytes=50000, **options)
    return directory / "animate_clips" / "1.0.0"


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    directory = tmp_path_factory.mktemp("builds") / "build" / "records"
    write(directory)
    return directory


def by_name(source):
    return {source[i]["name"]: source[i] for i in range(len(source))}


def test_everything_comes_back(records):
    found = by_name(open_records(records, "train")) | by_name(open_records(records, "validation"))
    assert sorted(found) == [f"clip-{i:02d}-é" for i in range(11)]
    for number in range(11):
        expected, record = example(number), found[f"clip-{number:02d}-é"]
        assert record.keys() == expected.keys()
        np.testing.assert_array_equal(record.pop("keypoints"), expected.pop("keypoints"))
        assert record == expected
        assert {type(record[key]) for key in ("frames", "width", "height")} == {int}


def test_shards_hold_what_they_may(records):
    names = [path.name for path in sorted(records.rglob("*train*"))]
    assert names == [f"animate_clips-train.array_record-{i:05d}-of-00003" for i in range(3)]
    source = open_records(records, "train")
    assert len(source) == 9
    assert [source[i]["frames"] for i in range(9)] != list(range(3, 12))  # order by hash
    for index in (9, -1):
        with pytest.raises(IndexError, match=f"record {index} of 9"):
            source[index]


def test_any_parent_is_found(records):
    version = records / "animate_clips" / "1.0.0"
    expected = [open_records(version, "train")[i]["name"] for i in range(9)]
    for path in (version, version.parent, records, records.parent, str(records.parent.parent)):
        source = open_records(path, "train")
        assert [source[i]["name"] for i in range(9)] == expected


def test_more_files_may_be_open_than_a_shell_allows(records):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        open_records(records, "train")[0]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (min(hard, 65536), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_pickled_source_opens_its_own_shards(records):
    source = open_records(records, "train")
    fresh = pickle.loads(pickle.dumps(source))
    first = source[0]["clip"]
    used = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 1000
    assert fresh[0]["clip"] == used[0]["clip"] == first


def test_equal_records_are_described_equally_wherever_they_lie(records, tmp_path):
    other = write(tmp_path)
    assert repr(open_records(other, "train")) == repr(open_records(records, "train"))
    assert repr(open_records(other, "train")) != repr(open_records(records, "validation"))
    fewer = write(tmp_path / "fewer", train=8)
    assert repr(open_records(fewer, "train")) != repr(open_records(records, "train"))


def test_errors_say_what_to_do(records, tmp_path):
    with pytest.raises(UserError, match="no such directory"):
        open_records(tmp_path / "missing", "train")
    with pytest.raises(UserError, match="holds no records; write some with"):
        open_records(tmp_path, "train")
    with pytest.raises(UserError, match="no split 'test'; choose one of: train, validation"):
        open_records(records, "test")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "metadata.jsonl").touch()
    with pytest.raises(UserError, match="records --clips .*clips --out RECORDS"):
        open_records(tmp_path / "clips", "train")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dataset_info.json").write_text(json.dumps({"name": "mnist"}))
    with pytest.raises(UserError, match="holds no records"):
        open_records(tmp_path, "train")
    write(tmp_path / "one" / "records")
    assert len(open_records(tmp_path, "train")) == 9
    write(tmp_path / "two" / "records")
    with pytest.raises(UserError, match="holds 2 data sets .*one/records.*two/records"):
        open_records(tmp_path, "train")


def test_no_validation_split_where_nothing_validates(tmp_path):
    write(tmp_path, validation=0)
    with pytest.raises(UserError, match="no split 'validation'; choose one of: train$"):
        open_records(tmp_path, "validation")


def test_damage_is_named(tmp_path):
    version = write(tmp_path)
    (shard,) = version.glob("*train*-00001-of-*")
    content = shard.read_bytes()
    for damaged in (content[: len(content) // 2], bytes(len(content)), b""):
        shard.write_bytes(damaged)
        source = open_records(version, "train")
        assert source[0]["width"] == source[8]["width"] == 64
        with pytest.raises(UserError, match="00001-of-00003: record 4 of train cannot be read"):
            source[4]
    shard.unlink()
    with pytest.raises(UserError, match="00001-of-00003: this shard is missing"):
        open_records(version, "train")
    (version / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match="dataset_info.json: cannot be read"):
        open_records(version, "train")


def test_too_many_open_files_are_no_damage(tmp_path, monkeypatch):
    source = open_records(write(tmp_path), "train")

    def fail(*_):  # as array_record does
        raise RuntimeError("open() failed: Too many open files; opening x.ar")

    monkeypatch.setattr("animate_jax.data.records._open", fail)
    with pytest.raises(UnavailableError, match="-00000-of-.*cannot be read now .*Too many open"):
        source[0]


def test_opening_imports_no_dataset_library(records):
    """Workers start quickly, and a machine without the extra `data` is told so."""
    code = (
        "import sys; sys.modules['tensorflow_datasets'] = None\n"
        "from animate_jax.data.records import open_records\n"
        "from animate_jax.errors import UserError\n"
        "source = open_records(sys.argv[1], 'train')\n"
        "assert len(source) == 9 and 'jax' not in sys.modules\n"
        "try: source[0]\n"
        "except UserError as error: print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(records)], capture_output=True, text=True, check=True
    )
    assert "pip install 'animate-jax[data]'" in run.stdout


def test_records_in_a_bucket_are_copied_once(records, buckets, tmp_path, monkeypatch):
    _copy_of.cache_clear()
    monkeypatch.setenv("ANIMATE_JAX_CACHE", str(tmp_path / "cache"))
    place = buckets / "bucket" / "set"
    shutil.copytree(records, place)
    source = open_records("gs://bucket/set", "train")
    assert by_name(source).keys() == by_name(open_records(records, "train")).keys()
    assert repr(source) == repr(open_records(records, "train"))
    (place / "animate_clips" / "1.0.0" / "1.0.0").mkdir()  # as buckets list a folder in itself
    (copy,) = (tmp_path / "cache").rglob("1.0.0")
    written = {path.name: path.stat().st_ino for path in copy.iterdir()}
    assert written.keys() == {path.name for path in place.rglob("*.*") if path.is_file()}

    (shard,) = copy.glob("*train*-00001-of-*")
    shard.write_bytes(b"cut off")
    assert len(by_name(open_records("gs://bucket/set/animate_clips", "train"))) == 9
    again = {path.name: path.stat().st_ino for path in copy.iterdir()}
    assert {name for name in again if again[name] != written[name]} == {shard.name}

    shutil.rmtree(place)
    assert len(by_name(open_records("gs://bucket/set", "train"))) == 9  # asked for already
    write(place, train=8)  # others under the same name
    _copy_of.cache_clear()
    assert len(by_name(open_records("gs://bucket/set", "train"))) == 8


def test_records_in_a_bucket_that_cannot_be_copied(records, buckets, tmp_path, monkeypatch):
    _copy_of.cache_clear()
    monkeypatch.setenv("ANIMATE_JAX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="gs://bucket/none: there is no such directory"):
        open_records("gs://bucket/none", "train")
    with pytest.raises(UserError, match="gs://bucket: holds no records"):
        open_records("gs://bucket", "train")
    shutil.copytree(records, buckets / "bucket" / "set")
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(UserError, match="0.0 GB left; set ANIMATE_JAX_CACHE to a larger disk"):
        open_records("gs://bucket/set", "train")
