"""Errors on the command line: one message on stderr, the exit code, and a JSON document with --json."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from bnprune.cli.flags import flag
from bnprune.cli.recipes_as_networks import with_recipe_as_option
from bnprune.cli.trust import ways_to_trust
from bnprune.cli.verbosity import VERBOSITY, echo, print_document
from bnprune.config.prune_options import prune_options
from bnprune.errors import (
    RECIPE_AS_NETWORK,
    BnpruneError,
    ConfigError,
    DataError,
    Interrupted,
    PeerFailed,
    UntrustedError,
    bounded,
    lacks_memory,
    printable,
)


@contextmanager
def reporting(*, json_wanted: bool, command: Sequence[str] = ()) -> Iterator[None]:
    """Turn every exception into a message and an exit code; `--debug` shows its traceback as well.

    Args:
        json_wanted: True to print the error as a JSON document on stdout as well.
        command: The command line, for messages that suggest other commands.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, SystemExit):
        raise
    except PeerFailed as peer:
        raise typer.Exit(peer.exit_code) from None
    except KeyboardInterrupt:
        if json_wanted:
            _print_document(Interrupted("interrupted"))
        echo("\ninterrupted", err=True)
        raise typer.Exit(Interrupted.exit_code) from None
    except BaseException as error:
        if type(error).__module__.startswith("typer."):  # a usage error; they have no public base class
            message = bounded(printable(_in_our_words(_usage_message(error))))
            if json_wanted:
                _print_document(ConfigError(message))
            error.format_message = lambda: message  # type: ignore[attr-defined]
            raise  # typer prints it on stderr, with the usage of the verb
        if VERBOSITY.debug:
            echo(traceback.format_exc(), err=True)
        failure = _failure(error)
        _suggest(failure, command)
        _print_error(failure, json_wanted)
        raise typer.Exit(failure.exit_code) from None


def _suggest(failure: BnpruneError, command: Sequence[str]) -> None:
    """Add commands that go on to the messages of errors that need the whole command line for that."""
    for part in (failure, *failure.others):
        if isinstance(part, UntrustedError):
            part.reword(f"{part.reason}\n{ways_to_trust(part, command)}")
        elif part.code == RECIPE_AS_NETWORK:
            part.reword(f"{part.args[0]}{with_recipe_as_option(part.where, command)}")


_PLAIN = {
    "Value error, ": "",
    "Input should be a valid number, unable to parse string as a number": "expected a number such as 0.5",
    "Input should be a valid integer, unable to parse string as an integer": "expected a whole number",
    "Input should be": "must be",
    "Missing argument 'CONFIG'": "Missing argument 'CONFIG', the recipe. To write one: bnprune init digits.yaml",
}
"""Wordings of the libraries that parse the command line, and those that are shown."""


def _usage_message(error: Any) -> str:
    """Return the message of a usage error of typer; for an argument's name in Python, with the option that it is."""
    name, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    meant = flag(name.lstrip("-").replace("-", "_")) if name else ""
    known = {option for parameter in context.command.params for option in parameter.opts} if meant and context else ()
    if meant not in known or meant == name:
        return str(error.format_message())
    return f"No such option: {name}. Did you mean {meant}?"


def _in_our_words(message: str) -> str:
    for wording, ours in _PLAIN.items():
        message = message.replace(wording, ours)
    return message


@contextmanager
def refusing_exits() -> Iterator[None]:
    """Turn `sys.exit()` in the user's own code into an error: otherwise the verb would end with exit code 0.

    Raises:
        ConfigError: `sys.exit()` was called.
    """
    try:
        yield
    except SystemExit as end:
        call = f"sys.exit({'' if end.code is None else repr(end.code)})"
        raise ConfigError(f"code of your own (a network, its factory or a data set) called {call}.") from end


@contextmanager
def naming_options() -> Iterator[None]:
    """Add the flags of `argument` and `remedy` to the messages of errors, and write options as flags.

    With argument="out", "no such folder." becomes "--out: no such folder."; with remedy={"batch": 1}, "Export for one
    batch size." becomes "Export for one batch size: --batch 1."; with where="round_to", "round_to: must be ..." becomes
    "--round-to: must be ...".
    """
    try:
        yield
    except BnpruneError as error:
        for part in (error, *error.others):
            if part.remedy or part.argument or _is_flag(part.where):
                part.reword(_with_options(part))
                part.argument, part.remedy = "", {}
        raise


def _with_options(error: BnpruneError) -> str:
    flags = " ".join(itertools.starmap(_assigned, error.remedy.items()))
    own = str(error.args[0])
    message = f"{own.rstrip('.')}: {flags}." if flags else own
    if _is_flag(error.where) and not error.argument:
        return f"{flag(error.where)}{message.removeprefix(error.where)}"
    return f"{flag(error.argument)}: {message}" if error.argument else message


def _is_flag(where: str) -> bool:
    return where in prune_options() and bool(prune_options()[where].flag)


def _assigned(name: str, value: object) -> str:
    option = flag(name)
    return option if value is True else f"no {option}" if value is False else f"{option} {value}"


def _failure(error: BaseException) -> BnpruneError:
    if isinstance(error, BnpruneError):
        return error
    if lacks_memory(error):
        return DataError("there is not enough memory. Use a smaller network, input or batch, or another machine.")
    if isinstance(error, OSError):
        where = f"'{error.filename}': " if error.filename else ""
        return DataError(f"{where}{error.strerror or error}.")
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return ConfigError("a path holds a NUL character, which no file name can.")
    return BnpruneError(f"this is a bug in bnprune: {type(error).__name__}: {error}\n{_REPORT}")


_REPORT = "Please report it with the traceback that `bnprune --debug VERB ...` shows."


def _print_error(error: BnpruneError, json_wanted: bool) -> None:
    if json_wanted:
        _print_document(error)
    echo("error: ", fg="red", bold=True, nl=False, err=True)
    echo(str(error), err=True)


_MOST_PROBLEMS = 50


def _print_document(error: BnpruneError) -> None:
    problems = [*error.problems]
    if (more := len(problems) - _MOST_PROBLEMS) > 0:
        problems[_MOST_PROBLEMS:] = [f"... and {more} more problems"]
    from bnprune.workflows.results import ErrorResult

    print_document(ErrorResult(code=error.code, problems=problems).to_dict())
