"""Every error bnprune raises on purpose, each with the exit code of the command line.

::

    BnpruneError
    ├── ConfigError         2  usage or configuration
    ├── PruningError        3  the network cannot be pruned as asked
    │   └── TraceError      3  the network cannot be followed
    │       └── ForwardError 2  its forward pass fails on the given input
    ├── VerificationError   4  the slim network does not equal the masked original
    ├── DataError           5  data, checkpoint or disk
    │   └── CheckpointError 5  a file that is not a checkpoint of ours, or cannot be read or written
    │       └── UntrustedError 5  a file names code, a path or a download, and is not trusted
    ├── TrainingError       5  training cannot go on (NaN loss); checkpoints of finished epochs stay
    ├── Interrupted       130  stopped by the user; a checkpoint was written
    └── PeerFailed         as the process of this run that failed, and said why
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal


class BnpruneError(Exception):
    """Base of all errors bnprune raises on purpose. The message says what, where, what was got, and the fix."""

    exit_code = 1
    code = "error"

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class ConfigError(BnpruneError):
    """The command line, the YAML file or an argument is wrong. `problems` lists every one found."""

    exit_code = 2
    code = "config"


class PruningError(BnpruneError):
    """The network cannot be pruned as asked."""

    exit_code = 3
    code = "pruning"


class TraceError(PruningError):
    """The network cannot be followed: its forward pass failed, or an operator's rule did."""

    code = "trace"


class ForwardError(TraceError):
    """The forward pass of the network fails on the example inputs: usually their shape is wrong."""

    exit_code = 2
    code = "forward"


class VerificationError(BnpruneError):
    """The slim network does not compute what the masked original computes."""

    exit_code = 4
    code = "verification"


class DataError(BnpruneError):
    """Data cannot be read, or a file cannot be written."""

    exit_code = 5
    code = "data"


class CheckpointError(DataError):
    """A checkpoint is missing, damaged, foreign, or does not fit the network."""

    code = "checkpoint"


class UntrustedError(CheckpointError):
    """A file names code, a path or a download that is needed to go on, and the user has not said to trust the file.

    Args:
        path: The file.
        refused: What it names: key -> value, as text for people. The value is empty if this file does not hold it,
            because it was left out when the file was made.
        needed: What is missing because of that: the network, or the recipe.
    """

    code = "untrusted"

    def __init__(self, path: str, refused: Mapping[str, str], needed: Literal["model", "recipe"]) -> None:
        named = ", ".join(f"{key} = {value}" if value else key for key, value in refused.items())
        if "model.factory" in refused:
            reason = (
                f"holds a network of your own ({refused['model.factory']}), and bnprune does not run code named by a"
            )
            reason += " file"
        elif all(refused.values()):
            reason = f"names code, a path or a download ({named}), and bnprune does not use what a file names"
        else:
            reason = f"has a recipe without {named}, because it was made from a file that was not trusted"
        self.reason = f"'{path}' {reason}."
        give = "the network again: bnprune.load(path, model=build())" if needed == "model" else "a recipe of your own"
        super().__init__(f"{self.reason} Give {give}, or trust the file: trust=True.")
        self.path, self.refused, self.needed = path, dict(refused), needed


class TrainingError(BnpruneError):
    """Training cannot go on."""

    exit_code = 5
    code = "training"


class Interrupted(BnpruneError):
    """The user stopped the run; a checkpoint to resume from was written."""

    exit_code = 130
    code = "interrupted"


class PeerFailed(BnpruneError):
    """Another process of this run failed and told the user: this one ends in silence, with the same exit code."""

    code = "peer"

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run failed.")
        self.exit_code = exit_code


_SPELLING: ContextVar[Callable[[str, str], str]] = ContextVar(
    "spelling", default=lambda name, value: f"{name}={value}" if value else name
)


def argument(name: str, value: str = "") -> str:
    """Return an argument as the caller writes it, for a message: `force` in Python, `--force` on the command line.

    With a value: `out=DIR` in Python, `--out DIR` on the command line.
    """
    return _SPELLING.get()(name, value)


@contextmanager
def spelling(spell: Callable[[str, str], str]) -> Iterator[None]:
    """Let `argument` spell names and values with a function of both; for the command line."""
    token = _SPELLING.set(spell)
    try:
        yield
    finally:
        _SPELLING.reset(token)


def first_line(error: BaseException) -> str:
    """Return the gist of somebody else's error, to be quoted in one of ours."""
    return shortened((str(error).strip() or type(error).__name__).split("\n")[0].rstrip("."), 400)


def shortened(text: str, limit: int = 200) -> str:
    """Return text of somebody else for a message: its beginning, with control characters escaped."""
    return printable(text if len(text) <= limit else f"{text[: limit - 3]}...")


def printable(text: str) -> str:
    """Return text with characters that are not printable escaped, as `repr` does it; newlines and tabs stay.

    Names of files and layers come from files, and an escape sequence in them could rewrite what is on a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(value: Any, limit: int = 60) -> str:
    """Return `repr(value)` for a message, or its beginning, without building the rest of it first."""
    text = _Repr(limit).repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class _Repr(reprlib.Repr):
    """A `repr` of bounded cost, whatever the value: long, deeply nested, or containing itself."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlevel = 4
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 12
        self.maxstring = self.maxother = limit

    def repr_str(self, x: str, level: int) -> str:
        return repr(x[: self.maxstring])

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write integers of more than 4,300 digits, and takes quadratic time for shorter ones.
        return repr(x) if x.bit_length() <= 256 else f"an integer of {x.bit_length()} bits"
