"""Errors: messages composed of parts, bounded in length, with exit codes as documented."""

from __future__ import annotations

import re

import pytest

import bnprune
from bnprune import errors
from bnprune.errors import BnpruneError, CheckpointError, ConfigError, bounded


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"what": "must be above 0"}, "must be above 0."),
        ({"where": "cap", "what": "must be above 0"}, "cap: must be above 0."),
        (
            {"where": "cap", "what": "must be above 0", "got": "-1", "fix": "0.5 keeps half of every layer."},
            "cap: must be above 0 (got -1). 0.5 keeps half of every layer.",
        ),
    ],
)
def test_a_message_is_composed_of_its_parts(parts: dict[str, str], message: str) -> None:
    error = ConfigError(**parts)
    assert str(error) == message
    assert {name: getattr(error, name) for name in parts} == parts
    assert error.problems == (message,)


def test_a_code_for_programs() -> None:
    assert ConfigError("wrong").code == "config"
    assert ConfigError("wrong", code="config.key").code == "config.key"


def test_messages_and_problems_do_not_echo_a_file() -> None:
    problems = ["x" * 100_000, *map(str, range(200))]
    error = CheckpointError("\n".join(problems), problems)
    assert len(str(error)) < 3_000
    assert len(error.problems) == 201
    assert len(error.problems[0]) < 2_100
    with pytest.raises(CheckpointError) as caught:
        bnprune.PruningPlan.from_dict({"schema": "x" * 100_000})
    assert len(str(caught.value)) < 2_100


@pytest.mark.parametrize("text", ["x" * 2_001, "x" * 100_000, "\n" * 51, "\n".join(map(str, range(1_000)))])
def test_bounds_hold_a_second_time(text: str) -> None:
    once = bounded(text)
    assert len(once.split("\n")) <= 51
    assert max(map(len, once.split("\n"))) < 2_100
    assert bounded(once) == once


def test_the_tree_in_the_docstring_is_the_one_of_the_code() -> None:
    tree = {}
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, BnpruneError) and cls is not BnpruneError:
            tree[cls.__name__] = sum(1 for parent in cls.__mro__ if issubclass(parent, BnpruneError)) - 1
    drawn = re.findall(r"^    ([│ ]*)[├└]── (\w+) +(\d+|the exit code)", str(errors.__doc__), re.MULTILINE)
    assert {name: len(indent) // 4 + 1 for indent, name, _ in drawn} == tree
    codes = {name: int(code) for _, name, code in drawn if code.isdigit()}
    assert codes == {name: getattr(errors, name).exit_code for name in codes}
