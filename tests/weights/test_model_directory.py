"""Model directories: what is stored comes back, placed and cast as asked; everything else fails."""

import json
import os
import shutil
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from animate_jax.config import from_dict, tiny, to_dict
from animate_jax.errors import UserError
from animate_jax.models.animate_anyone import COMPONENTS, AnimateAnyone
from animate_jax.weights import items, model_directory
from animate_jax.weights.inspect import describe_model
from animate_jax.weights.lazy_tensor import LazyTensor
from animate_jax.weights.model_directory import (
    check_target,
    load_model,
    read_config,
    save_model,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def params():
    return AnimateAnyone(tiny()).init(0)


@pytest.fixture(scope="module")
def saved(params, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    save_model(path, tiny(), params.items())
    return path


def linked(saved, path, without=()):
    """The same model with links for parts, so that one can be taken away or changed."""
    path.mkdir()
    for part in saved.iterdir():
        if part.name not in without:
            (path / part.name).symlink_to(part)
    return path


def assert_equal(ours, theirs):
    ours, theirs = flatten_dict(ours), flatten_dict(theirs)
    assert set(ours) == set(theirs)
    for path, leaf in theirs.items():
        assert ours[path].dtype == leaf.dtype
        np.testing.assert_array_equal(ours[path], leaf)


def test_what_is_saved_is_loaded(saved, params):
    config, loaded = load_model(saved)
    assert config == tiny() == read_config(saved)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
    assert_equal(loaded, params)
    parts = {part.name for part in saved.iterdir()}
    assert parts == {*COMPONENTS, "motion_modules", "config.json"}


def test_motion_modules_lie_apart_from_the_unet(saved):
    stored = model_directory.stored_leaves(saved, tiny(), "denoising_unet")
    assert [len(part) for part in stored.values()] == [440, 13 * 28]
    assert not any("motion_modules_0" in path for path in stored["denoising_unet"])
    assert all("motion_modules_" in "/".join(path) for path in stored["motion_modules"])


def test_no_file_names_a_directory_of_the_machine_that_wrote_it(saved):
    files = [file for file in Path(saved).rglob("*") if file.is_file()]
    told = [file for file in files if os.fsencode(saved.parent) in file.read_bytes()]
    assert len(files) > 20 and not told


def test_components_are_chosen_and_cast(saved, params):
    _, loaded = load_model(saved, components=("pose_guider", "image_encoder"), dtype="bfloat16")
    assert set(loaded) == {"pose_guider", "image_encoder"}
    expected = {name: params[name] for name in loaded}
    assert_equal(loaded, jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), expected))


def test_components_may_be_functions_with_leaves_of_every_kind(params, tmp_path):
    kinds = [
        LazyTensor.of,
        jax.numpy.asarray,
        np.asarray,
        lambda x: np.asarray(x, np.float16),
        lambda x: np.asarray(x, ml_dtypes.bfloat16),
    ]
    mixed = {
        name: unflatten_dict(
            {p: kinds[i % 5](leaf) for i, (p, leaf) in enumerate(flatten_dict(tree).items())}
        )
        for name, tree in params.items()
    }
    # A loop variable as default: the functions run later.
    save_model(tmp_path / "m", tiny(), ((n, lambda t=t: t) for n, t in mixed.items()))
    read = lambda x: x.read() if isinstance(x, LazyTensor) else x  # noqa: E731
    assert_equal(load_model(tmp_path / "m")[1], jax.tree.map(read, mixed))


def test_lazy_tensors_are_read_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(items, "_GROUP_BYTES", 4000)
    living, most = set(), 0

    def make(i):
        def read():
            nonlocal most
            array = np.full(1000, i, np.int16)
            living.add(i)
            weakref.finalize(array, living.discard, i)
            most = max(most, len(living))
            return array

        return LazyTensor((1000,), np.dtype(np.int16), read)

    items.save_item(tmp_path / "item", {"a": {f"{i:02}": make(i) for i in range(30)}})
    # A group of two, and the one before it that Orbax may still hold.
    assert 2 <= most <= 4
    item = epath.Path(tmp_path / "item")
    arrays = items.load_item_on_host(item, items.item_leaves(item))
    assert len(arrays) == 30
    assert all((array == int(name)).all() for (_, name), array in arrays.items())


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from animate_jax.weights.model_directory import load_model

