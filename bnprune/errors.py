"""All errors bnprune raises on purpose, each with its exit code of the command line.

::

    BnpruneError
    ├── ConfigError         2  usage or configuration
    ├── PruningError        3  the network cannot be pruned as asked
    │   └── TraceError      3  the network cannot be traced
    │       └── ForwardError 2  its forward pass fails on the given input
    ├── VerificationError   4  the slim network does not equal the masked original
    ├── DataError           5  data, checkpoint or disk
    │   └── CheckpointError 5  a file that is not a bnprune checkpoint, or cannot be read or written
    │       └── UntrustedError 5  a file names code, a path or a download, and is not trusted
    ├── TrainingError       5  training cannot continue (NaN loss); checkpoints of finished epochs are kept
    ├── Interrupted       130  stopped by the user; a checkpoint was written
    └── PeerFailed         the exit code of the process of this run that failed and printed the message
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal


class BnpruneError(Exception):
    """Base of all errors bnprune raises on purpose.

    The message can be given as a whole, or in parts (`where`, `what`, `got`, `fix`), of which those that apply are
    enough. Messages quote text of the user's files. They are bounded (see `bounded`), so that a file of 100 kB in the
    place of a number does not fill a terminal or a log. `exit_code` is the exit code of the command line.

    Args:
        message: The whole message; default: composed of the parts.
        problems: All problems found, if there may be several; default: the message.
        what: The problem.
        where: The option, key, file or layer.
        got: The value, as text.
        fix: How to solve it, as a sentence.
        code: A stable word for programs, in place of the one of the class.
        argument: Name of the Python argument that is wrong; a command calls it `--argument`.
        remedy: Arguments that avoid the error, by name.

    Example::

        try:
            bnprune.prune(model, example_inputs, ratio=1.5)
        except bnprune.BnpruneError as error:
            print(error.code, error.exit_code)  # config 2
            print(error)  # ratio: must be between 0 and 1, both excluded (got 1.5). 0.5 removes half.
    """

    exit_code = 1
    code = "error"

    def __init__(
        self,
        message: str = "",
        problems: Sequence[str] = (),
        *,
        what: str = "",
        where: str = "",
        got: str = "",
        fix: str = "",
        code: str = "",
        argument: str = "",
        remedy: Mapping[str, object] | None = None,
    ) -> None:
        message = printable(bounded(message or _composed(what, where, got, fix)))
        super().__init__(message)
        self._problems = tuple(printable(bounded(str(problem))) for problem in problems) or (message,)
        self.others: tuple[BnpruneError, ...] = ()
        """Errors of other checks that failed as well; see `Problems`."""
        self.what, self.where, self.got, self.fix = what or message, where, got, fix
        self.code = code or type(self).code
        self.argument = argument
        """Name of the Python argument that is wrong; a command calls it `--argument`."""
        self.remedy = dict(remedy or {})
        """Arguments that avoid the error, by name."""

    @property
    def problems(self) -> tuple[str, ...]:
        """All problems found, those of `others` included."""
        return tuple(problem for error in (self, *self.others) for problem in error._problems)

    def __str__(self) -> str:
        return summary(self.problems) if self.others else super().__str__()

    def reword(self, message: str) -> None:
        """Replace the message of this error; those of `others` stay."""
        message = printable(bounded(message))
        self.args = self._problems = (message,)


class Problems:
    """Collects the errors of independent checks and raises them as one error, so that all can be solved at once.

    The error that is raised is the first one; its attribute `others` holds the rest.

    Example::

        problems = Problems()
        with problems.noted():
            require_output(path)
        with problems.noted():
            network = open_source(source)
        problems.raise_all()
    """

    def __init__(self) -> None:
        self._errors: list[BnpruneError] = []

    def __bool__(self) -> bool:
        return bool(self._errors)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note an error of a `with` block instead of raising it."""
        try:
            yield
        except (Interrupted, PeerFailed):
            raise
        except BnpruneError as error:
            self._errors += [error, *error.others]
            error.others = ()

    def raise_all(self) -> None:
        """Raise what was noted.

        Raises:
            BnpruneError: A check failed.
        """
        if self._errors:
            first, *others = self._errors
            first.others = tuple(others)
            raise first


MOST_PROBLEMS = 100
"""Further problems are only counted."""


def summary(problems: Sequence[str]) -> str:
    """Join problems into one message."""
    more = len(problems) - MOST_PROBLEMS
    rest = f"\n... and {more} more." if more > 0 else ""
    count = "" if len(problems) == 1 else f"\n{len(problems)} problems. Nothing was started."
    return "\n".join(problems[:MOST_PROBLEMS]) + rest + count


