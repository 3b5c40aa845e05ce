"""Batches: the same whoever makes them, in however many threads, from wherever a run goes on."""

import dataclasses

import grain
import numpy as np
import orbax.checkpoint as ocp
import pytest
from synthetic_records import dotted_record

from animate_jax.data.config import DataConfig, SetConfig, data_config
from animate_jax.data.input import training_batches, validation_batches
from animate_jax.errors import UserError
from animate_jax.pose import skeleton as sk

ONE, TWO = SetConfig("one"), SetConfig("two")
CONFIG = DataConfig(
    sets=(ONE,), height=32, width=32, margin=3, batch_size=4, workers=0, zoom=(0.5, 1.0)
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two sets, of 16 and of 3 records; clips of 8 to 15 frames."""
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)

    def record(name):
        count = int(rng.integers(8, 16))
        points = {p: rng.uniform(8, 40, (count, 2)) for p in (sk.NOSE, sk.LEFT_WRIST)}
        return dotted_record(folder, points, 48, 48, name=name, radius=5)

    return [[record(f"{name}{i}") for i in range(n)] for name, n in (("one", 16), ("two", 3))]


def take(batches, count):
    with_batches = [next(batches) for _ in range(count)]
    batches.close()
    return with_batches


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def records(batches):
    return np.concatenate([batch["record"] for batch in batches])


@pytest.fixture(scope="module")
def uninterrupted(sources):
    return take(training_batches(CONFIG, sources=sources[:1]), 57)


def test_shapes(sources, uninterrupted):
    shapes = {name: (a.shape, a.dtype.name) for name, a in uninterrupted[0].items()}
    assert shapes == {
        "reference": ((4, 32, 32, 3), "uint8"),
        "reference_keypoints": ((4, 134, 3), "float32"),
        "frames": ((4, 1, 32, 32, 3), "uint8"),
        "keypoints": ((4, 1, 134, 3), "float32"),
        "record": ((4, 3), "int32"),
    }
    config = dataclasses.replace(CONFIG, frames=5, width=64)
    (batch,) = take(training_batches(config, sources=sources[:1]), 1)
    assert batch["frames"].shape == (4, 5, 32, 64, 3)
    assert batch["keypoints"].shape == (4, 5, 134, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_gives_the_same_batches(sources, uninterrupted, workers):
    config = dataclasses.replace(CONFIG, workers=workers)
    batches = training_batches(config, sources=sources[:1])
    assert_equal([next(batches) for _ in range(7)], uninterrupted[:7])
    state = batches.get_state()
    assert state == {"next_batch": 7}
    batches.close()
    later = training_batches(config, sources=sources[:1])
    next(later)
    later.set_state(state)
    assert_equal([next(later) for _ in range(50)], uninterrupted[7:])
    later.set_state({"next_batch": 3})  # and back again
    assert_equal(take(later, 2), uninterrupted[3:5])


def test_the_position_is_saved_by_orbax(sources, uninterrupted, tmp_path):
    batches = training_batches(CONFIG, sources=sources[:1])
    for _ in range(5):
        next(batches)
    with ocp.CheckpointManager(tmp_path.resolve()) as manager:
        manager.save(5, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(batches)))
        manager.wait_until_finished()
        restored = training_batches(CONFIG, sources=sources[:1])
        restore = grain.checkpoint.CheckpointRestore(restored)
        manager.restore(5, args=ocp.args.Composite(data=restore))
    assert_equal(take(restored, 3), uninterrupted[5:8])


@pytest.mark.parametrize("processes", [[[0], [1]], [[0], [1], [2], [3]], [[0, 3], [2, 1]]])
def test_processes_share_the_same_batches(sources, uninterrupted, processes):
    count = sum(map(len, processes))
    parts = [
        take(training_batches(CONFIG, shards=held, shard_count=count, sources=sources[:1]), 8)
        for held in processes
    ]
    assert len(parts[0][0]["record"]) == 4 // len(processes)
    order = np.argsort(sum(processes, []))  # of the shards, each of as many rows

    def together(arrays):
        shards = np.concatenate([x.reshape(-1, 4 // count, *x.shape[1:]) for x in arrays])
        return shards[order].reshape(4, *shards.shape[2:])

    joined = [
        {name: together([part[name] for part in batch]) for name in batch[0]}
        for batch in zip(*parts)
    ]
    assert_equal(joined, uninterrupted[:8])
    # 16 records in batches of 4: each epoch is 4 batches, its records come once.
    for epoch in (slice(0, 4), slice(4, 8)):
        shares = [set(records(part[epoch])[:, 1].tolist()) for part in parts]
        assert sum(map(len, shares)) == 16 and set.union(*shares) == set(range(16))


def test_epochs_and_seeds_differ(sources, uninterrupted):
    order = records(uninterrupted)[:, 1]
    assert (order[:16] != order[16:32]).any()
    assert sorted(order[16:32]) == list(range(16))
    other = take(training_batches(dataclasses.replace(CONFIG, seed=1), sources=sources[:1]), 8)
    assert (records(other)[:, 1] != order[:32]).any()
    # Not only the order is another one.
    alone = [sources[1][:1]]
    first, second = (
        take(training_batches(dataclasses.replace(CONFIG, seed=seed), sources=alone), 1)[0]
        for seed in (0, 1)
    )
    assert (first["reference"] != second["reference"]).any()
    # The same record is not the same sample again.
    pictures = np.concatenate([batch["reference"] for batch in uninterrupted])
    first, again = np.flatnonzero(order == 5)[:2]
    assert (pictures[first] != pictures[again]).any()


def test_sets_are_mixed_by_weight(sources):
    sets = (dataclasses.replace(ONE, weight=3.0), dataclasses.replace(TWO, weight=1.0))
    config = dataclasses.replace(CONFIG, sets=sets, workers=2)
    seen = records(take(training_batches(config, sources=sources), 24))
    chosen = seen[:, 0]
    assert np.bincount(chosen).tolist() == [72, 24]
    assert [int(batch.sum()) for batch in chosen.reshape(-1, 8)] == [2] * 12  # evenly
    assert np.bincount(seen[chosen == 1][:, 1]).tolist() == [8, 8, 8]
    swapped = dataclasses.replace(config, sets=(ONE, dataclasses.replace(TWO, weight=0.25)))
    chosen = records(take(training_batches(swapped, sources=sources), 10))[:, 0]
    assert np.bincount(chosen).tolist() == [32, 8]


@pytest.mark.parametrize("count", [1, 2])
def test_validation_takes_every_record_in_order(sources, count):
    config = dataclasses.replace(CONFIG, sets=(ONE, TWO), batch_size=8, workers=2)
    parts = [
        validation_batches(config, shards=[i], shard_count=count, sources=sources)
        for i in range(count)
    ]
    assert all(len(part) == 3 for part in parts)
    batches = [list(part) for part in parts]
    rows = np.concatenate([np.concatenate([p["record"] for p in b]) for b in zip(*batches)])
    expected = [(0, i) for i in range(16)] + [(1, i) for i in range(3)]
    assert rows[:19, :2].tolist() == [list(place) for place in expected]
    assert rows[19:].tolist() == [[-1, -1, -1]] * 5
    filled = batches[-1][-1]["reference"][-1]
    assert filled.max() > 0  # a real picture
    again = list(validation_batches(config, shard_count=count, sources=sources))
    assert_equal(batches[0], again)


def test_a_batch_larger_than_the_validation_set(sources):
    config = dataclasses.replace(CONFIG, sets=(TWO,), batch_size=16)
    (batch,) = validation_batches(config, sources=sources[1:])
    assert batch["record"][:, 1].tolist() == [0, 1, 2] + [-1] * 13


@pytest.mark.parametrize("workers", [0, 2])
def test_validation_ends_where_it_ends(sources, workers):
    config = dataclasses.replace(CONFIG, sets=(TWO,), batch_size=2, workers=workers)
    batches = validation_batches(config, sources=sources[1:])
    assert len(list(batches)) == 2
    assert batches.get_state() == {"next_batch": 2}
    assert next(batches, None) is None
    batches.set_state({"next_batch": 2})
    assert next(batches, None) is None
    batches.set_state({"next_batch": 1})
    assert next(batches)["record"][:, 1].tolist() == [2, -1]
    batches.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_record_ends_the_run_with_its_name(sources, workers):
    damaged = [[{**record, "clip": b"nothing"} for record in sources[1]]]
    config = dataclasses.replace(CONFIG, sets=(TWO,), workers=workers)
    batches = training_batches(config, sources=damaged)
    with pytest.raises(UserError, match="record two[012]: the clip cannot be decoded"):
        next(batches)
    batches.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "data.frames is 0"),
        ({"height": 100}, "data.height is 100; give a multiple of 8"),
        ({"width": 0}, "data.width is 0"),
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"stride": 0}, "data.stride is 0"),
        ({"workers": -1}, "data.workers is -1"),
        ({"zoom": (0.9, 0.8)}, "zoom"),
        ({"zoom": (0.5,)}, "zoom"),
        ({"zoom": (0.5, 1.1)}, "zoom"),
        ({"flip": 1.5}, "flip is 1.5"),
        ({"crop": "wide"}, "crop is 'wide'; it can be one of"),
        ({"sets": ()}, "sets is empty"),
        ({"sets": ({"path": "a", "weight": 0},)}, "a: its weight is 0"),
        ({"sets": ({"path": "a", "weight": float("nan")},)}, "a: its weight is nan"),
        ({"sets": ({"path": "a", "wait": 1},)}, "unknown keys \\['wait'\\]"),
        ({"framez": 1}, "unknown keys \\['framez'\\]"),
    ],
)
def test_impossible_configs(changes, message):
    with pytest.raises(UserError, match=message):
        data_config({"sets": ({"path": "one"},), **changes})


def test_impossible_runs(sources, tmp_path):
    with pytest.raises(UserError, match="batch of 4 cannot be split into 3 parts"):
        training_batches(CONFIG, shard_count=3, sources=sources[:1])
    with pytest.raises(UserError, match="one: train holds no records"):
        training_batches(CONFIG, sources=[[]])
    with pytest.raises(UserError, match="one: train holds no records"):
        validation_batches(CONFIG, sources=[[]])
    missing = dataclasses.replace(CONFIG, sets=(SetConfig(str(tmp_path / "none")),))
    with pytest.raises(UserError, match="none: there is no such directory"):
        training_batches(missing)


def test_a_section_of_a_config():
    ml_collections = pytest.importorskip("ml_collections")
    section = ml_collections.ConfigDict(
        {"sets": ({"path": "one", "weight": 2},), "zoom": [0.5, 1], "batch_size": 2}
    )
    expected = DataConfig(sets=(SetConfig("one", weight=2.0),), zoom=(0.5, 1.0), batch_size=2)
    assert data_config(section) == expected
