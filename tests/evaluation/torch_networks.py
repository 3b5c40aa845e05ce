"""The networks of the metrics in plain PyTorch, with the names of their published files.

Written from their descriptions, so that features can be compared; weights are random.
"""

import torch
from torch import nn
from torch.nn import functional as F


def randomize(module: nn.Module, seed: int) -> nn.Module:
    """Random weights that keep activations of order one through many layers, and random norms."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            draw = torch.rand if name.endswith("running_var") else torch.randn
            if not tensor.is_floating_point():
                continue
            values = draw(tensor.shape, generator=generator)
            if tensor.ndim > 2:
                values *= (2 / tensor[0].numel()) ** 0.5
            elif name.endswith("running_var"):
                values += 0.5
            elif name.endswith("weight"):
                values = 1 + 0.2 * values
            else:
                values *= 0.2
            tensor.copy_(values)
    return module.eval()


def alexnet_features() -> nn.Module:
    def conv(*sizes, **options):
        return [nn.Conv2d(*sizes, **options), nn.ReLU()]

    layers = [
        *conv(3, 64, 11, stride=4, padding=2),
        nn.MaxPool2d(3, 2),
        *conv(64, 192, 5, padding=2),
        nn.MaxPool2d(3, 2),
        *conv(192, 384, 3, padding=1),
        *conv(384, 256, 3, padding=1),
        *conv(256, 256, 3, padding=1),
        nn.MaxPool2d(3, 2),
    ]
    return nn.Sequential(*layers)


def vgg16_features() -> nn.Module:
    layers, channels = [], 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


LPIPS = {  # trunk, widths, and the layers after which features are compared
    "alex": (alexnet_features, (64, 192, 384, 256, 256), (1, 4, 7, 9, 11)),
    "vgg": (vgg16_features, (64, 128, 256, 512, 512), (3, 8, 15, 22, 29)),
}


def lpips_distance(trunk, linear: dict, kind: str, a, b, normalize: bool):
    """Pictures (n, 3, height, width) in [0, 1] -> (n,)."""
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    if normalize:
        a, b = 2 * a - 1, 2 * b - 1
    a, b, total, level = (a - shift) / scale, (b - shift) / scale, 0, 0
    for number, layer in enumerate(trunk):
        a, b = layer(a), layer(b)
        if number in LPIPS[kind][2]:
            u, v = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (a, b))
            weight = linear[f"lin{level}.model.1.weight"]
            total = total + F.conv2d((u - v) ** 2, weight).mean((1, 2, 3))
            level += 1
    return total


class Unit2d(nn.Module):
    def __init__(self, channels, width, kernel, stride=1, padding=0):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


def _averages(x):
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def _maxima(x):
    return F.max_pool2d(x, 3, 1, 1)


class InceptionBlock(nn.Module):
    """branches: lists of (name, width, kernel, stride, padding); the last may be after a pooling.

    A branch's end may be a list of two units side by side.
    """

    def __init__(self, channels, branches, pool, reduce=False):
        super().__init__()
        self.branches, self.pool, self.reduce, self.width = [], pool, reduce, 0
        for branch in branches:
            size, names = channels, []
            for part in branch:
                parallel = part if isinstance(part, list) else [part]
                for name, width, *rest in parallel:
                    setattr(self, name, Unit2d(size, width, *rest))
                names.append([entry[0] for entry in parallel])
                size = sum(entry[1] for entry in parallel)
            self.branches.append(names)
            self.width += size
        self.width += channels if reduce else 0

    def forward(self, x):
        outs = []
        for names in self.branches:
            y = self.pool(x) if names == [["branch_pool"]] else x
            for parallel in names:
                y = torch.cat([getattr(self, name)(y) for name in parallel], 1)
            outs.append(y)
        return torch.cat([*outs, F.max_pool2d(x, 3, 2)] if self.reduce else outs, 1)


def _wide(name, width, out=None):
    """1x7 and 7x1 units in a row are written as (name, 'across' or 'down')."""
    kernel, padding = ((1, 7), (0, 3)) if width == "across" else ((7, 1), (3, 0))
    return name, out, kernel, 1, padding


class FidInception(nn.Module):
    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Unit2d(3, 32, 3, 2)
        self.Conv2d_2a_3x3 = Unit2d(32, 32, 3)
        self.Conv2d_2b_3x3 = Unit2d(32, 64, 3, 1, 1)
        self.Conv2d_3b_1x1 = Unit2d(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit2d(80, 192, 3)
        width, self.mixed = 192, []

        def add(name, *branches, pool=_averages, **options):
            nonlocal width
            block = InceptionBlock(width, branches, pool, **options)
            setattr(self, name, block)
            self.mixed.append(name)
            width = block.width

        for letter, pooled in zip("bcd", (32, 64, 64)):
            add(
                f"Mixed_5{letter}",
                [("branch1x1", 64, 1)],
                [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5, 1, 2)],
                [
                    ("branch3x3dbl_1", 64, 1),
                    ("branch3x3dbl_2", 96, 3, 1, 1),
                    ("branch3x3dbl_3", 96, 3, 1, 1),
                ],
                [("branch_pool", pooled, 1)],
            )
        add(
            "Mixed_6a",
            [("branch3x3", 384, 3, 2)],
            [
                ("branch3x3dbl_1", 64, 1),
                ("branch3x3dbl_2", 96, 3, 1, 1),
                ("branch3x3dbl_3", 96, 3, 2),
            ],
            reduce=True,
        )
        for letter, c in zip("bcde", (128, 160, 160, 192)):
            add(
                f"Mixed_6{letter}",
                [("branch1x1", 192, 1)],
                [
                    ("branch7x7_1", c, 1),
                    _wide("branch7x7_2", "across", c),
                    _wide("branch7x7_3", "down", 192),
                ],
                [
                    ("branch7x7dbl_1", c, 1),
                    _wide("branch7x7dbl_2", "down", c),
                    _wide("branch7x7dbl_3", "across", c),
                    _wide("branch7x7dbl_4", "down", c),
                    _wide("branch7x7dbl_5", "across", 192),
                ],
                [("branch_pool", 192, 1)],
            )
        add(
            "Mixed_7a",
            [("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3, 2)],
            [
                ("branch7x7x3_1", 192, 1),
                _wide("branch7x7x3_2", "across", 192),
                _wide("branch7x7x3_3", "down", 192),
                ("branch7x7x3_4", 192, 3, 2),
            ],
            reduce=True,
        )
        for letter, pool in zip("bc", (_averages, _maxima)):
            add(
                f"Mixed_7{letter}",
                [("branch1x1", 320, 1)],
                [
                    ("branch3x3_1", 384, 1),
                    [
                        ("branch3x3_2a", 384, (1, 3), 1, (0, 1)),
                        ("branch3x3_2b", 384, (3, 1), 1, (1, 0)),
                    ],
                ],
                [
                    ("branch3x3dbl_1", 448, 1),
                    ("branch3x3dbl_2", 384, 3, 1, 1),
                    [
                        ("branch3x3dbl_3a", 384, (1, 3), 1, (0, 1)),
                        ("branch3x3dbl_3b", 384, (3, 1), 1, (1, 0)),
                    ],
                ],
                [("branch_pool", 192, 1)],
                pool=pool,
            )
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x):
        """(n, 3, height, width) in [-1, 1] -> (n, 2048)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in self.mixed:
            x = getattr(self, name)(x)
        return x.mean((2, 3))


