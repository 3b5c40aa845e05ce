"""The weights of the networks that metrics need: found, read without PyTorch, and checked.

None are shipped. A file is accepted when the network takes all of its tensors, and no others are
left but those of layers that no feature comes from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from animate_jax.errors import UserError
from animate_jax.evaluation import i3d, inception, lpips, resnet3d
from animate_jax.evaluation.layers import Weights
from animate_jax.weights.sources import open_state_dict

LPIPS_NETWORKS = tuple(lpips.NETWORKS)


@dataclass(frozen=True)
class Network:
    """A network of features: what calls it, on what, and what its file is called.

    option: of the command line. metric: whose features it computes. files: usual names, as
    patterns. example: the shape of an input that is quick to check. unused: a pattern of names in
    the file that no feature comes from. classes: a tensor of the file with one row for each class
    of the training that features come from; the same network from another one gives other numbers.
    """

    option: str
    metric: str
    features: Callable[[Weights, jax.Array], jax.Array]
    files: tuple[str, ...]
    example: tuple[int, ...]
    unused: str
    classes: tuple[str, int]


NETWORKS = {
    "inception": Network(
        "--inception",
        "fid",
        inception.fid_features,
        ("pt_inception-2015-12-05*.pth", "weights-inception-2015-12-05*.pth"),
        (1, 96, 96, 3),
        r"fc\..*|AuxLogits\..*|.*\.num_batches_tracked",
        ("fc.weight", 1008),
    ),
    "i3d": Network(
        "--i3d",
        "fvd",
        i3d.fvd_features,
        ("i3d_pretrained_400.pt", "rgb_imagenet.pt"),
        (1, i3d.LEAST_FRAMES, 64, 64, 3),
        r".*\.num_batches_tracked",
        ("logits.conv3d.weight", i3d.FEATURES),
    ),
    "resnet3d": Network(
        "--resnet3d",
        "fid_vid",
        resnet3d.fid_vid_features,
        ("resnet-50-kinetics.pth",),
        (1, 16, 64, 64, 3),
        r"fc\..*|.*\.num_batches_tracked",
        ("fc.weight", 400),
    ),
}
LPIPS_FILES = ("alexnet-owt-*.pth", "vgg16-*.pth", "alex.pth", "vgg.pth")
# The same tensors in the state dict of the whole `lpips.LPIPS` module.
_LPIPS_TRUNK = re.compile(r"net\.slice\d+\.(\d+)\.(weight|bias)")
_LPIPS_UNUSED = r"classifier\..*|lins\..*|scaling_layer\..*"


def missing_files(name: str) -> str:
    """A line that says which file gives a metric, for "lpips" or one of NETWORKS."""
    if name == "lpips":
        files = "alexnet-owt-*.pth with alex.pth, or vgg16-*.pth with vgg.pth"
        return f"give --lpips FILE...: {files} (lpips/weights/v0.1)"
    network = NETWORKS[name]
    return f"give {network.option} FILE: {' or '.join(network.files)}"


def find_files(directory: str | Path) -> dict[str, list[Path]]:
    """Files with usual names in a directory, for "lpips" and each of NETWORKS; may be none."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: there is no such directory; give the one with the networks")
    patterns = {"lpips": LPIPS_FILES, **{name: n.files for name, n in NETWORKS.items()}}
    found = {}
    for name, usual in patterns.items():
        files = [path for pattern in usual for path in sorted(directory.glob(pattern))]
        found[name] = files if name == "lpips" else files[:1]
    return found


def load_network(name: str, path: str | Path) -> Weights:
    """The weights of one of NETWORKS. Raises UserError for a file of anything else."""
    network = NETWORKS[name]
    layer, classes = network.classes
    there = open_state_dict(path)
    if layer in there and there[layer].shape[0] != classes:
        raise UserError(
            f"{path}: is of {there[layer].shape[0]} classes, the usual file of {classes};"
            f" {missing_files(name)}"
        )
    tensors = _read(path, network.unused)
    _check(str(path), network.features, tensors, network.example)
    return tensors


