"""Runs in several processes: one network, one voice, one exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import bnprune
from bnprune.cli.processes import _among_visible
from bnprune.runs.checkpoint import read_header
from bnprune.runs.directory import RunDirectory
from tests.cli.harness import RECIPE, done, read_json, refusal, write
from tests.cli.test_failures import BROKEN_DATA, same_run, wait_for
from tests.ranks import ended, environments, spawn


@pytest.fixture
def pair(here: Path) -> Path:
    """A recipe whose batches two processes can share, with images that are augmented and a network that is not tiny."""
    return write("pair.yaml", RECIPE.replace("augment: false", "augment: true, batch_size: 64"))


def images(folder: Path) -> None:
    """An ImageFolder of 3 classes, 8 images each to train on and 3 to test."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 8), ("val", 3)):
        for label in range(3):
            target = folder / split / f"class{label}"
            target.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(0, 80, (40, 48, 3), dtype=torch.uint8, generator=generator)
                pixels[..., label] += 150
                Image.fromarray(pixels.numpy()).save(target / f"{number}.png")


FOLDER = """\
model: {name: vgg11, kwargs: {num_classes: 3, width: 0.125}}
data: {name: imagefolder, root: images, image_size: 32, in_memory: false, batch_size: 8, workers: 1}
train: {epochs: 2, lr: 0.05, sync_bn: true, sparsity: {penalty: group-lasso, lambda: auto}}
prune: {ratio: 0.4}
finetune: {epochs: 1, lr: 0.01, ema: 0.9, mixup: 0.2, distill: true}
scratch: epochs
"""


