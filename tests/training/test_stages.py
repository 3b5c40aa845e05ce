"""Both stages for real, one after the other: what moves, what rests, and what is written."""

import dataclasses
import types
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from small_model import small_model

from animate_jax import AnimateAnyonePipeline
from animate_jax.config import to_dict
from animate_jax.diffusion.schedule import NoiseSchedule, moore_sampling
from animate_jax.errors import UserError, UserNote
from animate_jax.models.animate_anyone import COMPONENTS, AnimateAnyone
from animate_jax.parallel.mesh import make_mesh
from animate_jax.training.checkpoint import open_checkpoints
from animate_jax.training.config import load_config
from animate_jax.training.metrics import read_metrics
from animate_jax.training.parameters import without_motion
from animate_jax.training.stages import make_stage, note_new_motion, source_parameters
from animate_jax.training.train import train
from animate_jax.video.reading import read_frames
from animate_jax.weights.model_directory import load_model, save_model

LEARNED = ("denoising_unet", "reference_unet", "pose_guider")


@pytest.fixture(scope="module")
def first_stage(records, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stage1")
    overrides = ["steps=3", "validation.every=3", "validation.batches=1", "validation.videos=1"]
    overrides += ["validation.frames=2", "validation.steps=2", f"data.path={records}"]
    train(load_config("tests/small_stage1.py", overrides), workdir, progress=False)
    return workdir


def leaves(model):
    return {path: np.asarray(x) for path, x in flatten_dict(load_model(model)[1]).items()}


def test_stage_1_leaves_autoencoder_and_image_encoder_alone(first_stage):
    written = leaves(first_stage / "model")
    start = flatten_dict(AnimateAnyone(small_model()).init(0))
    assert not any("motion_modules_0" in path for path in written)
    rested = [path for path in written if np.array_equal(written[path], start[path])]
    for component in ("autoencoder", "image_encoder"):
        assert {p for p in written if p[0] == component} <= set(rested)
    still = [path for path in rested if path[0] in LEARNED]
    # Queries and keys over the one image token, the norm before them, the ReferenceNet's end.
    assert 0 < len(still) < 60
    assert all("transformer_blocks_0" in p or "proj_out" in p for p in still)


def test_validation_is_written(first_stage):
    loss, videos = read_metrics(first_stage)[-2:]
    assert loss["step"] == 3 and 0 < loss["validation_loss"] < 10
    assert videos["step"] == 3 and 0 < videos["sample_psnr"] < 60
    samples = first_stage / "samples" / "0000003"
    frames = list(read_frames(samples / "00.mp4"))
    assert len(frames) == 2 and frames[0].shape == (32, 4 * 32, 3)
    with Image.open(samples / "sheet.png") as sheet:
        assert sheet.size == (2 * 4 * 32, 32)
        panels = np.asarray(sheet)[:, : 4 * 32].reshape(32, 4, 32, 3).swapaxes(0, 1)
    reference, skeleton, _, truth = panels
    assert (skeleton == 0).all(-1).mean() > 0.5 > (truth == 0).all(-1).mean()
    assert np.abs(reference.astype(int) - truth).mean() < 40  # of the same clip


def test_released_weights_go_on_with_the_noise_that_they_were_trained_with(tmp_path):
    """They are sampled with linear betas, for which nobody has trained them."""
    model = AnimateAnyone(dataclasses.replace(small_model(), schedule=moore_sampling()))
    save_model(tmp_path / "moore", model.config, ((c, model.init(0, (c,))[c]) for c in COMPONENTS))

    def schedule(*overrides, path="configs/stage1.py"):
        overrides = [f"init_from={tmp_path / 'moore'}", "data.path=records", *overrides]
        config = load_config(path, [*overrides, "mesh.fsdp=1"])
        return make_stage(config, make_mesh({"data": -1})).model.config.schedule

    with pytest.warns(UserNote, match="were trained with scaled_linear ones"):
        assert schedule() == NoiseSchedule()
    assert schedule("schedule={'beta_schedule': 'linear'}") == moore_sampling()
    assert schedule(path="configs/autoencoder.py") == moore_sampling()


def test_an_autoencoder_is_trained_on_within_a_whole_model(tmp_path):
    """Motion modules are none of its business, and stay."""
    model = AnimateAnyone(small_model())
    save_model(tmp_path / "m", model.config, ((c, model.init(0, (c,))[c]) for c in COMPONENTS))
    overrides = [f"init_from={tmp_path / 'm'}", "data.path=records", "mesh.fsdp=1"]
    stage = make_stage(load_config("configs/autoencoder.py", overrides), make_mesh({"data": -1}))
    assert stage.model.config.denoising_unet.motion == small_model().denoising_unet.motion
    single = make_stage(load_config("configs/stage1.py", overrides), make_mesh({"data": -1}))
    assert single.model.config.denoising_unet.motion is None


def test_motion_modules_that_nothing_is_known_of_are_told(tmp_path):
    single, model = tmp_path / "single", AnimateAnyone(without_motion(small_model()))
    save_model(single, model.config, model.init(0).items())
    overrides = [f"init_from={single}", "data.path=records"]
    stage = types.SimpleNamespace(config=load_config("configs/stage2.py", overrides))
    with pytest.warns(UserNote, match="drawn at random.*--config.motion_from"):
        note_new_motion(stage)
    stage.config.motion_from = "models/sd15"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        note_new_motion(stage)


def test_more_frames_than_motion_modules_know_are_refused(tmp_path):
    save_model(tmp_path / "m", small_model(), AnimateAnyone(small_model()).init(0).items())
    overrides = [f"init_from={tmp_path / 'm'}", "data.path=records", "mesh.fsdp=1"]
    config = load_config("configs/stage2.py", overrides)
    with pytest.raises(UserError, match="data.frames is 24, but the motion modules know 8"):
        make_stage(config, make_mesh({"data": -1}))


def test_stage_2_moves_motion_modules_only(first_stage, records, tmp_path):
    overrides = [f"init_from={first_stage}", "motion=True", "data.frames=2", "data.batch_size=2"]
    overrides += ["learned=('motion_modules_',)", "steps=3", f"data.path={records}"]
    overrides += ["data.stride=1"]
    train(load_config("tests/small_stage1.py", overrides), tmp_path, progress=False)
    before, after = leaves(first_stage / "model"), leaves(tmp_path / "model")
    assert all(np.array_equal(after[path], before[path]) for path in before)
    new = {path for path in after if path not in before}
    assert len(new) > 100 and all(any("motion_modules" in n for n in path) for path in new)
    config, alone = load_model(tmp_path / "model", components=("denoising_unet",), motion_only=True)
    assert set(flatten_dict(alone)) == new
    start = flatten_dict(AnimateAnyone(config).init(0, ("denoising_unet",)))
    moved = {path for path in new if not np.array_equal(after[path], start[path])}
    assert {path for path in new - moved} == {path for path in new if path[-1] == "pe"}

    with open_checkpoints(tmp_path) as manager:
        items = ocp.args.Composite(state=ocp.args.StandardRestore())
        state = manager.restore(manager.latest_step(), args=items).state
    kept = jax.tree_util.tree_flatten_with_path((state["learned"], state["optimizer"]))[0]
    arrays = [path for path, x in kept if np.ndim(x) > 0]
    assert len(arrays) == 3 * len(moved)  # a parameter and its two moments
    assert all("motion_modules" in jax.tree_util.keystr(path) for path in arrays)
    AnimateAnyonePipeline.from_pretrained(tmp_path / "model")

    config = load_config("tests/small_stage1.py", [*overrides, f"motion_from={tmp_path}"])
    stage = make_stage(config, make_mesh({"data": -1}))
    taken = flatten_dict(source_parameters(stage, stage.components))
    assert set(taken) == set(after) and all(np.array_equal(taken[p], after[p]) for p in new)


def test_a_model_of_the_same_sizes_may_have_another_guidance_and_resolution(first_stage):
    overrides = [f"init_from={first_stage}", "data.height=48", "data.width=64"]
    config = load_config("tests/small_stage1.py", overrides)
    config.model = to_dict(dataclasses.replace(small_model(), guidance=1.25))
    stage = make_stage(config, make_mesh({"data": 1}, jax.devices()[:1]))
    assert stage.model.config.guidance == 1.25 != small_model().guidance
    assert stage.model.config.resolution == 48 != small_model().resolution  # the shorter side


def test_components_are_taken_and_the_rest_is_drawn(first_stage, tmp_path):
    """The autoencoder of one model, for another whose denoiser is of another kind."""
    other = small_model()
    unet = dataclasses.replace(other.denoising_unet, motion=None, reference="added")
    config = load_config("tests/small_stage1.py", [f"init_from={first_stage}"])
    config.model = to_dict(dataclasses.replace(other, denoising_unet=unet))
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    with pytest.raises(UserError, match="differs from the model in"):
        make_stage(config, mesh)
    config.init_components = ("autoencoder", "tokenizer")
    with pytest.raises(UserError, match="names .'tokenizer'."):
        make_stage(config, mesh)
    config.init_components = ("autoencoder",)
    stage = make_stage(config, mesh)
    assert stage.model.config.denoising_unet.reference == "added"
    parameters = flatten_dict(source_parameters(stage, COMPONENTS))
    before, drawn = leaves(first_stage / "model"), flatten_dict(stage.model.init(config.seed))
    assert set(parameters) == set(drawn)
    for path, x in parameters.items():
        expected = before if path[0] == "autoencoder" else drawn
        np.testing.assert_array_equal(x, expected[path], err_msg="/".join(path))
    config.model = None
    with pytest.raises(UserError, match="needs config.model"):
        make_stage(config, mesh)
