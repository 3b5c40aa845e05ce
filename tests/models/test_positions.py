"""Where in the picture something is, for networks that start from random weights."""

import dataclasses
import re
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from small_model import small_model

from animate_jax.config import UNetConfig
from animate_jax.errors import UserError
from animate_jax.kernels.spatial_block import rotate
from animate_jax.models.animate_anyone import AnimateAnyone
from animate_jax.models.attention import (
    Attention,
    BoundLayer,
    TransformerBlock,
    body_angles,
    grid_positions,
)
from animate_jax.models.unet import BODY_PLACES


def test_every_place_has_its_own():
    grid = grid_positions(16, 24, 80)
    assert grid.shape == (16 * 24, 80) and grid.dtype == np.float32
    places = grid.astype(np.float64)
    distance = ((places[:, None] - places) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    assert distance.min() > 1.0  # of vectors of squared length 40
    # A place is the same in pictures of any size; rows and columns do not mix.
    larger = grid_positions(20, 30, 80).reshape(20, 30, 80)
    grid = grid.reshape(16, 24, 20, 4)
    np.testing.assert_array_equal(larger[:16, :24], grid.reshape(16, 24, 80))
    assert (grid[..., :2] == grid[:, :1, :, :2]).all() and (
        grid[..., 2:] == grid[:1, ..., 2:]
    ).all()


def test_attention_begins_where_its_query_is():
    """Of the kernels' beginning, three times the grid, alone; uniform would be 1 / 144."""
    places = 3 * jnp.asarray(grid_positions(12, 12, 64))
    weights = jax.nn.softmax(places @ places.T / np.sqrt(64))
    assert np.diagonal(weights).min() > 0.5


@pytest.fixture(scope="module")
def block():
    """A block with positions, its parameters by path, and what it is called with."""
    block = TransformerBlock(32, 4, UNetConfig(positions=True), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (2, 3, 24, 32))
    reference = jax.random.normal(keys[1], (2, 24, 32))
    tokens = jax.random.normal(keys[2], (2, 1, 16))
    grid = grid_positions(4, 6, 32)

    def run(block, tokens, reference, x, grid):
        return block(x, block.bind(tokens, reference), grid)[0]

    init = block.init(keys[3], tokens, reference, x, grid, method=run)["params"]
    params = flatten_dict(init, sep="/")
    names = [name for name in params if "/position_" in name]
    assert names == ["attn1/position_q/kernel", "attn1/position_k/kernel"]

    def out(changed=MappingProxyType({}), grid=grid, x=x, block=block):
        tree = {"params": unflatten_dict(params | dict(changed), sep="/")}
        return np.asarray(block.apply(tree, tokens, reference, x, grid, method=run))

    return out, params, x, reference, grid


def test_queries_and_all_keys_gain_their_places(block):
    """Against attention over joined keys, written out."""
    out, params, x, reference, grid = block
    silent = {name: 0 * value for name, value in params.items() if name.startswith(("attn2", "ff"))}
    kernel = {n: params[f"attn1/{n}/kernel"] for n in ("to_q", "to_k", "to_v", "to_out_0")}
    where = {n: grid @ params[f"attn1/position_{n}/kernel"] for n in "qk"}
    centred = x - x.mean(-1, keepdims=True)
    normed = centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    both = jnp.concatenate([normed, jnp.broadcast_to(reference[:, None], x.shape)], 2)
    query = normed @ kernel["to_q"] + where["q"]
    key = both @ kernel["to_k"] + jnp.concatenate([where["k"]] * 2)
    query, key, value = (y.reshape(*y.shape[:3], 4, 8) for y in (query, key, both @ kernel["to_v"]))
    scores = jnp.einsum("bfnhd,bfmhd->bfhnm", query, key) / np.sqrt(8)
    expected = jnp.einsum("bfhnm,bfmhd->bfnhd", jax.nn.softmax(scores), value)
    expected = x + expected.reshape(x.shape) @ kernel["to_out_0"]
    np.testing.assert_allclose(out(silent), expected, rtol=0, atol=2e-5)


def test_without_them_order_does_not_matter(block):
    """Tokens in another order come out in that order; with positions they do not."""
    out, params, x, _, grid = block
    silent = {name: 0 * params[name] for name in params if "/position_" in name}
    plain = TransformerBlock(32, 4, UNetConfig(), jnp.float32)
    np.testing.assert_allclose(out(silent), out(grid=None, block=plain), rtol=0, atol=1e-5)
    turned = out(silent, x=x[:, :, ::-1])[:, :, ::-1]
    np.testing.assert_allclose(turned, out(silent), rtol=0, atol=1e-5)
    assert np.abs(out(x=x[:, :, ::-1])[:, :, ::-1] - out()).max() > 0.1


def test_both_networks_start_near(block):
    config = small_model()
    unets = {
        name: dataclasses.replace(getattr(config, name), positions=True)
        for name in ("reference_unet", "denoising_unet")
    }
    params = AnimateAnyone(dataclasses.replace(config, **unets)).init(0, tuple(unets))
    kernels = {n: x for n, x in flatten_dict(params, sep="/").items() if "/position_" in n}
    plain = flatten_dict(AnimateAnyone(config).init(0, tuple(unets)), sep="/")
    blocks = [name for name in plain if name.endswith("attn1/to_q/kernel")]
    assert len(kernels) == 2 * len(blocks) > 12
    for name, kernel in kernels.items():
        np.testing.assert_array_equal(kernel, 3 * np.eye(len(kernel)), err_msg=name)


BODY_UNETS = ("reference_unet", "denoising_unet")


def with_body_places():
    config = small_model()
    known = dict(positions=True, body_places=True, body_values=True)
    unets = {name: dataclasses.replace(getattr(config, name), **known) for name in BODY_UNETS}
    return dataclasses.replace(config, **unets)


def test_attention_begins_at_the_same_place_of_the_body():
    """Of two tokens on the body, whose places in picture and chart say opposite things."""
    chart = jnp.float32([[0.0, 0.1], [0.0, 0.9], [1.2, 0.0], [-0.6, 2.0]])
    there = jnp.concatenate([chart, jnp.ones((4, 1))], -1)
    attention = Attention(64, 1, jnp.float32, positions=True, body_places=True)
    near = {name: {"kernel": 3 * jnp.eye(64)} for name in ("body_q", "body_k", "position_q")}

    def weights(queries, keys):
        def places(module, own, linear):
            grid = jnp.asarray(grid_positions(2, 2, 64))
            return module._places(module.position_q, getattr(module, linear), grid, own)

        q, k = (
            attention.apply({"params": near}, own, linear, method=places)
            for own, linear in ((queries, "body_q"), (keys, "body_k"))
        )
        return jax.nn.softmax(q @ k.T / 8)

    order = jnp.array([2, 0, 3, 1])
    assert np.asarray(weights(there, there[order]))[order, range(4)].min() > 0.9
    # Off the body by place in the picture; neither finds what it is not.
    off = there * jnp.float32([1, 1, 0])
    assert np.diagonal(weights(off, off)).min() > 0.9
    mixed = there * jnp.float32([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0]])
    assert np.diagonal(weights(mixed, mixed)).min() > 0.9