assert jax.device_count() == 8
mesh = jax.make_mesh((2, 4), ("data", "fsdp"))
replicated = NamedSharding(mesh, PartitionSpec())
rows = NamedSharding(mesh, PartitionSpec(None, None, None, "fsdp"))

def place(path):
    assert path.split("/")[0] in ("pose_guider", "autoencoder"), path
    return rows if path == "pose_guider/conv_out/kernel" else replicated

parts = ("pose_guider", "autoencoder")
_, plain = load_model(sys.argv[1], components=parts)
assert all(len(x.sharding.device_set) == 1 for x in jax.tree.leaves(plain))
_, by_path = load_model(sys.argv[1], components=parts, shardings=place, dtype="bfloat16")
tree = jax.tree_util.tree_map_with_path(
    lambda path, _: place("/".join(key.key for key in path)), plain)
_, by_tree = load_model(sys.argv[1], components=parts, shardings=tree)
_, same = load_model(sys.argv[1], components=parts, shardings=replicated)
for loaded in by_path, by_tree:
    kernel = loaded["pose_guider"]["conv_out"]["kernel"]
    assert kernel.sharding == rows
    assert {s.data.shape for s in kernel.addressable_shards} == {(3, 3, 32, 8)}
    others = [x for x in jax.tree.leaves(loaded) if x is not kernel]
    assert all(x.sharding == replicated for x in others)
assert all(x.sharding == replicated for x in jax.tree.leaves(same))
for a, b, c, d in zip(*map(jax.tree.leaves, (plain, by_path, by_tree, same)), strict=True):
    assert np.array_equal(np.asarray(a).astype(b.dtype), b) and b.dtype == "bfloat16"
    assert np.array_equal(a, c) and np.array_equal(a, d)
print("equal")
"""


def test_arrays_are_loaded_onto_their_shardings(saved):
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    run = subprocess.run(
        [sys.executable, "-c", SHARDED, str(saved)],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.stdout == "equal\n", run.stderr


TWO_PROCESSES = """
import sys
import jax, numpy as np
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jax.sharding import NamedSharding, PartitionSpec
from animate_jax.config import tiny
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.weights.model_directory import load_model, save_model

mesh = jax.make_mesh((2,), ("fsdp",))
rows, replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), ()))

def spread(x):
    place = rows if x.shape[0] % 2 == 0 else replicated
    return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

params = AnimateAnyone(tiny()).init(0)
on_host = {"autoencoder", "image_encoder"}
components = ((n, t if n in on_host else jax.tree.map(spread, t)) for n, t in params.items())
save_model(sys.argv[3], tiny(), components)
of_path = lambda path: rows if path == "denoising_unet/conv_in/bias" else replicated
for shardings in (None, of_path):
    _, loaded = load_model(sys.argv[3], shardings=shardings)
    for ours, theirs in zip(*map(jax.tree.leaves, (loaded, params)), strict=True):
        assert all(np.array_equal(s.data, theirs[s.index]) for s in ours.addressable_shards)
