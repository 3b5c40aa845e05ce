"""Features of the metrics' networks against PyTorch's, from files as they are published."""

import jax
import numpy as np
import pytest
import torch
from parity import relative_l2
from PIL import Image
from torch.nn import functional as F
from torch_networks import LPIPS, FidInception, I3d, Resnet3d, lpips_distance, randomize

from animate_jax.errors import UserError
from animate_jax.evaluation import i3d as i3d_module
from animate_jax.evaluation import inception as inception_module
from animate_jax.evaluation import resnet3d as resnet3d_module
from animate_jax.evaluation.i3d import i3d
from animate_jax.evaluation.inception import inception
from animate_jax.evaluation.layers import resize
from animate_jax.evaluation.lpips import lpips
from animate_jax.evaluation.networks import find_files, load_lpips, load_network, missing_files
from animate_jax.evaluation.resnet3d import resnet3d


def save(path, value):
    """As such files were written when those of the metrics were."""
    torch.save(value, path, _use_new_zipfile_serialization=False)
    return path


def uniform(*shape):
    return np.random.default_rng(len(shape)).random(shape, np.float32)


def channels_first(x):
    return torch.from_numpy(np.moveaxis(x, -1, 1).copy())


def lpips_files(directory, kind):
    trunk, widths, _ = LPIPS[kind]
    trunk = randomize(trunk(), 0)
    generator = torch.Generator().manual_seed(1)
    linear = {
        f"lin{level}.model.1.weight": torch.rand((1, width, 1, 1), generator=generator)
        for level, width in enumerate(widths)
    }
    state = {f"features.{name}": tensor for name, tensor in trunk.state_dict().items()}
    state |= {"classifier.6.weight": torch.ones(3, 4), "classifier.6.bias": torch.ones(3)}
    name = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}[kind]
    return trunk, linear, save(directory / name, state), save(directory / f"{kind}.pth", linear)


@pytest.mark.parametrize("kind", ["alex", "vgg"])
def test_lpips(tmp_path, kind):
    trunk, linear, *files = lpips_files(tmp_path, kind)
    found = load_lpips(find_files(tmp_path)["lpips"])
    assert list(found) == [kind]
    a, b = uniform(2, 2, 64, 70, 3)
    b[1] = a[1]
    normalize = kind == "alex"
    with torch.no_grad():
        pair = channels_first(a), channels_first(b)
        expected = lpips_distance(trunk, linear, kind, *pair, normalize).numpy()
    ours = jax.jit(lpips, static_argnums=(3, 4))(found[kind], a, b, kind, normalize)
    assert expected[0] > 0.1 and expected[1] == 0
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-12)
    # The state dict of lpips.LPIPS holds both, under other names.
    slices = {
        f"net.slice{1 + int(n.split('.')[0]) // 3}.{n}": t for n, t in trunk.state_dict().items()
    }
    doubled = {f"lins.{n[3:]}": t for n, t in linear.items()}
    whole = load_lpips([save(tmp_path / "whole.pth", slices | linear | doubled)])
    assert whole[kind].keys() == found[kind].keys()
    assert all((whole[kind][name] == found[kind][name]).all() for name in whole[kind])
    with pytest.raises(UserError, match="linear layers of LPIPS .* are missing"):
        load_lpips(files[:1])
    with pytest.raises(UserError, match="network of LPIPS"):
        load_lpips(files[1:])
    assert load_lpips(files[1:], halves=True) == load_lpips(files[:1], halves=True) == {}
    other = "vgg" if kind == "alex" else "alex"
    (tmp_path / "more").mkdir()
    *_, network, _ = lpips_files(tmp_path / "more", other)
    assert list(load_lpips([*files, network], halves=True)) == [kind]


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    module = randomize(FidInception(), 2)
    path = tmp_path_factory.mktemp("fid") / "pt_inception-2015-12-05-6726825d.pth"
    return module, save(path, module.state_dict())


def test_inception(inception_file):
    module, path = inception_file
    weights = load_network("inception", path)
    x = 2 * uniform(2, 107, 96, 3) - 1
    with torch.no_grad():
        expected = module(channels_first(x)).numpy()
    ours = np.asarray(jax.jit(inception)(weights, x))
    assert ours.shape == (2, 2048) and np.std(expected[0] - expected[1]) > 1e-3
    assert relative_l2(ours, expected) < 1e-5
    assert relative_l2(ours[0] - ours[1], expected[0] - expected[1]) < 1e-4


