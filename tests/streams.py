"""Small networks in which layers without a BatchNorm write into a stream that BatchNorms rank."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.nets import Net, conv_bn, head


def conv(channels: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups)


def preactivated(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    """The body of a pre-activation block: its last convolution is plain."""
    first = (nn.BatchNorm2d(channels), nn.ReLU(), conv(channels, out, 3, stride))
    return nn.Sequential(*first, nn.BatchNorm2d(out), nn.ReLU(), conv(out, out))


def preactivation(k: int = 1) -> nn.Module:
    """A pre-activation network whose shortcut convolution and head read the stream without a BatchNorm."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        x = x + net.first(x)
        x = x + net.second(x)
        x = net.shortcut(x) + net.third(x)
        return net.head(x + net.fourth(x))

    narrow, wide = 16 * k, 24 * k
    stages = {"first": preactivated(narrow, narrow), "second": preactivated(narrow, narrow)}
    stages |= {"third": preactivated(narrow, wide, 2), "fourth": preactivated(wide, wide)}
    return Net(forward, stem=conv(3, narrow), **stages, shortcut=conv(narrow, wide, 1, 2), head=head(wide))


def shortcuts(k: int = 1) -> nn.Module:
    """Residual units whose shortcut is a plain convolution with a stride (MONAI's UNet)."""

    def unit(channels: int, out: int, stride: int) -> nn.ModuleDict:
        body = nn.Sequential(conv_bn(channels, out, stride=stride), conv_bn(out, out))
        return nn.ModuleDict({"body": body, "shortcut": conv(channels, out, 3, stride)})

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for down in net.down:
            x = down["body"](x) + down["shortcut"](x)
            skips.append(x)
        x = torch.cat([F.interpolate(skips[1], scale_factor=2), skips[0]], 1)
        return net.out(net.up(x))

    down = nn.ModuleList([unit(3, 16 * k, 1), unit(16 * k, 24 * k, 2)])
    return Net(forward, down=down, up=conv_bn(40 * k, 16 * k), out=conv(16 * k, 3, 1))


def skip_added(k: int = 1) -> nn.Module:
    """An encoder and decoder of pre-activation blocks, with plain convolutions between levels (MONAI's SegResNet)."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        x = x + net.block1(x)
        y = net.down(x)
        y = y + net.block2(y)
        x = x + F.interpolate(net.up(y), scale_factor=2)
        x = x + net.block3(x)
        return net.out(x)

    blocks = {
        "block1": preactivated(16 * k, 16 * k),
        "block2": preactivated(24 * k, 24 * k),
        "block3": preactivated(16 * k, 16 * k),
    }
    return Net(
        forward,
        stem=conv(3, 16 * k),
        down=conv(16 * k, 24 * k, 3, 2),
        up=conv(24 * k, 16 * k, 1),
        out=conv(16 * k, 3, 1),
        **blocks,
    )


def scaled_branches(k: int = 1) -> nn.Module:
    """Branches that end in a plain convolution and are scaled before they are added (Inception-ResNet)."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        for number, body in enumerate(net.blocks):
            branch = body["last"](torch.cat([body["left"](x), body["right"](x)], 1))
            x = F.relu(x + (0.17, 0.1, 0.2)[number] * branch)
        return net.head(x)

    blocks = nn.ModuleList(
        nn.ModuleDict(
            {"left": conv_bn(24 * k, 8 * k, 1), "right": conv_bn(24 * k, 12 * k), "last": conv(20 * k, 24 * k, 1)}
        )
        for _ in range(3)
    )
    return Net(forward, stem=conv_bn(3, 24 * k), blocks=blocks, head=head(24 * k))


def value_projection(k: int = 1) -> nn.Module:
    """Attention over positions; a depthwise convolution and a BatchNorm add a position encoding to the values."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        v = net.v(x)
        weights = torch.softmax(net.q(x).flatten(2).transpose(1, 2) @ net.k(x).flatten(2) / 4, -1)
        attended = (v.flatten(2) @ weights.transpose(1, 2)).view(v.shape)
        return net.head(x + net.project(attended + net.encode(v)))

    encode = nn.Sequential(conv(24 * k, 24 * k, 3, 1, 24 * k), nn.BatchNorm2d(24 * k))
    projections = {"q": conv(16 * k, 16 * k, 1), "k": conv(16 * k, 16 * k, 1), "v": conv(16 * k, 24 * k, 1)}
    last = nn.Sequential(conv(24 * k, 16 * k, 1), nn.BatchNorm2d(16 * k))
    return Net(forward, stem=conv_bn(3, 16 * k), **projections, encode=encode, project=last, head=head(16 * k))


def star(k: int = 1) -> nn.Module:
    """Blocks with a product of two plain convolutions and a plain depthwise one at the end (StarNet)."""

    def block(width: int) -> nn.ModuleDict:
        first = nn.Sequential(conv(width, width, 3, 1, width), nn.BatchNorm2d(width))
        back = nn.Sequential(conv(3 * width, width, 1), nn.BatchNorm2d(width))
        layers = {"first": first, "left": conv(width, 3 * width, 1), "right": conv(width, 3 * width, 1), "back": back}
        return nn.ModuleDict({**layers, "last": conv(width, width, 3, 1, width)})

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        for number, body in enumerate(net.blocks):
            y = body["first"](x)
            x = x + body["last"](body["back"](F.relu6(body["left"](y)) * body["right"](y)))
            x = net.down(x) if number == 1 else x
        return net.head(net.norm(x))

    down = nn.Sequential(conv(16 * k, 24 * k, 3, 2), nn.BatchNorm2d(24 * k))
    blocks, norm = nn.ModuleList([block(16 * k), block(16 * k), block(24 * k)]), nn.BatchNorm2d(24 * k)
    return Net(forward, stem=conv_bn(3, 16 * k), blocks=blocks, down=down, norm=norm, head=head(24 * k))


def inverted_bottlenecks(k: int = 1) -> nn.Module:
    """Pre-activation inverted bottlenecks with a plain last convolution and a pooled plain shortcut (CoAtNet)."""

    def block(width: int, out: int, stride: int) -> nn.ModuleDict:
        wide = 2 * out
        body = nn.Sequential(
            nn.BatchNorm2d(width),
            conv_bn(width, wide, 1),
            conv_bn(wide, wide, groups=wide, stride=stride),
            conv(wide, out, 1),
        )
        same = width == out
        return nn.ModuleDict({"body": body, "shortcut": nn.Identity() if same else conv(width, out, 1, stride)})

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        for body in net.blocks:
            x = body["shortcut"](x) + body["body"](x)
        return net.head(x)

    blocks = nn.ModuleList([block(16 * k, 16 * k, 1), block(16 * k, 24 * k, 2), block(24 * k, 24 * k, 1)])
    return Net(forward, stem=nn.Sequential(conv_bn(3, 12 * k), conv(12 * k, 16 * k)), blocks=blocks, head=head(24 * k))


STREAMS = {
    "pre-activation": preactivation,
    "convolution shortcuts": shortcuts,
    "added skips": skip_added,
    "scaled branches": scaled_branches,
    "value projection": value_projection,
    "star": star,
    "inverted bottlenecks": inverted_bottlenecks,
}
