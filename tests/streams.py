"""Small networks in which layers without a BatchNorm write into a stream that BatchNorms rank."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.nets import Net, conv_bn, head


def conv(channels: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups)


def preactivation() -> nn.Module:
    """Pre-activation blocks of plain convolutions, without a last BatchNorm: the head reads the stream itself."""

    def block(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), conv(width, width), nn.BatchNorm2d(width), nn.ReLU(), conv(width, width)
        )

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        for body in net.blocks:
            x = x + body(x)
        return net.head(x)

    return Net(forward, stem=conv(3, 24), blocks=nn.ModuleList(block(24) for _ in range(3)), head=head(24))


def shortcuts() -> nn.Module:
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

    down = nn.ModuleList([unit(3, 16, 1), unit(16, 24, 2)])
    return Net(forward, down=down, up=conv_bn(40, 16), out=conv(16, 3, 1))


def skip_added() -> nn.Module:
    """An encoder and decoder of pre-activation blocks, with plain convolutions between levels (MONAI's SegResNet)."""

    def block(width: int) -> nn.Sequential:
        return nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), conv(width, width), nn.BatchNorm2d(width), nn.ReLU(), conv(width, width)
        )

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        x = x + net.block1(x)
        y = net.down(x)
        y = y + net.block2(y)
        x = x + F.interpolate(net.up(y), scale_factor=2)
        x = x + net.block3(x)
        return net.out(x)

    blocks = {"block1": block(16), "block2": block(24), "block3": block(16)}
    return Net(forward, stem=conv(3, 16), down=conv(16, 24, 3, 2), up=conv(24, 16, 1), out=conv(16, 3, 1), **blocks)


def scaled_branches() -> nn.Module:
    """Branches that end in a plain convolution and are scaled before they are added (Inception-ResNet)."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        for number, body in enumerate(net.blocks):
            branch = body["last"](torch.cat([body["left"](x), body["right"](x)], 1))
            x = F.relu(x + (0.17, 0.1, 0.2)[number] * branch)
        return net.head(x)

    blocks = nn.ModuleList(
        nn.ModuleDict({"left": conv_bn(24, 8, 1), "right": conv_bn(24, 12), "last": conv(20, 24, 1)}) for _ in range(3)
    )
    return Net(forward, stem=conv_bn(3, 24), blocks=blocks, head=head(24))


def value_projection() -> nn.Module:
    """Attention over positions; a depthwise convolution and a BatchNorm add a position encoding to the values."""

    def forward(net: Net, x: torch.Tensor) -> torch.Tensor:
        x = net.stem(x)
        v = net.v(x)
        weights = torch.softmax(net.q(x).flatten(2).transpose(1, 2) @ net.k(x).flatten(2) / 4, -1)
        attended = (v.flatten(2) @ weights.transpose(1, 2)).view(v.shape)
        return net.head(x + net.project(attended + net.encode(v)))

    encode = nn.Sequential(conv(24, 24, 3, 1, 24), nn.BatchNorm2d(24))
    projections = {"q": conv(16, 16, 1), "k": conv(16, 16, 1), "v": conv(16, 24, 1)}
    last = nn.Sequential(conv(24, 16, 1), nn.BatchNorm2d(16))
    return Net(forward, stem=conv_bn(3, 16), **projections, encode=encode, project=last, head=head(16))


def star() -> nn.Module:
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

    down = nn.Sequential(conv(16, 24, 3, 2), nn.BatchNorm2d(24))
    blocks, norm = nn.ModuleList([block(16), block(16), block(24)]), nn.BatchNorm2d(24)
    return Net(forward, stem=conv_bn(3, 16), blocks=blocks, down=down, norm=norm, head=head(24))


def inverted_bottlenecks() -> nn.Module:
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

    blocks = nn.ModuleList([block(16, 16, 1), block(16, 24, 2), block(24, 24, 1)])
    return Net(forward, stem=nn.Sequential(conv_bn(3, 12), conv(12, 16)), blocks=blocks, head=head(24))


STREAMS = {
    "pre-activation": preactivation,
    "convolution shortcuts": shortcuts,
    "added skips": skip_added,
    "scaled branches": scaled_branches,
    "value projection": value_projection,
    "star": star,
    "inverted bottlenecks": inverted_bottlenecks,
}
