"""Errors as the user sees them: one message on stderr, the fixed exit code, and JSON where it was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from bnprune.cli.trust import ways_to_trust
from bnprune.cli.voice import say
from bnprune.errors import (
    BnpruneError,
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    PeerFailed,
    UntrustedError,
)


@contextmanager
def reporting(*, json_wanted: bool, debug: bool, command: Sequence[str] = ()) -> Iterator[None]:
    """Turn exceptions into messages and exit codes.

    Args:
        json_wanted: Print the error as a JSON document on stdout, too.
        debug: Let exceptions through.
        command: The command line, for messages that say how to go on.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):
        raise
    except PeerFailed as peer:
        raise typer.Exit(peer.exit_code) from None
    except KeyboardInterrupt:
        if json_wanted:
            _print_document(Interrupted("interrupted"))
        typer.echo("\ninterrupted", err=True)
        raise typer.Exit(Interrupted.exit_code) from None
    except Exception as error:
        usage_error = type(error).__module__.startswith("typer.")  # they have no public base class
        if usage_error and json_wanted:
            _print_document(ConfigError(error.format_message()))  # type: ignore[attr-defined]
        if usage_error or debug:
            raise  # typer tells a usage error on stderr, with the usage of the verb
        failure = _failure(error)
        if isinstance(failure, UntrustedError):
            failure = CheckpointError(f"{failure.reason}\n{ways_to_trust(failure, command)}")
            failure.code = UntrustedError.code
        _tell(failure, json_wanted)
        raise typer.Exit(failure.exit_code) from None


def _failure(error: Exception) -> BnpruneError:
    if isinstance(error, BnpruneError):
        return error
    if isinstance(error, OSError):
        where = f"'{error.filename}': " if error.filename else ""
        return DataError(f"{where}{error.strerror or error}.")
    return BnpruneError(f"this is a bug in bnprune: {type(error).__name__}: {error}\n{_REPORT}")


_REPORT = "Please report it with the traceback that `bnprune --debug VERB ...` shows."


def _tell(error: BnpruneError, json_wanted: bool) -> None:
    if json_wanted:
        _print_document(error)
    say("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(str(error), err=True)


def _print_document(error: BnpruneError) -> None:
    problems = [str(problem) for problem in error.problems]
    typer.echo(json.dumps({"schema": "bnprune.error/1", "code": error.code, "problems": problems}, indent=2))
