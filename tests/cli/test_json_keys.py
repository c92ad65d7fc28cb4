"""The keys of every JSON document: programs that read them must not break."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.harness import CHAIN, RECIPE, document, read_json, write

KEYS: dict[str, list[str]] = json.loads((Path(__file__).parent / "document_keys.json").read_text())
FREE = ("config", "extras", "plan", "versions", "kwargs")
"""Their keys are somebody else's: those of recipes, plans, packages and models."""


def keys_of(value: Any, prefix: str = "") -> Iterator[str]:
    """Yield the path of every key; `[]` stands for the entries of a list, which have the same keys."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield prefix + key
            if key not in FREE:
                yield from keys_of(below, f"{prefix}{key}.")
    elif isinstance(value, list):
        yield from dict.fromkeys(key for entry in value for key in keys_of(entry, f"{prefix}[]."))


def recorded() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield one document of every kind."""
    write("recipe.yaml", RECIPE)
    yield "run", document("run", "recipe.yaml", "--out", "run", "export.formats=[state-dict]", "baseline=true")
    yield "result.json", read_json(Path("run/result.json").read_text())
    auto = ("prune.ratio=auto", "prune.tolerance=0.9", "scratch=epochs", "export=null", "prune.passes=1")
    yield "run auto", document("run", "recipe.yaml", *auto, "--out", "auto")
    yield "train", document("train", "recipe.yaml", "--out", "train", "train.sparsity.lambda=0.01")
    yield "finetune", document("finetune", "run", "--out", "tuned")
    yield "prune", document("prune", *CHAIN)
    yield "prune dry run", document("prune", *CHAIN, "--dry-run", "--min-channels", "7", "--ratio", "0.7")
    yield "prune calibrated", document("prune", "run", "--ratio", "0.3", "--out", "calibrated.safetensors")
    yield "inspect", document("inspect", *CHAIN)
    yield "evaluate", document("evaluate", "run")
    yield "sweep", document("sweep", "run", "--at", "0.3,0.5", "--tolerance", "0.9")
    yield "sweep without recommendation", document("sweep", "run", "--at", "0.97", "--tolerance", "0")
    yield "sensitivity", document("sensitivity", "run", "--at", "0.5", "--out", "sensitivity.json")
    yield "export", document("export", "run", "--format", "pt2", "--out", "network.pt2", "--fold-bn")
    yield "export unverified", document("export", "run", "--format", "state-dict", "--no-verify", "--out", "w.pt")
    yield "profile", document("profile", *CHAIN, "--out", "cpu.json")
    quick = ("--rounds", "2", "--batch", "2", "--device", "cpu")
    yield "benchmark", document("benchmark", "run", *quick)
    yield "benchmark of two", document("benchmark", "run", "--dense", *quick)
    yield "report", document("report", "run", "train", "--out", "page.html")
    yield "validate", document("validate", "recipe.yaml")
    yield "validate train", document("validate", "recipe.yaml", "prune=null", "finetune=null")
    yield "doctor", document("doctor")
    yield "error", document("validate", "absent.yaml", exit_code=2)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("documents"))
        return dict(recorded())


@pytest.mark.parametrize("name", KEYS)
def test_the_keys_of_a_document_stay(name: str, documents: dict[str, dict[str, Any]]) -> None:
    assert sorted([f"schema = {documents[name]['schema']}", *keys_of(documents[name])]) == KEYS[name]
