"""A recipe runs from Python as from the command line, with export and report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import bnprune
from tests.cli.harness import RECIPE, document, read_json, tensor_bytes

EXPORT = ("export.formats=[state-dict]",)


def test_a_recipe_runs_from_python_as_from_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    result = bnprune.run("recipe.yaml", EXPORT, out="python")
    assert capfd.readouterr() == ("", "")
    printed = document("run", "recipe.yaml", *EXPORT, "--out", "shell")

    assert list(result.stages) == list(printed["stages"]) == ["train", "prune", "finetune"]
    assert result.path == Path("python")
    for name, stage in result.stages.items():
        assert stage.accuracy == printed["stages"][name]["accuracy"]
    for name in ("train", "prune", "finetune"):
        checkpoint = Path("checkpoints", f"{name}.safetensors")
        assert tensor_bytes("python" / checkpoint) == tensor_bytes("shell" / checkpoint)
    assert files_below("python") == files_below("shell")


def test_what_was_exported_and_reported_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    result = bnprune.run("recipe.yaml", EXPORT, out="run")
    [exported] = result.exports
    [written] = read_json(Path("run", "result.json").read_text())["exports"]
    assert exported.model_dump(mode="json", by_alias=True, exclude_none=True).items() <= written.items()
    [weights] = Path("run", "exports").glob("*.safetensors")
    slim = bnprune.load("run/checkpoints/finetune.safetensors")
    stored = load_file(weights)
    assert stored.keys() == slim.state_dict().keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in slim.state_dict().items())
    assert "<html" in Path("run", "report.html").read_text(encoding="utf-8")


def files_below(folder: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file()}
