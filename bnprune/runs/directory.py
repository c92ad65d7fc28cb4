"""The run directory: everything a run leaves behind, and what it needs to go on.

::

    config.yaml      the recipe, resolved: `bnprune run DIR/config.yaml` repeats the run
    env.json         versions, devices, command line, git revision
    metrics.jsonl    one line per epoch and stage
    plan.json        what was pruned (plan-2.json in the second pass)
    result.json      the figures of every finished stage
    report.html      all of it for people, in one file
    gamma.safetensors  the scale factors the run started from
    checkpoints/     last and best of the stage that runs, and one file per finished stage
    tensorboard/     curves of every stage, where the recipe asks for them
    exports/         the last network in the formats the recipe asks for
"""

from __future__ import annotations

import difflib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml

from bnprune.config import PipelineConfig
from bnprune.errors import CheckpointError, ConfigError, DataError
from bnprune.launcher import launch
from bnprune.reading import DATA_BYTES, RECIPE_BYTES, parse_json, read_text, table
from bnprune.recipe import as_data
from bnprune.runs.files import plain, require_free_folder, write_atomically, write_json, write_text
from bnprune.runs.stages import is_stage, order_of

_PACKAGES = ("bnprune", "torch", "torchvision", "numpy", "safetensors", "pydantic", "timm", "onnx", "onnxruntime")


