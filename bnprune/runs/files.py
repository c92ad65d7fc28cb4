"""Writing files so that a crash, a full disk or a second writer never leaves half of one."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnprune.errors import ConfigError, DataError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write to a temporary file beside `path`, flush it to disk, and rename it into place.

    Raises:
        DataError: The file cannot be written; whatever was at `path` before is still there.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _make_folder(path.parent)
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except Exception as error:
        _discard(temporary)
        if isinstance(error, OSError) or "I/O" in str(error) or "space" in str(error):
            reason = getattr(error, "strerror", None) or str(error)
            kept = " The previous file is intact." if path.is_file() else ""
            raise DataError(f"'{path}' cannot be written: {reason}.{kept}") from error
        raise
    except BaseException:  # interrupted: leave nothing behind
        _discard(temporary)
        raise


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # what exists is a file, and "File exists" would sound like the output itself
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error


def _discard(temporary: Path) -> None:
    # What went wrong before is the news: no second error about a file the user has never heard of.
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, data: Any) -> None:
    """Write data as indented JSON, atomically."""
    text = json.dumps(plain(data), indent=2) + "\n"
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def write_text(path: Path, text: str) -> None:
    """Write text, atomically."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def plain(data: Any) -> Any:
    """Return data as JSON knows it: paths as text, tuples as lists, NaN and infinity as null."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple | set | frozenset):
        return [plain(value) for value in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    if isinstance(data, Path):
        return str(data)
    return data


def require_free_file(path: Path, *, force: bool) -> None:
    """Refuse to write a file over something else.

    Raises:
        ConfigError: There is a file and `force` is off.
        DataError: There is a folder.
    """
    if path.is_dir():
        raise DataError(f"'{path}' is a folder. Give --out the name of a file.")
    _require_free(path, taken=path.exists(), force=force)


def require_free_folder(path: Path, *, force: bool) -> None:
    """Refuse to write into a folder that holds something.

    Raises:
        ConfigError: The folder is not empty and `force` is off.
        DataError: There is a file.
    """
    if path.exists() and not path.is_dir():
        raise DataError(f"'{path}' is a file. Give --out the name of a folder.")
    _require_free(path, taken=path.is_dir() and any(path.iterdir()), force=force)


def _require_free(path: Path, *, taken: bool, force: bool) -> None:
    if taken and not force:
        raise ConfigError(f"'{path}' exists. Choose another --out, or give --force to overwrite it.")
