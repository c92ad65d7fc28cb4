"""The command line. Each verb has a file, which parses the flags, calls a workflow and renders the result.

torch is imported when a verb runs, so that `--help` is fast.
"""

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
    profile,
    prune,
    report,
    run,
    sensitivity,
    sweep,
    train,
    validate,
)
from bnprune.cli.error_messages import naming_options, refusing_exits, reporting
from bnprune.cli.help_text import Verb, write_program_help
from bnprune.cli.processes import exit_immediately, require_single_process
from bnprune.cli.stdout import json_only
from bnprune.cli.streams import exit_code, open_streams
from bnprune.cli.verbosity import VERBOSITY, echo, program_options_first, require_no_empty_arguments
from bnprune.errors import ConfigError

_COMMAND = "bnprune.command"


class _Verbs(TyperGroup):
    """Runs a verb, and turns errors into a message and an exit code."""

    def list_commands(self, _: Any) -> list[str]:
        return list(self.commands)

    def format_help(self, context: Any, formatter: Any) -> None:
        """Write the list of verbs as plain text: importing rich would more than double the time it takes."""
        write_program_help(self, context, formatter, _PANELS)

    def parse_args(self, context: Any, args: list[str]) -> list[str]:
        if not args and not context.resilient_parsing:  # shell completion parses incomplete lines
            echo(self.get_help(context), err=True)
            raise typer.Exit(ConfigError.exit_code)
        VERBOSITY.document_printed = False
        context.meta[_COMMAND] = list(args)
        with reporting(json_wanted="--json" in args):
            require_no_empty_arguments(args)
            return super().parse_args(context, program_options_first(args))

    def invoke(self, context: Any) -> Any:
        command, json_wanted = context.meta.get(_COMMAND, ()), "--json" in context.args
        with (
            reporting(json_wanted=json_wanted, command=command),
            naming_options(),
            json_only(json_wanted),
            refusing_exits(),
        ):
            return super().invoke(context)


app = typer.Typer(
    name="bnprune",
    cls=_Verbs,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prune CNNs by BatchNorm scale factors (Network Slimming). "
    "Each slim network is verified before it is written.",
    epilog="Start here:\nbnprune init digits.yaml\nbnprune run digits.yaml",
)


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"bnprune {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only results, warnings and errors.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print all details: times, rates, all layers.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Options of the program; `program_options_first` allows them after the verb as well."""
    require_single_process(context.invoked_subcommand or "")
    if quiet and verbose:
        raise ConfigError("--quiet and --verbose: give one.")
    VERBOSITY.quiet, VERBOSITY.verbose, VERBOSITY.debug = quiet, verbose, debug


_TRAINING = (run, train, prune, finetune)
_ANALYSIS = (sweep, sensitivity, evaluate, inspect, profile, benchmark, report, export)
_SETUP = (validate, init, doctor)

_PANELS: dict[str, list[str]] = {}
"""The names of the verbs by the titles that the help has for them."""
for _title, _verbs in {"Commands": _TRAINING, "Analysis": _ANALYSIS, "Setup": _SETUP}.items():
    for _verb in _verbs:
        _verb.register(app)
        app.registered_commands[-1].cls = Verb
        _PANELS.setdefault(_title, []).append(str(app.registered_commands[-1].name))


def main() -> None:
    """Run the command line."""
    open_streams()
    try:
        app()
    except SystemExit as end:
        code = exit_code(end.code)
        exit_immediately(code)
        raise SystemExit(code) from None
