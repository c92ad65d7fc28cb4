"""`bnprune doctor`: what it finds wrong, and what it says to do."""

from __future__ import annotations

import importlib.util
from importlib import metadata

import pytest

from bnprune.workflows.doctor import doctor, explain
from tests.cli.harness import bnprune, document


def test_all_is_well_here() -> None:
    found = document("doctor")
    assert found["problems"] == []
    assert found["extras"].keys() == {"demo", "timm", "onnx", "report", "metrics", "tensorboard", "bench"}


def test_an_extra_is_installed_when_all_of_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnxscript" else find(name, *a))
    assert document("doctor")["extras"]["onnx"] is False


def test_the_error_of_a_mismatch_is_explained() -> None:
    text = explain(RuntimeError("operator torchvision::nms does not exist"))
    assert "built for another torch" in text
    assert "pip install --upgrade --force-reinstall torch torchvision" in text


@pytest.mark.parametrize(
    ("need", "bad"), [("torch (==2.9.0)", True), ("torch>=2.20", True), ("torch (>=2.4.0)", False)]
)
def test_a_torch_that_torchvision_was_not_built_for_is_found(
    monkeypatch: pytest.MonkeyPatch, need: str, bad: bool
) -> None:
    there = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.10.1+cpu" if name == "torch" else there(name))
    monkeypatch.setattr(metadata, "requires", lambda _: ["numpy", need])
    result = bnprune("doctor")
    assert result.exit_code == (5 if bad else 0)
    assert (f"problem: torchvision {there('torchvision')} was built for torch " in result.stdout) is bad
    assert ("not 2.10.1. Install both from one index, in one command" in result.stdout) is bad


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    there = metadata.version

    def version(name: str) -> str:
        if name == "safetensors":
            raise metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(metadata, "version", version)
    assert doctor().problems == ["safetensors is not installed: pip install safetensors"]
