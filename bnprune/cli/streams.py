"""stdout and stderr that can be written to even if they are closed, full or no longer read."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from typing import Any, TextIO

from bnprune.errors import DataError


class _Descriptor(io.FileIO):
    """A file descriptor for output. The first error is stored, and all later output is dropped.

    A verb must not fail because nobody reads its output.
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
    """Replace stdout and stderr by streams that can be written to in any case."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # closed: the next file that is opened would get its number, and then the output
            os.open(os.devnull, os.O_RDWR)
    sys.stdout, sys.stderr = _tolerant(1, sys.stdout), _tolerant(2, sys.stderr)


def _tolerant(descriptor: int, stream: TextIO | None) -> TextIO:
    if stream is None:  # the descriptor was closed when Python started
        return io.TextIOWrapper(io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False)), "utf-8", "replace")
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    if not isinstance(getattr(stream.buffer, "raw", stream.buffer), io.FileIO):  # a Windows console, or a custom stream
        stream.reconfigure(errors="replace")  # γ and bars must not end a run if only ASCII can be shown
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(descriptor, "w", closefd=False)),
        stream.encoding,
        "replace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def exit_code(code: Any) -> Any:
    """Return the exit code of a verb that has ended with `code`; a different one if its output could not be written.

    If the reader has closed the pipe (as `head` does), it is 141, which shells report for SIGPIPE, without a message.
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