def _composed(what: str, where: str, got: str, fix: str) -> str:
    start = f"{where}: {what}" if where else what
    middle = f"{start} (got {got})." if got else f"{start.rstrip('.')}."
    return f"{middle} {fix}" if fix else middle


class ConfigError(BnpruneError):
    """The command line, a recipe (YAML) or an argument is wrong.

    `problems` lists every problem of a recipe, so that all can be solved at once; for an argument, it is the message.

    Example::

        try:
            bnprune.run("recipe.yaml", ["train.epochs=-1", "prune.ratio=50%"])
        except bnprune.ConfigError as error:
            print(len(error.problems))  # 2
    """

    exit_code = 2
    code = "config"


class PruningError(BnpruneError):
    """The network cannot be pruned as asked: it has nothing to rank by, or too few channels that can be removed.

    Example::

        try:
            bnprune.prune(torch.nn.Linear(3, 3), torch.zeros(1, 3), ratio=0.5)
        except bnprune.PruningError as error:
            print(error.code, "BatchNorm" in str(error))  # pruning True
    """

    exit_code = 3
    code = "pruning"


class TraceError(PruningError):
    """The network cannot be traced: its forward pass failed (`ForwardError`), or the rule of an operator did.

    `bnprune.rule` registers rules. Exports raise it, too, for a network that cannot be written in a format.

    Example::

        try:
            bnprune.inspect(model, torch.zeros(1, 1, 8, 8))  # the network takes three channels
        except bnprune.TraceError as error:
            print(type(error).__name__)  # ForwardError
    """

    code = "trace"


class ForwardError(TraceError):
    """The forward pass of the network fails on the example inputs: usually their shape is wrong.

    The message names the module in which it fails, and the shapes and types of the inputs.

    Example::

        try:
            bnprune.prune(model, torch.zeros(1, 1, 8, 8), ratio=0.5)  # the network takes three channels
        except bnprune.ForwardError as error:
            print("(got (1, 1, 8, 8) float32)" in str(error))  # True
    """

    exit_code = 2
    code = "forward"


class VerificationError(BnpruneError):
    """The slim network does not compute what the original with the removed channels set to zero computes.

    Also raised if an exported file computes something else than the network in PyTorch. Nothing was written. After
    `bnprune.prune`, it is a bug in bnprune that is worth a report.

    Example::

        try:
            slim = bnprune.prune(model, example_inputs, ratio=0.5).model
        except bnprune.VerificationError:
            slim = model
    """

    exit_code = 4
    code = "verification"


class DataError(BnpruneError):
    """Data cannot be read, or a file cannot be written. The message names the file and the cause.

    Example::

        try:
            bnprune.save(model, "recipe.yaml/slim.safetensors")
        except bnprune.DataError as error:
            print(error)  # 'recipe.yaml/slim.safetensors' cannot be written: Not a directory.
    """

    exit_code = 5
    code = "data"


class CheckpointError(DataError):
    """A checkpoint, a plan or a table is missing, damaged, not written by bnprune, or does not fit the network.

    Example::

        try:
            bnprune.load("missing.safetensors")
        except bnprune.CheckpointError as error:
            print(error.code)  # checkpoint
    """

    code = "checkpoint"


RECIPE_AS_NETWORK = "recipe_as_network"
"""Code of the error that a recipe stands in the place of a network; `where` is its path."""


class UntrustedError(CheckpointError):
    """A file names code, a path or a download that is needed, and the file is not trusted.

    Args:
        path: The file.
        refused: The entries that were refused, key -> value, as text for people. A value is empty if this file does not
            hold it, because it was left out when the file was made.
        needed: The part that is missing because of that: the network, or the recipe. With the network, `refused` also
            has the entries of the recipe that would be missing next.
        lacks_recipe: True if a recipe is needed as well, and the file has none.

    Example::

        bnprune.save(model, "own.safetensors", spec="my_package.nets:build")
        try:
            bnprune.load("own.safetensors")
        except bnprune.UntrustedError as error:
            print(error.refused)  # {'model.factory': 'my_package.nets:build'}
        model = bnprune.load("own.safetensors", model=model)  # nothing that the file names is run
    """

    code = "untrusted"

    def __init__(
        self, path: str, refused: Mapping[str, str], needed: Literal["model", "recipe"], *, lacks_recipe: bool = False
    ) -> None:
        of_recipe = {key: value for key, value in refused.items() if not key.startswith("model.")}
        reasons = []
        if "model.factory" in refused:
            own = refused["model.factory"]
            reasons.append(f"holds a network of your own ({own}), and bnprune does not run code named by a file")
        elif refused.keys() - of_recipe.keys():
            reasons.append(_refusal({key: value for key, value in refused.items() if key not in of_recipe}))
        if of_recipe:
            reasons.append(_refusal(of_recipe))
        if lacks_recipe:
            reasons.append("has no recipe, which is needed as well")
        self.reason = f"'{path}' {'. It '.join(reasons)}."
        give = "the network again: bnprune.load(path, model=build())" if needed == "model" else "a recipe of your own"
        also = ", and a recipe" if lacks_recipe else ""
        super().__init__(f"{self.reason} Give {give}{also}, or trust the file: trust=True{also}.")
        self.path, self.refused, self.needed, self.lacks_recipe = path, dict(refused), needed, lacks_recipe

    @property
    def needs_recipe(self) -> bool:
        """True if someone who gives the network has to give a recipe as well."""
        return self.lacks_recipe or any(not key.startswith("model.") for key in self.refused)