@pytest.fixture(scope="module")
def on_body():
    """A model with body places, and what one clip of it is made from: the reference's person a
    third to the left of the clip's."""
    model = AnimateAnyone(with_body_places())
    params = flatten_dict(model.init(0, (*BODY_UNETS, "pose_guider")), sep="/")
    # Else nothing comes of body values.
    near = {n: np.eye(len(x), dtype=np.float32) for n, x in params.items() if "/body_out/" in n}
    params = unflatten_dict(params | near, sep="/")
    keys = jax.random.split(jax.random.key(1), 4)
    points = np.zeros((134, 3), np.float32)
    points[[2, 5, 8, 11, 10, 13]] = [(x, y, 1) for y in (8, 24, 44) for x in (38, 46)]
    moved = points - np.float32([24, 0, 0])
    return dict(
        model=model,
        params=params,
        picture=jax.random.normal(keys[0], (1, 6, 8, 4)),
        tokens=jax.random.normal(keys[1], (1, 1, 16)),
        latents=jax.random.normal(keys[2], (1, 2, 6, 8, 4)),
        skeletons=jax.random.uniform(keys[3], (1, 2, 48, 64, 3)),
        points=jnp.asarray(points)[None, None].repeat(2, 1),
        reference_points=jnp.asarray(moved)[None],
    )


def predict(case, points, reference_points):
    model, params = case["model"], case["params"]
    features = model.encode_reference(params, case["picture"], case["tokens"], reference_points)
    bound = model.bind(params, case["tokens"], features)
    pose = model.encode_pose(params, case["skeletons"], points)
    return np.asarray(model.denoise(params, case["latents"], jnp.array([500]), bound, pose)), pose


