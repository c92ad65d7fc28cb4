"""The definition of the prune options: flags, recipe keys, checks, reference and signatures follow from it."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import typer.main

import bnprune
from bnprune.channels.trace_network import Coupling
from bnprune.cli import app
from bnprune.config.prune_options import TARGETS, Option, prune_options
from bnprune.config.schema import ExportConfig, PruneConfig, SparsityConfig
from bnprune.config.tables import CRITERIA, FORMATS, PENALTIES, Entry
from bnprune.pruning.request import Request
from bnprune.pruning.scores import Reduce
from bnprune.runs.passes import request_of

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = prune_options()


@pytest.mark.parametrize("function", [bnprune.prune, *filter(None, [getattr(bnprune, "plan", None)])])
def test_the_signature_has_every_option_in_order_with_its_default(function) -> None:
    parameters = inspect.signature(function).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in OPTIONS}
    assert list(own.items()) == [(name, option.default) for name, option in OPTIONS.items()]
    assert all(f"\n        {name}: " in function.__doc__ for name in OPTIONS)


def test_the_signature_of_inspect_has_the_defaults_of_the_definition() -> None:
    parameters = inspect.signature(bnprune.inspect).parameters.values()
    own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert own == {name: OPTIONS[name].default for name in ("exclude", "include", "coupling", "outputs")}


def test_the_types_for_checkers_are_those_of_the_definition() -> None:
    assert set(TARGETS) <= set(OPTIONS)
    assert get_args(Coupling) == tuple(OPTIONS["coupling"].choices())
    assert get_args(Reduce) == tuple(OPTIONS["reduce"].choices())


@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_a_recipe_has_the_key_with_the_default_and_the_sentence(option: Option) -> None:
    key = PruneConfig.model_fields[option.name]
    assert key.get_default(call_default_factory=True) == ({} if option.kind == "ratios" else option.default)
    assert key.description.startswith(option.sentence)


@pytest.mark.parametrize("verb", ["prune", "inspect"])
def test_a_flag_shows_the_sentence_and_the_default(verb: str) -> None:
    shown = {parameter.name: parameter for parameter in typer.main.get_group(app).commands[verb].params}
    flags = [option for option in OPTIONS.values() if option.flag and (verb == "prune" or option.name in shown)]
    assert len(flags) == (14 if verb == "prune" else 4)
    for option in flags:
        assert shown[option.name].opts == [option.flag]
        assert shown[option.name].help.startswith(option.sentence.removesuffix("."))
        assert shown[option.name].default in (None, False)
        if option.default not in (None, False, ()):
            assert f"[default: {option.default}]" in shown[option.name].help


ADDED = """
import json, sys
from dataclasses import dataclass, field
sys.path.insert(0, "scripts")
from bnprune.config import prune_options

@dataclass(frozen=True, kw_only=True)
class Extended(prune_options.PruneOptions):
    depth: int = field(
        default=3, metadata=prune_options.about("count", "Number of blocks to keep.", "--depth", "N", ge=2)
    )

prune_options.PruneOptions = Extended
import reference
from bnprune.cli import app
from bnprune.config.recipe import check
from bnprune.errors import ConfigError
from bnprune.pruning.request import Request
from bnprune.runs.passes import request_of
from typer.testing import CliRunner

def message(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except ConfigError as error:
        return str(error)

recipe = {"model": {"name": "mlp"}, "data": {"name": "digits"}}
print(json.dumps({
    "help": CliRunner().invoke(app, ["prune", "--help"], env={"COLUMNS": "200"}).output,
    "verbs": reference.verbs(),
    "keys": reference.keys(),
    "check": message(Request, ratio=0.5, depth=1),
    "recipe": message(check, {**recipe, "prune": {"depth": 1}}, {}),
    "request": request_of(check({**recipe, "prune": {"depth": 4}}, {}).prune).to_dict(),
}))
"""
"""Adds an option to the definition before anything else reads it."""


def test_an_added_option_is_found_everywhere() -> None:
    command = [sys.executable, "-c", ADDED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "--depth" in found["help"]
    assert "Number of blocks to keep." in found["help"]
    assert "| `--depth N` | Number of blocks to keep. [default: 3] |" in found["verbs"]
    assert "| `prune.depth` | whole number, ≥ 2 | `3` | Number of blocks to keep. |" in found["keys"]
    assert found["check"] == "depth: must be at least 2 (got 1)."
    assert found["recipe"] == "recipe: prune.depth: must be greater than or equal to 2 (got 1)."
    assert found["request"]["depth"] == 4


@pytest.mark.parametrize("table", [CRITERIA, PENALTIES, FORMATS], ids=["criteria", "penalties", "formats"])
def test_every_entry_of_a_table_names_a_function_that_exists(table: dict[str, Entry]) -> None:
    assert table
    for entry in table.values():
        module, _, attribute = entry.implementation.partition(":")
        assert callable(getattr(__import__(module, fromlist=["_"]), attribute))
        assert entry.sentence


def test_names_that_are_added_to_a_table_are_known_to_recipes(monkeypatch) -> None:
    monkeypatch.setitem(PENALTIES, "mine", lambda setting: None)
    monkeypatch.setitem(FORMATS, "mine", FORMATS["pt2"])
    assert SparsityConfig(penalty="mine").penalty == "mine"
    assert ExportConfig(formats=["mine"]).formats == ("mine",)
    with pytest.raises(ValueError, match="'mine' or 'none'"):
        SparsityConfig(penalty="yours")


def test_a_recipe_keeps_what_it_says() -> None:
    """Also where it is the default: another target of the same recipe may have another one."""
    for written in ({"cap": 1.0}, {"ratio": 0.5, "criterion": "gamma"}, {"macs": 0.5, "criterion": "auto", "cap": 1.0}):
        config = PruneConfig(**written)
        assert config.model_dump(exclude_unset=True) == written
        assert request_of(config).cap == written.get("cap")


def test_the_default_criterion_is_that_of_the_target() -> None:
    asked = Request(ratio=0.5)
    assert [asked.aimed(kind, 0.5).ranked_by for kind in TARGETS] == ["gamma", "auto", "auto", "gamma"]
    assert {replace(asked, criterion="l1").aimed(kind, 0.5).ranked_by for kind in TARGETS} == {"l1"}
    assert asked.aimed("latency_ms", 5).least_width == 0
    with pytest.raises(bnprune.ConfigError, match="criterion: '' is unknown"):
        Request(ratio=0.5, criterion="")
