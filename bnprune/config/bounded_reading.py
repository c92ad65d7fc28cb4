"""Reading untrusted text and JSON: only regular files, with limits on size, depth and numbers."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from bnprune.errors import ConfigError, quoted, shortened

T = TypeVar("T")

MEGABYTE = 1 << 20
RECIPE_BYTES = MEGABYTE
DATA_BYTES = 16 * MEGABYTE
"""Plans, figures, and the metadata of checkpoints."""
LOG_BYTES = 32 * MEGABYTE
"""Training logs: each line is a JSON document of its own."""
MOST_CONTAINERS = 500_000
"""Most lists and objects of a document: each takes fifty times the memory of its two characters."""
DEEPEST = 64
"""Most levels of nesting."""
LONGEST_NUMBER = 100
"""Most characters of a number: the time to read an integer is quadratic in its length."""


def read_text(path: Path, limit: int) -> str:
    """Read a text file.

    Args:
        path: A regular file. Reading a device or a FIFO could block or never end.
        limit: Largest size, in bytes.

    Raises:
        OSError: It cannot be read, is not a regular file, or exceeds the limit; `strerror` is a sentence for people.
        UnicodeDecodeError: It is not UTF-8.
    """
    with open_regular(path) as file:
        data = file.read(limit + 1) or b""
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit // MEGABYTE} MB", str(path))
    return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Raises:
        OSError: It cannot be opened, or is not a regular file; `strerror` is a sentence for people.
    """
    _require_regular(path, path.stat().st_mode)  # before opening, because opening a device may have effects
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)  # again, because it may have been replaced in between
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def parse_json(text: str, limit: int = DATA_BYTES, depth: int = DEEPEST) -> Any:
    """Read strict JSON: without NaN, infinity, huge numbers and lone surrogates.

    Args:
        text: The document.
        limit: Largest number of characters.
        depth: Most levels of lists and objects.

    Raises:
        ValueError: It is not such a document; `json.JSONDecodeError` if it is not JSON.
    """
    if len(text) > limit:
        raise ValueError(f"it is longer than {limit} characters")
    if text.count("[") + text.count("{") > MOST_CONTAINERS:
        raise ValueError(f"it holds more than {MOST_CONTAINERS:,} lists and objects")
    try:
        data = json.loads(text, parse_int=_integer, parse_float=_real, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {depth} levels") from error
    require_shallow(data, depth)
    if _SURROGATE.search(text):
        json.dumps(
            data, ensure_ascii=False
        ).encode()  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
    return data


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _integer(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"it holds an integer of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {shortened(text, 40)}, which is too large")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which is not JSON")


def require_shallow(data: T, depth: int = DEEPEST, below: Callable[[T], Iterable[T]] | None = None) -> None:
    """Refuse data that is nested too deep for recursive code.

    Args:
        data: Without cycles.
        depth: Most levels.
        below: Returns the containers inside a container. Default: for dicts, lists and tuples.

    Raises:
        ValueError: It is nested deeper.
    """
    inner: Callable[[T], Iterable[T]] = below or _containers
    level = [data]
    for _ in range(depth):
        level = [item for container in level for item in inner(container)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {depth} levels")


def _containers(value: Any) -> Iterable[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return (item for item in items if isinstance(item, dict | list | tuple))


# -- values of parsed data -------------------------------------------------------------------------------------------


def whole(value: Any, most: int, least: int = 0) -> int:
    """Return an integer of parsed data.

    Raises:
        ValueError: It is not an integer (a boolean, for example), or out of range.
    """
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"expected an integer from {least} to {most}, got {quoted(value)}")
    return value


def items(value: Any) -> list[Any] | tuple[Any, ...]:
    """Return a list of parsed data.

    Raises:
        ValueError: It is not a list.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, got {quoted(value)}")  # noqa: TRY004 - of data, not of an argument
    return value


def table(value: Any) -> dict[str, Any]:
    """Return an object of parsed data.

    Raises:
        ValueError: It is not an object.
    """
    if not isinstance(value, dict):
        raise ValueError(f"expected names and values, got {quoted(value)}")  # noqa: TRY004 - as above
    return value


def words(value: Any, limit: int = 1000) -> str:
    """Return a text of parsed data.

    Raises:
        ValueError: It is not text, or longer than the limit.
    """
    if not isinstance(value, str) or len(value) > limit:
        raise ValueError(f"expected text of at most {limit} characters, got {quoted(value)}")
    return value


MOST_DIMENSIONS, MOST_ELEMENTS = 5, 1 << 26
"""Limits of one input."""
MOST_BATCH_ELEMENTS = 1 << 29
"""Limit of a batch of inputs: 2 GB in float32."""


def require_shape(value: Any) -> tuple[int, ...]:
    """Return the shape of one input, without the batch: positive sizes of a tensor that fits into memory.

    Raises:
        ValueError: It is not such a shape.
    """
    sizes = items(value)
    if not 1 <= len(sizes) <= MOST_DIMENSIONS:
        raise ValueError(f"expected 1 to {MOST_DIMENSIONS} sizes, got {quoted(value)}")
    shape = tuple(whole(size, MOST_ELEMENTS, 1) for size in sizes)
    if math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"expected at most {MOST_ELEMENTS} numbers, got {math.prod(shape)}")
    return shape


def require_batch(batch: int, shape: Sequence[int]) -> None:
    """Refuse batches of random inputs that do not fit into memory.

    Raises:
        ConfigError: The batch size is not positive, or too large.
    """
    most = MOST_BATCH_ELEMENTS // math.prod(shape)
    if batch < 1:
        raise ConfigError(f"expected a positive number (got {quoted(batch)}).", argument="batch")
    if batch > most:
        size = ",".join(map(str, shape))
        message = f"inputs of shape {size} go in batches of at most {most} (got {quoted(batch)})."
        raise ConfigError(message, argument="batch")
