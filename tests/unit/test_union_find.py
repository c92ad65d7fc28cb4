"""The disjoint-set forest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnprune.channels.union_find import NO_CHANNEL, ChannelIds, Refusal

WHY = Refusal("here", "for a test", "")


@given(
    st.integers(2, 40).flatmap(
        lambda n: st.tuples(st.just(n), st.lists(st.lists(st.tuples(*[st.integers(1, n)] * 2), min_size=1), max_size=6))
    )
)
def test_units_are_the_connected_components(case) -> None:
    """Against a flood fill in plain Python."""
    count, calls = case
    ids = ChannelIds()
    ids.new(count)
    neighbours = {node: set() for node in range(1, count + 1)}
    for pairs in calls:
        left, right = (np.array(side) for side in zip(*pairs, strict=True))
        ids.unite(left, right, WHY)
        for a, b in pairs:
            neighbours[a].add(b)
            neighbours[b].add(a)
    units, _ = ids.units()
    for start in neighbours:
        reached, queue = {start}, [start]
        while queue:
            for node in neighbours[queue.pop()] - reached:
                reached.add(node)
                queue.append(node)
        assert {node for node in neighbours if units[node] == units[start]} == reached


def test_queries_between_unions_are_up_to_date() -> None:
    """Unions are carried out when somebody asks."""
    ids = ChannelIds()
    a, b, c = ids.new(9).numpy().reshape(3, 3)
    ids.unite(b, c, WHY)
    assert (ids.find(c) == b).all()
    ids.unite(a, c, WHY)
    assert (ids.find(b) == a).all()
    assert len(np.unique(ids.units()[0])) == 1 + 3


def test_a_long_chain_of_unions_takes_few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deep residual stream; one round a block would make the time grow with the square of the depth."""
    rounds = []
    equal = np.array_equal
    monkeypatch.setattr(np, "array_equal", lambda *pair: rounds.append(1) or equal(*pair))
    ids = ChannelIds()
    blocks = [ids.new(3).numpy() for _ in range(1500)]
    for left, right in itertools.pairwise(blocks):
        ids.unite(left, right, WHY)
    assert (ids.find(blocks[-1]) == blocks[0]).all()
    assert len(rounds) < 50


def test_meeting_no_channel_freezes_and_does_not_unite() -> None:
    ids = ChannelIds()
    first, second = ids.new(2).numpy()
    ids.unite(np.array([first, second]), np.array([NO_CHANNEL, NO_CHANNEL]), WHY)
    units, frozen = ids.units()
    assert units[first] != units[second]
    assert frozen[units[first]] == frozen[units[second]] == WHY


def test_freezing_reaches_the_whole_unit_and_the_first_reason_is_kept() -> None:
    ids = ChannelIds()
    a, b, c = ids.new(3).numpy()
    ids.freeze(np.array([a]), WHY)
    ids.freeze(np.array([b]), Refusal("there", "later", ""))
    ids.unite(np.array([a]), np.array([b]), WHY)
    units, frozen = ids.units()
    assert frozen[units[b]] == WHY
    assert frozen[units[c]] is None


def test_the_number_of_ids_is_not_limited() -> None:
    ids = ChannelIds()
    blocks = [ids.new(1000).numpy() for _ in range(5)]
    ids.unite(blocks[0], blocks[4], WHY)
    units, _ = ids.units()
    assert len(np.unique(units)) == 4001
    assert (units[blocks[0]] == units[blocks[4]]).all()
