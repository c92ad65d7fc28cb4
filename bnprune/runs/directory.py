"""The run directory: the files that a run writes, and from which it can be resumed.

::

    config.yaml      the recipe, resolved: `bnprune run DIR/config.yaml` repeats the run
    env.json         versions, devices, command line, git revision
    metrics.jsonl    one line per epoch and stage
    plan.json        what was pruned (plan-2.json in the second pass)
    result.json      the figures of every finished stage
    report.html      a page about the run, in one file
    gamma.safetensors  the scale factors before training
    checkpoints/     the last and the best epoch of the current stage, and one file per finished stage
    tensorboard/     logs of every stage, with `tensorboard: true`
    exports/         the last network in the formats of the recipe's `export` section
"""

from __future__ import annotations

import difflib
import json
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

from bnprune.config.bounded_reading import DATA_BYTES, RECIPE_BYTES, parse_json, read_text, table
from bnprune.config.recipe import as_data, check
from bnprune.config.schema import PipelineConfig
from bnprune.config.yaml_loader import YamlError, read_yaml
from bnprune.errors import CheckpointError, ConfigError, DataError
from bnprune.runs.files import (
    append_text,
    make_folder,
    plain,
    remove_temporaries,
    require_free_folder,
    require_replaceable,
    truncate,
    write_atomically,
    write_json,
    write_text,
)
from bnprune.runs.lock import lock, unlock
from bnprune.runs.outputs import RUN_FILES, is_run, is_same
from bnprune.runs.passes import request_of
from bnprune.runs.results import RunResult
from bnprune.runs.revision import revision
from bnprune.runs.saved_state import read_result, read_state, save_state
from bnprune.runs.stages import is_stage, kind_of, order_of
from bnprune.training.distributed.torchrun_env import launch

_PACKAGES = ("bnprune", "torch", "torchvision", "numpy", "safetensors", "pydantic", "timm", "onnx", "onnxruntime")


