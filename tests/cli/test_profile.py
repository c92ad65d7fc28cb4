"""`bnprune profile`, and `bnprune prune --latency MS --profile FILE`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bnprune.runs.directory import processor
from tests.cli.harness import CHAIN, bnprune, document

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