print("equal")
"""


def test_two_processes_write_one_model_and_read_it(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, address, str(i), str(tmp_path / "m")],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in (0, 1)
    ]
    try:
        for run in runs:
            out, errors = run.communicate(timeout=300)
            assert out.splitlines()[-1:] == ["equal"], errors
    finally:
        for run in runs:
            run.kill()
    _, loaded = load_model(tmp_path / "m")
    assert_equal(loaded, AnimateAnyone(tiny()).init(0))


def test_an_existing_target_is_refused_before_any_work(saved, tmp_path):
    def never():
        raise AssertionError("no component should be asked for")

    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds a model already"):
        save_model(saved, tiny(), [("denoising_unet", never)])
    with pytest.raises(UserError, match="is not a model directory"):
        save_model(other, tiny(), [("denoising_unet", never)], overwrite=True)
    assert (other / "notes.txt").read_text() == "mine"


def test_overwriting_replaces_the_whole_model(params, tmp_path):
    doubled = jax.tree.map(lambda x: 2 * x, params)
    save_model(tmp_path / "m", tiny(), params.items())
    save_model(tmp_path / "m", tiny(), doubled.items(), overwrite=True)
    _, loaded = load_model(tmp_path / "m", components=["pose_guider"])
    assert_equal(loaded["pose_guider"], doubled["pose_guider"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("error", [UserError("the file is cut off"), KeyboardInterrupt("stop")])
def test_a_failed_write_leaves_the_old_model_and_nothing_else(params, tmp_path, error):
    save_model(tmp_path / "m", tiny(), params.items())

    def fails():
        raise error

    leaves = flatten_dict(params["pose_guider"])
    path = ("conv_out", "bias")
    leaves[path] = LazyTensor(leaves[path].shape, leaves[path].dtype, fails)
    broken = params | {"pose_guider": unflatten_dict(leaves)}
    with pytest.raises(type(error), match=str(error)):
        save_model(tmp_path / "m", tiny(), broken.items(), overwrite=True)
    with pytest.raises(type(error), match=str(error)):
        save_model(tmp_path / "new", tiny(), broken.items())
    assert [entry.name for entry in tmp_path.iterdir()] == ["m"]
    _, loaded = load_model(tmp_path / "m", components=["pose_guider"])
    assert_equal(loaded["pose_guider"], params["pose_guider"])


def test_without_a_rename_the_config_is_written_last(params, tmp_path, monkeypatch):
    monkeypatch.setattr(model_directory, "_can_rename", lambda target: False)
    target, seen = tmp_path / "m", []

    def components():
        for name, tree in params.items():
            seen.append((target / "config.json").exists())
            yield name, tree

    for overwrite in (False, True):
        save_model(target, tiny(), components(), overwrite=overwrite)
    assert seen == [False] * 10
    assert_equal(load_model(target)[1], params)
    with pytest.raises(ValueError, match="were not given"):
        save_model(target, tiny(), [], overwrite=True)
    assert not target.exists()


def test_parameters_must_be_those_of_the_config(params, tmp_path):
    guider = flatten_dict(params["pose_guider"])
    del guider["conv_in", "bias"]
    for components, message in (
        ([("pose_guide", {})], "'pose_guide' is unknown"),
        ([("pose_guider", params["pose_guider"])] * 2, "given twice"),
        ([("pose_guider", unflatten_dict(guider))], "it lacks conv_in.bias"),
        ([("pose_guider", params["pose_guider"])], r"\['autoencoder', 'denoising_unet'"),
    ):
        with pytest.raises(ValueError, match=message):
            save_model(tmp_path / "m", tiny(), components)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("read", [read_config, load_model, describe_model])
def test_what_is_no_model_directory_is_refused(read, saved, tmp_path):
    with pytest.raises(UserError, match="there is no such model directory"):
        read(tmp_path / "absent")
    with pytest.raises(UserError, match="is not a model directory .* animate-jax convert"):
        read(tmp_path)
    path = linked(saved, tmp_path / "m", without=["config.json"])
    values = {"format": 1, **to_dict(tiny())}
    for text, message in (
        ("{", "config.json: cannot be read"),
        ("[]", "is not a model directory"),
        (json.dumps({"model_type": "clip"}), "is not a model directory"),
        (json.dumps(values | {"format": 2}), "format 2, this version reads 1"),
        (json.dumps(values | {"resolutoin": 64}), r"unknown keys \['resolutoin'\]"),
        (json.dumps(values | {"resolution": "64"}), "resolution should be a int"),
    ):
        (path / "config.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read(path)


def test_a_finished_training_stands_for_its_model(saved, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for read in (read_config, load_model, describe_model):
        with pytest.raises(UserError, match="not finished; .* --write-model"):
            read(tmp_path)
    (tmp_path / "model").symlink_to(saved)
    assert read_config(tmp_path) == tiny()
    assert set(load_model(tmp_path, components=["pose_guider"])[1]) == {"pose_guider"}
    rows = describe_model(saved).splitlines()[1:]
    assert describe_model(tmp_path).splitlines()[1:] == rows


@pytest.mark.parametrize("read", [load_model, describe_model])
def test_parts_that_are_missing_or_of_other_sizes_are_named(read, saved, tmp_path):
    path = linked(saved, tmp_path / "without", without=["motion_modules"])
    with pytest.raises(UserError, match="motion_modules: this part of the model is missing"):
        read(path)
    values = {"format": 1, **to_dict(tiny())}
    values["pose_guider"]["channels"] = [8, 16, 24, 40]
    path = linked(saved, tmp_path / "other", without=["config.json"])
    (path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"pose_guider: does not match config.json .*blocks.5"):
        read(path)


def test_a_damaged_part_is_named(saved, tmp_path):
    path = linked(saved, tmp_path / "m", without=["pose_guider"])
    (path / "pose_guider").mkdir()
    with pytest.raises(UserError, match="pose_guider: cannot be read"):
        load_model(path, components=["pose_guider"])
    for name in ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "ocdbt.process_0", "d"):
        (path / "pose_guider" / name).symlink_to(saved / "pose_guider" / name)
    manifest = path / "pose_guider" / "manifest.ocdbt"
    manifest.unlink()
    manifest.write_bytes(b"damaged")
    with pytest.raises(UserError, match="pose_guider: cannot be read"):
        load_model(path, components=["pose_guider"])
    shutil.rmtree(path / "pose_guider")
    shutil.copytree(saved / "pose_guider", path / "pose_guider")
    for file in (path / "pose_guider" / "ocdbt.process_0" / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="pose_guider: cannot be read"):
        load_model(path, components=["pose_guider"])


def test_components_and_dtypes_that_do_not_exist_are_refused(saved):
    with pytest.raises(UserError, match=r"no components \['vae'\]"):
        load_model(saved, components=["vae"])
    with pytest.raises(UserError, match="cannot be loaded as int8"):
        load_model(saved, dtype="int8")


def test_description_counts_parameters_and_bytes(saved, params):
    text = describe_model(saved)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line[:1].isalpha()}
    counts = {name: sum(x.size for x in jax.tree.leaves(t)) for name, t in params.items()}
    motion = int(rows["motion_modules"][0].replace(",", ""))
    assert int(rows["denoising_unet"][0].replace(",", "")) + motion == counts["denoising_unet"]
    for name in set(COMPONENTS) - {"denoising_unet"}:
        assert rows[name] == [f"{counts[name]:,}", *rows[name][1:3], "float32"]
    assert rows["pose_guider"][1:3] == [f"{4 * counts['pose_guider'] / 1000:.2f}", "kB"]
    assert rows["together"][0] == f"{sum(counts.values()):,}"
    assert "resolution: 64" in text and "beta_schedule scaled_linear" in text
    assert "motion_modules: heads 4" in text and "block_out_channels 32/64/64/64" in text
    assert "image_encoder bicubic" in text


def test_config_survives_json():
    values = json.loads(json.dumps(to_dict(tiny())))
    assert from_dict(type(tiny()), values) == tiny()


def test_only_a_model_directory_is_overwritten(saved, tmp_path):
    theirs, more = tmp_path / "theirs", tmp_path / "more"
    theirs.mkdir()
    (theirs / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    shutil.copytree(saved, more)
    (more / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target in (theirs, more, tmp_path / "file"):
        with pytest.raises(UserError, match="is not a model directory"):
            check_target(target, overwrite=True)
    (more / "notes.txt").unlink()
    assert check_target(more, overwrite=True) == more
    (more / "config.json").write_text("{")  # damaged
    assert check_target(more, overwrite=True) == more
