"""Failures of a run: a full disk, a loss that is not finite, Ctrl-C, a failed verification, a bug."""

from __future__ import annotations

import json
import random
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bnprune.pruning.surgery import copy_weights
from bnprune.runs.directory import RunDirectory
from tests.cli.harness import CHAIN, bnprune, document, done, read_json, refusal, spawn, squeezed, tensor_bytes, write

# -- a full disk ------------------------------------------------------------------------------------------------------


def full_disk(_: Any, path: Path, *__: Any) -> None:
    Path(path).write_bytes(b"the first few bytes")
    raise OSError(28, "No space left on device")


@pytest.fixture
def slim(trained: Path, here: Path) -> Path:
    """A checkpoint in the current folder."""
    done("prune", trained, "--ratio", "0.25", "--out", "slim.safetensors")
    return here / "slim.safetensors"


def test_a_full_disk_leaves_the_old_checkpoint_as_it_was(
    slim: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bnprune.runs.checkpoint.save_file", full_disk)
    message = refusal(5, "prune", trained, "--out", slim, "--force")
    assert f"'{slim}' cannot be written: No space left on device. The previous file is intact." in message


def test_a_full_disk_leaves_nothing_where_there_was_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnprune.runs.checkpoint.save_file", full_disk)
    message = refusal(5, "prune", trained)
    assert message == "error: 'slim.safetensors' cannot be written: No space left on device."


def test_a_file_that_the_system_refuses_to_extend(slim: Path, trained: Path) -> None:
    """As above, with the real writer failing half-way: no file may grow beyond 1000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        message = refusal(5, "prune", trained, "--out", slim, "--force")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"'{slim}' cannot be written:" in message
    assert "File too large" in message
    assert message.endswith("The previous file is intact.")


def test_a_disk_that_fills_up_while_training(recipe: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bnprune.runs.checkpoint.save_file", full_disk)
    result = bnprune("train", recipe, "--out", "run")
    assert result.exit_code == 5
    assert "'run/checkpoints/last.safetensors' cannot be written: No space left on device." in result.stderr
    assert list((here / "run" / "checkpoints").iterdir()) == []


# -- a loss that is not finite ----------------------------------------------------------------------------------------

ABSURD = ("train.lr=1e18", "train.optimizer=sgd")


def test_a_loss_that_is_not_finite_stops_the_training(recipe: Path, here: Path) -> None:
    result = bnprune("train", recipe, *ABSURD, "--out", "run")
    assert result.exit_code == 5
    assert "the loss is not finite in epoch 1, step " in result.stderr
    assert "Lower the learning rate (lr), or set clip_norm." in result.stderr
    assert "Traceback" not in result.output
    assert not (here / "run" / "result.json").exists()


def test_no_checkpoint_is_promised_where_there_is_none(recipe: Path, here: Path) -> None:
    result = bnprune("train", recipe, *ABSURD, "--out", "run")
    assert not list(here.rglob("checkpoints/*.safetensors"))
    assert "checkpoint is kept" not in result.stderr


def test_the_stages_before_a_failed_one_stay(recipe: Path, here: Path) -> None:
    result = bnprune("run", recipe, "finetune.lr=1e18", "--out", "run")
    assert result.exit_code == 5
    assert "not finite in epoch 1, step " in result.stderr
    assert list(read_json((here / "run" / "result.json").read_text())["stages"]) == ["train", "prune"]
    assert document("evaluate", "run/checkpoints/train.safetensors")["accuracy"] > 0.5


BROKEN_DATA = """\
import torch
from bnprune.data import Splits


class Noise:
    epoch = 0

    def __len__(self):
        return 40

    def serve(self, batches, device, seed=None):
        self.epoch += seed is not None
        generator = torch.Generator().manual_seed(0)
        for indices in batches:
            images = torch.randn(len(indices), 1, 16, 16, generator=generator)
            yield images * float("nan") if self.epoch == 2 else images, indices % 10


def build():
    return Splits(Noise(), Noise(), Noise(), shape=(1, 16, 16), classes=10)
"""


def test_the_last_good_checkpoint_stays(recipe: Path, here: Path) -> None:
    write("broken_data.py", BROKEN_DATA)
    line = ("train", recipe, "data.name=", "data.factory=broken_data:build", "data.batch_size=8", "--out")
    result = bnprune(*line, "run", "train.epochs=3")
    assert result.exit_code == 5
    assert "the loss is not finite in epoch 2, step 1 of 5. The last good checkpoint is kept." in result.stderr
    kept = load_file(here / "run" / "checkpoints" / "last.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert len((here / "run" / "metrics.jsonl").read_text().splitlines()) == 1


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


def wait_for(path: Path, process: Any, seconds: float = 120) -> None:
    """Wait until a process has written something to a file."""
    until = time.monotonic() + seconds
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "nothing was written"
        time.sleep(0.005)


def test_ctrl_c_stops_a_run_that_then_goes_on_to_the_same_bits(recipe: Path, here: Path) -> None:
    line = ["train", recipe, "train.epochs=40", "data.augment=true", "threads=1", "--json", "--out"]
    process = spawn(*line, "run")
    wait_for(here / "run" / "metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "The run can be resumed: --resume." in stderr
    assert "Traceback" not in stderr
    assert json.loads(stdout)["code"] == "interrupted"
    assert not (here / "run" / "checkpoints" / "train.safetensors").exists()

    with (here / "run" / "metrics.jsonl").open("a") as file:
        file.write("what a crash leaves that comes after an epoch's metrics and before its state\n")
    process = spawn(*line, "run", "--resume")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "epoch  1/40" not in stderr
    whole = document(*line[:-2], "--out", "whole")
    assert json.loads(stdout)["stages"]["train"]["accuracy"] == whole["stages"]["train"]["accuracy"]
    for name in ("train", "last", "best"):
        resumed, uninterrupted = (here / run / "checkpoints" / f"{name}.safetensors" for run in ("run", "whole"))
        assert tensor_bytes(resumed) == tensor_bytes(uninterrupted)
    metrics = [(here / run / "metrics.jsonl").read_text() for run in ("run", "whole")]
    assert metrics[0] == metrics[1]


def test_ctrl_c_while_nothing_is_trained(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bnprune.workflows.evaluate.evaluate_model", interrupted)
    assert refusal(130, "--quiet", "evaluate", run) == "interrupted"


def test_ctrl_c_while_a_checkpoint_is_written(slim: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: Any, path: Path, *__: Any) -> None:
        Path(path).write_bytes(b"the first few bytes")
        raise KeyboardInterrupt

    monkeypatch.setattr("bnprune.runs.checkpoint.save_file", interrupted)
    assert refusal(130, "prune", trained, "--out", slim, "--force") == "interrupted"


# -- a process that is killed -----------------------------------------------------------------------------------------


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def same_run(left: Path, right: Path) -> None:
    """The same networks to the bit, and the same metrics to the line."""
    assert (left / "metrics.jsonl").read_text() == (right / "metrics.jsonl").read_text()
    for name in ("train", "prune", "finetune"):
        one, other = (folder / "checkpoints" / f"{name}.safetensors" for folder in (left, right))
        assert tensor_bytes(one) == tensor_bytes(other)
    assert not list(left.rglob("*.tmp"))


@pytest.mark.parametrize("number", [1, 3, 4, 5], ids=["epoch", "train", "prune", "finetune"])
def test_metrics_have_no_line_twice_wherever_a_run_is_killed(
    number: int, recipe: Path, run: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after metrics were written and before what makes them count: a state, or a result."""
    count, targets = 0, (RunDirectory.save_state, RunDirectory.write_result)

    def wrapped(method: Callable[..., None]) -> Callable[..., None]:
        def run(*args: Any) -> None:
            nonlocal count
            count += 1
            if count == number:
                raise KeyboardInterrupt
            method(*args)

        return run

    for method in targets:
        monkeypatch.setattr(RunDirectory, method.__name__, wrapped(method))
    assert bnprune("run", recipe, "--out", "run").exit_code == 130
    done("run", recipe, "--out", "run", "--resume")
    same_run(here / "run", run)


def test_latency_is_measured_later_where_it_is_missing(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("bnprune.runs.pipeline._measure_latency", killed)
        assert bnprune("run", recipe, "--out", "run").exit_code == 130
    stages = document("run", recipe, "--out", "run", "--resume")["stages"]
    assert all(figures["latency_ms"] > 0 for figures in stages.values())


def test_a_run_that_is_killed_at_random_goes_on_to_the_same_bits(recipe: Path, here: Path) -> None:
    line = ["run", recipe, "train.epochs=12", "finetune.epochs=8", "data.augment=true", "threads=1", "--out"]
    moments, resume = random.Random(0), []
    for _ in range(3):
        process = spawn(*line, "run", *resume)
        size = metrics_size(here / "run")
        while process.poll() is None and metrics_size(here / "run") == size:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.communicate()
        resume = ["--resume"]
    done(*line, "run", "--resume")
    done(*line, "whole")
    same_run(here / "run", here / "whole")


def metrics_size(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


# -- things that go away while they are used --------------------------------------------------------------------------

VANISHING = """\
import os, shutil
from pathlib import Path
import torch
from torch.utils.data import Dataset, get_worker_info

RUN = Path("run")


class Images(Dataset):
    targets = [index % 10 for index in range(40)]

    def __init__(self, what, calm):
        self.what = None if calm else what

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if (RUN / "metrics.jsonl").exists() and self.what and Path("armed").exists():
            getattr(self, self.what)()
        generator = torch.Generator().manual_seed(index)
        return torch.randn(1, 16, 16, generator=generator), index % 10

    def data(self):
        raise FileNotFoundError(2, "No such file or directory", "images/7.png")

    def worker(self):
        assert get_worker_info() is not None
        os._exit(9)

    def folder(self):
        if (RUN / "checkpoints").is_dir():
            (RUN / "checkpoints").rename(RUN / "kept")
            (RUN / "checkpoints").write_text("a file where a folder was")


def build(what):
    return Images(what, False), Images(what, True), Images(what, True)
"""


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("data", "data: sample .* cannot be read: FileNotFoundError: .*images/7.png"),
        ("worker", "a loader process failed: .*exited unexpectedly"),
        ("folder", "'run/checkpoints/last.safetensors' cannot be written: Not a directory."),
    ],
)
def test_what_goes_away_in_the_second_epoch_leaves_a_run_to_go_on_with(
    what: str, expected: str, recipe: Path, here: Path
) -> None:
    write("vanishing.py", VANISHING)
    own = f"data={{factory: vanishing:build, kwargs: {{what: {what}}}, batch_size: 8, workers: 1}}"
    recipe.write_text(recipe.read_text().replace("data: {name: digits, augment: false}\n", ""))
    line = ("train", recipe, own, "train.epochs=3", "--out")
    whole = done(*line, "whole")
    armed = write("armed", "")
    result = bnprune(*line, "run")
    assert result.exit_code == 5, result.output
    assert re.search(expected, squeezed(result.stderr)), result.stderr
    assert "Traceback" not in result.stderr
    armed.unlink()
    if what == "folder":
        (here / "run" / "checkpoints").unlink()
        (here / "run" / "kept").rename(here / "run" / "checkpoints")
    resumed = done(*line, "run", "--resume")
    assert "epoch 1/3" in whole.stderr
    assert "epoch 1/3" not in resumed.stderr
    left, right = (tensor_bytes(here / name / "checkpoints" / "train.safetensors") for name in ("run", "whole"))
    assert left == right


# -- our own mistakes -------------------------------------------------------------------------------------------------


def test_a_cut_that_cannot_be_proven_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> torch.nn.Module:
        slim = copy_weights(*args)
        with torch.no_grad():
            slim.get_parameter("1.0.weight").mul_(1.001)
        return slim

    monkeypatch.setattr("bnprune.pruning.pruner.copy_weights", wrong)
    message = refusal(4, "prune", *CHAIN)
    assert "the slim network does not equal the masked original" in message
    assert "first difference in '1.0.weight'. Nothing was written." in message


@pytest.fixture
def _bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("bnprune.workflows.inspect.inspect_model", broken)


@pytest.mark.usefixtures("_bug")
def test_a_bug_is_called_one() -> None:
    message = refusal(1, "inspect", *CHAIN)
    assert "this is a bug in bnprune: ZeroDivisionError: division by zero" in message
    assert "`bnprune --debug VERB ...`" in message


@pytest.mark.usefixtures("_bug")
def test_debug_shows_the_traceback_of_a_bug() -> None:
    result = bnprune("--debug", "inspect", *CHAIN)
    assert result.exit_code == 1
    assert 'raise ZeroDivisionError("division by zero")' in result.stderr


def test_debug_shows_the_traceback_of_an_error_and_keeps_its_exit_code() -> None:
    result = bnprune("--debug", "inspect", "absent.safetensors")
    assert result.exit_code == 5
    assert "Traceback (most recent call last)" in result.stderr
    assert "CheckpointError" in result.stderr


def test_exit_codes_and_messages_leave_the_process() -> None:
    process = spawn("inspect", "absent.safetensors")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 5
    assert stdout == ""
    assert stderr.startswith("error: 'absent.safetensors' does not exist.")