def test_torchrun_runs_a_whole_recipe_on_images_from_disk(here: Path) -> None:
    """The ImageNet recipe in small: streamed images, BatchNorm over all processes, train, prune, fine-tune."""
    images(here / "images")
    write("folder.yaml", FOLDER)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "bnprune"]
    line = [*torchrun, "run", "folder.yaml", "threads=1", "--out", "run", "--json"]
    first = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert first.returncode == 0, first.stderr
    result = read_json(first.stdout)
    assert list(result["stages"]) == ["train", "prune", "finetune", "scratch"]
    assert result["stages"]["prune"]["verification"]["passed"]
    assert first.stderr.count("epoch 1/2") == 1
    slim = bnprune.load(here / "run" / "checkpoints" / "finetune.safetensors")
    assert slim(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    again = subprocess.run([*line, "--resume"], capture_output=True, text=True, timeout=300, check=False)
    assert again.returncode == 0, again.stderr
    assert "Nothing to do" in again.stderr
    assert read_json(again.stdout) == result


def test_a_signal_to_any_of_them_stops_all_and_they_go_on_exactly(pair: Path, here: Path) -> None:
    line = ["run", pair, "train.epochs=12", "threads=1", "--out"]
    processes = spawn(*line, "run")
    wait_for(here / "run" / "metrics.jsonl", processes[0])
    processes[1].send_signal(signal.SIGTERM)
    (code, _, printed), (other, _, silent) = ended(processes)
    assert (code, other) == (130, 130), printed + silent
    assert "The run can be resumed: --resume." in printed
    assert "error" not in silent
    saved = RunDirectory(here / "run")._state()
    assert saved is not None
    assert len(saved["own"]) == 2
    message = refusal(2, *line, "run", "--resume")
    assert "stopped in 2 process(es)" in message
    for folder, resume in (("run", ["--resume"]), ("whole", [])):
        outcome = ended(spawn(*line, folder, *resume))
        assert [code for code, *_ in outcome] == [0, 0], outcome
    same_run(here / "run", here / "whole")


FOLLOWER_FAILS = BROKEN_DATA.replace(
    "        for indices in batches:",
    """        for indices in batches:
            import os
            if self.epoch == 2 and os.environ["RANK"] == "1":
                from bnprune.errors import DataError
                raise DataError("the second machine has lost its disk.")""",
).replace("self.epoch == 2 else", "False else")


DIES_ONCE = FOLLOWER_FAILS.replace(
    'os.environ["RANK"] == "1":', 'os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":'
).replace(
    """                from bnprune.errors import DataError
                raise DataError("the second machine has lost its disk.")""",
    """                os.kill(os.getpid(), 9)""",
)


def test_torchrun_restarts_a_run_that_then_goes_on(pair: Path, here: Path) -> None:
    """Killed in the second epoch, all are started again with the same arguments; epoch 1 is not repeated."""
    write("own.py", DIES_ONCE)
    own = ("data.name=", "data.factory=own:build", "data.batch_size=8", "train.epochs=2", "train.optimizer=sgd")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    line = [*torchrun, "-m", "bnprune", "train", pair, *own, "threads=1", "--out", "run"]
    ended = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("epoch 1/2") == 1
    assert ended.stderr.count("epoch 2/2") == 1
    assert (here / "run" / "result.json").exists()


def failing(*args: object) -> tuple[list[int], str]:
    """Run in two processes; return the exit codes and the only message."""
    outcome = ended(spawn(*args))
    printed = [stderr for *_, stderr in outcome if "error:" in stderr]
    assert len(printed) == 1, outcome
    assert "Traceback" not in printed[0]
    return [code for code, *_ in outcome], printed[0]


def test_one_that_fails_ends_all_with_one_message(pair: Path, here: Path) -> None:
    write("own.py", FOLLOWER_FAILS)
    own = ("data.name=", "data.factory=own:build", "data.batch_size=8", "train.epochs=3", "--out")
    codes, message = failing("train", pair, *own, "lost")
    assert codes == [5, 5]
    assert "process 1: the second machine has lost its disk." in message
    kept = load_file(here / "lost" / "checkpoints" / "last.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert read_header(here / "lost" / "checkpoints" / "last.safetensors").metrics["epoch"] == 1

    write("own.py", BROKEN_DATA)
    codes, message = failing("train", pair, *own, "nan")
    assert codes == [5, 5]
    assert "the loss is not finite in epoch 2, step 1 of 5. The last good checkpoint is kept." in message


def test_what_is_wrong_with_a_recipe_is_told_once(pair: Path, here: Path) -> None:
    codes, message = failing("train", pair, "data.batch_size=63", "train.lrr=1", "--out", "run")
    assert codes == [2, 2]
    assert "Did you mean 'lr'?" in message
    codes, message = failing("train", pair, "data.batch_size=63", "--out", "run")
    assert codes == [2, 2]
    assert "63 images cannot be shared by 2 processes in equal parts. Use 64" in message
    assert not (here / "run").exists()


def test_verbs_that_do_not_train_run_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = environments(2)
    for environment, message in ((first, "`bnprune doctor` runs in one process"), (second, "")):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        assert message in refusal(2, "doctor")


def test_a_run_that_another_process_works_on_is_left_alone(pair: Path, here: Path) -> None:
    done("train", pair, "--out", "run")
    config = RunDirectory(here / "run")
    with config.locked():
        assert "'run' is in use: another process works on this run." in refusal(
            5, "train", pair, "--out", "run", "--resume"
        )
    done("train", pair, "--out", "run", "--resume")


def started(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "bnprune", *map(str, arguments)]
    usual = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, env=usual)


def test_a_command_starts_its_processes_itself(pair: Path) -> None:
    """One document on stdout, and only our own lines on stderr."""
    found = started("train", pair, "threads=1", "--out", "own", "--processes", 2, "--json")
    assert found.returncode == 0, found.stderr
    assert read_json(found.stdout)["stages"].keys() == {"train"}
    assert "torch" not in found.stderr
    assert read_json(Path("own/env.json").read_text())["launch"] is not None  # of several processes


def test_a_command_that_fails_in_its_processes_ends_with_their_exit_code(pair: Path) -> None:
    found = started("train", pair, "train.epohcs=2", "--out", "run", "--processes", 2)
    assert found.returncode == 2
    assert found.stderr.count("error:") == 1
    assert "Did you mean 'epochs'" in found.stderr
    assert [line[:7] for line in found.stderr.splitlines()] == ["loading", "error: "], "only the first process says so"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there are GPUs")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpus", "0,1"), "--gpus: there is no CUDA device here (got 0,1). On CPUs: --processes N"),
        (("--gpus", "0,x"), "--gpus: expected different numbers such as 0,1 (got '0,x')"),
        (("--gpus", "0,0"), "--gpus: expected different numbers"),
        (("--gpus", "0,1", "--processes", "3"), "0,1 are 2 GPUs, not 3 processes"),
        (("--processes", "0"), "Invalid value for '--processes'"),
    ],
)
def test_gpus_that_are_not_there(
    arguments: tuple[str, ...], message: str, pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert message in refusal(2, "train", pair, *arguments)


def test_gpus_are_chosen_among_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    assert _among_visible(["1", "0"]) == ["GPU-7", "4"]
    with pytest.raises(bnprune.ConfigError, match="leaves 2 GPUs"):
        _among_visible(["2"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert _among_visible(["3"]) == ["3"]
