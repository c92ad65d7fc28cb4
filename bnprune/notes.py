"""Notes and warnings: text for people, with a level and a code for programs."""

from __future__ import annotations

from typing import Literal

Level = Literal["note", "warning"]


class Note(str):
    """A remark about a network, a data set or a run.

    A note is its text, so it can be printed, searched and written to JSON like any other string. Code that reacts to a
    note compares `code`, and a display that shows warnings only looks at `level`: neither reads the text, whose wording
    may change.

    Args:
        code: A stable word, such as "macs.data_dependent".
        level: "warning" if something is likely to go wrong, else "note".
        text: One or two sentences for people.
    """

    __slots__ = ("code", "level")

    code: str
    level: Level

    def __new__(cls, code: str, level: Level, text: str) -> Note:  # noqa: D102 - see the class
        note = super().__new__(cls, text)
        object.__setattr__(note, "code", code)
        object.__setattr__(note, "level", level)
        return note

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Note is frozen")

    def __reduce__(self) -> tuple[type[Note], tuple[str, Level, str]]:
        return Note, (self.code, self.level, str(self))
