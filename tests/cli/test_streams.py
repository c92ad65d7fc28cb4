"""Output that nobody reads or that has no room, and text that would do something to a terminal."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bnprune.errors import BnpruneError, bounded, printable
from bnprune.models.zoo import ModelSpec
from bnprune.runs.checkpoint import Header, save_checkpoint
from bnprune.runs.signals import stop_requests
from tests.cli.harness import CHAIN, bnprune, document, read_json, refusal, write

# -- stdout and stderr that are full, closed, or not read --------------------------------------------------------------


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which `bnprune` is this one; its exit code is that of bnprune, in a pipe, too."""
    script = f'set -o pipefail; bnprune() {{ "{sys.executable}" -m bnprune "$@"; }}; {line}'
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


LIST, PRUNE = "init --list", f"prune {' '.join(CHAIN)}"


@pytest.mark.parametrize(("line", "unbuffered"), [(LIST, ""), (LIST, "1"), (PRUNE, "")])
def test_a_full_disk_behind_stdout_is_one_message(line: str, unbuffered: str, here: Path) -> None:
    done = shell(f"bnprune {line} > /dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 5
    assert done.stderr == "error: the output cannot be written: No space left on device. Files are complete.\n"
    assert (here / "slim.safetensors").exists() == ("prune" in line)


@pytest.mark.parametrize("line", [LIST, PRUNE])
def test_a_reader_that_has_seen_enough_ends_it_quietly(line: str, here: Path) -> None:
    """The reader is gone before the first line comes."""
    done = shell(f"bnprune {line} | true")
    assert done.returncode == 141
    assert done.stderr == ""
    assert (here / "slim.safetensors").exists() == ("prune" in line)


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_the_exit_code_is_the_same_whatever_is_closed(redirection: str) -> None:
    assert shell(f"bnprune init absent {redirection}").returncode == 2
    assert shell(f"bnprune init --list {redirection}").returncode == 0


def test_what_is_opened_while_stdout_is_closed_is_not_written_to_by_others(here: Path) -> None:
    """The first file that is opened would have the number of the closed descriptor."""
    write("own.py", f"{OWN}\nimport os\n\n\ndef build():\n    os.write(1, b'from C')\n    return network()\n")
    line = "prune --model own:build --input 1,8,8 --out slim.safetensors"
    done = shell(f"bnprune {line} >&-")
    assert done.returncode == 0
    assert done.stderr == ""
    assert b"from C" not in (here / "slim.safetensors").read_bytes()


OWN = """\
from torch import nn


def network():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))
"""


# -- one document ------------------------------------------------------------------------------------------------------


def test_a_picture_that_fails_after_the_figures_is_no_second_document(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("bnprune.reporting.pictures.write_atomically", full, raising=False)
    result = bnprune("sweep", run, "--at", "0.5", "--plot", "a.png", "--json")
    assert result.exit_code == 5
    assert read_json(result.stdout)["schema"] == "bnprune.sweep/1"
    assert "No space left on device" in result.stderr


def test_debug_keeps_the_document_and_the_exit_code() -> None:
    result = bnprune("prune", "absent.safetensors", "--json", "--debug")
    assert result.exit_code == 5
    assert read_json(result.stdout)["code"] == "checkpoint"
    assert "Traceback" in result.stderr


# -- the end of the program, memory, and other things that happen anywhere -------------------------------------------


@pytest.mark.parametrize(
    ("raised", "exit_code", "expected"),
    [
        ("MemoryError()", 5, "there is not enough memory"),
        ("RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: you tried 9')", 5, "there is not enough memory"),
        ("torch.OutOfMemoryError('CUDA out of memory. Tried')", 5, "there is not enough memory"),
        ("SystemExit(0)", 2, "code of your own (a network, its factory or a data set) called sys.exit(0)"),
        ("OSError(36, 'File name too long', 'x')", 5, "'x': File name too long."),
        ("ValueError('embedded null byte')", 2, "a path holds a NUL character"),
        ("BaseException('no luck')", 1, "this is a bug in bnprune: BaseException: no luck"),
    ],
)
def test_what_ends_a_verb_becomes_a_message(
    raised: str, exit_code: int, expected: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise eval(raised)

    monkeypatch.setattr("bnprune.workflows.data_source.splits_of", broken)
    assert expected in refusal(exit_code, "evaluate", run)
    assert expected in document("evaluate", run, exit_code=exit_code)["problems"][0]


@pytest.mark.parametrize(
    "line", [("prune", ""), ("prune", *CHAIN, "--out", ""), ("prune", *CHAIN, "--weights="), ("report", "x", "")]
)
def test_an_empty_argument_is_not_the_current_folder(line: tuple[str, ...]) -> None:
    assert "command line: an argument is empty (" in refusal(2, *line)
    assert document(*line, exit_code=2)["code"] == "config"


def test_a_name_that_no_file_can_have() -> None:
    assert "File name too long" in refusal(5, "prune", "x" * 300)
    assert "embedded null byte" in refusal(2, "run", "a\0b.yaml")


def test_variables_of_torchrun_that_are_no_numbers_are_not_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "first")
    monkeypatch.setenv("WORLD_SIZE", "many")
    assert bnprune("init", "--list").exit_code == 0


def test_a_terminal_that_is_closed_stops_a_training_as_ctrl_c_does() -> None:
    """Unless it was started with nohup, as these tests may have been."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with stop_requests() as stopping:
            assert not stopping()
            signal.raise_signal(signal.SIGHUP)
            assert stopping()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stop_requests() as stopping:
            signal.raise_signal(signal.SIGHUP)
            assert not stopping()
    finally:
        signal.signal(signal.SIGHUP, before)


# -- text from files ---------------------------------------------------------------------------------------------------

EVIL = "a\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202etxt\u2066\udc80b"
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def test_control_characters_are_shown_as_what_they_are() -> None:
    assert printable(EVIL) == r"a\x1b[2J\x1b]0;owned\x07\r\x9b31m\u202etxt\u2066\udc80b"
    assert printable("γ über 10 µs\n\t●") == "γ über 10 µs\n\t●"


def test_names_of_files_cannot_reach_the_terminal_as_sequences() -> None:
    for line in (("prune", EVIL), ("run", EVIL), ("init", EVIL), ("prune", "--flag" + EVIL), (EVIL,), ("report", EVIL)):
        result = bnprune(*line)
        assert result.exit_code in (2, 5)
        assert not CONTROL.search(result.output)
        assert r"\x1b[2J" in result.stderr


class _Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        convolution, norm = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.add_module(EVIL[:-2], nn.Sequential(convolution, norm, nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        [layers] = self.children()
        found: torch.Tensor = layers(images)
        return found


@pytest.mark.parametrize("verb", ["inspect", "prune"])
def test_names_of_layers_cannot_reach_the_terminal_as_sequences(
    verb: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.nets.evil", _Named, raising=False)
    result = bnprune(verb, "--model", "tests.nets:evil", "--input", "1,8,8")
    assert result.exit_code == 0, result.output
    assert r"a\x1b[2J" in result.stdout
    assert not CONTROL.search(result.output)


def test_a_message_is_no_longer_than_people_read(here: Path) -> None:
    save_checkpoint(here / "a.safetensors", _Named(), Header(ModelSpec(name="y" * 100_000)))
    result = bnprune("inspect", "a.safetensors")
    assert result.exit_code == 5
    assert 100 < len(result.stderr) < 5_000
    assert all(len(problem) < 5_000 for problem in document("inspect", "a.safetensors", exit_code=5)["problems"])


def test_the_end_of_a_long_message_stays() -> None:
    """There it says how to go on."""
    text = bounded("x" * 100_000 + " Give --force.")
    assert text.startswith("x" * 1_000)
    assert text.endswith(" Give --force.")
    assert len(text) < 2_200
    lines = bounded("\n".join(map(str, range(1_000)))).split("\n")
    assert len(lines) == 51
    assert lines[-2:] == ["... (950 lines are left out) ...", "999"]


def test_a_thousand_problems_are_fifty(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise BnpruneError("many", [str(number) for number in range(1_000)])

    monkeypatch.setattr("bnprune.workflows.inspect.open_source", broken)
    found = json.loads(bnprune("inspect", "x", "--json").stdout)
    assert found["problems"][49:] == ["49", "... and 950 more problems"]
