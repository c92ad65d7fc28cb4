"""What `run`, `train` and `finetune` share: a recipe, a run directory, a display, and the result at the end."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bnprune.cli.display import RichDisplay, print_json, show_result
from bnprune.cli.reports import report_of_run
from bnprune.config.recipe import load_recipe
from bnprune.config.schema import PipelineConfig
from bnprune.errors import ConfigError
from bnprune.exporters.stage import export_run, options_of
from bnprune.runs.directory import RunDirectory
from bnprune.runs.network_source import open_source, refuse_other_model
from bnprune.runs.pipeline import execute
from bnprune.runs.preflight import Network, about, spec_of
from bnprune.runs.signals import stop_requests
from bnprune.runs.stages import stages_of
from bnprune.runs.teacher import taught_by, teacher_beside
from bnprune.runs.training_stage import follow
from bnprune.training.distributed.processes import Processes, open_processes


def _together(verb: Callable[..., None]) -> Callable[..., None]:
    """Run a verb in the leading process; the others, where `torchrun` started some, take part in what it trains."""

    @functools.wraps(verb)
    def run(*args: Any, **options: Any) -> None:
        with open_processes() as processes:
            if processes.leads:
                verb(*args, **options, processes=processes)
                processes.send(None)
                return
            with stop_requests() as stopping:
                follow(processes, stopping)

    return run


@_together
def run_recipe(
    path: Path,
    overrides: Sequence[str],
    *,
    verb: str,
    stages: Sequence[str] | None,
    out: Path | None,
    resume: bool,
    force: bool,
    as_json: bool,
    processes: Processes,
) -> None:
    """Run stages of a recipe; None for every stage it has."""
    config = load_recipe(path, overrides)
    if stages is None:
        stages = stages_of(config)
        if not stages:
            raise ConfigError(f"{path}: has no stage. Add one of: train, prune, finetune.")
    sources = [path]
    _run(config, verb, stages, None, sources, out=out, resume=resume, force=force, as_json=as_json, processes=processes)


@_together
def run_finetune(
    pruned: Path,
    rest: Sequence[str],
    *,
    model: str | None,
    arguments: Sequence[str],
    teacher: Path | None,
    trust: bool,
    out: Path | None,
    resume: bool,
    force: bool,
    as_json: bool,
    processes: Processes,
) -> None:
    """Fine-tune a checkpoint, with the recipe it carries or one that is given."""
    recipes = [Path(text) for text in rest if "=" not in text]
    overrides = [text for text in rest if "=" in text]
    if len(recipes) > 1:
        raise ConfigError(f"expected one recipe, got {', '.join(map(str, recipes))}.")
    refuse_other_model(overrides)
    given = load_recipe(recipes[0], overrides) if recipes else None
    recipe = None if given is None else spec_of(given)
    source = open_source(pruned, model=model, arguments=arguments, recipe=recipe, trust=trust)
    config = about(given or source.config(overrides), source.header.spec)
    config = taught_by(config, teacher or teacher_beside(pruned), asked=teacher is not None)
    network, sources, stages = (source.model, source.header), [pruned, *recipes], ("finetune",)
    _run(
        config,
        "finetune",
        stages,
        network,
        sources,
        out=out,
        resume=resume,
        force=force,
        as_json=as_json,
        processes=processes,
    )


def _run(
    config: PipelineConfig,
    verb: str,
    stages: Sequence[str],
    network: Network | None,
    sources: Sequence[Path],
    *,
    out: Path | None,
    resume: bool,
    force: bool,
    as_json: bool,
    processes: Processes,
) -> None:
    if resume and out is None:
        raise ConfigError("--resume: say which run with --out DIR.")
    if verb == "run" and config.export is not None:
        options_of(config.export)  # what is missing is said before anything is spent
    path = out or _default_directory(verb, config)
    again = processes.restarted and RunDirectory(path).is_of_this_launch()
    if resume or again:
        directory = RunDirectory.resume(path, config)
    else:
        directory = RunDirectory.new(path, force=force, sources=[*sources, *_read_by(config)])
    with directory.claimed(), RichDisplay() as display, stop_requests() as stopping:
        result = execute(config, directory, display, stopping, stages, network, processes)
        if verb == "run":
            export_run(config, directory, display.note)
            result = directory.result()
        display.note(report_of_run(path))
    if as_json:
        print_json(result)
    else:
        show_result(result, path)


def _read_by(config: PipelineConfig) -> list[Path]:
    """Return the files with weights that a recipe names."""
    distill = config.finetune.distill if config.finetune else None
    named = (config.model.weights, distill.teacher if distill else None)
    return [path for path in named if path is not None]


def _default_directory(verb: str, config: PipelineConfig) -> Path:
    name = config.model.name or config.model.factory or "model"
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    return Path("runs") / f"{verb}-{slug}-{time.strftime('%Y%m%d-%H%M%S')}"
