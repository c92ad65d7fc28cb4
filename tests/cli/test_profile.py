"""`bnprune profile`, and `bnprune prune --latency MS --profile FILE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import bnprune as package
from bnprune.errors import CheckpointError, ConfigError
from bnprune.pruning.latency_profile import LatencyProfile
from bnprune.runs.directory import processor
from tests.cli.harness import CHAIN, bnprune, document
from tests.nets import chain

LARGER = ("--model", "tests.nets:chain", "--input", "3,64,64")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A profile in `cpu.json`, and the result of the command that made it."""
    monkeypatch.chdir(tmp_path)
    return document("profile", *LARGER, "--out", "cpu.json", "--batch", "2")


def test_a_profile_serves_prune(made: dict[str, Any]) -> None:
    stored = json.loads(Path("cpu.json").read_text())
    assert stored["machine"]["processor"] == made["processor"] == processor()
    assert stored["batch"] == made["batch"] == 2
    assert stored["threads"] == torch.get_num_threads()
    assert [layer["name"] for layer in stored["layers"]] == [layer["name"] for layer in made["layers"]]
    assert made["layers_ms"] > 0
    limit = 0.7 * made["total_ms"]
    done = document("prune", *LARGER, "--latency", f"{limit}", "--profile", "cpu.json", "--out", "s.safetensors")
    assert done["target"]["kind"] == "latency_ms"
    assert 0 < done["target"]["realised"] <= limit
    assert done["verification"]["passed"]


def test_a_profile_serves_python_and_recipes(made: dict[str, Any]) -> None:
    """With a profile of another machine, so that nothing is measured, and noise does not matter."""
    edit(machine={"processor": "Abacus"}, threads=63, total_ms=1e4)
    limit, model, inputs = 9e3, chain(), torch.zeros(1, 3, 64, 64)
    for given in ("cpu.json", LatencyProfile.from_json(Path("cpu.json").read_text())):
        report = package.prune(model, inputs, latency_ms=limit, profile=given).report
        assert 0 < report.target.realised <= limit
        assert any("estimated by the latency profile (Abacus)" in str(note) for note in report.notes)
        assert package.plan(model, inputs, latency_ms=limit, profile=given).cuts
    with pytest.raises(ConfigError, match="a latency profile serves a target in milliseconds"):
        package.prune(model, inputs, ratio=0.5, profile="cpu.json")
    with pytest.raises(CheckpointError, match="inputs of shape 3,64,64, and these are 3,32,32"):
        package.prune(model, inputs[..., :32, :32], latency_ms=limit, profile="cpu.json")
    network = "{name: mlp, kwargs: {in_channels: 1, image_size: 16, hidden: [256, 128]}}"
    Path("recipe.yaml").write_text(f"""
model: {network}
data: {{name: digits, augment: false}}
train: {{epochs: 1}}
prune: {{latency_ms: 1000, profile: digits.json}}
finetune: {{epochs: 1}}
""")
    document("train", "recipe.yaml", "--out", "run")
    document("profile", "run", "--out", "digits.json")
    stored = json.loads(Path("digits.json").read_text())
    Path("digits.json").write_text(json.dumps(stored | {"machine": {"processor": "Abacus"}, "total_ms": 1e4}))
    done = document("run", "recipe.yaml", f"prune.latency_ms={limit}", "--out", "whole")
    assert "estimated by the latency profile (Abacus)" in str(done)
    result = bnprune("run", "recipe.yaml", "prune.latency_ms=null", "prune.ratio=0.5", "--out", "other")
    assert "'profile' serves 'latency_ms'" in result.stderr


def edit(**changes: Any) -> None:
    stored = json.loads(Path("cpu.json").read_text())
    Path("cpu.json").write_text(json.dumps(stored | changes))


@pytest.mark.parametrize(
    ("changes", "source", "message"),
    [
        ({"threads": 63}, LARGER, "was measured with 63 threads, and this process has"),
        ({}, ("--model", "tests.nets:chain", "--input", "3,32,32"), "was measured for inputs of shape 3,64,64"),
        ({"model": {"name": "Net", "digest": "0"}}, LARGER, "is the latency profile of another network (Net)"),
        ({"backend": "tensorrt"}, LARGER, "'tensorrt' is unknown"),
        ({"schema": "x"}, LARGER, "not a latency profile: expected schema"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(
    made: dict[str, Any], changes: dict[str, Any], source: tuple[str, ...], message: str
) -> None:
    edit(**changes)
    result = bnprune("prune", *source, "--latency", "0.1", "--profile", "cpu.json")
    assert result.exit_code in (2, 5)
    assert message in " ".join(result.stderr.split())
    assert not Path("slim.safetensors").exists()


def test_a_profile_of_another_version_of_torch_is_used_with_a_warning(made: dict[str, Any]) -> None:
    edit(versions={"bnprune": "0.1.0", "torch": "1.0"})
    limit = f"{0.7 * made['total_ms']}"
    result = bnprune("prune", *LARGER, "--latency", limit, "--profile", "cpu.json", "--dry-run")
    assert "torch 1.0, now 2" in " ".join(result.stderr.split())


def test_a_profile_of_another_machine_gives_an_estimate(made: dict[str, Any]) -> None:
    edit(machine={"processor": "Abacus"}, threads=63, total_ms=1e4)
    limit = f"{9e3}"
    done = document("prune", *LARGER, "--latency", limit, "--profile", "cpu.json", "--dry-run")
    assert 0 < done["target"]["realised"] <= 9e3
    assert any("estimated by the latency profile (Abacus)" in note for note in done["notes"])


def test_a_profile_needs_a_latency_and_a_free_file(made: dict[str, Any]) -> None:
    result = bnprune("prune", *LARGER, "--ratio", "0.5", "--profile", "cpu.json")
    assert result.exit_code == 2
    assert "--profile: a latency profile serves a target in milliseconds" in " ".join(result.stderr.split())
    assert bnprune("profile", *LARGER, "--out", "cpu.json").exit_code == 2
    assert bnprune("prune", *CHAIN, "--latency", "1", "--profile", "absent.json").exit_code == 5
