"""The types of recipe keys: numbers with bounds, names, paths, and the marks of keys that are checked further."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from bnprune.config.prune_options import path_problem

# The upper bounds exclude nothing sensible; they keep numbers within float32, and sizes within memory.
Positive = Annotated[float, Field(ge=1e-12, le=1e6, allow_inf_nan=False)]
Rate = Annotated[float, Field(ge=1e-12, le=1e20, allow_inf_nan=False)]
"""Large enough to let a training diverge: the training itself reports that."""
NonNegative = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
Epochs = Annotated[int, Field(ge=1, le=100_000, strict=True)]
Name = Annotated[str, Field(max_length=500)]
Switch = Annotated[bool, Field(strict=True)]


def _output_path(value: Any) -> str:
    problem = path_problem(value)
    if problem:
        raise ValueError(problem)
    return str(value)


OutputPath = Annotated[str, BeforeValidator(_output_path)]
"""Path of indices and keys that names an output of a network, such as `0.1`."""


@dataclass(frozen=True, eq=False)
class OneOf:
    """Restricts text to the names of a table, which is read anew each time: names can be registered in Python."""

    table: Mapping[str, Any]
    others: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The names that are allowed now."""
        return (*self.table, *self.others)

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(str))

    def _check(self, value: Any) -> Any:
        if value not in self.names:
            *first, last = map(repr, self.names)
            expected = f"{', '.join(first)} or {last}"
            raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
        return value


@dataclass(frozen=True)
class UserOnly:
    """Marks a key that names code, a path or a download, or starts a program.

    Such a key is read from a recipe that the user gives, and ignored in a recipe inside a checkpoint: a file from a
    stranger is only data.
    """

    needed: bool = True
    """True if the recipe means something else without the key, so that the user has to give it again."""


def _require_path(path: Path) -> Path:
    text = str(path)
    if "\0" in text or len(text) > 4096:
        raise ValueError("must be a path: at most 4096 characters, none of them NUL")
    return path


FilePath = Annotated[Path, AfterValidator(_require_path)]


def _require_concentration(value: float) -> float:
    if 0 < value < 0.01:
        raise ValueError(f"must be 0, or at least 0.01 (got {value:g})")
    return value


Concentration = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False), AfterValidator(_require_concentration)]
"""Concentration of a Beta distribution. Samples are NaN for values between 0 and 0.01."""
