"""Errors as the user sees them: one message on stderr, the fixed exit code, and JSON where it was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from bnprune.cli.voice import say
from bnprune.errors import BnpruneError, ConfigError, DataError, Interrupted, PeerFailed, first_line


@contextmanager
def reporting(*, json_wanted: bool, debug: bool) -> Iterator[None]:
    """Turn exceptions into messages and exit codes; with `debug`, let them through."""
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
        _tell(failure, json_wanted)
        raise typer.Exit(failure.exit_code) from None


def _failure(error: Exception) -> BnpruneError:
    if isinstance(error, BnpruneError):
        return error
    if isinstance(error, OSError):
        where = f"'{error.filename}': " if error.filename else ""
        return DataError(f"{where}{error.strerror or error}.")
    if isinstance(error, MemoryError | RuntimeError) and _MEMORY.search(str(error) or type(error).__name__):
        gist = first_line(error)
        return DataError(f"there is not enough memory: {gist}. Use a smaller input, batch or network.")
    return BnpruneError(f"this is a bug in bnprune: {type(error).__name__}: {error}\n{_REPORT}")


_MEMORY = re.compile("allocate memory|out of memory|MemoryError|Unable to allocate", re.IGNORECASE)
_REPORT = "Please report it with the traceback that `bnprune --debug VERB ...` shows."


def _tell(error: BnpruneError, json_wanted: bool) -> None:
    if json_wanted:
        _print_document(error)
    say("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(str(error), err=True)


def _print_document(error: BnpruneError) -> None:
    problems = [str(problem) for problem in error.problems]
    typer.echo(json.dumps({"schema": "bnprune.error/1", "code": error.code, "problems": problems}, indent=2))
