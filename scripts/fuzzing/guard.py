"""A forked process in which a case runs: its own folders and streams, and an audit hook that records and refuses.

Python's audit hooks see execution, sockets and files as Python code asks for them. What extension modules open by
themselves (safetensors does) they do not see; for those, the driver watches the folder that nothing may open.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import socket
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

_DATA_LOADER = os.path.join("torch", "utils", "data", "dataloader.py")  # noqa: PTH118 - part of a name
_MULTIPROCESSING = f"{os.sep}multiprocessing{os.sep}"
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_LARGEST_FILE = 2**30
REFUSED = "refused by the fuzzer"
READY = "ready"
"""The event after which limits hold."""

# fmt: off
_EXECUTION = frozenset({
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.forkpty", "pty.spawn", "subprocess.Popen",
    "webbrowser.open",
})
_NETWORK = frozenset({
    "socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request", "http.client.connect",
    "ftplib.connect", "smtplib.connect",
})
# fmt: on
_FILES: dict[str, tuple[tuple[int, int], ...]] = {
    "os.mkdir": ((0, 2),),
    "os.rmdir": ((0, 1),),
    "os.remove": ((0, 1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.truncate": ((0, 9),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.setxattr": ((0, 9),),
    "os.removexattr": ((0, 9),),
    "shutil.rmtree": ((0, 1),),
}
"""Events that change files: where in their arguments a path stands, and the folder that it is relative to."""
_FOLLOWING = ("os.truncate", "os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr", "os.mkdir")
"""Those that act on what a link points to."""


class Guard:
    """The audit hook.

    Args:
        events: File descriptor to write what was refused to.
        folders: Where files may be written.
        modules: Modules that must not be imported.
    """

    def __init__(self, events: int, folders: tuple[Path, ...], modules: frozenset[str]) -> None:
        self.events = events
        self.folders = tuple(os.path.realpath(folder) + os.sep for folder in folders)
        self.modules = modules
        self.rules: dict[str, Callable[[str, tuple[Any, ...]], str | None]] = {
            **dict.fromkeys(_EXECUTION, self._execution),
            **dict.fromkeys(_NETWORK, self._network),
            **dict.fromkeys(_FILES, self._changes),
            "os.fork": self._forks,
            "os.kill": self._kills,
            "os.killpg": self._kills,
            "socket.sendto": self._sends,
            "socket.sendmsg": self._sends,
            "socket.connect": self._connects,
            "socket.bind": self._connects,
            "open": self._opens,
            "import": self._imports,
            "pickle.find_class": self._unpickles,
            "ctypes.dlopen": self._links,
        }

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        """Refuse what no case may do."""
        rule = self.rules.get(event)
        problem = rule(event, args) if rule else None
        if problem:
            self.record(problem)
            raise PermissionError(1, f"{REFUSED}: {problem}")

    def record(self, text: str) -> None:
        """Tell the driver."""
        os.write(self.events, (" ".join(text.split())[:300] + "\n").encode("utf-8", "replace"))

    def _execution(self, event: str, args: tuple[Any, ...]) -> str:
        return f"execution: {event} {args[:2]!r}"

    def _network(self, event: str, args: tuple[Any, ...]) -> str:
        return f"network: {event} {args!r}"

    def _sends(self, event: str, args: tuple[Any, ...]) -> str | None:
        return None if args[0].family == socket.AF_UNIX else f"network: {event} {args!r}"

    def _connects(self, event: str, args: tuple[Any, ...]) -> str | None:
        address = args[1]
        local = isinstance(address, str | bytes) and self._inside(address)
        return None if local else f"network: {event} {address!r}"

    def _forks(self, event: str, _: tuple[Any, ...]) -> str | None:
        return None if _called_from(_DATA_LOADER) else f"execution: {event}"

    def _kills(self, event: str, args: tuple[Any, ...]) -> str | None:
        return None if args[0] == os.getpid() or _called_from(_MULTIPROCESSING) else f"execution: {event} {args!r}"

    def _opens(self, _: str, args: tuple[Any, ...]) -> str | None:
        path, mode, flags = args
        writes = any(letter in mode for letter in "wax+") if mode else bool((flags or 0) & _WRITING)
        if isinstance(path, int) or not writes or self._inside(path):
            return None
        return f"outside: opens {os.fsdecode(path)!r} to write"

    def _changes(self, event: str, args: tuple[Any, ...]) -> str | None:
        for place, folder in _FILES[event]:
            path = args[place]
            if isinstance(path, int):
                path = f"/proc/self/fd/{path}"
            elif folder < len(args) and isinstance(args[folder], int) and args[folder] >= 0:
                path = f"/proc/self/fd/{args[folder]}/{os.fsdecode(path)}"
            text = os.fsdecode(path)
            if event == "os.mkdir" and Path(text).is_dir():
                continue  # it fails, and changes nothing
            if not self._inside(text if event in _FOLLOWING else _unfollowed(text)):
                return f"outside: {event} {text!r}"
        return None

    def _inside(self, path: Any) -> bool:
        text = os.fsdecode(path)
        return text in (os.devnull, "/dev/tty") or (os.path.realpath(text) + os.sep).startswith(self.folders)

    def _imports(self, _: str, args: tuple[Any, ...]) -> str | None:
        return f"import: {args[0]}" if args[0].partition(".")[0] in self.modules else None

    def _unpickles(self, _: str, args: tuple[Any, ...]) -> str | None:
        return None if _called_from(_MULTIPROCESSING) else f"unpickled: {args[0]}.{args[1]}"

    def _links(self, _: str, args: tuple[Any, ...]) -> str | None:
        name = args[0]
        loaded = isinstance(name, str | bytes) and os.sep in os.fsdecode(name) and self._inside(name)
        return f"execution: ctypes.dlopen {name!r}" if loaded else None


def _unfollowed(path: str) -> str:
    """Return the folder that a path is changed in: of a link, the link is what goes, not what it points to."""
    return str(Path(path).parent) if Path(path).name else path


def _called_from(part: str) -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if part in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def isolate(slot: Path) -> int:
    """Make this forked process work in a slot: folders and streams; return where events go."""
    os.setsid()
    os.chdir(slot / "work")
    for stream, name in ((0, os.devnull), (1, slot / "stdout"), (2, slot / "stderr")):
        descriptor = os.open(name, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    for name in [name for name in os.environ if name.startswith(("BNPRUNE", "FUZZ"))]:
        del os.environ[name]
    scratch = str(slot / "scratch")
    os.environ |= dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "MPLCONFIGDIR"), scratch)
    tempfile.tempdir = None
    sys.dont_write_bytecode = True
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).name != "scripts"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE, _LARGEST_FILE))
    warnings.resetwarnings()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    return os.open(slot / "events", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _redirect(stdout: str) -> None:
    if stdout == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif stdout == "unread":  # a pipe whose reader has gone, such as `head -1`
        reader, writer = os.pipe()
        os.dup2(writer, 1)
        os.close(reader)
    elif stdout == "closed":
        os.close(1)
    # As Python does when it starts; the streams of the parent remember what they led to.
    sys.stdout = None if stdout == "closed" else open(1, "w", closefd=False)  # type: ignore[assignment] # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)  # noqa: SIM115


def watch(slot: Path, events: int, allowed: tuple[str, ...], stdout: str = "") -> Guard:
    """Start to refuse: from here on, nothing may be executed, fetched, or written outside the slot."""
    _redirect(stdout)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory starts anew
    modules = frozenset(path.stem for path in (slot / "work").glob("*.py")) - set(allowed)
    guard = Guard(events, (slot / "work", slot / "scratch"), modules)
    guard.record(READY)
    sys.addaudithook(guard)
    return guard


def leave(guard_of: Callable[[], Guard | None], work: Callable[[], int]) -> NoReturn:
    """Do the work and end this process, whatever happens; the guard, if there is one by then, is informed."""
    code = 1
    try:
        code = work()
    except BaseException:  # noqa: BLE001 - every one of them is a finding
        traceback.print_exc()
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 1
        guard = guard_of()
        if guard is not None:
            guard.record(f"end {code}")
        os._exit(code)
