"""Graph networks: messages are read and written along nodes, channels pass through."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.nets import Net, noise
from tests.patterns.builder import checked, refusal

SOURCE = torch.tensor([0, 1, 2, 3, 4, 1])
TARGET = torch.tensor([1, 2, 3, 4, 0, 3])
ADJACENCY = torch.zeros(5, 5).index_put_((TARGET, SOURCE), torch.ones(6))
NODES = noise(5, 8)


def dense(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU())


def graph_network(propagate: Callable[[Net, torch.Tensor], torch.Tensor]) -> Net:
    """Two layers with messages behind each; the edges are buffers."""
    net = Net(
        lambda n, x: n.out(propagate(n, n.b(propagate(n, n.a(x))))),
        a=dense(8, 32),
        b=dense(32, 32),
        out=nn.Linear(32, 3),
    )
    net.register_buffer("source", SOURCE)
    net.register_buffer("target", TARGET)
    return net


def scatter_add(n: Net, x: torch.Tensor) -> torch.Tensor:
    messages = x.index_select(0, n.source)
    return x.new_zeros(x.shape).scatter_add_(0, n.target[:, None].expand_as(messages), messages)


def scatter_add_by_view(n: Net, x: torch.Tensor) -> torch.Tensor:
    messages = x[n.source]
    out = torch.zeros(x.shape[0], messages.shape[1], dtype=x.dtype)
    return out.scatter_add(0, n.target.view(-1, 1).expand(-1, messages.size(1)), messages)


def gather_and_reduce(n: Net, x: torch.Tensor) -> torch.Tensor:
    places, to = (index.unsqueeze(1).expand(-1, x.shape[1]) for index in (n.source, n.target))
    return x.scatter_reduce(0, to, x.gather(0, places), "amax", include_self=False)


def own_index_per_channel(n: Net, x: torch.Tensor) -> torch.Tensor:
    """The largest value of each channel is added to node 0: the index has channels itself."""
    return x.scatter_add(0, torch.zeros_like(x[:1], dtype=torch.int64), x.gather(0, x.argmax(0, keepdim=True)))


def index_add(n: Net, x: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(x).index_add_(0, n.target, x[n.source])


def index_copy(n: Net, x: torch.Tensor) -> torch.Tensor:
    return x.index_copy(0, n.target[:2], x[n.source[:2]])


def index_reduce(n: Net, x: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings(action="ignore"):  # "in beta"
        return x.index_reduce(0, n.target, x[n.source], "mean")


def index_fill(n: Net, x: torch.Tensor) -> torch.Tensor:
    return x.index_fill(0, n.target[:2], 0)


def accumulate(n: Net, x: torch.Tensor) -> torch.Tensor:
    return x.index_put((n.target,), x[n.source], accumulate=True)


def accumulate_channels_first(n: Net, x: torch.Tensor) -> torch.Tensor:
    flat = x.t().contiguous()
    flat[:, n.target] = flat[:, n.source] * 2
    return flat.t()


def segment_reduce(n: Net, x: torch.Tensor) -> torch.Tensor:
    sums = torch.segment_reduce(x[n.source[:5]], "sum", lengths=torch.tensor([1, 1, 2, 0, 1]), axis=0)
    return x + sums


def dense_matrix(n: Net, x: torch.Tensor) -> torch.Tensor:
    return ADJACENCY.to(x.dtype) @ x


def sparse_matrix(n: Net, x: torch.Tensor) -> torch.Tensor:
    places = torch.stack([n.target, n.source])
    return torch.sparse.mm(torch.sparse_coo_tensor(places, torch.ones(6, dtype=x.dtype), (5, 5)), x)


@pytest.mark.parametrize(
    "propagate",
    [scatter_add, scatter_add_by_view, gather_and_reduce, own_index_per_channel, index_add, index_copy, index_reduce,
     index_fill, accumulate, accumulate_channels_first, segment_reduce, dense_matrix, sparse_matrix],
)  # fmt: skip
def test_channels_pass_beside_the_nodes(propagate: Callable[[Net, torch.Tensor], torch.Tensor]) -> None:
    checked(graph_network(propagate), NODES)


def test_edges_may_be_an_input() -> None:
    def forward(n: Net, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        messages = n.a(x)[edges[0]]
        to = edges[1][:, None].expand_as(messages)
        return n.out(messages.new_zeros(5, messages.shape[1]).scatter_add_(0, to, messages))

    checked(Net(forward, a=dense(8, 32), out=dense(32, 16)), (NODES, torch.stack([SOURCE, TARGET])), free=32)


def test_a_literal_width_keeps_the_channels() -> None:
    def propagate(n: Net, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(5, 32).scatter_add_(0, n.target[:, None].expand(6, 32), x[n.source])

    net = graph_network(lambda n, x: x)
    net._forward = lambda n, x: n.out(n.b(n.a(x) + 0) + 0 * propagate(n, n.b(n.a(x))))
    result = checked(net, NODES, free=32)
    assert refusal(result, "relies on a fixed size")


def test_channels_picked_by_an_index_stay() -> None:
    def shuffled(n: Net, x: torch.Tensor) -> torch.Tensor:
        return x.scatter_add(1, torch.arange(32).flip(0).expand_as(x), x)

    net = graph_network(shuffled)
    net._forward = lambda n, x: n.out(n.b(shuffled(n, n.a(x))))
    assert refusal(checked(net, NODES, free=32), "is picked by an index")
