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
    ├── TrainingError       5  training cannot go on (NaN loss); checkpoints of finished epochs stay
    ├── Interrupted       130  stopped by the user; a checkpoint was written
    └── PeerFailed         as the process of this run that failed, and said why
"""

from __future__ import annotations

from collections.abc import Sequence


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


def first_line(error: BaseException) -> str:
    """Return the gist of somebody else's error, to be quoted in one of ours."""
    return (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
