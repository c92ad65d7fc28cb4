"""The remark that PyTorch is being loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from bnprune.cli.verbosity import VERBOSITY, echo
from bnprune.training.distributed import torchrun_env


@contextmanager
def loading_torch() -> Iterator[None]:
    """Say that torch is being loaded, which takes seconds: on a terminal, only until it is."""
    if VERBOSITY.quiet or "torch" in sys.modules or torchrun_env.rank():
        yield
        return
    transient = sys.stderr.isatty()
    echo("loading PyTorch ...", err=True, nl=not transient)
    try:
        yield
    finally:
        if transient:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
