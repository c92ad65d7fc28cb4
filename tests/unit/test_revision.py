"""The commit is read from git's files: git itself would run what a stranger's `.git/config` names."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bnprune.runs.directory import environment
from bnprune.runs.revision import revision

HASH = "0123456789abcdef0123456789abcdef01234567"


def git(folder: Path, *args: str) -> str:
    """Run git with an identity of its own, and nobody's configuration."""
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    where = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "PATH": os.environ["PATH"]}
    done = subprocess.run(["git", *args], cwd=folder, env=who | where, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "first")
    return folder


def test_it_is_the_commit_that_git_names(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")[:12]
    (repository / "below").mkdir()
    assert revision(repository) == revision(repository / "below") == commit
    git(repository, "worktree", "add", "--quiet", "../linked")
    assert revision(repository.parent / "linked") == commit
    git(repository, "pack-refs", "--all")
    assert revision(repository) == revision(repository.parent / "linked") == commit
    git(repository, "checkout", "--quiet", "--detach")
    assert revision(repository) == commit
    assert revision(repository.parent) is None


def test_no_program_that_the_configuration_names_is_run(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "file").write_text("")
    git(repository, "add", "file")
    (repository / ".git" / "config").write_text('[core]\nfsmonitor = "touch ran; false"\n')
    monkeypatch.chdir(repository)
    assert environment()["git"] is not None
    assert not (repository / "ran").exists()


@pytest.mark.parametrize(
    "head",
    [
        "",
        "ref: ",
        "ref: refs/heads/absent",
        "ref: refs/../../secret",
        "ref: /etc/passwd",
        HASH.upper(),
        HASH + "0",
        "\0",
    ],
)
def test_what_names_no_commit_is_none(head: str, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "secret").write_text(HASH)
    (tmp_path / ".git" / "HEAD").write_text(head)
    assert revision(tmp_path) is None


def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / ".git" / "HEAD")
    assert revision(tmp_path) is None


def test_a_file_in_place_of_a_folder_names_another_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "HEAD").write_text(f"{HASH}\n")
    (tmp_path / ".git").write_text("gitdir: elsewhere\n")
    assert revision(tmp_path) == HASH[:12]
    (tmp_path / ".git").write_text("gitdir: absent\n")
    assert revision(tmp_path) is None
