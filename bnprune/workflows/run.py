"""Run, train and fine-tune: stages of a recipe in a run directory, with export and report at the end."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnprune.config.overrides import overridden_keys
from bnprune.config.recipe import load_recipe
from bnprune.config.schema import PipelineConfig
from bnprune.errors import ConfigError, Problems
from bnprune.exporters.stage import export_run, options_of
from bnprune.runs.directory import RunDirectory
from bnprune.runs.display import NO_DISPLAY, Display
from bnprune.runs.files import require_free_folder
from bnprune.runs.network_source import RecipeNeeds, open_source, refuse_other_model, require_no_recipe
from bnprune.runs.pipeline import execute
from bnprune.runs.preflight import Network, prepare, spec_of, with_model
from bnprune.runs.signals import stop_requests
from bnprune.runs.stages import stages_of
from bnprune.runs.teacher import teacher_beside, with_teacher
from bnprune.runs.training_stage import follow
from bnprune.training.distributed.processes import Processes, open_processes
from bnprune.workflows.report import report_of_run
from bnprune.workflows.results import RunResult
from bnprune.workflows.unlabelled import unlabelled_recipe


def run(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    display: Display = NO_DISPLAY,
) -> RunResult:
    """Run every stage of a recipe, export the last network, and write the report.

    Under `torchrun`, all processes call it and get the same result; the first one decides and writes.

    Args:
        recipe: The YAML file.
        overrides: `key=value` pairs that replace keys of the recipe.
        out: The run directory; default: a new one in `runs/`, named after the verb, the model and the time.
        resume: Continue the run in `out`, exactly where it stopped.
        force: Replace an earlier run in `out`.
        display: Where to show progress; default: nowhere.

    Returns:
        The figures of every stage, as in `result.json`; `path` is the run directory.

    Raises:
        ConfigError: The recipe or an override is wrong, or `out` holds an earlier run.
        BnpruneError: A stage failed; finished stages and checkpoints are kept.
        Interrupted: The user stopped the run; it can be resumed.

    Example::

        result = bnprune.run("recipe.yaml", ["train.epochs=3"])
        print(result.stages["finetune"].accuracy)
        print((result.path / "report.html").is_file())  # True
    """
    output = _OutputArguments(verb="run", out=out, resume=resume, force=force)
    return _in_all_processes(lambda processes: _run_recipe(recipe, overrides, None, output, display, processes))


def train(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    display: Display = NO_DISPLAY,
) -> RunResult:
    """Run the training stage of a recipe: train with a penalty on the scale factors.

    Args:
        recipe: As for `run`.
        overrides: As for `run`.
        out: As for `run`.
        resume: As for `run`.
        force: As for `run`.
        display: As for `run`.

    Raises:
        BnpruneError: As for `run`.
    """
    output = _OutputArguments(verb="train", out=out, resume=resume, force=force)
    return _in_all_processes(lambda processes: _run_recipe(recipe, overrides, ("train",), output, display, processes))


def finetune(
    pruned: str | Path,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    model: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    teacher: str | Path | None = None,
    unlabelled: str | Path | None = None,
    trust: bool = False,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    display: Display = NO_DISPLAY,
) -> RunResult:
    """Fine-tune a pruned network.

    With `unlabelled`, no labels are needed: the loss is the divergence from the outputs of the teacher alone. The best
    epoch is the one with the largest share of held-out images for which the network and the teacher predict the same
    class. Accuracies are None in the result.

    >>> result = finetune("slim.safetensors", unlabelled="images", teacher="dense.safetensors")
    >>> result.stages["finetune"].teacher.agreement

    Args:
        pruned: A checkpoint or a run directory.
        recipe: A YAML file; default: the recipe in the checkpoint.
        overrides: As for `run`.
        model: A name or `package.module:factory`, to rebuild the checkpoint of the user's own network.
        model_arguments: Keyword arguments of `model`.
        teacher: Checkpoint or state dict of the network before pruning, to learn from (distillation).
        unlabelled: Folder of images without labels, of any structure, in place of the recipe's data. Needs a teacher.
        trust: Run the code and use the paths that the checkpoint names.
        out: As for `run`.
        resume: As for `run`.
        force: As for `run`.
        display: As for `run`.

    Raises:
        BnpruneError: As for `run`.
    """
    output = _OutputArguments(verb="finetune", out=out, resume=resume, force=force)

    def lead(processes: Processes) -> RunResult:
        refuse_other_model(overrides)
        with output.checked_with():
            require_no_recipe(Path(pruned))
            given = None if recipe is None else load_recipe(Path(recipe), overrides)
            spec = None if given is None else spec_of(given)
            needs = _recipe_needs(overrides, teacher) if given is None and unlabelled is None else None
            source = open_source(pruned, model=model, arguments=model_arguments, recipe=spec, needs=needs, trust=trust)
        source = source if teacher is None else source.given("finetune.distill.teacher")
        config = given
        if unlabelled is not None:
            config, notes = unlabelled_recipe(source, given, Path(unlabelled), overrides)
            for note in notes:
                display.note(f"note: {note}")
        config = with_model(config or source.config(overrides), source.header.spec)
        dense = teacher_beside(Path(pruned)) if teacher is None else Path(teacher)
        if dense is not None and teacher is None and config.data.unlabelled is not None:
            display.note(f"teacher: {dense}")
        config = with_teacher(config, dense, asked=teacher is not None or config.data.unlabelled is not None)
        sources = [Path(path) for path in (pruned, recipe) if path is not None]
        network = source.model, source.header
        return _run_stages(config, ("finetune",), network, sources, output, display, processes)

    return _in_all_processes(lead)


def _recipe_needs(overrides: Sequence[str], teacher: str | Path | None) -> RecipeNeeds:
    return RecipeNeeds(overridden_keys(overrides) | (set() if teacher is None else {"finetune.distill.teacher"}))


@dataclass(frozen=True, kw_only=True)
class _OutputArguments:
    """The arguments that choose the run directory."""

    verb: str
    out: str | Path | None
    resume: bool
    force: bool

    @contextmanager
    def checked_with(self) -> Iterator[None]:
        """Add a run directory that is not empty to the errors of a `with` block that the recipe comes from."""
        problems = Problems()
        with problems.noted():
            yield
        with problems.noted():
            if problems and self.out is not None and not self.resume:
                require_free_folder(Path(self.out), force=self.force)
        problems.raise_all()

    def directory(self, config: PipelineConfig, sources: Sequence[Path], processes: Processes) -> RunDirectory:
        """Open the run directory.

        Raises:
            ConfigError: It is not named, is not empty, or holds another run than the one to resume.
        """
        if self.resume and self.out is None:
            raise ConfigError("say which run.", argument="resume", remedy={"out": "DIR"})
        path = _default_directory(self.verb, config) if self.out is None else Path(self.out)
        restarted = processes.restarted and RunDirectory(path).was_begun_by_this_launch()
        if self.resume or restarted:
            return RunDirectory.resume(path, config)
        return RunDirectory.new(path, force=self.force, sources=[*sources, *_weight_files(config)])


def _in_all_processes(lead: Callable[[Processes], RunResult]) -> RunResult:
    """Call `lead` in the leading process; the others, which `torchrun` started, take part in its training stages."""
    with open_processes() as processes:
        if processes.leads:
            result = lead(processes)
            processes.send(None)
            processes.send(result)
            return result
        with stop_requests() as stopping:
            follow(processes, stopping)
        received: RunResult = processes.receive()
        return received


def _run_recipe(
    recipe: str | Path,
    overrides: Sequence[str],
    stages: Sequence[str] | None,
    output: _OutputArguments,
    display: Display,
    processes: Processes,
) -> RunResult:
    """Run stages of a recipe; None for every stage it has."""
    with output.checked_with():
        config = load_recipe(Path(recipe), overrides)
        stages = stages_of(config) if stages is None else stages
        if not stages:
            raise ConfigError(f"{recipe}: has no stage. Add one of: train, prune, finetune.")
    return _run_stages(config, stages, None, [Path(recipe)], output, display, processes)


def _run_stages(
    config: PipelineConfig,
    stages: Sequence[str],
    network: Network | None,
    sources: Sequence[Path],
    output: _OutputArguments,
    display: Display,
    processes: Processes,
) -> RunResult:
    exporting = output.verb == "run" and config.export is not None
    problems = Problems()
    with problems.noted():
        if exporting and config.export is not None:
            options_of(config.export)  # a missing extra is reported before any training
    with problems.noted():
        directory = output.directory(config, sources, processes)
    with problems.noted():
        if problems and not output.resume:  # else, the run itself begins with that
            prepare(config, stages, network, processes)
    problems.raise_all()
    with ExitStack() as stack:
        stack.enter_context(directory.locked())
        stopping = stack.enter_context(stop_requests())
        result = execute(config, directory, display, stopping, stages, network, processes)
        try:
            if exporting:
                display.doing("exporting the last network")
                result = export_run(config, directory, display.note)
        finally:  # a network that has no form in a format was trained and pruned all the same
            display.doing("writing the report")
            display.note(report_of_run(directory.path))
    return result


def _weight_files(config: PipelineConfig) -> list[Path]:
    """Return the files with weights that a recipe names."""
    distill = config.finetune.distill if config.finetune else None
    named = (config.model.weights, distill.teacher if distill else None)
    return [path for path in named if path is not None]


def _default_directory(verb: str, config: PipelineConfig) -> Path:
    name = config.model.name or config.model.factory or "model"
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    return Path("runs") / f"{verb}-{slug}-{time.strftime('%Y%m%d-%H%M%S')}"
