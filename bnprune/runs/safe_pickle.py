"""Reading untrusted files of `torch.save`: only tensors and plain values, in bounded time and memory."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

_PICKLE_BYTES = 16 * 2**20
_SLOW = (b"punycode", b"idna")
"""Codecs that take quadratic time, and that PyTorch's restricted unpickler may call."""


def load_plain(path: Path) -> Any:
    """Load a file that `torch.save` wrote, with `weights_only=True`.

    Raises:
        ValueError: It holds more than tensors and plain values, is damaged, or takes far more memory than its size.
        OSError: It cannot be read.
    """
    _require_bounded(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - PyTorch's message must not be shown: it advises to load the file with weights_only=False
        raise ValueError("it is damaged, or holds more than tensors and plain values") from None


def _require_bounded(path: Path) -> None:
    """Check the records of the archive: `torch.save` stores them as they are, so that they fit into the file."""
    if not zipfile.is_zipfile(path):  # the format of PyTorch before 1.6: one pickle
        with path.open("rb") as file:
            _require_fast(file.read(_PICKLE_BYTES))
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, which files of torch.save are not")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its records overlap")
        for entry in entries:
            if entry.filename.endswith(".pkl"):
                if entry.file_size > _PICKLE_BYTES:
                    raise ValueError(f"its structure takes more than {_PICKLE_BYTES:,} bytes")
                _require_fast(archive.read(entry))


def _require_fast(pickled: bytes) -> None:
    if any(codec in pickled for codec in _SLOW):
        raise ValueError("it decodes text in a way that files of torch.save do not")