def test_places_on_the_body_reach_every_attention(on_body):
    out, pose = predict(on_body, on_body["points"], on_body["reference_points"])
    assert pose.shape == (1, 2, 6, 8, 16 + 3) and 0.1 < (pose[..., -1] > 0).mean() < 0.9
    unknown, nothing = predict(on_body, None, None)
    assert not nothing[..., -3:].any()
    hidden, _ = predict(on_body, 0 * on_body["points"], 0 * on_body["reference_points"])
    np.testing.assert_allclose(hidden, unknown, atol=1e-5)
    same_pose, _ = predict(on_body, on_body["points"], on_body["points"][:, 0])
    for other in (unknown, same_pose):
        assert np.abs(other - out).max() > 0.01
    # The denoiser's keys of the reference have them too, at the size of each level.
    case = on_body
    features = case["model"].encode_reference(
        case["params"], case["picture"], case["tokens"], case["reference_points"]
    )
    elsewhere = features | {BODY_PLACES: features[BODY_PLACES][:, :, ::-1]}
    ends = [
        case["model"].denoise(
            case["params"],
            case["latents"],
            jnp.array([500]),
            case["model"].bind(case["params"], case["tokens"], found),
            pose,
        )
        for found in (features, elsewhere)
    ]
    np.testing.assert_allclose(ends[0], out, atol=1e-5)
    assert np.abs(ends[1] - out).max() > 1e-3
    bound = case["model"].bind(case["params"], case["tokens"], features)
    (places,) = {layer.reference_body_places.shape for layer in bound.values()} - {(1, 12, 3)}
    assert places == (1, 48, 3)
    # And its values are rotated by them, once for the clip.
    nowhere = {path: x for path, x in features.items() if path != BODY_PLACES}
    for path, before in case["model"].bind(case["params"], case["tokens"], nowhere).items():
        channels = before.body_values.shape[-1]
        angles = body_angles(bound[path].reference_body_places, channels)
        rotated = rotate(before.body_values, angles)
        np.testing.assert_allclose(bound[path].body_values, rotated, atol=1e-5)
        assert np.abs(rotated - before.body_values).max() > 0.1
    # As many attentions have them as have positions.
    params = flatten_dict(on_body["params"], sep="/")
    kernels = [name for name in params if re.search("/body_[qk]/", name)]
    assert len(kernels) == len([name for name in params if "/position_" in name]) > 4
    for name in kernels:
        np.testing.assert_array_equal(params[name], 3 * np.eye(len(params[name])))


def test_body_values_come_rotated_by_the_way_between_places():
    """Against pairs of channels as complex numbers, every query with every key."""
    known = dict(positions=True, body_places=True, body_values=True)
    attention = Attention(16, 2, jnp.float32, **known)
    keys = iter(jax.random.split(jax.random.key(2), 12))
    x, seen = (jax.random.normal(next(keys), shape) for shape in ((1, 2, 6, 16), (1, 6, 16)))
    chart = [jax.random.uniform(next(keys), s) for s in ((1, 2, 6, 3), (1, 6, 3))]
    grid, norm = grid_positions(2, 3, 16), (jnp.ones(16), jnp.zeros(16))

    def run(attention, x, seen, own, reference):
        bound = BoundLayer(
            reference=attention.keys_and_values(seen),
            body_values=rotate(attention.more_values(seen), body_angles(reference, 16)),
            body_places=own,
            reference_body_places=reference,
        )
        return attention.block(x, norm, bound, grid)

    params = attention.init(next(keys), x, seen, *chart, method=run)["params"]
    kernels = {n: jax.random.normal(next(keys), (16, 16)) / 4 for n in ("q", "k", "v", "out")}
    params |= {f"body_{name}": {"kernel": kernel} for name, kernel in kernels.items()}
    silent = params | {"body_out": {"kernel": 0 * kernels["out"]}}
    out, plain = (
        attention.apply({"params": p}, x, seen, *chart, method=run) for p in (params, silent)
    )

    def without_to_v(module, x, seen, own, reference):
        """The weights of attention, and the values before they are rotated."""
        grid_ = jnp.asarray(grid)
        normed = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        query = module._linear(module.to_q, normed) + module._places(
            module.position_q, module.body_q, grid_, own
        )
        both = jnp.concatenate([normed, jnp.broadcast_to(seen[:, None], x.shape)], 2)
        where = [
            jnp.broadcast_to(y, x.shape)
            for y in (
                module._places(module.position_k, module.body_k, grid_, own),
                module._places(module.position_k, module.body_k, grid_, reference)[:, None],
            )
        ]
        key = module._linear(module.to_k, both) + jnp.concatenate(where, 2)
        query, key = (y.reshape(1, 2, -1, 2, 8) for y in (query, key))
        weights = jax.nn.softmax(jnp.einsum("bfnhd,bfmhd->bfhnm", query, key) / np.sqrt(8))
        return weights, both @ kernels["v"]

    weights, values = attention.apply({"params": params}, x, seen, *chart, method=without_to_v)
    places = jnp.concatenate([chart[0], jnp.broadcast_to(chart[1][:, None], (1, 2, 6, 3))], 2)
    way = body_angles(places[:, :, None], 16) - body_angles(chart[0][:, :, :, None], 16)
    values = values[..., 0::2] + 1j * values[..., 1::2]
    turned = values[:, :, None] * jnp.exp(1j * way)  # (1, 2, queries, keys, pairs)
    turned = turned.reshape(*turned.shape[:-1], 2, 4)
    turned = jnp.einsum("bfhnm,bfnmhp->bfnhp", weights, turned).reshape(1, 2, 6, 8)
    more = jnp.stack([turned.real, turned.imag], -1).reshape(x.shape) @ kernels["out"]
    assert np.abs(more).max() > 0.5
    np.testing.assert_allclose(out - plain, more, atol=1e-5)


