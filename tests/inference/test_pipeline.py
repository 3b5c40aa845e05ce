"""The pipeline equals the PyTorch pieces, and its fast forms equal its plain ones."""

import dataclasses

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from moore_layout import write_moore_layout
from parity import relative_l2
from PIL import Image
from small_model import small_model
from torch_animate_anyone import TorchAnimateAnyone

from animate_jax.config import tiny
from animate_jax.diffusion.samplers import sampling_steps
from animate_jax.errors import UserError, UserNote
from animate_jax.inference import sampling
from animate_jax.inference.pipeline import AnimateAnyonePipeline
from animate_jax.inference.pipeline import _encode_pose as encode_pose
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.pose.keypoints import Keypoints
from animate_jax.pose.render import draw_skeletons
from animate_jax.weights.convert import convert_moore

WIDTH, HEIGHT = 80, 64  # latents 10 x 8: the width cannot be halved three times
GUIDANCE = 3.5


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return write_moore_layout(tmp_path_factory.mktemp("moore"), tiny())


@pytest.fixture(scope="module")
def theirs(layout):
    model = TorchAnimateAnyone(tiny())
    model.motion.load_state_dict(layout.state_dicts["motion_module"])
    return model


@pytest.fixture(scope="module")
def pipeline(layout, tmp_path_factory):
    """Loaded from a model directory that was converted from one set of .pth files."""
    model = tmp_path_factory.mktemp("model") / "model"
    heads = tiny().denoising_unet.motion.heads
    convert_moore(layout.folder, model, motion_heads=heads, progress=False)
    return AnimateAnyonePipeline.from_pretrained(model)


@pytest.fixture(scope="module")
def reference():
    """A picture of another size and shape than the video."""
    blocks = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
    return Image.fromarray(blocks).resize((150, 100), Image.Resampling.BICUBIC)


