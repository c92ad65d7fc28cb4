"""`bnprune doctor`: what it finds wrong, and what it says to do."""

from __future__ import annotations

from importlib import metadata

import pytest

from bnprune.cli.diagnosis import diagnose, explain
from tests.cli.harness import bnprune, document


def test_all_is_well_here() -> None:
    found = document("doctor")
    assert found["problems"] == []
    assert found["extras"].keys() == {"demo", "timm", "onnx", "report"}


def test_the_error_of_a_mismatch_is_explained() -> None:
    text = explain(RuntimeError("operator torchvision::nms does not exist"))
    assert "built for another torch" in text
    assert "pip install --upgrade --force-reinstall torch torchvision" in text


def test_a_torch_that_torchvision_was_not_built_for_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    there = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.1.0+cpu" if name == "torch" else there(name))
    [problem] = diagnose()["problems"]
    assert (
        f"torchvision {there('torchvision')} was built for torch {there('torch').partition('+')[0]}, not 2.1.0"
        in problem
    )
    result = bnprune("doctor")
    assert result.exit_code == 5
    assert "problem: torchvision" in result.stdout


def test_a_missing_package_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    there = metadata.version

    def version(name: str) -> str:
        if name == "safetensors":
            raise metadata.PackageNotFoundError(name)
        return there(name)

    monkeypatch.setattr(metadata, "version", version)
    assert diagnose()["problems"] == ["safetensors is not installed: pip install safetensors"]