def _pad_same(x, kernel, stride):
    """Zeros as TensorFlow's SAME puts them: what is odd goes behind."""
    pads = []
    for size, k, s in zip(x.shape[2:], kernel, stride):
        total = max(k - s if size % s == 0 else k - size % s, 0)
        pads = [total // 2, total - total // 2, *pads]
    return F.pad(x, pads)


class Unit3d(nn.Module):
    def __init__(self, channels, width, kernel=1, stride=1):
        super().__init__()
        self.conv3d = nn.Conv3d(channels, width, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(width, eps=1e-3)

    def forward(self, x):
        x = _pad_same(x, self.conv3d.kernel_size, self.conv3d.stride)
        return self.bn(self.conv3d(x)).relu()


def _pool3d(x, kernel, stride):
    return F.max_pool3d(_pad_same(x, kernel, stride), kernel, stride)


class I3dBlock(nn.Module):
    def __init__(self, channels, widths):
        super().__init__()
        a, b, c, d, e, f = widths
        self.b0 = Unit3d(channels, a)
        self.b1a, self.b1b = Unit3d(channels, b), Unit3d(b, c, 3)
        self.b2a, self.b2b = Unit3d(channels, d), Unit3d(d, e, 3)
        self.b3b = Unit3d(channels, f)

    def forward(self, x):
        pooled = _pool3d(x, (3, 3, 3), (1, 1, 1))
        parts = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)
        return torch.cat(parts, 1)


class I3d(nn.Module):
    BLOCKS = {
        "Mixed_3b": (64, 96, 128, 16, 32, 32),
        "Mixed_3c": (128, 128, 192, 32, 96, 64),
        "Mixed_4b": (192, 96, 208, 16, 48, 64),
        "Mixed_4c": (160, 112, 224, 24, 64, 64),
        "Mixed_4d": (128, 128, 256, 24, 64, 64),
        "Mixed_4e": (112, 144, 288, 32, 64, 64),
        "Mixed_4f": (256, 160, 320, 32, 128, 128),
        "Mixed_5b": (256, 160, 320, 32, 128, 128),
        "Mixed_5c": (384, 192, 384, 48, 128, 128),
    }

    def __init__(self):
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3d(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit3d(64, 64)
        self.Conv3d_2c_3x3 = Unit3d(64, 192, 3)
        channels = 192
        for name, widths in self.BLOCKS.items():
            setattr(self, name, I3dBlock(channels, widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.logits = nn.ModuleDict({"conv3d": nn.Conv3d(channels, 400, 1)})

    def forward(self, x):
        """(n, 3, frames, height, width) in [-1, 1] -> (n, 400)."""
        x = _pool3d(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        x = _pool3d(x, (1, 3, 3), (1, 2, 2))
        for name in self.BLOCKS:
            if name == "Mixed_4b":
                x = _pool3d(x, (3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                x = _pool3d(x, (2, 2, 2), (2, 2, 2))
            x = getattr(self, name)(x)
        x = F.avg_pool3d(x, (2, *x.shape[3:]), stride=1)
        return self.logits["conv3d"](x).squeeze(4).squeeze(3).mean(2)


class Bottleneck3d(nn.Module):
    def __init__(self, channels, width, stride, shortcut):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv3d(channels, width, 1, bias=False), nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(4 * width)
        self.downsample = shortcut and nn.Sequential(
            nn.Conv3d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm3d(4 * width)
        )

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return (y + (self.downsample(x) if self.downsample else x)).relu()


class Resnet3d(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, 7, (1, 2, 2), 3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        channels = 64
        for layer, (width, depth) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3)), 1):
            blocks = []
            for block in range(depth):
                stride = 2 if layer > 1 and block == 0 else 1
                blocks.append(Bottleneck3d(channels, width, stride, block == 0))
                channels = 4 * width
            setattr(self, f"layer{layer}", nn.Sequential(*blocks))
        self.fc = nn.Linear(2048, 400)

    def forward(self, x):
        """(n, 3, frames, height, width) -> (n, 2048)."""
        x = F.max_pool3d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        return x.mean((2, 3, 4))
