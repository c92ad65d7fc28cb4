"""Text on its way to the terminal, and the streams that carry it."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

from bnprune.errors import DataError


class _Descriptor(io.FileIO):
    """A descriptor for output. The first error in writing is kept, and what follows is dropped.

    The work of a verb must not fail because nobody reads its output.
    """

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        if self.failure is None:
            try:
                return super().write(data)
            except OSError as error:
                self.failure = error
        return memoryview(data).nbytes


def open_streams() -> None:
    """Make stdout and stderr safe to write to, whether they are open, closed, full or not read any longer."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would take its number, and the output of others with it
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _kept(1, sys.stdout), _kept(2, sys.stderr)


def _kept(descriptor: int, stream: TextIO | None) -> TextIO:
    if stream is None:  # Python has found the descriptor closed
        return io.TextIOWrapper(io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False)), "utf-8", "replace")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if not isinstance(
        getattr(stream.buffer, "raw", stream.buffer), io.FileIO
    ):  # a console of Windows, or somebody's own stream
        stream.reconfigure(errors="replace")  # γ and bars must not end a run if only ASCII can be shown
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False)),
        stream.encoding,
        "replace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def exit_code(code: Any) -> Any:
    """Return the exit code of a verb that has ended with `code`: another one if its output could not be written.

    A reader that has seen enough is no error: the code is the one a shell gives for SIGPIPE.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    failure = getattr(getattr(getattr(sys.stdout, "buffer", None), "raw", None), "failure", None)
    if failure is None or code:
        return code
    if failure.errno == errno.EPIPE:
        return 141
    sys.stderr.write(f"error: the output cannot be written: {failure.strerror}. Files are complete.\n")
    return DataError.exit_code