def test_a_pattern_kept_as_waves_moves_by_any_distance():
    """What attention is for at half a token: told at a token, looked at from beside it."""
    at, beside = jnp.float32([[0.3, 0.5, 1.0]]), jnp.float32([[0.37, 0.42, 1.0]])

    def seen_from(place):
        """The waves' cosine and sine, as a pattern has them around a place."""
        angles = body_angles(place, 32)
        return jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1).reshape(1, 32)

    kept = rotate(seen_from(at), -body_angles(at, 32))  # of the pattern, wherever one looks from
    np.testing.assert_allclose(rotate(kept, body_angles(beside, 32)), seen_from(beside), atol=1e-5)
    assert np.abs(seen_from(at) - seen_from(beside)).max() > 0.5
    # Up to 7 waves in a torso, in any direction: there is one that a pattern nearly has.
    waves = np.asarray(body_angles(np.eye(2, 3, dtype=np.float32), 64)).T / (2 * np.pi)
    pattern = np.random.default_rng(0).uniform(-5, 5, (500, 2))
    away = np.linalg.norm(pattern[:, None] - np.concatenate([waves, -waves]), axis=-1).min(1)
    assert np.linalg.norm(waves, axis=-1).max() < 7 and away.max() < 1.5 and away.mean() < 0.7


def test_body_values_begin_with_nothing():
    params = flatten_dict(AnimateAnyone(with_body_places()).init(0, BODY_UNETS), sep="/")
    outs = [name for name in params if name.endswith("/body_out/kernel")]
    assert len(outs) == len([name for name in params if name.endswith("/body_v/kernel")]) > 4
    assert not any(params[name].any() for name in outs)


def test_rows_with_and_without_reference(on_body):
    """Guidance: the unconditional half knows the clip's places and no reference."""
    case = on_body
    model, params, tokens = case["model"], case["params"], case["tokens"]
    known = case["points"], case["reference_points"]
    features = model.encode_reference(params, case["picture"], tokens, known[1])
    both = model.bind(params, jnp.concatenate([0 * tokens, tokens]), features)
    pose = model.encode_pose(params, case["skeletons"], known[0])
    guided = model.guided_denoise(params, case["latents"], 500, both, pose, 2.0)
    conditional, _ = predict(case, *known)
    alone = model.bind(params, 0 * tokens)
    steps = jnp.array([500])
    unconditional = model.denoise(params, case["latents"], steps, alone, pose)
    expected = unconditional + 2 * (conditional - unconditional)
    np.testing.assert_allclose(guided, expected, atol=1e-4)


def test_they_need_positions():
    with pytest.raises(UserError, match="body_places without positions"):
        UNetConfig(body_places=True)
    with pytest.raises(UserError, match="body_values without body_places"):
        UNetConfig(positions=True, body_values=True)
    with pytest.raises(UserError, match=r"\[9, 16, 16, 16\] channels: give even ones"):
        UNetConfig(
            block_out_channels=(36, 64, 64, 64),
            heads=(4, 4, 4, 4),
            positions=True,
            body_places=True,
            body_values=True,
        )