def test_i3d(tmp_path):
    module = randomize(I3d(), 3)
    weights = load_network("i3d", save(tmp_path / "i3d_pretrained_400.pt", module.state_dict()))
    x = 2 * uniform(1, 17, 65, 64, 3) - 1  # sides that SAME pads differently
    with torch.no_grad():
        expected = module(channels_first(x)).numpy()
    ours = np.asarray(jax.jit(i3d)(weights, x))
    assert ours.shape == (1, 400)
    assert relative_l2(ours, expected) < 1e-5


def test_resnet3d(tmp_path):
    module = randomize(Resnet3d(), 4)
    state = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    path = save(tmp_path / "resnet-50-kinetics.pth", {"arch": "resnet-50", "state_dict": state})
    weights = load_network("resnet3d", path)
    x = uniform(1, 16, 64, 64, 3)
    with torch.no_grad():
        expected = module(channels_first(x)).numpy()
    ours = np.asarray(jax.jit(resnet3d)(weights, x))
    assert ours.shape == (1, 2048)
    assert relative_l2(ours, expected) < 1e-5


def test_pictures_are_resized_as_the_networks_are_used_to():
    x = uniform(2, 40, 53, 3)
    smaller, larger = (31, 23), (70, 60)
    for size in (smaller, larger):
        ours = resize(x, *size, "linear", antialias=False)
        expected = F.interpolate(channels_first(x), size, mode="bilinear", align_corners=False)
        np.testing.assert_allclose(np.moveaxis(np.asarray(ours), -1, 1), expected, atol=1e-5)
        ours = resize(x, *size, "cubic", antialias=True)
        for channel in range(3):
            picture = Image.fromarray(x[0, ..., channel])
            expected = picture.resize(size[::-1], Image.Resampling.BICUBIC)
            np.testing.assert_allclose(ours[0, ..., channel], np.asarray(expected), atol=1e-5)


def test_networks_see_pictures_as_in_the_code_they_come_from(monkeypatch):
    """pytorch-fid: bilinear, [-1, 1]. DisCo: Pillow's bicubic; [-1, 1], or 0 to 255 less a mean."""
    for module, name in ((inception_module, "inception"), (i3d_module, "i3d")):
        monkeypatch.setattr(module, name, lambda weights, x: x)
    monkeypatch.setattr(resnet3d_module, "resnet3d", lambda weights, x: x)
    clip = uniform(1, 2, 40, 53, 3)
    seen = inception_module.fid_features(None, clip[0])
    expected = F.interpolate(channels_first(clip[0]), (299, 299), mode="bilinear") * 2 - 1
    np.testing.assert_allclose(np.moveaxis(np.asarray(seen), -1, 1), expected, atol=1e-5)
    mean = np.array([114.7748, 107.7354, 99.4750])
    for features, size, scale, shift in (
        (i3d_module.fvd_features, 224, 2, -np.ones(3)),
        (resnet3d_module.fid_vid_features, 112, 255, -mean),
    ):
        seen = features(None, clip)
        assert seen.shape == (1, 2, size, size, 3)
        for channel in range(3):
            picture = Image.fromarray(clip[0, 1, ..., channel])
            resized = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
            expected = resized * scale + shift[channel]
            np.testing.assert_allclose(seen[0, 1, ..., channel], expected, atol=1e-5 * scale)


def test_other_files_are_refused(tmp_path, inception_file):
    module, path = inception_file
    with pytest.raises(UserError, match="lacks 'Conv3d_1a_7x7"):
        load_network("i3d", path)
    state = module.state_dict()
    more = save(tmp_path / "more.pth", state | {"extra": torch.ones(2)})
    with pytest.raises(UserError, match="1 tensors are not this network's, the first is 'extra'"):
        load_network("inception", more)
    torchvisions = state | {"fc.weight": torch.ones(1000, 2048), "fc.bias": torch.ones(1000)}
    with pytest.raises(UserError, match="is of 1000 classes, the usual file of 1008"):
        load_network("inception", save(tmp_path / "torchvision.pth", torchvisions))
    state["Mixed_7c.branch1x1.conv.weight"] = torch.ones(320, 7, 1, 1)
    with pytest.raises(UserError, match="other shapes"):
        load_network("inception", save(tmp_path / "shape.pth", state))
    with pytest.raises(UserError, match="neither AlexNet"):
        load_lpips([path])
    with pytest.raises(UserError, match="no such directory"):
        find_files(tmp_path / "nowhere")
    assert find_files(path.parent)["inception"] == [path]
    assert "--i3d FILE: i3d_pretrained_400.pt" in missing_files("i3d")