def load_lpips(paths: Iterable[str | Path], *, halves: bool = False) -> dict[str, Weights]:
    """{"alex" or "vgg": weights} for whatever the files hold together.

    A network's own file and its linear layers may come in any order, also both in one file. Raises
    UserError where one of the two is missing, unless `halves` may be there, which are left out; and
    for other files.
    """
    trunks, linear, paths = {}, {}, [Path(path) for path in paths]
    for path in paths:
        tensors = _read(path, _LPIPS_UNUSED)
        own = {n: t for n, t in tensors.items() if n.startswith("features.")}
        lins = {n: t for n, t in tensors.items() if n.startswith("lin")}
        for part, kinds, key, axis in (
            (own, {11: "alex", 3: "vgg"}, "features.0.weight", 0),
            (lins, {192: "alex", 128: "vgg"}, "lin1.model.1.weight", 2),
        ):
            if part:
                size = part[key].shape[axis] if key in part and part[key].ndim == 4 else None
                if size not in kinds:
                    raise UserError(f"{path}: is neither AlexNet nor VGG-16 nor LPIPS's layers")
                (trunks if part is own else linear)[kinds[size]] = part
        if len(own) + len(lins) < len(tensors) or not tensors:
            raise UserError(f"{path}: is neither AlexNet nor VGG-16 nor LPIPS's linear layers")
    incomplete = trunks.keys() ^ linear.keys()
    if incomplete and not halves:
        (kind, *_) = sorted(incomplete)
        lacking = "linear layers" if kind in trunks else "network"
        files = {"alex": ("alexnet-owt-*.pth", "alex.pth"), "vgg": ("vgg16-*.pth", "vgg.pth")}
        raise UserError(
            f"{', '.join(map(str, paths))}: the {lacking} of LPIPS {kind} are missing;"
            f" give both {' and '.join(files[kind])}"
        )
    networks = {}
    for kind in sorted(trunks.keys() & linear.keys()):
        networks[kind] = {**trunks[kind], **linear[kind]}

        def distance(weights, pictures, kind=kind):
            return lpips.lpips(weights, pictures, pictures, kind)

        _check(f"LPIPS {kind}", distance, networks[kind], (1, 64, 64, 3))
    return networks


def _read(path, unused) -> dict[str, jax.Array]:
    """A state dict as float32, with the axes of kernels in this package's order."""
    tensors = {}
    for name, tensor in open_state_dict(path).items():
        name = _LPIPS_TRUNK.sub(r"features.\1.\2", name)
        if not re.fullmatch(unused, name):
            array = tensor.read().astype(np.float32)
            if array.ndim in (4, 5):  # (out, in, ...) to (..., in, out)
                array = np.moveaxis(array, (0, 1), (-1, -2))
            tensors[name] = jnp.asarray(array)
    return tensors


class _Noticing(Mapping):
    """A mapping that remembers what was asked for."""

    def __init__(self, values):
        self.values_of, self.used = values, set()

    def __getitem__(self, name):
        self.used.add(name)
        return self.values_of[name]

    def __iter__(self):
        return iter(self.values_of)

    def __len__(self):
        return len(self.values_of)

    def __contains__(self, name):
        return name in self.values_of


def _check(what, function, tensors, example):
    """Raises UserError unless a network runs with these weights and uses all of them."""
    noticing = _Noticing(tensors)
    try:
        jax.eval_shape(lambda x: function(noticing, x), jax.ShapeDtypeStruct(example, np.float32))
    except KeyError as error:
        raise UserError(f"{what}: lacks {error}; is it another network's file?") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: its tensors have other shapes; get the usual file") from error
    surplus = sorted(tensors.keys() - noticing.used)
    if surplus:
        raise UserError(
            f"{what}: {len(surplus)} tensors are not this network's, the first is {surplus[0]!r}"
        )