class RunDirectory:
    """A run on disk."""

    def __init__(self, path: Path, *, begun: bool = True) -> None:
        self.path = path
        self._begun = begun
        self._claim_on: BinaryIO | None = None
        self.config_file = path / "config.yaml"
        self.metrics_file = path / "metrics.jsonl"
        self.result_file = path / "result.json"
        self.report_file = path / "report.html"
        self.gamma_file = path / "gamma.safetensors"
        self.state_file = path / "checkpoints" / "last.state.pt"

    def plan_file(self, stage: str) -> Path:
        """Return where the plan of a pruning stage is: plan.json, or plan-2.json of the second pass."""
        return self.path / f"{stage.replace('prune', 'plan')}.json"

    def checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint: "last", "best", or a stage."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes out of a run that goes on, until the end of a `with`; one that is new, from `begin` on.

        Raises:
            DataError: Another process works on this run.
        """
        try:
            if self._begun:
                self._claim()
            yield
        finally:
            if self._claim_on is not None:
                self._claim_on.close()
                self._claim_on = None

    def _claim(self) -> None:
        try:
            import fcntl
        except ImportError:  # not on Windows
            return
        self._claim_on = self.config_file.open("rb")
        try:
            fcntl.flock(self._claim_on, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"'{self.path}' is in use: another process works on this run. Wait for it, or choose another --out."
            ) from error
        except OSError:  # the file system knows no locks
            return

    def board(self, stage: str) -> Path:
        """Return the folder of a stage's curves for TensorBoard."""
        return self.path / "tensorboard" / stage

    def export(self, suffix: str) -> Path:
        """Return the path of an exported network."""
        return self.path / "exports" / f"network{suffix}"

    # -- beginning and resuming ------------------------------------------------------------------------------------

    @classmethod
    def new(cls, path: Path, *, force: bool) -> RunDirectory:
        """Choose a place for a new run. Nothing is written, and nothing removed, before `begin`.

        Raises:
            ConfigError: The directory is not empty and `force` is off.
            DataError: There is a file.
        """
        require_free_folder(path, force=force)
        return cls(path, begun=False)

    def begin(self, config: PipelineConfig) -> None:
        """Write what a new run starts with, in place of an earlier run; leave one that is resumed as it is.

        Raises:
            DataError: The directory cannot be written.
        """
        for killed in (
            found for folder in (".", "checkpoints", "exports") for found in self.path.glob(f"{folder}/.*.tmp")
        ):
            killed.unlink(missing_ok=True)  # half of a file, of a run that was killed while it wrote
        if self._begun:
            return
        self._begun = True
        self._clear()
        write_json(self.path / "env.json", environment())
        write_text(self.config_file, dump_config(config))  # the last: where it is, the run can be resumed
        self._claim()

    @classmethod
    def resume(cls, path: Path, config: PipelineConfig) -> RunDirectory:
        """Open a run to go on with it.

        Raises:
            ConfigError: There is no run, or its configuration differs from the one given.
        """
        run = cls(path)
        try:
            before = read_text(run.config_file, RECIPE_BYTES)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--resume: '{path}' is not a run directory (it has no config.yaml).") from error
        after = dump_config(config)
        if before != after:
            changed = difflib.unified_diff(
                before.splitlines(), after.splitlines(), "the run", "now", "", "", n=0, lineterm=""
            )
            shown = "\n".join(line for line in changed if not line.startswith("@@"))
            raise ConfigError(f"--resume: the configuration has changed since '{path}' was started:\n{shown}")
        return run

    def is_of_this_launch(self) -> bool:
        """Tell whether the run was begun by the `torchrun` that has started this process, maybe again."""
        try:
            begun: str | None = parse_json(read_text(self.path / "env.json", DATA_BYTES)).get("launch")
        except (OSError, ValueError, AttributeError):
            return False
        return begun is not None and begun == launch() and self.config_file.exists()

    def _clear(self) -> None:
        """Remove what an earlier run left, and nothing else."""
        leftovers = [self.config_file, self.metrics_file, self.result_file, self.state_file]
        leftovers += [self.report_file, self.gamma_file]
        patterns = (
            "plan*.json",
            "checkpoints/*.safetensors",
            "exports/network.*",
            "tensorboard/*/events.out.tfevents.*",
        )
        for file in [*leftovers, *(found for pattern in patterns for found in self.path.glob(pattern))]:
            file.unlink(missing_ok=True)

    # -- results ---------------------------------------------------------------------------------------------------

    def result(self) -> dict[str, Any]:
        """Return the figures of the finished stages; empty for a new run.

        Raises:
            CheckpointError: The file is damaged.
        """
        if not self._begun or not self.result_file.exists():
            return {}
        try:
            found = table(parse_json(read_text(self.result_file, DATA_BYTES)))
            table(found.get("stages", {}))
        except OSError as error:
            raise CheckpointError(f"'{self.result_file}' cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise CheckpointError(f"'{self.result_file}' is damaged: {error}") from error
        return found

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the figures of the finished stages."""
        write_json(self.result_file, dict(result))

    def network(self) -> Path:
        """Return the checkpoint of the last finished stage, else the last one of the stage that runs.

        Raises:
            CheckpointError: There is none yet.
        """
        names = [path.stem for path in self.path.glob("checkpoints/*.safetensors")]
        stages = sorted(filter(is_stage, names), key=order_of)
        if stages or "last" in names:
            return self.checkpoint(stages[-1] if stages else "last")
        raise CheckpointError(
            f"'{self.path}' holds no checkpoint yet. Expected a run directory or a .safetensors file."
        )

    # -- state and metrics -----------------------------------------------------------------------------------------

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line of JSON.

        Raises:
            DataError: The file cannot be written.
        """
        try:
            with self.metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain(dict(record))) + "\n")
        except OSError as error:
            raise DataError(f"'{self.metrics_file}' cannot be written: {error.strerror}.") from error

    def metrics_bytes(self) -> int:
        """Return the length of the metrics."""
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def forget_unfinished(self) -> None:
        """Drop metrics that were written after the last finished stage: a stage begins, maybe once more."""
        result = self.result()
        self._shorten_metrics(result.get("metrics_bytes", 0 if not result else self.metrics_bytes()))

    def _shorten_metrics(self, size: int) -> None:
        if size < self.metrics_bytes():
            os.truncate(self.metrics_file, size)

    def save_state(self, stage: str, state: Mapping[str, Any]) -> None:
        """Save what a stage needs to go on exactly, with the length of the metrics at this moment."""
        content = {"stage": stage, "metrics_bytes": self.metrics_bytes(), **state}
        write_atomically(self.state_file, lambda temporary: torch.save(content, temporary))

    def load_state(self, stage: str) -> dict[str, Any] | None:
        """Return the saved state of a stage, or None; metrics written after it are dropped.

        Raises:
            CheckpointError: The file is damaged.
        """
        content = self._state()
        if content is None or content["stage"] != stage:
            self.forget_unfinished()
            return None
        self._shorten_metrics(content["metrics_bytes"])
        return content

    def _state(self) -> dict[str, Any] | None:
        if not self.state_file.exists():
            return None
        try:
            content: dict[str, Any] = torch.load(self.state_file, map_location="cpu", weights_only=True)
        except Exception as error:
            raise CheckpointError(f"'{self.state_file}' is damaged: {error}") from error
        return content


def dump_config(config: PipelineConfig) -> str:
    """Return a recipe as YAML that reads back to the same configuration."""
    data = as_data(config)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def environment() -> dict[str, Any]:
    """Return what a result depends on besides its recipe."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "schema": "bnprune.env/1",
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "argv": sys.argv[1:],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": versions,
        "git": _revision(),
        "launch": launch(),
    }


def processor() -> str:
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _revision() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
