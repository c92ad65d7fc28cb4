"""The commit of a git work tree, read from its files. Git is not called: it runs programs that `.git/config` names."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_REF = re.compile(r"ref: (refs/[\w./-]{1,200})", re.ASCII)
_MOST = 1 << 22
"""Largest file that is read, in bytes: packed-refs of a repository with about 50,000 tags."""


def revision(folder: Path) -> str | None:
    """Return the first twelve digits of the commit that is checked out in `folder`; None if there is none."""
    try:
        places = (place / ".git" for place in (folder, *folder.parents))
        there = next((place for place in places if place.exists()), None)
        commit = None if there is None else _head(there)
    except (OSError, ValueError):
        return None
    return None if commit is None else commit[:12]


def _head(git: Path) -> str | None:
    if git.is_file():  # of a linked work tree or a submodule: the path of its folder
        git = git.parent / _read(git).removeprefix("gitdir: ")
    head = _read(git / "HEAD")
    named = _REF.fullmatch(head)
    if named is None:
        return head if _HASH.fullmatch(head) else None
    common = git / _read(git / "commondir") if (git / "commondir").is_file() else git
    name = named[1]
    if ".." not in name and (common / name).is_file():
        commit = _read(common / name)
        return commit if _HASH.fullmatch(commit) else None
    lines = _read(common / "packed-refs").splitlines() if (common / "packed-refs").is_file() else []
    packed = (line.partition(" ") for line in lines)
    return next((commit for commit, _, ref in packed if ref == name and _HASH.fullmatch(commit)), None)


def _read(path: Path) -> str:
    """Read a short text file. Raises OSError for a pipe or a device."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("not a regular file")
        return file.read(_MOST).decode("utf-8", "replace").strip()
