"""Hostile input: a sample of what `scripts/fuzz.py` tries, and that the script sees what it is there to see."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it forks, and looks into /proc")

PLANTED = {
    *("execution", "network", "outside", "opened", "import", "unpickled", "timeout", "memory", "exit 1", "exit 4"),
    *("traceback", "killed", "vanished", "json", "long", "control", "changed", "left", "markup"),
}


def fuzz(here: Path, *args: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), *args, "--json", str(here / "summary.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=900)
    assert (here / "summary.json").exists(), done.stderr
    return done.returncode, json.loads((here / "summary.json").read_text()), done.stdout


def test_hostile_input_of_every_class_is_refused_or_harmless(tmp_path: Path) -> None:
    code, summary, table = fuzz(tmp_path, "--n", "250", "--patience", "4")
    assert summary["findings"] == [], table
    assert code == 0
    assert summary["tried"] >= 240
    assert summary["ok"] > 25, "hardly anything is read to its end: what is tried is refused too early"


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Path]:
    """Faults that the fuzzer must find: every case of the class "planted" does what no case may do."""
    here = tmp_path_factory.mktemp("planted")
    code, summary, _ = fuzz(
        here, "--classes", "planted", "--seconds", "4", "--memory", "1.5", "--keep", str(here / "kept")
    )
    return code, summary, here


def test_every_planted_fault_is_found_and_none_is_left_out(planted: tuple[int, dict[str, Any], Path]) -> None:
    code, summary, _ = planted
    kinds = [{text.partition(":")[0] for text in found["findings"]} for found in summary["findings"]]
    assert code == 1
    assert len(kinds) == summary["tried"]
    assert set().union(*kinds) == PLANTED
    for found, seen in zip(summary["findings"], kinds, strict=True):
        expected = found["command"].removesuffix(" --json").split(maxsplit=2)[2].strip("'")  # planted NUMBER KIND
        assert expected in seen, found


def test_what_no_case_may_do_is_refused_before_it_is_done(planted: tuple[int, dict[str, Any], Path]) -> None:
    _, summary, _ = planted
    writing = [found["findings"] for found in summary["findings"] if "outside" in found["command"]]
    assert len(writing) == 2
    assert all(len(texts) == 1 and texts[0].startswith("outside: ") for texts in writing), "it was opened or made, too"


def test_a_finding_is_kept_and_can_be_replayed(planted: tuple[int, dict[str, Any], Path]) -> None:
    _, summary, here = planted
    name = next(found["case"] for found in summary["findings"] if found["findings"] == ["left: '.x.tmp'"])
    assert (here / "kept" / name / "input" / "recipe.yaml").exists()
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), "--replay", str(here / "kept" / name)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "left: '.x.tmp'" in done.stdout
