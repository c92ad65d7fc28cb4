"""Reading result.json and the saved state of a training, with checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from bnprune.config.bounded_reading import DATA_BYTES, parse_json, read_text
from bnprune.errors import CheckpointError, shortened
from bnprune.runs.results import RunResult
from bnprune.runs.safe_pickle import load_plain


def read_result(path: Path) -> RunResult:
    """Read the figures of the finished stages.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        return RunResult.model_validate(parse_json(read_text(path, DATA_BYTES)))
    except ValidationError as error:
        raise CheckpointError(f"'{path}' is damaged: {_first_problem(error)}.") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"'{path}' is damaged: {error}") from error


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = shortened(".".join(map(str, problem["loc"])))
    return f"'{where}': {problem['msg']}" if where else problem["msg"]


def save_state(content: Mapping[str, Any], path: Path) -> None:
    """Save the state of a training.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's message holds a position in the file; the reason is its context
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def read_state(path: Path) -> dict[str, Any]:
    """Read the state of a training, and check the parts that every training has; `State.restore` checks the others.

    Raises:
        CheckpointError: The file is damaged.
    """
    try:
        content = load_plain(path)
    except Exception:  # noqa: BLE001 - a damaged archive raises whatever zipfile finds
        raise CheckpointError("it cannot be read, or holds more than tensors and numbers.") from None
    if not isinstance(content, dict) or not isinstance(content.get("stage"), str):
        raise CheckpointError("it does not hold the state of a training.")
    seconds = content.get("seconds")
    if not _is_size(content.get("metrics_bytes")) or not isinstance(seconds, float) or not 0 <= seconds < math.inf:
        raise CheckpointError("'metrics_bytes' or 'seconds' is not a valid number.")
    return content


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
