"""Errors as the user sees them: one message on stderr, the fixed exit code, and JSON where it was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from bnprune.errors import BnpruneError, DataError

INTERRUPTED = 130


@contextmanager
def reporting(*, json_wanted: bool, debug: bool) -> Iterator[None]:
    """Turn exceptions into messages and exit codes; with `debug`, let them through."""
    try:
        yield
    except BnpruneError as error:
        if debug:
            raise
        _tell(error, json_wanted)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        typer.echo("\ninterrupted", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except OSError as error:
        if debug:
            raise
        where = f"'{error.filename}': " if error.filename else ""
        failure = DataError(f"{where}{error.strerror or error}.")
        _tell(failure, json_wanted)
        raise typer.Exit(failure.exit_code) from None
    except Exception as error:
        if debug or isinstance(error, typer.Exit) or type(error).__module__.startswith("typer."):
            raise
        _tell(BnpruneError(f"this is a bug in bnprune: {type(error).__name__}: {error}\n{_REPORT}"), json_wanted)
        raise typer.Exit(1) from None


_REPORT = "Please report it with the traceback that `bnprune --debug VERB ...` shows."


def _tell(error: BnpruneError, json_wanted: bool) -> None:
    if json_wanted:
        problems = [str(problem) for problem in error.problems]
        typer.echo(json.dumps({"schema": "bnprune.error/1", "code": error.code, "problems": problems}, indent=2))
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(str(error), err=True)