def inputs(frames):
    random = np.random.default_rng(1)
    skeletons = random.uniform(size=(frames, HEIGHT, WIDTH, 3)).astype(np.float32)
    noise = random.standard_normal((frames, HEIGHT // 8, WIDTH // 8, 4), np.float32)
    return skeletons, noise


def run(pipeline, reference, frames, **options):
    skeletons, noise = inputs(frames)
    options = dict(steps=4, guidance=GUIDANCE, initial_noise=noise, progress=False) | options
    return pipeline(reference, skeletons, width=WIDTH, height=HEIGHT, **options)


def run_torch(theirs, reference, frames, **options):
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    skeletons, noise = (torch.tensor(np.moveaxis(x, -1, 1)) for x in inputs(frames))
    return theirs.animate(reference, skeletons, noise, scheduler, 4, GUIDANCE, **options)


def test_whole_pipeline_from_files(pipeline, theirs, reference):
    expected = run_torch(theirs, reference, 8)
    ours = run(pipeline, reference, 8)
    assert ours.shape == (8, HEIGHT, WIDTH, 3) and ours.dtype == np.float32
    assert expected.std() > 0.1
    assert np.abs(ours - expected).max() <= 1e-3
    assert relative_l2(ours, expected) <= 1e-4


def test_wrapping_windows_from_files(pipeline, theirs, reference):
    windows = [[*range(6)], [*range(4, 10)], [8, 9, 0, 1, 2, 3]]
    expected = run_torch(theirs, reference, 10, windows=windows)
    ours = run(pipeline, reference, 10, window=6, overlap=2, windows="moore")
    assert np.abs(ours - expected).max() <= 1e-3
    tapered = run(pipeline, reference, 10, window=6, overlap=2)
    assert np.abs(tapered - expected).max() > 1e-2


@pytest.fixture(scope="module")
def prepared(pipeline, reference):
    """What the loop gets: one clip of 6 frames."""
    skeletons, noise = inputs(6)
    picture = np.asarray(reference)
    bound = pipeline._bind(picture, WIDTH, HEIGHT, guided=True)
    pose = np.asarray(pipeline.model.encode_pose(pipeline.params, skeletons[None]))[0]
    params = {"denoising_unet": pipeline.params["denoising_unet"]}
    return pipeline.model, params, noise, bound, pose


@pytest.mark.parametrize("sampler, eta", [("ddim", 0.0), ("dpm++", 0.0), ("ddim", 0.8)])
def test_scan_equals_steps_from_the_host(prepared, sampler, eta):
    model, params, noise, bound, pose = prepared
    steps = sampling_steps(model.config.schedule, 4, sampler, eta)
    key = jax.random.key(3)
    windows = np.arange(6)[None], np.ones((1, 6), np.float32)
    guidance, stochastic = np.float32(GUIDANCE), eta > 0
    video = sampling.Video(noise, bound, pose, steps, guidance, key, windows, stochastic)
    scanned = sampling.sample(model, params, video, progress=False)
    in_parts = sampling.sample(model, params, video, progress=True)
    assert relative_l2(in_parts, scanned) <= 1e-5
    stepped = sampling.sample_in_windows(model, params, video, progress=False)
    assert relative_l2(scanned, stepped) <= 1e-5


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_noise_that_frames_share(share):
    schedule = dataclasses.replace(tiny().schedule, shared_noise=share)
    key, shape = jax.random.key(1), (40, 40, 4)
    noise = sampling.video_noise(schedule, key, 5, shape)
    assert (noise[:3] == sampling.video_noise(schedule, key, 3, shape)).all()
    np.testing.assert_allclose(noise, sampling.clip_noise(schedule, key, 5, shape), atol=1e-6)
    expected = np.eye(5) + share * (1 - np.eye(5))
    np.testing.assert_allclose(np.cov(noise.reshape(5, -1)), expected, atol=0.06)


@pytest.mark.parametrize("eta", [0.0, 0.8])
def test_shared_noise_is_sampled_with(prepared, pipeline, reference, eta):
    """By the scan and by the host's steps, from the beginning and in what the sampler adds."""
    model, params, _, bound, pose = prepared
    schedule = dataclasses.replace(model.config.schedule, shared_noise=0.6)
    shared = AnimateAnyonePipeline(
        dataclasses.replace(model.config, schedule=schedule), pipeline.params
    )
    model = shared.model
    motion = inputs(6)[0]
    options = dict(width=WIDTH, height=HEIGHT, steps=3, guidance=GUIDANCE, seed=5, eta=eta)
    whole = shared(reference, motion, **options, progress=False)
    key = jax.random.key(5)
    video = sampling.Video(
        sampling.video_noise(schedule, key, 6, (8, 10, 4)),
        bound,
        pose,
        sampling_steps(schedule, 3, "ddim", eta),
        np.float32(GUIDANCE),
        key,
        (np.arange(6)[None], np.ones((1, 6), np.float32)),
        stochastic=eta > 0,
    )
    stepped = sampling.sample_in_windows(model, params, video, progress=False)
    decoded = np.asarray(model.decode_latents(pipeline.params, stepped))
    np.testing.assert_allclose(whole, decoded, atol=1e-4)
    apart = pipeline(reference, motion, **options, progress=False)
    assert np.abs(whole - apart).max() > 1e-2


def flops(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile().cost_analysis()["flops"]


def test_nothing_constant_is_computed_in_the_scan(prepared):
    """A step of the scan costs what `denoise` with a bound reference costs, and the rule's few."""
    model, params, noise, bound, pose = prepared
    latents, steps = noise[None], sampling_steps(model.config.schedule, 4)
    rows = jnp.full(2, 700)

    def denoise(params, latents, bound, pose):
        return model.denoise(params, latents, rows, bound, pose)

    twice = np.concatenate([latents] * 2), np.concatenate([pose[None]] * 2)
    once = flops(denoise, params, twice[0], bound, twice[1])

    def scan(params, latents, bound, pose, steps):
        key, state = jax.random.key(0), (latents, jnp.zeros_like(latents))
        return sampling.sample_clip(model, params, state, bound, pose, steps, 0, 3.5, key)

    whole = flops(scan, params, latents, bound, pose[None], steps)
    # XLA counts the body of a loop once. Guidance and the sampler are a few products per latent.
    assert 0 < whole - once < 40 * noise.size

    tokens = np.zeros((2, 1, 32), np.float32)
    features = jax.eval_shape(model.encode_reference, pipeline_params(model), *reference_inputs())
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), features)

    def recomputing(params, latents, features, pose):
        return denoise(params, latents, model.bind(params, tokens, features), pose)

    # The test can tell: the cheapest thing to recompute would cost over a thousand.
    assert flops(recomputing, params, twice[0], zeros, twice[1]) - once > 1000 * noise.size


def pipeline_params(model):
    return {"reference_unet": model.shapes("reference_unet")}


def reference_inputs():
    return jnp.zeros((1, HEIGHT // 8, WIDTH // 8, 4)), jnp.zeros((1, 1, 32))


def test_length_beyond_the_window_costs_no_compilation_and_no_device_memory(
    pipeline, reference, monkeypatch
):
    compiled, held = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    plain = sampling.denoise_window

    def watched(*arguments):
        held.append(sum(x.nbytes for x in jax.live_arrays()))
        return plain(*arguments)

    monkeypatch.setattr(sampling, "denoise_window", watched)
    options = dict(window=6, overlap=2, steps=2)
    run(pipeline, reference, 10, **options)
    compiled.clear()
    peaks = []
    for frames in (10, 11, 17):
        held.clear()
        out = run(pipeline, reference, frames, **options)
        assert len(out) == frames
        peaks.append(max(held))
    assert not compiled
    assert peaks[0] == peaks[1] == peaks[2]


def test_keypoints_equal_their_drawing(pipeline, reference):
    points = np.zeros((2, 134, 3), np.float32)
    # Of quarters of pixels, which half the size holds exactly.
    points[:, :18] = np.random.default_rng(4).integers(20, 240, (2, 18, 3)) / 4
    points[:, :18, 2] = 1
    drawn = np.asarray(draw_skeletons(points, HEIGHT, WIDTH))
    options = dict(width=WIDTH, height=HEIGHT, steps=1, seed=5, progress=False)
    expected = pipeline(reference, drawn, **options)
    np.testing.assert_array_equal(pipeline(reference, points, **options), expected)
    # A frame of half the size is fitted into the video's; its pixels' middles lie otherwise.
    halves = (points + [0.5, 0.5, 0]) * [0.5, 0.5, 1] - [0.5, 0.5, 0]
    halves[:, 18:] = 0
    keypoints = Keypoints(halves.astype(np.float32), 25.0, WIDTH // 2, HEIGHT // 2)
    np.testing.assert_array_equal(pipeline(reference, keypoints, **options), expected)
    as_bytes = np.round(drawn * 255).astype(np.uint8)
    np.testing.assert_allclose(pipeline(reference, as_bytes, **options), expected, atol=1e-5)
    other = pipeline(reference, points, **(options | dict(seed=6)))
    assert np.abs(other - expected).max() > 1e-2


def test_references_in_every_form_are_the_same(pipeline, reference, tmp_path):
    reference.save(tmp_path / "reference.png")
    expected = run(pipeline, reference, 2, steps=1)
    forms = (
        tmp_path / "reference.png",
        np.asarray(reference),
        np.asarray(reference) / 255.0,
        jnp.asarray(np.asarray(reference) / 255.0),
    )
    for form in forms:
        np.testing.assert_array_equal(run(pipeline, form, 2, steps=1), expected)


def test_guidance_of_one_is_the_conditional_prediction(pipeline, reference):
    plain = run(pipeline, reference, 2, steps=1, guidance=1.0)
    nearly = run(pipeline, reference, 2, steps=1, guidance=1.0 + 1e-6)
    assert np.abs(plain - nearly).max() < 1e-4
    assert np.abs(plain - run(pipeline, reference, 2, steps=1)).max() > 1e-2


def test_bfloat16_is_close(pipeline, reference):
    low = AnimateAnyonePipeline(pipeline.model.config, pipeline.params, "bfloat16")
    # One step: rounding is compared, not how a random network amplifies it.
    difference = run(low, reference, 2, steps=1) - run(pipeline, reference, 2, steps=1)
    assert 1e-4 < np.sqrt((difference**2).mean()) < 0.1


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(steps=0), "steps"),
        (dict(window=40, frames=40), "window of 40"),
        (dict(window=4, overlap=4), "overlap"),
        (dict(windows="round"), "windows"),
        (dict(sampler="euler"), "sampler"),
        (dict(guidance=float("nan")), "guidance"),
        (dict(seed=-1), "seed"),
        (dict(initial_noise=np.zeros((2, 8, 8, 4))), "noise"),
    ],
)
def test_bad_arguments(pipeline, reference, options, message):
    options = dict(options)
    with pytest.raises(UserError, match=message):
        run(pipeline, reference, options.pop("frames", 2), **options)


def test_bad_motions_and_sizes(pipeline, reference):
    for motion in (np.zeros((2, 17, 3)), np.zeros((0, 134, 3)), np.full((1, 8, 8, 3), 2.0)):
        with pytest.raises(UserError):
            pipeline(reference, motion, width=WIDTH, height=HEIGHT, steps=1, progress=False)
    picture = np.asarray(reference)
    for wrong in (picture * 1.0, picture.astype(int), picture / 127.5 - 1, picture * np.nan):
        with pytest.raises(UserError, match="the reference"):
            run(pipeline, wrong, 1)
    with pytest.raises(UserError, match="0x64"):
        pipeline(reference, inputs(1)[0], width=0, height=64)
    with pytest.raises(UserError, match="dtype"):
        AnimateAnyonePipeline(pipeline.model.config, {}, "half")
    with pytest.warns(UserNote, match="72x56"):
        skeletons, _ = inputs(2)
        out = pipeline(reference, skeletons, width=77, height=61, steps=1, progress=False)
    assert out.shape == (2, 56, 72, 3)


def test_a_stage_one_model_animates_without_motion_modules(pipeline, reference):
    config = pipeline.model.config
    unet = dataclasses.replace(config.denoising_unet, motion=None)
    model = AnimateAnyonePipeline(dataclasses.replace(config, denoising_unet=unet), pipeline.params)
    assert run(model, reference, 2, steps=1).shape == (2, HEIGHT, WIDTH, 3)


@pytest.fixture(scope="module")
def on_body():
    """A model that is told where on the body things are."""
    config, known = small_model(), dict(positions=True, body_places=True, body_values=True)
    unets = {
        name: dataclasses.replace(getattr(config, name), **known)
        for name in ("denoising_unet", "reference_unet")
    }
    config = dataclasses.replace(config, **unets)
    params = flatten_dict(AnimateAnyone(config).init(0))
    for path in params:
        if "body_out" in path:  # zero to begin with
            params[path] = np.eye(len(params[path]), dtype=np.float32)
    return AnimateAnyonePipeline(config, unflatten_dict(params))


def test_keypoints_of_the_reference(on_body, pipeline, reference):
    """They are in its own pixels, reach the model in windows too, and others do without them."""
    points = np.zeros((6, 134, 3), np.float32)
    points[:, :14] = np.random.default_rng(4).uniform(5, 60, (6, 14, 3))
    points[:, :14, 2] = 1
    own = points[0] + np.float32([8, 0, 0])
    options = dict(width=WIDTH, height=HEIGHT, steps=2, progress=False, window=4, overlap=1)
    small = reference.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    out = on_body(small, points, reference_keypoints=own, **options)
    assert out.shape == (6, HEIGHT, WIDTH, 3)
    for other in (None, points[0]):
        assert (
            np.abs(on_body(small, points, reference_keypoints=other, **options) - out).max() > 0.01
        )
    picture = np.asarray(small).repeat(2, 0).repeat(3, 1)
    placed = (own[:, :2] + 0.5) * [3, 2] - 0.5
    placed = np.concatenate([placed, own[:, 2:]], 1)
    larger = on_body(picture, points, reference_keypoints=placed, **options)
    assert np.abs(larger - out).mean() < 0.01  # but for the resampling
    drawn = np.asarray(draw_skeletons(points, HEIGHT, WIDTH))
    unknown = on_body(small, drawn, reference_keypoints=own, **options)
    expected = on_body(small, points, **options)
    np.testing.assert_array_equal(unknown, expected)

    half = AnimateAnyonePipeline(on_body.model.config, on_body.params, "bfloat16")
    coarse = half(small, points, reference_keypoints=own, **options)
    assert np.abs(coarse - out).mean() < 0.02
    pose = encode_pose(half.model, half.params["pose_guider"], drawn, points)
    exact = encode_pose(on_body.model, on_body.params["pose_guider"], drawn, points)
    np.testing.assert_array_equal(pose[..., -3:], exact[..., -3:])  # places are not rounded

    plain = pipeline(small, points, **options)
    np.testing.assert_array_equal(
        pipeline(small, points, reference_keypoints=own, **options), plain
    )
    with pytest.raises(UserError, match="reference's keypoints have shape"):
        pipeline(small, points, reference_keypoints=points, **options)


def test_keypoints_of_the_reference_in_every_form(pipeline, tmp_path):
    random = np.random.default_rng(0)
    points = random.uniform(5, 60, (2, 134, 3)).astype(np.float32)
    points[..., 2] = 1
    halved = (points + [0.5, 0.5, 0]) * [0.5, 0.5, 1] - [0.5, 0.5, 0]
    halves = Keypoints(halved.astype(np.float32), 25.0, 40, 30)
    halves.save(tmp_path / "reference.npz")
    picture = np.zeros((60, 80, 3), np.uint8)
    expected = pipeline._reference_keypoints(points[0], picture, 160, 120)
    forms = points[:1], points[0].tolist(), halves, tmp_path / "reference.npz"
    for form in (*forms, str(tmp_path / "reference.npz")):
        found = pipeline._reference_keypoints(form, picture, 160, 120)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    motion, _ = pipeline._drawing(str(tmp_path / "reference.npz"), 80, 60)
    np.testing.assert_allclose(motion[..., :2], points[..., :2], rtol=1e-5)
    for wrong in ("nowhere.npz", points, object(), [[1], [2, 3]], {"nose": 3}):
        with pytest.raises(UserError):
            pipeline._reference_keypoints(wrong, picture, 160, 120)


def test_whole_numbers_may_be_floats(pipeline, reference):
    whole = run(pipeline, reference, 2, steps=1, seed=3, initial_noise=None)
    motion = inputs(2)[0]
    options = dict(width=float(WIDTH), height=np.int64(HEIGHT), steps=1.0, seed=np.float32(3))
    floats = pipeline(reference, motion, guidance=GUIDANCE, progress=False, **options)
    np.testing.assert_array_equal(floats, whole)


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(width=64.5), "width is 64.5"),
        (dict(height="64"), "height is '64'"),
        (dict(steps=1.5), "steps is 1.5"),
        (dict(seed=None), "seed is None"),
        (dict(window=2.5), "window is 2.5"),
        (dict(overlap=float("inf")), "overlap is inf"),
        (dict(guidance="high"), "guidance is 'high'"),
        (dict(eta=None), "eta is None"),
        (dict(initial_noise="noise"), "initial noise"),
        (dict(motion="dance.mp4"), "no such keypoint file"),
        (dict(motion=None), "motion"),
        (dict(motion=[Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))]), "of one size"),
        (dict(reference=[[1, 2], [3]]), "the reference"),
    ],
)
def test_what_is_no_number_or_array_is_one_line(pipeline, reference, wrong, message):
    options = dict(motion=inputs(1)[0], reference=reference, width=WIDTH, height=HEIGHT, steps=1)
    with pytest.raises(UserError, match=message) as caught:
        pipeline(**(options | wrong), progress=False)
    assert "\n" not in str(caught.value)


def test_only_pictures_are_reconstructed(pipeline):
    for shape in ((1, 16, 16, 4), (16, 16, 3), (0, 16, 16, 3), (1, 0, 16, 3)):
        with pytest.raises(UserError, match="frames have shape"):
            pipeline.reconstruct(np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match="divisible by 8"):
        pipeline.reconstruct(np.zeros((1, 16, 12, 3), np.uint8))


def test_a_lazy_video_is_decoded_part_by_part(pipeline, reference, monkeypatch):
    monkeypatch.setattr("animate_jax.inference.pipeline.CHUNK_PIXELS", 2 * WIDTH * HEIGHT)
    expected = run(pipeline, reference, 5, steps=1)
    video = run(pipeline, reference, 5, steps=1, lazy=True)
    assert len(video) == 5 and [len(part) for part in video.parts()] == [2, 2, 1]
    for _ in range(2):
        np.testing.assert_array_equal(np.stack(list(video)), expected)
