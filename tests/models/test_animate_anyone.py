"""Reference attention, motion modules and binding equal PyTorch and equal their plain forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from parity import convert, convert_all, randomize, relative_l2
from torch_animate_anyone import Motion, TorchAnimateAnyone

from animate_jax.config import tiny
from animate_jax.kernels import attention as kernels
from animate_jax.kernels import plain_attention
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.motion import MotionModule

BOUND = 1e-5


def sixteen_blocks():
    """A tiny model with as many transformer blocks as the real one."""
    config = tiny()
    unet = dataclasses.replace(config.denoising_unet, layers_per_block=2)
    reference = dataclasses.replace(unet, motion=None, output=False)
    return dataclasses.replace(config, denoising_unet=unet, reference_unet=reference)


@dataclasses.dataclass(frozen=True)
class Case:
    model: AnimateAnyone
    params: dict
    theirs: TorchAnimateAnyone
    latents: torch.Tensor  # (B, F, 4, h, w)
    reference: torch.Tensor  # (B, 4, h, w)
    tokens: torch.Tensor  # (B, 1, E)
    pose: torch.Tensor  # (B, F, C, h, w)


@pytest.fixture(scope="module")
def case():
    config = sixteen_blocks()
    model, theirs = AnimateAnyone(config), TorchAnimateAnyone(config)
    params = convert_all(model, theirs.state_dicts())
    torch.manual_seed(1)
    return Case(
        model,
        params,
        theirs,
        latents=torch.randn(2, 3, 4, 16, 16),
        reference=torch.randn(2, 4, 16, 16),
        tokens=torch.randn(2, 1, 32),
        pose=torch.randn(2, 3, 32, 16, 16),
    )


def ours(x):
    return jnp.asarray(np.moveaxis(x.numpy(), -3, -1))


def theirs_path(path):
    return path.replace("down_blocks_", "down_blocks.").replace("up_blocks_", "up_blocks.").replace(
        "attentions_", "attentions."
    ).replace("/", ".")  # fmt: skip


def test_motion_modules(case):
    """Every width, by itself, with per-frame normalisation and random positions."""
    config = case.model.config.denoising_unet
    motion = randomize(Motion(config), 7)
    tree = convert_all(
        case.model, case.theirs.state_dicts() | {"motion_module": motion.state_dict()}
    )
    for level, name in ((motion.down_blocks[1], "down_blocks_1"), (motion.mid_block, "mid_block")):
        module = level.motion_modules[0]
        channels = module.temporal_transformer.proj_in.in_features
        x = torch.randn(2, 5, channels, 4, 6, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            expected = module(x.flatten(0, 1), 5).unflatten(0, (2, 5))
        params = {"params": tree["denoising_unet"][name]["motion_modules_0"]}
        out = MotionModule(config.motion, jnp.float32).apply(params, ours(x))
        assert relative_l2(out, ours(expected)) <= BOUND
        swapped = MotionModule(config.motion, jnp.float32).apply(params, ours(x)[:, ::-1])
        assert relative_l2(swapped[:, ::-1], ours(expected)) > 1e-2  # order of frames matters


def test_reference_features(case):
    bank = case.theirs.write_reference(case.reference, case.tokens)
    features = jax.jit(case.model.encode_reference)(
        case.params, ours(case.reference), case.tokens.numpy()
    )
    assert len(features) == len(bank) == 16
    for path, tokens in features.items():
        assert relative_l2(tokens, bank[theirs_path(path)].numpy()) <= BOUND, path


@pytest.mark.parametrize("motion", [True, False])
def test_denoise_with_reference(case, motion):
    """Without guidance: every row has its own reference."""
    model = case.model
    params = case.params
    if not motion:
        unet = dataclasses.replace(model.config.denoising_unet, motion=None)
        model = AnimateAnyone(dataclasses.replace(model.config, denoising_unet=unet))
        only_unet = convert(model, "denoising_unet", case.theirs.denoising_unet.state_dict())
        params = params | {"denoising_unet": only_unet}
    case.theirs.use_motion = motion
    case.theirs.write_reference(case.reference, case.tokens)
    t = torch.tensor([700, 20])
    expected = case.theirs.denoise(case.latents, t.repeat_interleave(3), case.tokens, case.pose)
    case.theirs.use_motion = True

    @jax.jit
    def run(params, latents, reference, tokens, pose):
        bound = model.bind(params, tokens, model.encode_reference(params, reference, tokens))
        return model.denoise(params, latents, t.numpy(), bound, pose)

    out = run(
        params, ours(case.latents), ours(case.reference), case.tokens.numpy(), ours(case.pose)
    )
    assert relative_l2(out, ours(expected)) <= BOUND


def guided(case, guidance=3.5, apart=False):
    tokens = case.tokens.numpy()

    @jax.jit
    def run(params, latents, reference, tokens, pose):
        features = case.model.encode_reference(params, reference, tokens)
        if apart:
            shown = np.ones(len(tokens), bool)
            halves = (0 * tokens, ~shown), (tokens, shown)
            bound = tuple(case.model.bind(params, x, features, has) for x, has in halves)
        else:
            bound = case.model.bind(params, jnp.concatenate([0 * tokens, tokens]), features)
        return case.model.guided_denoise(params, latents, 700, bound, pose, guidance)

    return run(case.params, ours(case.latents), ours(case.reference), tokens, ours(case.pose))


@pytest.mark.parametrize("apart", [False, True])
def test_guided_denoise(case, apart):
    """Unconditional rows: zero image token, pose kept, no reference."""
    case.theirs.write_reference(case.reference, case.tokens)
    tokens = torch.cat([torch.zeros_like(case.tokens), case.tokens])
    both = case.theirs.denoise(
        case.latents.repeat(2, 1, 1, 1, 1), 700, tokens, case.pose.repeat(2, 1, 1, 1, 1)
    )
    unconditional, conditional = both.chunk(2)
    expected = unconditional + 3.5 * (conditional - unconditional)
    assert relative_l2(guided(case, apart=apart), ours(expected)) <= BOUND
    assert relative_l2(ours(unconditional), ours(conditional)) > 1e-2


def test_attention_in_slices_equals_attention_at_once(case, monkeypatch):
    whole = guided(case)
    monkeypatch.setattr(kernels, "CACHE_BYTES", 3000)
    monkeypatch.setattr(plain_attention, "SCORE_BYTES", 3000)  # attention over time is sliced too
    assert relative_l2(guided(case), whole) <= BOUND


def test_rows_without_reference_attend_to_themselves(case):
    """The mask of training and the missing rows of sampling are the same thing."""
    model, params = case.model, case.params
    tokens, latents = case.tokens.numpy(), ours(case.latents)
    t = np.array([5, 5])

    @jax.jit
    def run(params, latents, reference, tokens):
        features = model.encode_reference(params, reference, tokens)
        second = jax.tree.map(lambda x: x[1:], features)
        bounds = (
            model.bind(params, tokens, features, jnp.array([False, True])),
            model.bind(params, tokens, second),
            model.bind(params, tokens),
        )
        return [model.denoise(params, latents, t, bound) for bound in bounds]

    masked, missing, none = run(params, latents, ours(case.reference), tokens)
    assert relative_l2(masked, missing) <= BOUND
    assert relative_l2(masked[0], none[0]) <= BOUND
    assert relative_l2(masked[1], none[1]) > 1e-2


def test_bound_once_equals_concatenated_and_recomputed(case):
    """Two sources of keys against the paper's words: concatenate in width, attend, keep half."""
    key = jax.random.key(0)
    query, own_key, own_value = jax.random.normal(key, (3, 2, 3, 12, 32))
    reference = jax.random.normal(jax.random.key(1), (2, 2, 12, 32))
    out = kernels.attention(query, own_key, own_value, 4, (reference[0], reference[1]))
    repeated = jnp.broadcast_to(reference[:, :, None], (2, 2, 3, 12, 32))
    keys = jnp.concatenate([own_key, repeated[0]], 2)
    values = jnp.concatenate([own_value, repeated[1]], 2)
    queries = jnp.concatenate([query, repeated[0]], 2)
    split = lambda x: x.reshape(*x.shape[:-1], 4, 8)  # noqa: E731
    whole = jax.nn.softmax(jnp.einsum("bfnhd,bfmhd->bfhnm", split(queries), split(keys)) / 8**0.5)
    whole = jnp.einsum("bfhnm,bfmhd->bfnhd", whole, split(values)).reshape(queries.shape)
    assert relative_l2(out, whole[:, :, :12]) <= BOUND


def test_one_token_constant_equals_attention(case):
    """A token given twice goes through real attention, which must give what the constant does."""
    model, params = case.model, case.params
    latents, t, tokens = ours(case.latents), np.array([5, 900]), case.tokens.numpy()

    @jax.jit
    def run(params, latents, tokens):
        one = model.bind(params, tokens)
        two = model.bind(params, jnp.repeat(tokens, 2, 1))
        assert all(layer.cross is None for layer in one.values())
        assert all(layer.cross_output is None for layer in two.values())
        return [model.denoise(params, latents, t, bound) for bound in (one, two)]

    one, two = run(params, latents, tokens)
    assert relative_l2(one, two) <= BOUND


def test_bfloat16_is_close_to_float32(case):
    low = AnimateAnyone(case.model.config, jnp.bfloat16)
    tokens, latents = case.tokens.numpy(), ours(case.latents)
    t = np.array([5, 9])

    @jax.jit
    def run(params, latents, tokens):
        models = case.model, low
        return [m.denoise(params, latents, t, m.bind(params, tokens)) for m in models]

    high, low_result = run(case.params, latents, tokens)
    assert low_result.dtype == jnp.float32
    assert 1e-4 < relative_l2(low_result, high) < 3e-2
