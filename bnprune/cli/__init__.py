"""The command line. One file per verb: it parses, calls a workflow and renders the result; torch loads with a verb."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bnprune import __version__
from bnprune.cli import (
    benchmark,
    doctor,
    evaluate,
    export,
    finetune,
    init,
    inspect,
    prune,
    report,
    run,
    sweep,
    train,
    validate,
)
from bnprune.cli.error_messages import naming_options, refusing_exits, reporting
from bnprune.cli.processes import leave_together, require_alone
from bnprune.cli.stdout import json_alone
from bnprune.cli.terminal import exit_code, open_streams
from bnprune.cli.verbosity import VERBOSITY, forward, require_no_empty, say
from bnprune.errors import ConfigError

_COMMAND = "bnprune.command"


class _Verbs(TyperGroup):
    """Runs a verb and turns errors into one message and the exit code they stand for."""

    def list_commands(self, _: Any) -> list[str]:
        return list(self.commands)

    def format_help(self, context: Any, formatter: Any) -> None:
        """Write the list of verbs as plain text: importing rich would more than double the time it takes."""
        super(TyperGroup, self).format_help(context, formatter)

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        if not args and not context.resilient_parsing:  # shell completion parses incomplete lines
            say(self.get_help(context), err=True)
            raise typer.Exit(ConfigError.exit_code)
        VERBOSITY.answered = False
        context.meta[_COMMAND] = list(args)
        with reporting(json_wanted="--json" in args):
            require_no_empty(args)
            return super().parse_args(context, forward(args))

    def invoke(self, context: Any) -> Any:
        command, json_wanted = context.meta.get(_COMMAND, ()), "--json" in context.args
        with (
            reporting(json_wanted=json_wanted, command=command),
            naming_options(),
            json_alone(json_wanted),
            refusing_exits(),
        ):
            return super().invoke(context)


app = typer.Typer(
    name="bnprune",
    cls=_Verbs,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prune CNNs by BatchNorm scale factors (Network Slimming). Every cut is proven, or nothing is written.",
    epilog="Start here:  bnprune init digits.yaml && bnprune run digits.yaml",
)


def _version(wanted: bool) -> None:
    if wanted:
        say(f"bnprune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results, warnings and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every detail: times, rates, all layers.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of the program; `forward` allows them after the verb as well."""
    require_alone(context.invoked_subcommand or "")
    if quiet and verbose:
        raise ConfigError("--quiet and --verbose: give one.")
    VERBOSITY.quiet, VERBOSITY.verbose, VERBOSITY.debug = quiet, verbose, debug


_TRAINING = (run, train, prune, finetune)
_LOOKING = (sweep, evaluate, inspect, benchmark, report, export)
_STARTING = (validate, init, doctor)

for verb in (*_TRAINING, *_LOOKING, *_STARTING):
    verb.register(app)


def main() -> None:
    """Run the command line."""
    open_streams()
    try:
        app()
    except SystemExit as end:
        code = exit_code(end.code)
        leave_together(code)
        raise SystemExit(code) from None