class RunDirectory:
    """A run on disk."""

    def __init__(self, path: Path, *, begun: bool = True, force: bool = False) -> None:
        self.path = path
        self._begun = begun
        self._force = force
        self._is_locked = False
        self._lock: int | None = None
        self.config_file = path / "config.yaml"
        self._environment_file = path / "env.json"
        self.metrics_file = path / "metrics.jsonl"
        self.result_file = path / "result.json"
        self.report_file = path / "report.html"
        self.gamma_file = path / "gamma.safetensors"
        self.state_file = path / "checkpoints" / "last.state.pt"

    def plan_file(self, stage: str) -> Path:
        """Return the path of the plan of a pruning stage: plan.json, or plan-2.json of the second pass."""
        return self.path / f"{stage.replace('prune', 'plan')}.json"

    def checkpoint(self, name: str) -> Path:
        """Return the path of a checkpoint: "last", "best", or a stage."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold an exclusive lock on the run directory for the duration of a `with` block.

        A directory that does not exist yet is locked when `begin` creates it.

        Raises:
            DataError: Another process has locked the run, or a file of the run is a symbolic link.
        """
        if self._is_locked:
            yield
            return
        self._is_locked = True
        try:
            if self.path.is_dir():
                self._lock = lock(self.path)
            if self._begun:
                self._require_no_links()
            yield
        finally:
            unlock(self._lock)
            self._lock, self._is_locked = None, False

    def _require_no_links(self) -> None:
        for folder in ("checkpoints", "exports", "tensorboard", "tensorboard/*"):
            for found in self._matching(folder):
                if found.is_symlink():
                    raise DataError(
                        f"'{found}' is a symbolic link, and a run writes into its own directory alone. Put a folder in "
                        "its place, or choose another.",
                        argument="out",
                    )
        for file in self._run_files():
            require_replaceable(file)

    def _run_files(self) -> Iterator[Path]:
        """Yield the paths of the files of a run, whether they exist or not."""
        for name in RUN_FILES:
            yield from self._matching(name)

    def _matching(self, name: str) -> Iterable[Path]:
        if "*" not in name:
            return (self.path / name,)
        return (found for found in self.path.glob(name) if found.is_symlink() or not found.is_dir())

    def tensorboard_log(self, stage: str) -> Path:
        """Return the folder of a stage's TensorBoard logs."""
        return self.path / "tensorboard" / stage

    def export(self, suffix: str) -> Path:
        """Return the path of an exported network."""
        return self.path / "exports" / f"network{suffix}"

    # -- beginning and resuming ------------------------------------------------------------------------------------

    @classmethod
    def new(cls, path: Path, *, force: bool, sources: Iterable[Path | None] = ()) -> RunDirectory:
        """Choose the directory of a new run. Nothing is written or removed before `begin`.

        Args:
            path: The directory.
            force: True if the run may replace an earlier one.
            sources: Files and run directories that the new run reads.

        Raises:
            ConfigError: The directory is not empty and `force` is off, or it holds a source.
            DataError: The path is a file, or another process works on the run.
        """
        run = cls(path, begun=False, force=force)
        with run.locked():
            require_free_folder(path, force=force)
            run._require_no_links()
            for source in sources:
                if source is not None and run._would_overwrite(source):
                    message = f"'{source}' would be overwritten, and the run starts from it. Choose another folder."
                    raise ConfigError(message, argument="out")
        return run

    def _would_overwrite(self, source: Path) -> bool:
        if is_run(self.path) and is_same(source, self.config_file):
            return False  # a run that is repeated in its own directory: the recipe is written again
        return is_same(source, self.path) or any(is_same(source, file) for file in self._run_files())

    def begin(self, config: PipelineConfig) -> None:
        """Write the first files of a new run, and remove those of an earlier one; leave a resumed run unchanged.

        Raises:
            DataError: The directory cannot be written, or another process has created it in the meantime.
        """
        if not self._begun:
            self._create()
        for folder in (self.path, self.path / "checkpoints", self.path / "exports"):
            remove_temporaries(folder)
        if not self._begun:
            self._begun = True
            self._clear()
            write_text(self.config_file, dump_config(config))
        if not self._environment_file.exists():
            write_json(self._environment_file, environment())

    def _create(self) -> None:
        make_folder(self.path)
        self._lock = lock(self.path) if self._lock is None else self._lock
        self._require_no_links()
        if not self._force and any(self.path.iterdir()):
            raise DataError(
                f"'{self.path}' has been filled by another process in the meantime. Choose another.", argument="out"
            )

    @classmethod
    def resume(cls, path: Path, config: PipelineConfig) -> RunDirectory:
        """Open a run to continue it.

        Raises:
            ConfigError: There is no run, or its configuration differs from the one given.
            DataError: It cannot be read, or another process works on it.
        """
        run = cls(path)
        try:
            with run.locked():
                before = read_text(run.config_file, RECIPE_BYTES)
        except FileNotFoundError as error:
            raise ConfigError(f"'{path}' is not a run directory (it has no config.yaml).", argument="resume") from error
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"'{run.config_file}' cannot be read: {error}", argument="resume") from error
        after = dump_config(config)
        if before != after and not _is_same_recipe(before, config):
            changed = difflib.unified_diff(
                before.splitlines(), after.splitlines(), "the run", "now", "", "", n=0, lineterm=""
            )
            shown = "\n".join(line for line in changed if not line.startswith("@@"))
            raise ConfigError(f"the configuration has changed since '{path}' was started:\n{shown}", argument="resume")
        return run

    def was_begun_by_this_launch(self) -> bool:
        """Return True if the run was begun by the `torchrun` that started this process, perhaps after a failure."""
        try:
            begun: str | None = parse_json(read_text(self._environment_file, DATA_BYTES)).get("launch")
        except (OSError, ValueError, AttributeError):
            return False
        return begun is not None and begun == launch() and self.config_file.exists()

    def _clear(self) -> None:
        """Remove the files of an earlier run, and nothing else.

        Results go first, so that a partly removed run does not look finished. The recipe stays until the new one
        replaces it.
        """
        for file in self._run_files():
            if file != self.config_file:
                file.unlink(missing_ok=True)

    # -- results ---------------------------------------------------------------------------------------------------

    def result(self) -> RunResult:
        """Return the figures of the finished stages; none for a new run.

        Raises:
            CheckpointError: The file is damaged.
        """
        if not self._begun or not self.result_file.exists():
            return RunResult(stages={}, path=self.path)
        return read_result(self.result_file).model_copy(update={"path": self.path})

    def write_result(self, result: RunResult) -> None:
        """Write the figures of the finished stages."""
        write_json(self.result_file, result.to_dict())

    def network(self, default: str | None = None) -> Path:
        """Return the checkpoint of the last finished stage, or else of the last epoch of the current stage.

        Args:
            default: A stage whose checkpoint is returned instead, if there is one.

        Raises:
            CheckpointError: There is no checkpoint yet.
        """
        if default is not None and self.checkpoint(default).exists():
            return self.checkpoint(default)
        names = [path.stem for path in self.path.glob("checkpoints/*.safetensors")]
        stages = sorted(filter(is_stage, names), key=order_of)
        if stages or "last" in names:
            return self.checkpoint(stages[-1] if stages else "last")
        raise CheckpointError(
            f"'{self.path}' holds no checkpoint yet. Expected a run directory or a .safetensors file."
        )

    def network_of(self, stage: str) -> Path:
        """Return the checkpoint of the last stage of a kind: of several passes, "prune" is the last cut.

        Raises:
            CheckpointError: There is none.
        """
        names = [path.stem for path in self.path.glob("checkpoints/*.safetensors")]
        stages = sorted(filter(is_stage, names), key=order_of)
        found = [name for name in stages if kind_of(name) == stage]
        if not found:
            there = f"It has {', '.join(stages)}." if stages else "It has none."
            raise CheckpointError(f"'{self.path}' has no checkpoint of stage {stage}. {there}", argument="stage")
        return self.checkpoint(found[-1])

    # -- state and metrics -----------------------------------------------------------------------------------------

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Append one line of JSON.

        Raises:
            DataError: The file cannot be written.
        """
        append_text(self.metrics_file, json.dumps(plain(dict(record))) + "\n")

    def metrics_bytes(self) -> int:
        """Return the size of metrics.jsonl, in bytes."""
        return self.metrics_file.stat().st_size if self.metrics_file.exists() else 0

    def rewind(self, saved: Mapping[str, Any] | None = None) -> None:
        """Remove the metrics that were written after a saved state; without one, after the last finished stage.

        Args:
            saved: The result of `load_state`, after it has been checked.

        Raises:
            DataError: The file cannot be written.
        """
        size = self._finished_bytes() if saved is None else saved["metrics_bytes"]
        if size < self.metrics_bytes():
            truncate(self.metrics_file, size)

    def _finished_bytes(self) -> int:
        """Return the size of metrics.jsonl at the end of the last finished stage, in bytes."""
        result = self.result()
        if not result.stages:
            return 0
        return self.metrics_bytes() if result.metrics_bytes is None else result.metrics_bytes

    def save_state(self, stage: str, state: Mapping[str, Any]) -> None:
        """Save the state from which a stage can be resumed exactly, with the current size of metrics.jsonl."""
        content = {"stage": stage, "metrics_bytes": self.metrics_bytes(), **state}
        write_atomically(self.state_file, lambda temporary: save_state(content, temporary))

    def load_state(self, stage: str) -> dict[str, Any] | None:
        """Return the saved state of a stage, or None. Nothing is changed: call `rewind` next.

        Raises:
            CheckpointError: The file is damaged.
        """
        with self.naming_state_file():
            content = self._state()
        return content if content is not None and content["stage"] == stage else None

    @contextmanager
    def naming_state_file(self) -> Iterator[None]:
        """Add the path of the state file, and a fix, to errors about a damaged state.

        Raises:
            CheckpointError: In place of one that is raised in the `with` block.
        """
        try:
            yield
        except CheckpointError as error:
            raise CheckpointError(
                f"'{self.state_file}' is damaged: {error} Nothing was changed. To repeat the stage from its beginning, "
                "remove the file; finished stages stay."
            ) from error

    def _state(self) -> dict[str, Any] | None:
        return read_state(self.state_file) if self.state_file.exists() else None


def _is_same_recipe(text: str, config: PipelineConfig) -> bool:
    """Return True if a recipe gives the same configuration; key order and spelled-out defaults do not matter."""
    try:
        return _with_defaults(check(table(read_yaml(text)), {})) == _with_defaults(config)
    except (ConfigError, YamlError, ValueError):
        return False


def _with_defaults(config: PipelineConfig) -> PipelineConfig:
    """Return a configuration that names its criterion, and no cap that has no effect: version 0.1 wrote both."""
    if config.prune is None:
        return config
    asked = request_of(config.prune)
    without_cap = replace(asked, cap=None)
    cap = None if asked.cap == 1 and not without_cap.least_width else asked.cap
    prune = config.prune.model_copy(update={"criterion": asked.ranked_by, "cap": cap})
    return config.model_copy(update={"prune": prune})


def dump_config(config: PipelineConfig) -> str:
    """Return a recipe as YAML that reads back to the same configuration."""
    data = as_data(config)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def environment() -> dict[str, Any]:
    """Return the versions, the machine and the command line, on which results depend besides the recipe."""
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
        "git": revision(Path.cwd()),
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