def _refusal(refused: Mapping[str, str]) -> str:
    named = ", ".join(f"{key} = {value}" if value else key for key, value in refused.items())
    if all(refused.values()):
        return f"names code, a path or a download ({named}), and bnprune does not use what a file names"
    return f"has a recipe without {named}, because it was made from a file that was not trusted"


class TrainingError(BnpruneError):
    """Training cannot continue, because the loss or a weight is not finite. Checkpoints of finished epochs are kept.

    Example::

        try:
            bnprune.run("recipe.yaml", ["train.optimizer=sgd", "train.lr=1e9"])
        except bnprune.TrainingError as error:
            print(error.code)  # training
    """

    exit_code = 5
    code = "training"


class Interrupted(BnpruneError):
    """The user stopped the run (Ctrl-C, SIGTERM or SIGHUP); a checkpoint to resume from was written.

    Example::

        try:
            result = bnprune.run("recipe.yaml", out="runs/long")
        except bnprune.Interrupted:
            result = bnprune.run("recipe.yaml", out="runs/long", resume=True)
    """

    exit_code = 130
    code = "interrupted"


class PeerFailed(BnpruneError):
    """Another process of this run failed and printed the message: this one ends silently, with the same exit code."""

    code = "peer"

    def __init__(self, exit_code: int) -> None:
        super().__init__("another process of this run failed.")
        self.exit_code = exit_code


def lacks_memory(error: BaseException) -> bool:
    """Return True if Python, NumPy or torch could not allocate memory.

    The message has to be read: torch raises a plain RuntimeError if it cannot allocate memory of the CPU.
    """
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error))))


_MEMORY = re.compile("allocate memory|out of memory|not enough memory", re.IGNORECASE)


_LONGEST, _MOST_LINES = 2_000, 50


def bounded(text: str) -> str:
    """Return a message with at most 50 lines of about 2,000 characters; what is left out is counted in the middle.

    A message that is bounded already stays as it is, so that one error can quote another.
    """
    lines = text.split("\n")
    if len(lines) > _MOST_LINES + 1:
        lines[_MOST_LINES - 1 : -1] = [f"... ({len(lines) - _MOST_LINES} lines are left out) ..."]
    return "\n".join(map(_bounded_line, lines))


def _bounded_line(line: str) -> str:
    """Leave out the middle of a long line; a line that is bounded already stays as it is."""
    if len(line) <= _LONGEST + _ROOM:
        return line
    end = _LONGEST // 4  # messages end with the fix
    return f"{line[: _LONGEST - end]} ... ({len(line) - _LONGEST} characters are left out) ... {line[-end:]}"


_ROOM = 60
"""Longest text that replaces the middle."""


@contextmanager
def about(name: str) -> Iterator[None]:
    """Set the `argument` of errors that do not have one."""
    try:
        yield
    except BnpruneError as error:
        error.argument = error.argument or name
        raise


def first_line(error: BaseException) -> str:
    """Return the first line of an error of another library, at most 400 characters, to be quoted in a message."""
    return shortened((str(error).strip() or type(error).__name__).split("\n")[0].rstrip("."), 400)


def shortened(text: str, limit: int = 200) -> str:
    """Return the beginning of a text from a file or another library, with control characters escaped."""
    return printable(text if len(text) <= limit else f"{text[: limit - 3]}...")


def printable(text: str) -> str:
    """Return text with characters that are not printable escaped, as `repr` does it; newlines and tabs stay.

    Names of files and layers come from files, and an escape sequence in them could rewrite the text on a terminal.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(value: Any, limit: int = 60) -> str:
    """Return `repr(value)` for a message, or its beginning, without building the rest first."""
    text = _Repr(limit).repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class _Repr(reprlib.Repr):
    """A `repr` whose cost is bounded for every value: long, deeply nested, or containing itself."""

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
