"""Atomic writing: a crash, a full disk or a second writer never leaves an incomplete file."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

from bnprune.errors import ConfigError, DataError

_TEMPORARY = (".bnprune-", ".tmp")
"""Prefix and suffix of temporary folders, with 8 characters in between: short, however long the name of the file is."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write to a temporary file beside `path`, flush it to disk, and rename it into place.

    The temporary file is in a folder of its own, so that other files that `write` creates are removed as well:
    safetensors, for example, writes a temporary file itself.

    Raises:
        DataError: The file cannot be written; an earlier file at `path` is unchanged.
    """
    require_replaceable(path)
    prefix, suffix = _TEMPORARY
    try:
        _make_folder(path.parent)
        with TemporaryDirectory(suffix, prefix, path.parent, ignore_cleanup_errors=True) as folder:
            temporary = Path(folder) / "content"
            temporary.touch()
            mode = temporary.stat().st_mode  # of the umask; `write` may change it
            write(temporary)
            temporary.chmod(stat.S_IMODE(mode))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        kept = " The previous file is intact." if path.is_file() else ""
        raise DataError(f"'{path}' cannot be written: {reason}.{kept}") from error


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # what exists is a file, and "File exists" would sound like the output itself
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it.

    Raises:
        DataError: It cannot be made.
    """
    try:
        _make_folder(path)
    except OSError as error:
        raise DataError(f"'{path}' cannot be made: {error.strerror}.") from error


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary folders of processes that were killed while they wrote into a folder."""
    for found in folder.glob("????????".join(_TEMPORARY)):
        if found.is_dir() and not found.is_symlink():
            shutil.rmtree(found, ignore_errors=True)


def real_path(path: Path) -> Path:
    """Return a path without symbolic links. `Path.resolve` raises RuntimeError if links form a loop."""
    return Path(os.path.realpath(path))


def write_json(path: Path, data: Any) -> None:
    """Write data as indented JSON, atomically."""
    text = json.dumps(plain(data), indent=2) + "\n"
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def write_text(path: Path, text: str) -> None:
    """Write text, atomically."""
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def append_text(path: Path, text: str) -> None:
    """Append to a text file, not through a link.

    Raises:
        DataError: The file cannot be written.
    """
    try:
        with open(path, "a", encoding="utf-8", opener=_without_links) as file:
            file.write(text)
    except OSError as error:
        raise DataError(f"'{path}' cannot be written: {error.strerror}.") from error


def truncate(path: Path, size: int) -> None:
    """Shorten a file to a number of bytes, not through a link.

    Raises:
        DataError: The file cannot be written.
    """
    try:
        with open(path, "r+b", opener=_without_links) as file:
            file.truncate(size)
    except OSError as error:
        raise DataError(f"'{path}' cannot be written: {error.strerror}.") from error


def _without_links(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="replace")  # for names of files that are not UTF-8


def plain(data: Any) -> Any:
    """Return data of JSON types: paths become text, tuples and sets become lists, NaN and infinity become None."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple | set | frozenset):
        return [plain(value) for value in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    if isinstance(data, Path):
        return str(data)
    return data


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


def require_replaceable(path: Path) -> None:
    """Refuse to overwrite anything but a regular file: the rename would replace a device or a link.

    Links are refused even if they lead to a regular file, so that only the file that is named can be replaced.

    Raises:
        DataError: The path is not a regular file, or cannot be used as a name.
    """
    if kind := _irregular_kind(path):
        raise DataError(f"'{path}' is {kind}, and only regular files are overwritten. Remove it, or rename it.")


def _irregular_kind(path: Path) -> str | None:
    """Return "a folder" and the like; None for a regular file, and if nothing is there."""
    require_utf8(path)
    try:
        kind = stat.S_IFMT(path.lstat().st_mode)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"'{path}' cannot be written: {error.strerror}.") from error
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "not a regular file")


def require_utf8(path: Path) -> None:
    """Refuse a name that could be written, but not read again: safetensors supports only UTF-8.

    Raises:
        DataError: The name is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{os.fsencode(path)!r} is not a name in UTF-8. Choose another.") from error


def require_free_file(path: Path, *, force: bool, option: str = "out") -> None:
    """Refuse an output file that exists already, unless `force` is set.

    Raises:
        ConfigError: The file exists, and `force` is not set.
        DataError: The path is a folder, a device or a link, or cannot be used as a name.
    """
    if kind := _irregular_kind(path):
        raise DataError(f"'{path}' is {kind}. Give the name of a file.", argument=option)
    _require_free(path, taken=path.exists(), force=force, option=option)


def require_free_folder(path: Path, *, force: bool) -> None:
    """Refuse an output folder that is not empty, unless `force` is set.

    Raises:
        ConfigError: The folder is not empty, and `force` is not set.
        DataError: The path is a file, or cannot be used as a name.
    """
    require_utf8(path)
    if os.path.lexists(path) and not path.is_dir():
        raise DataError(f"'{path}' is a file. Give the name of a folder.", argument="out")
    _require_free(path, taken=path.is_dir() and any(path.iterdir()), force=force)


def _require_free(path: Path, *, taken: bool, force: bool, option: str = "out") -> None:
    if taken and not force:
        message = f"'{path}' exists. Choose another name, or overwrite it."
        raise ConfigError(message, argument=option, remedy={"force": True})
